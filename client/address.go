package client

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
)

// ParseServer makes the base URL of a server from what a user wrote: without a scheme it is https, plain http is only
// for loopback addresses with a port, and what follows the host is dropped (spec/cli-and-ui.md §2.1).
func ParseServer(s string) (string, error) {
	s = strings.TrimSpace(s)
	if s == "" {
		return "", errors.New("the server address is empty")
	}
	whole := s
	if !strings.Contains(s, "://") {
		whole = "https://" + s
	}
	u, err := url.Parse(whole)
	if err != nil {
		return "", fmt.Errorf("server address %q is not a URL", s) // the reason may repeat a password
	}
	switch {
	case u.User != nil:
		return "", errors.New("a server address holds no user or password; give a token instead")
	case u.Scheme == "http":
		host, err := loopback(u)
		if err != nil {
			return "", fmt.Errorf("server address %q: %w", s, err)
		}
		return "http://" + host, nil
	case u.Scheme != "https":
		return "", fmt.Errorf("server address %q: the scheme must be https or http, not %s", s, u.Scheme)
	case u.Hostname() == "":
		return "", fmt.Errorf("server address %q names no host", s)
	}
	return "https://" + strings.ToLower(u.Host), nil
}

// loopback returns host and port of a loopback address; without a host it is 127.0.0.1.
func loopback(u *url.URL) (string, error) {
	host, port := strings.ToLower(u.Hostname()), u.Port()
	if host == "" {
		host = "127.0.0.1"
	}
	ip, err := netip.ParseAddr(host)
	if port == "" || host != "localhost" && (err != nil || !ip.IsLoopback()) {
		return "", errors.New("http:// can only be used with localhost servers and needs a port; use https:// elsewhere")
	}
	return net.JoinHostPort(host, port), nil
}
