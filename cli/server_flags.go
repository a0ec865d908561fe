package cli

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skepdev/skep/client"
	"github.com/skepdev/skep/internal/servercert"
)

// serverFlags are what up and server share: where the server listens, who it
// says it is, and where its state lies (decisions.md 7, 8 and 12).
type serverFlags struct {
	storeFlags
	listen, config, botDir string
	urls                   []string
	tlsCert, tlsKey        string
	selfSigned             bool
	behindProxy            bool
	debug                  bool
}

func (s *serverFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	s.storeFlags.register(cmd)
	f.StringVar(&s.listen, "listen", "127.0.0.1:8900", "`ADDRESS` to listen at; any but a loopback address needs TLS and an admin token")
	f.StringVar(&s.config, "config", "", "`DIR` with settings.cfg, pools.cfg, bots.cfg and scripts")
	f.StringArrayVar(&s.urls, "url", nil, "public `URL` of the server; repeatable, the first is the bots' (default: the listen address)")
	f.StringVar(&s.tlsCert, "tls-cert", "", "`FILE` with the certificate chain, read again when it changes")
	f.StringVar(&s.tlsKey, "tls-key", "", "`FILE` with its key")
	f.BoolVar(&s.selfSigned, "tls-self-signed", false, "make a certificate, signed by an authority in the state directory")
	f.StringVar(&s.botDir, "bot-dir", "", "`DIR` with skep-bot executables (default: where skep lies)")
	f.BoolVar(&s.debug, "debug", false, "log more")
	_ = cmd.MarkFlagDirname("config")
	_ = cmd.MarkFlagDirname("bot-dir")
	cmd.MarkFlagsRequiredTogether("tls-cert", "tls-key")
	cmd.MarkFlagsMutuallyExclusive("tls-cert", "tls-self-signed")
}

// storeFlags say where the state is.
type storeFlags struct{ stateDir, db string }

func (s *storeFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&s.stateDir, "state-dir", "", "`DIR` of the state (default $SKEP_STATE_DIR, or ~/.local/state/skep)")
	cmd.Flags().StringVar(&s.db, "db", "", "postgres `URL` without a password (default $SKEP_DB, or SQLite in the state directory)")
	_ = cmd.MarkFlagDirname("state-dir")
}

// directory returns the state directory, absolute; it exists afterwards.
func (s *storeFlags) directory(env *Env) (string, error) {
	dir := cmp.Or(s.stateDir, env.Getenv("SKEP_STATE_DIR"))
	if dir == "" {
		home := env.Getenv("HOME")
		switch state := env.Getenv("XDG_STATE_HOME"); {
		case filepath.IsAbs(state):
			dir = filepath.Join(state, "skep")
		case home != "":
			dir = filepath.Join(home, ".local", "state", "skep")
		default:
			dir = "skep-state"
		}
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("--state-dir: %w", err)
	}
	if err := os.MkdirAll(abs, 0o700); err != nil {
		return "", fmt.Errorf("--state-dir: %w", err)
	}
	return abs, nil
}

// dsn returns what store.Open takes. A password on the command line would be
// seen by every user of the machine.
func (s *storeFlags) dsn(env *Env, stateDir string) (string, error) {
	if s.db == "" {
		if db := env.Getenv("SKEP_DB"); db != "" {
			if _, err := parseDB(db); err != nil {
				return "", fmt.Errorf("SKEP_DB: %w", err)
			}
			return db, nil
		}
		return filepath.Join(stateDir, "skep.db"), nil
	}
	u, err := parseDB(s.db)
	if err != nil {
		return "", fmt.Errorf("--db: %w", err)
	}
	if _, has := u.User.Password(); has || u.Query().Has("password") {
		return "", errors.New("--db: a password in an argument is seen by all; put the URL into SKEP_DB, or the password into a file named by PGPASSFILE")
	}
	return s.db, nil
}

func parseDB(db string) (*url.URL, error) {
	u, err := url.Parse(db)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return nil, errors.New("want a postgres:// URL") // the text may hold a password
	}
	return u, nil
}

// door is how the server is reached.
type door struct {
	open        bool // a loopback address without TLS: a server without tokens lets everybody in
	urls        []string
	hosts       []string // for a certificate of our own
	source      servercert.Source
	authority   *servercert.Authority
	behindProxy bool
}

// door decides from the flags and the address the listener got.
func (s *serverFlags) door(addr *net.TCPAddr, stateDir string) (*door, error) {
	d := &door{behindProxy: s.behindProxy}
	loopback := addr.IP.IsLoopback()
	secure := s.tlsCert != "" || s.selfSigned
	if !loopback && !secure && !s.behindProxy {
		return nil, fmt.Errorf("--listen %s is not a loopback address and needs TLS: --tls-cert and --tls-key, or --tls-self-signed, or --behind-proxy where a proxy does TLS", s.listen)
	}
	d.open = loopback && !s.behindProxy
	if err := s.addresses(d, addr, secure); err != nil {
		return nil, err
	}
	var err error
	switch {
	case s.tlsCert != "":
		d.source, err = servercert.Files(s.tlsCert, s.tlsKey)
		if err != nil {
			err = fmt.Errorf("--tls-cert: %w", err)
		}
	case s.selfSigned:
		if d.authority, err = servercert.OpenAuthority(filepath.Join(stateDir, "tls"), time.Now); err == nil {
			d.source = d.authority.Source(d.hosts)
		}
	}
	return d, err
}

// addresses fills in the URLs of the server: those of the flags, or the one
// that the listen address makes.
func (s *serverFlags) addresses(d *door, addr *net.TCPAddr, secure bool) error {
	scheme := "http"
	if secure {
		scheme = "https"
	}
	for _, raw := range s.urls {
		u, err := client.ParseServer(raw)
		if err != nil {
			return fmt.Errorf("--url: %w", err)
		}
		d.urls = append(d.urls, u)
	}
	host, _, _ := net.SplitHostPort(s.listen)
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		if len(d.urls) == 0 {
			return fmt.Errorf("--listen %s is every address of this machine; say with --url which name bots and clients use, as --url %s://NAME:%d", s.listen, scheme, addr.Port)
		}
	} else if len(d.urls) == 0 {
		if s.behindProxy {
			return errors.New("--behind-proxy needs --url, the address at which the proxy is reached")
		}
		d.urls = []string{fmt.Sprintf("%s://%s", scheme, net.JoinHostPort(host, fmt.Sprint(addr.Port)))}
	}
	d.hosts = []string{"localhost", "127.0.0.1", "::1"}
	for _, raw := range d.urls {
		if u, err := url.Parse(raw); err == nil {
			d.hosts = append(d.hosts, u.Hostname())
		}
	}
	return nil
}

// listenFor wraps the listener in TLS where the door has it.
func (d *door) listenFor(l net.Listener) net.Listener {
	if d.source == nil {
		return l
	}
	return tls.NewListener(l, d.tlsConfig())
}

// tlsConfig offers HTTP/1.1 first to browsers and bots; h2 is for gRPC
// (decisions.md 27).
func (d *door) tlsConfig() *tls.Config {
	return &tls.Config{GetCertificate: d.source, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
}

// local returns a URL at which this machine reaches the server.
func (d *door) local() string { return strings.TrimSuffix(d.urls[0], "/") }
