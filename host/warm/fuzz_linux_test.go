package warm

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/skepdev/skep/host/pool"
	"github.com/skepdev/skep/internal/jsonfd"
)

// FuzzRequest: whatever a line says, to a service that has nothing in stock, it
// is malformed, or answered; a refusal has a kind, a reason and a sentence.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		`{"id":1,"echo":{"text":"x"}}`, `{"id":2,"get":{"for":"x","timeout_ms":0,"hold_ms":1}}`, `{"id":3,"confirm":{"room":"r","generation":1,"keep_ms":1}}`,
		`{"id":4,"bind":{"room":"r","at":"/x"}}`, `{"id":5,"exec":{"room":"r","args":["sh"],"limits":{"memory":-1}}}`, `{"id":6,"signal":{"room":"r","exec":5,"signal":15}}`,
		`{"id":7,"release":{"room":"r"}}`, `{"id":8,"status":{}}`, `{"id":0}`, `{"id":9,"get":{},"status":{}}`, `[`, `{"id":1e3,"nothing":{}}`,
	} {
		f.Add([]byte(s))
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(f.TempDir(), "s"), Net: "unix"})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = l.Close() })
	f.Fuzz(func(t *testing.T, line []byte) {
		var r pool.Request
		if jsonfd.Decode(line, &r) != nil {
			return
		}
		if r.Shutdown != nil { // stops what this does not have
			return
		}
		from, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: l.Addr().String(), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		defer from.Close()
		to, err := l.AcceptUnix()
		if err != nil {
			t.Fatal(err)
		}
		s := &Service{rooms: map[string]*cell{}, clients: map[*client]bool{}, stopping: true}
		s.o.Now, s.o.Runtime = time.Now, nothing{}
		c := &client{s: s, conn: jsonfd.NewConn(to), uid: uint32(os.Geteuid()), rooms: map[*cell]bool{}, execs: map[uint64]running{}, asked: map[uint64]bool{}} //nolint:gosec // an id
		malformed := c.take(&r) != nil
		c.finish()
		answers := jsonfd.NewConn(from)
		n := 0
		for {
			said, err := answers.Receive()
			if err != nil {
				break
			}
			n++
			var a pool.Response
			if err := json.Unmarshal(said, &a); err != nil || a.ID != r.ID {
				t.Fatalf("%q is answered with %q", line, said)
			}
			if e := a.Error; e != nil && (e.Kind == "" || e.Kind == "internal" || e.Reason == "" || e.Text == "") {
				t.Fatalf("%q is refused with %q", line, said)
			}
		}
		if malformed == (n > 0) {
			t.Fatalf("%q: malformed %v, %d answers", line, malformed, n)
		}
	})
}

// nothing is a runtime that only has a name.
type nothing struct{ Runtime }

func (nothing) Name() string { return "nothing" }
