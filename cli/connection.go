package cli

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skepdev/skep/client"
)

// defaultServer is where skep up listens.
const defaultServer = "http://127.0.0.1:8900"

// connection are the flags of every command that talks to a server.
// spec/cli-and-ui.md §1.1; accounts of the existing client are replaced by
// tokens (decisions.md 7).
type connection struct {
	server, tokenFile, caFile, account string
	connectTimeout                     time.Duration
	quiet, verbose                     bool
}

func (c *connection) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&c.server, "server", "S", "", "server's `URL` (default $SKEP_SERVER, $SWARMING_SERVER, or "+defaultServer+")")
	f.StringVar(&c.tokenFile, "token-file", "", "`FILE` with an API token (default $SKEP_TOKEN)")
	f.StringVar(&c.caFile, "ca-file", "", "`FILE` with certificates to trust, for a self-signed server (default $SKEP_CA_FILE)")
	f.DurationVar(&c.connectTimeout, "connect-timeout", 2*time.Second, "how long to try a server that refuses connections")
	f.BoolVar(&c.quiet, "quiet", false, "no notes on stderr")
	f.BoolVar(&c.verbose, "verbose", false, "log every call to stderr")
	f.StringVar(&c.account, "service-account-json", "", "not supported, see --token-file")
	_ = f.MarkHidden("service-account-json")
	_ = cmd.MarkFlagFilename("token-file")
	_ = cmd.MarkFlagFilename("ca-file")
}

// open makes a client of the server that flags and environment name. It sends
// nothing.
func (c *connection) open(env *Env) (*fleet, error) {
	if c.account != "" {
		return nil, errors.New("--service-account-json: skep knows API tokens; use --token-file or SKEP_TOKEN")
	}
	server, err := c.url(env)
	if err != nil {
		return nil, err
	}
	token := strings.TrimSpace(env.Getenv("SKEP_TOKEN"))
	if c.tokenFile != "" {
		b, err := os.ReadFile(c.tokenFile)
		if err != nil {
			return nil, fmt.Errorf("--token-file: %w", err)
		}
		if token = strings.TrimSpace(string(b)); token == "" {
			return nil, fmt.Errorf("--token-file: %s is empty", c.tokenFile)
		}
	}
	var roots *x509.CertPool
	if file := cmp.Or(c.caFile, env.Getenv("SKEP_CA_FILE")); file != "" {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("--ca-file: %w", err)
		}
		if roots, err = certPool(pem); err != nil {
			return nil, fmt.Errorf("--ca-file: %s %w", file, err)
		}
	}
	return newFleet(env, c, server, token, roots)
}

// url is the normalised address of the server.
func (c *connection) url(env *Env) (string, error) {
	raw, from := c.server, "--server"
	for _, name := range []string{"SKEP_SERVER", "SWARMING_SERVER"} {
		if raw == "" {
			raw, from = env.Getenv(name), name
		}
	}
	if raw == "" {
		return defaultServer, nil
	}
	server, err := client.ParseServer(raw)
	if err != nil {
		return "", fmt.Errorf("%s: %w", from, err)
	}
	return server, nil
}

// certPool trusts whom this host trusts, and the authorities of pem.
func certPool(pem []byte) (*x509.CertPool, error) {
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if !roots.AppendCertsFromPEM(pem) {
		return nil, errors.New("holds no certificate in PEM form")
	}
	return roots, nil
}
