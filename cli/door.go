package cli

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/skepdev/skep/client"
	"github.com/skepdev/skep/internal/oneport"
	"github.com/skepdev/skep/internal/servercert"
)

// door is how the server is reached.
type door struct {
	open      bool     // a loopback address: a server without tokens lets everybody in
	urls      []string // public addresses, the first is the bots'
	hosts     []string // names for a certificate of our own
	source    servercert.Source
	authority *servercert.Authority
	clients   *x509.CertPool // authorities of client certificates; nil = none are asked for
}

// door decides from the flags and the address the listener got.
func (s *serverFlags) door(addr *net.TCPAddr, stateDir string) (*door, error) {
	d := &door{}
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
	if err == nil && s.tlsClientCA != "" {
		d.clients, err = clientAuthorities(s.tlsClientCA, secure)
	}
	return d, err
}

func clientAuthorities(file string, secure bool) (*x509.CertPool, error) {
	if !secure {
		return nil, errors.New("--tls-client-ca needs TLS here: --tls-cert and --tls-key, or --tls-self-signed")
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("--tls-client-ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("--tls-client-ca: %s holds no certificate in PEM form", file)
	}
	return pool, nil
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

// split makes two listeners of the one, with TLS where the door has it:
// HTTP/1.1 for browsers, bots and commands, HTTP/2 for gRPC (decisions.md 27).
func (d *door) split(l net.Listener) *oneport.Port {
	if d.source == nil {
		return oneport.New(l, nil)
	}
	c := &tls.Config{GetCertificate: d.source, MinVersion: tls.VersionTLS12}
	d.askClients(c)
	return oneport.New(l, c)
}

// askClients lets clients show a certificate. One that is shown must be good.
func (d *door) askClients(c *tls.Config) {
	if d.clients != nil {
		c.ClientAuth, c.ClientCAs = tls.VerifyClientCertIfGiven, d.clients
	}
}
