package cli

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
)

// serverFlags are what up and server share: where the server listens, who it
// says it is, and where its state lies (decisions.md 7, 8 and 12).
type serverFlags struct {
	storeFlags
	cas                    casFlags
	swarming               swarmingFlags
	machines               machineFlags
	listen, config, botDir string
	urls                   []string
	tlsCert, tlsKey        string
	tlsClientCA            string
	selfSigned             bool
	behindProxy            bool
	noProvider             bool
	metricsToken           string
	level                  slog.Level
}

func (s *serverFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	s.storeFlags.register(cmd)
	f.StringVar(&s.listen, "listen", "127.0.0.1:8900", "`ADDRESS` to listen at; any but a loopback address needs TLS and an admin token")
	f.StringVar(&s.config, "config", "", "`DIR` with settings.cfg, pools.cfg, bots.cfg and scripts")
	f.StringArrayVar(&s.urls, "url", nil, "public `URL` of the server; repeatable, the first is the bots' (default: the listen address)")
	f.StringVar(&s.tlsCert, "tls-cert", "", "`FILE` with the certificate chain, read again when it changes")
	f.StringVar(&s.tlsKey, "tls-key", "", "`FILE` with its key")
	f.StringVar(&s.tlsClientCA, "tls-client-ca", "", "`FILE` with the authorities of client certificates, which bots.cfg can ask for")
	f.BoolVar(&s.selfSigned, "tls-self-signed", false, "make a certificate, signed by an authority in the state directory")
	s.cas.register(f)
	s.swarming.register(cmd)
	s.machines.register(cmd)
	f.StringVar(&s.botDir, "bot-dir", "", "`DIR` with skep-bot executables (default: where skep lies)")
	f.BoolVar(&s.behindProxy, "behind-proxy", false, "a proxy in front does TLS; needs --url and an admin token")
	f.BoolVar(&s.noProvider, "no-provider", false, "leave the machines of vms.cfg to skep provider run; needs PostgreSQL")
	f.StringVar(&s.metricsToken, "metrics-token-file", "", "`FILE` with a token that may read /metrics and nothing else, read again each time")
	f.TextVar(&s.level, "log-level", slog.LevelInfo, "debug, info, warn or error")
	_ = cmd.MarkFlagDirname("config")
	_ = cmd.MarkFlagDirname("bot-dir")
	cmd.MarkFlagsRequiredTogether("tls-cert", "tls-key")
	cmd.MarkFlagsMutuallyExclusive("tls-cert", "tls-self-signed")
	cmd.MarkFlagsMutuallyExclusive("cas", "cas-max-size")
	cmd.MarkFlagsMutuallyExclusive("cas", "cas-min-free")
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
