package warm_test

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/host/pool"
	"github.com/skepdev/skep/host/warm"
	"github.com/skepdev/skep/host/warm/lxc"
	"github.com/skepdev/skep/host/warm/oci"
	"github.com/skepdev/skep/host/warm/warmtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRuntimes(t *testing.T) {
	t.Run("crun", func(t *testing.T) { warmtest.Suite(t, &oci.Runtime{Program: "crun", State: t.TempDir()}) })
	t.Run("runc", func(t *testing.T) { warmtest.Suite(t, &oci.Runtime{Program: "runc", State: t.TempDir()}) })
	t.Run("lxc", func(t *testing.T) { warmtest.Suite(t, &lxc.Runtime{}) })
}

func TestMissingRuntime(t *testing.T) {
	if err := (&oci.Runtime{Program: "no-such-runtime"}).Check(t.Context()); skep.KindOf(err) != skep.Precondition {
		t.Errorf("Check = %v, want a precondition", err)
	}
}

func TestAClientThatGoes(t *testing.T) {
	s := warmtest.Start(t, warm.Options{Runtime: &warmtest.Fake{}, Size: warm.Size{Min: 1, Max: 1, Limit: 1}})
	c := warmtest.Dial(t, s)
	get := func(timeout int64, confirm bool) *pool.Client {
		t.Helper()
		other := warmtest.Dial(t, s)
		if _, err := other.Get(t.Context(), pool.Get{For: "x", TimeoutMS: timeout, Confirm: confirm}); err != nil {
			t.Fatal(err)
		}
		return other
	}
	first := get(60_000, false)
	if _, err := c.Get(t.Context(), pool.Get{}); pool.Reason(err) != pool.ReasonNoStock || skep.KindOf(err) != skep.Exhausted {
		t.Errorf("a get of nothing: %v", err)
	}
	_ = first.Close()
	if st := warmtest.Await(t, c, func(st *pool.Status) bool { return st.Ready == 1 }); st.Totals.Returned != 1 || st.Totals.Made != 1 {
		t.Errorf("after an unconfirmed client went: %+v", st.Totals)
	}
	second := get(0, true)
	_ = second.Close()
	if st := warmtest.Await(t, c, func(st *pool.Status) bool { return st.Ready == 1 }); st.Totals.Removed != 1 || st.Totals.Made != 2 {
		t.Errorf("after a confirmed client went: %+v", st.Totals)
	}
}

func TestAnotherMayNotTakeIt(t *testing.T) {
	s := warmtest.Start(t, warm.Options{Runtime: &warmtest.Fake{}, Size: warm.Size{Min: 1, Max: 1}})
	a, b := warmtest.Dial(t, s), warmtest.Dial(t, s)
	r, err := a.Get(t.Context(), pool.Get{TimeoutMS: 60_000, HoldMS: 60_000})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Confirm(t.Context(), r.Lease, 0); pool.Reason(err) != pool.ReasonNotYours {
		t.Errorf("another confirms it: %v", err)
	}
	_ = a.Close()
	warmtest.Await(t, b, func(st *pool.Status) bool { return st.Clients == 1 })
	old := r.Lease
	old.Generation += 7
	if _, err := b.Confirm(t.Context(), old, 0); pool.Reason(err) != pool.ReasonNotYours {
		t.Errorf("another generation: %v", err)
	}
	if _, err := b.Confirm(t.Context(), r.Lease, 0); err != nil {
		t.Errorf("held for it: %v", err)
	}
}

func TestStartsThatFailAreNotHandedOut(t *testing.T) {
	var n atomic.Int32
	s := warmtest.Start(t, warm.Options{Size: warm.Size{Min: 1, Max: 4}, Runtime: &warmtest.Fake{Break: func(*warm.Spec) error {
		if n.Add(1) == 1 {
			return errors.New("broken on purpose")
		}
		return nil
	}}})
	c := warmtest.Dial(t, s)
	st := warmtest.Await(t, c, func(st *pool.Status) bool { return st.Ready == 1 && st.Ending == 0 })
	if st.Totals.Failed != 1 || len(st.Errors) != 1 || !strings.Contains(st.Errors[0].Text, "on purpose") || st.Paused != "" {
		t.Errorf("after a start that failed: %+v", st)
	}
}

func TestOnePoolPerDirectory(t *testing.T) {
	dir := t.TempDir()
	base := warmtest.Base(t)
	s := warmtest.Start(t, warm.Options{Dir: dir, Base: base, Runtime: &warmtest.Fake{}, Size: warm.Size{Max: 1, Limit: 1, Creators: 1}})
	if _, err := warm.New(t.Context(), warm.Options{Dir: filepath.Dir(s.Socket()), Base: base, Runtime: &warmtest.Fake{}}); skep.KindOf(err) != skep.Conflict {
		t.Errorf("a second pool: %v", err)
	}
}

func TestAWrongDigest(t *testing.T) {
	base := warmtest.Base(t)
	base.Digest = "sha256:" + strings.Repeat("0", 64)
	_, err := warm.New(t.Context(), warm.Options{Dir: t.TempDir(), Base: base, Program: "/bin/true", Runtime: &warmtest.Fake{}})
	if skep.KindOf(err) != skep.Precondition || !strings.Contains(err.Error(), "has the digest") {
		t.Errorf("New = %v", err)
	}
}

// Whatever a peer says, the service answers the next one.
func TestMalformed(t *testing.T) {
	s := warmtest.Start(t, warm.Options{Runtime: &warmtest.Fake{}, Size: warm.Size{Max: 1, Limit: 1, Creators: 1}})
	c := warmtest.Dial(t, s)
	for _, words := range []string{
		"what\n", "{}\n", `{"id":1}` + "\n", `{"id":1,"echo":{"text":"a"},"status":{}}` + "\n", `{"id":0,"echo":{"text":"a"}}` + "\n",
		`{"id":1,"echo":{"text":"a","more":1}}` + "\n", `{"id":1,"status":{}} {}` + "\n", strings.Repeat("x", 70_000), `{"id":1,"bind":{"room":"r","at":"/x"}}` + "\n",
	} {
		conn, err := net.Dial("unix", s.Socket())
		if err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = conn.Write([]byte(words)) }()
		b, err := io.ReadAll(conn)
		if !strings.Contains(string(b), `"malformed"`) {
			t.Errorf("%.40q: answer %q (%v)", words, b, err)
		}
		_ = conn.Close()
		if _, err := c.Echo(t.Context(), "still there"); err != nil {
			t.Fatalf("after %.40q: %v", words, err)
		}
	}
}

// A path that holds something else is not the pool's to remove, nor is a
// directory whose name would be that of somebody's cgroups.
func TestNothingOfOthersIsRemoved(t *testing.T) {
	if os.Geteuid() != 0 {
		warmtest.Require(t, "root", "a pool needs root")
	}
	dir, other := t.TempDir(), t.TempDir()
	for _, d := range []string{filepath.Join(dir, "rooms", "system.slice"), filepath.Join(other, "socket", "precious")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	_, err := warm.New(t.Context(), warm.Options{
		Dir: dir, Socket: filepath.Join(other, "socket"), Base: warmtest.Base(t), Program: warmtest.Program(t),
		Runtime: &warmtest.Fake{}, Size: warm.Size{Max: 1, Limit: 1, Creators: 1},
	})
	if skep.KindOf(err) != skep.Precondition || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a directory at the socket's path: %v", err)
	}
	for _, d := range []string{filepath.Join(dir, "rooms", "system.slice"), filepath.Join(other, "socket", "precious")} {
		if _, err := os.Stat(d); err != nil {
			t.Error(err)
		}
	}
}
