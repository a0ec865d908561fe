package prpc

import (
	"net/http"
	"slices"
	"strings"
)

// CORS says which foreign pages may call a Server (spec/prpc.md §9).
type CORS struct {
	Allow       func(origin string) bool
	Credentials bool
	Headers     []string // request headers allowed besides the protocol's own
}

// corsHeaders are the request headers of the protocol.
var corsHeaders = []string{
	"Origin", "Content-Type", "Accept", "Authorization", headerTimeout, headerMaxResponse,
}

func (c *CORS) allows(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	return c != nil && origin != "" && c.Allow != nil && c.Allow(origin)
}

// mark adds what every answer to an allowed page has.
func (c *CORS) mark(h http.Header, r *http.Request) {
	if !c.allows(r) {
		return
	}
	h.Set("Access-Control-Allow-Origin", r.Header.Get("Origin"))
	h.Add("Vary", "Origin")
	if c.Credentials {
		h.Set("Access-Control-Allow-Credentials", "true")
	}
	if r.Method == http.MethodPost {
		h.Set("Access-Control-Expose-Headers", headerCode+", "+headerDetails)
	}
}

// preflight adds what the answer to OPTIONS has besides.
func (c *CORS) preflight(h http.Header, r *http.Request) {
	if !c.allows(r) {
		return
	}
	h.Set("Access-Control-Allow-Headers", strings.Join(slices.Concat(c.Headers, corsHeaders), ", "))
	h.Set("Access-Control-Allow-Methods", "OPTIONS, POST")
	h.Set("Access-Control-Max-Age", "600")
}
