package server

import (
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/skepdev/skep"
)

// door refuses requests that a web page in somebody's browser made: the Host
// must be a name of this server, and a foreign Origin is never welcome.
// decisions.md 7.
func (s *Server) door(r *http.Request) error {
	if !s.isHost(r.Host, r.TLS != nil) || !s.isURL(r.Host, r.TLS != nil) && !atPort(r) {
		return notKnownAs(r.Host)
	}
	origin := r.Header.Get("Origin")
	if origin == "" && r.Header.Get("Sec-Fetch-Site") != "cross-site" {
		return nil
	}
	u, err := url.Parse(origin)
	if err != nil || u.Host == "" || !s.isHost(u.Host, u.Scheme == "https") || !sameHost(u.Host, r.Host) {
		return skep.Errorf(skep.Denied, "requests from pages of %q are not accepted", clean(origin))
	}
	return nil
}

func notKnownAs(host string) error {
	return skep.Errorf(skep.Denied, "this server is not known as %q; use one of its addresses, or start it with --url", clean(host))
}

func sameHost(a, b string) bool { return strings.EqualFold(a, b) }

// isHost reports whether host is a name of this server: a loopback name, or
// one of its URLs.
func (s *Server) isHost(host string, tls bool) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.Trim(name, "[]")
	if strings.EqualFold(name, "localhost") {
		return true
	}
	if ip := net.ParseIP(name); ip != nil && ip.IsLoopback() {
		return true
	}
	return s.isURL(host, tls)
}

// atPort reports whether r names the port that it came to, as far as that is
// known: a page of another port of this machine must not pass its requests on.
func atPort(r *http.Request) bool {
	at, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	if !ok {
		return true
	}
	_, port, err := net.SplitHostPort(withPort(r.Host, r.TLS != nil))
	return err == nil && port == strconv.Itoa(at.Port)
}

// isURL reports whether host is that of one of the server's URLs.
func (s *Server) isURL(host string, tls bool) bool {
	return slices.ContainsFunc(s.o.URLs, func(raw string) bool {
		u, err := url.Parse(raw)
		return err == nil && sameHost(withPort(u.Host, u.Scheme == "https"), withPort(host, tls || u.Scheme == "https"))
	})
}

func withPort(host string, tls bool) string {
	if _, _, err := net.SplitHostPort(host); err == nil {
		return host
	}
	if tls {
		return host + ":443"
	}
	return host + ":80"
}

// hostOf returns the address under which r's sender knows this server: what a
// task is told. A name that is not one of ours never gets here.
func (s *Server) hostOf(r *http.Request) string {
	if len(s.o.URLs) > 0 {
		for _, raw := range s.o.URLs {
			if u, err := url.Parse(raw); err == nil && sameHost(withPort(u.Host, u.Scheme == "https"), withPort(r.Host, u.Scheme == "https")) {
				return raw
			}
		}
	}
	if r.TLS != nil {
		return "https://" + r.Host
	}
	return "http://" + r.Host
}

// peerIP returns the address that r came from.
func peerIP(r *http.Request) string {
	if h, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		return h
	}
	return r.RemoteAddr
}
