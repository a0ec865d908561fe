package cli

import (
	"crypto/x509"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/skepdev/skep/client"
	"github.com/skepdev/skep/provider/machine"
	"github.com/skepdev/skep/provider/swarming"
)

// swarmingFlags say how other Swarming servers are asked about the bots of
// machines that are theirs.
type swarmingFlags struct {
	tokens []string
	caFile string
}

func (s *swarmingFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&s.tokens, "swarming-token-file", nil, "`SERVER=FILE` with the token for another Swarming server that machines of vms.cfg are bots of, read again each time; repeatable")
	cmd.Flags().StringVar(&s.caFile, "swarming-ca-file", "", "`FILE` with certificates to trust for those servers")
	_ = cmd.MarkFlagFilename("swarming-ca-file")
}

// servers are the other Swarming servers, opened when they are needed.
type servers struct {
	tokens map[string]func() string // by server
	roots  *x509.CertPool           // nil = the system's

	mu     sync.Mutex
	opened map[string]*swarming.Server
}

// open reads the flags. The files must be good at the start.
func (s *swarmingFlags) open() (*servers, error) {
	out := &servers{tokens: map[string]func() string{}, opened: map[string]*swarming.Server{}}
	for _, kv := range s.tokens {
		raw, file, ok := strings.Cut(kv, "=")
		if !ok || file == "" {
			return nil, fmt.Errorf("--swarming-token-file %q: want SERVER=FILE, as https://swarming.example.com=/etc/skep/swarming.token", kv)
		}
		server, err := client.ParseServer(raw)
		if err != nil {
			return nil, fmt.Errorf("--swarming-token-file: %w", err)
		}
		read := tokenIn(file)
		if _, err := read(); err != nil {
			return nil, fmt.Errorf("--swarming-token-file: %w", err)
		}
		out.tokens[machine.ServerURL(server)] = func() string {
			token, err := read()
			if err != nil {
				return ""
			}
			return token
		}
	}
	if s.caFile != "" {
		pem, err := os.ReadFile(s.caFile)
		if err != nil {
			return nil, fmt.Errorf("--swarming-ca-file: %w", err)
		}
		if out.roots, err = certPool(pem); err != nil {
			return nil, fmt.Errorf("--swarming-ca-file: %s %w", s.caFile, err)
		}
	}
	return out, nil
}

// find returns a server by its URL as package machine writes it.
func (s *servers) find(server string) (machine.Swarming, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if have := s.opened[server]; have != nil {
		return have, nil
	}
	opened, err := swarming.New(swarming.Options{Server: server, Token: s.tokens[server], RootCAs: s.roots, UserAgent: "skep " + version()})
	if err != nil {
		return nil, err
	}
	s.opened[server] = opened
	return opened, nil
}

func (s *servers) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.opened {
		o.Close()
	}
	clear(s.opened)
}
