package cli

import (
	"crypto/x509"
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/code"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/prpc"
)

func TestHints(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		want string // "" = no hint
	}{
		{"nothing listens", prpc.Errorf(code.Code_UNAVAILABLE, "nothing listens at http://x: %w", syscall.ECONNREFUSED), "skep up"},
		{"authority unknown", prpc.Errorf(code.Code_UNAVAILABLE, "https://x: %w", x509.UnknownAuthorityError{}), "--ca-file"},
		{"certificate of another", prpc.Errorf(code.Code_UNAVAILABLE, "https://x: %w", x509.HostnameError{Certificate: &x509.Certificate{}}), ""},
		{"plain words to a TLS port", prpc.Errorf(code.Code_UNAVAILABLE, "http://x: %w", io.EOF), "https://"},
		{"a TLS connection that broke", prpc.Errorf(code.Code_UNAVAILABLE, "https://x: %w", io.EOF), ""},
		{"no token", prpc.Errorf(code.Code_UNAUTHENTICATED, "who are you"), "SKEP_TOKEN"},
		{"refused", skep.Errorf(skep.Denied, "no"), ""},
		{"anything else", errors.New("x"), ""},
	} {
		if got := hint(c.err); c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q in it", c.name, got, c.want)
		}
	}
}
