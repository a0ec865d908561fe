package warm_test

import (
	"errors"
	"flag"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/host/pool"
	"github.com/skepdev/skep/host/room"
	"github.com/skepdev/skep/host/warm"
	"github.com/skepdev/skep/host/warm/lxc"
	"github.com/skepdev/skep/host/warm/oci"
	"github.com/skepdev/skep/host/warm/warmtest"
	"github.com/skepdev/skep/internal/need"
	"github.com/skepdev/skep/internal/proc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRuntimes(t *testing.T) {
	t.Run("crun", func(t *testing.T) { warmtest.Suite(t, &oci.Runtime{Program: "crun", State: t.TempDir()}) })
	t.Run("runc", func(t *testing.T) { warmtest.Suite(t, &oci.Runtime{Program: "runc", State: t.TempDir()}) })
	t.Run("lxc", func(t *testing.T) { warmtest.Suite(t, &lxc.Runtime{}) })
	t.Run("docker", func(t *testing.T) { warmtest.Suite(t, dockerRuntime(t)) })
}

// A room's first process that cannot run is noticed at once.
func TestBrokenRooms(t *testing.T) {
	t.Run("crun", func(t *testing.T) { warmtest.Broken(t, &oci.Runtime{Program: "crun", State: t.TempDir()}) })
	t.Run("runc", func(t *testing.T) { warmtest.Broken(t, &oci.Runtime{Program: "runc", State: t.TempDir()}) })
	t.Run("lxc", func(t *testing.T) { warmtest.Broken(t, &lxc.Runtime{}) })
	t.Run("docker", func(t *testing.T) { warmtest.Broken(t, dockerRuntime(t)) })
}

// Other users of the host get at nothing of a room's, and one who connects to
// its socket all the same is not taken for the room.
func TestRoomsArePrivate(t *testing.T) {
	type first struct {
		dir, run string
		err      error
	}
	came := make(chan first, 1)
	s := warmtest.Start(t, warm.Options{Size: warm.Size{Min: 1, Max: 1}, Runtime: &warmtest.Fake{Break: func(s *warm.Spec) error {
		c, err := net.Dial("unix", filepath.Join(s.Run, room.SocketName)) // as root, which is not the room's
		if err == nil {
			_, _ = c.Write([]byte(`{"hello":true}` + "\n")) // it may be turned away before that
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}
		came <- first{s.Dir, s.Run, err}
		return nil
	}}})
	c := warmtest.Dial(t, s)
	st := warmtest.Await(t, c, func(st *pool.Status) bool { return st.Ready == 1 })
	other := <-came
	dir, run := other.dir, other.run
	if st.Totals.Failed != 0 || other.err != nil {
		t.Errorf("after somebody else came: %+v, %v", st, other.err)
	}
	for d := run; d != filepath.Dir(filepath.Dir(dir)); d = filepath.Dir(d) {
		fi, err := os.Stat(d)
		if err != nil {
			t.Fatal(err)
		}
		owner := fi.Sys().(*syscall.Stat_t) //nolint:errcheck // of this system
		if d != run && (fi.Mode().Perm() != 0o710 || owner.Uid != 0 || owner.Gid != 1_000_000) {
			t.Errorf("%s: %v of %d:%d", d, fi.Mode(), owner.Uid, owner.Gid)
		}
	}
	for _, path := range []string{run, filepath.Join(filepath.Dir(s.Socket()), "bases")} {
		p, err := proc.Start(&proc.Cmd{Path: "/bin/ls", Args: []string{"ls", path}, Dir: "/", User: &proc.User{UID: 65534, GID: 65534}})
		if err != nil {
			t.Fatal(err)
		}
		if p.Wait().Code == 0 {
			t.Errorf("another user looks into %s", path)
		}
	}
}

// Base images that no room is of any more are removed.
func TestOldBasesGo(t *testing.T) {
	if os.Geteuid() != 0 {
		need.Skip(t, "root", "a pool needs root")
	}
	dir, err := os.MkdirTemp("/var/tmp", "skep-warm-") //nolint:usetesting // rooms' users pass through
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	old := filepath.Join(dir, "bases", strings.Repeat("0", 64)+"-1000000")
	if err := errors.Join(os.Chmod(dir, 0o755), os.MkdirAll(filepath.Join(old, "root", "bin"), 0o755)); err != nil { //nolint:gosec // as said
		t.Fatal(err)
	}
	s := warmtest.Start(t, warm.Options{Dir: dir, Runtime: &warmtest.Fake{}, Size: warm.Size{Min: 1, Max: 1}})
	c := warmtest.Dial(t, s)
	warmtest.Await(t, c, func(st *pool.Status) bool {
		_, err := os.Stat(old)
		return st.Ready == 1 && errors.Is(err, os.ErrNotExist)
	})
	if left, err := os.ReadDir(filepath.Join(dir, "bases")); err != nil || len(left) != 1 {
		t.Errorf("bases: %v, %v", left, err)
	}
}

// Base images lie side by side while rooms of both are used. One that cannot be
// used changes nothing.
func TestRebase(t *testing.T) {
	first := warmtest.Base(t)
	s := warmtest.Start(t, warm.Options{Runtime: &warmtest.Fake{}, Base: first, Size: warm.Size{Min: 2, Max: 4}})
	c := warmtest.Dial(t, s)
	held, err := c.Get(t.Context(), pool.Get{For: "a", Confirm: true, TimeoutMS: 30_000})
	if err != nil {
		t.Fatal(err)
	}
	lent, err := c.Get(t.Context(), pool.Get{For: "b", TimeoutMS: 30_000})
	if err != nil {
		t.Fatal(err)
	}
	second := warmtest.Base(t, [2]string{"etc-version", "2"})
	for _, tt := range []struct {
		name string
		ask  pool.Rebase
		kind skep.Kind
	}{
		{"another digest", pool.Rebase{File: second.File, Digest: first.Digest[:len(first.Digest)-1] + "x"}, skep.Invalid},
		{"not what it says", pool.Rebase{File: second.File, Digest: "sha256:" + strings.Repeat("0", 64)}, skep.Precondition},
		{"no file", pool.Rebase{File: second.File + "x", Digest: second.Digest}, skep.Precondition},
		{"a relative path", pool.Rebase{File: "base.tar", Digest: second.Digest}, skep.Invalid},
	} {
		if err := c.Rebase(t.Context(), tt.ask); skep.KindOf(err) != tt.kind {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	bases := filepath.Join(filepath.Dir(s.Socket()), "bases")
	look := func(want pool.Status, dirs ...string) {
		t.Helper()
		warmtest.Await(t, c, func(st *pool.Status) bool {
			left, err := os.ReadDir(bases)
			if err != nil {
				t.Fatal(err)
			}
			ok := st.Base == want.Base && st.Ready == want.Ready && st.Used == want.Used && st.Leased == want.Leased && st.Ending == 0 && len(left) == len(dirs)
			for _, d := range dirs {
				ok = ok && slices.ContainsFunc(left, func(e os.DirEntry) bool { return strings.HasPrefix(e.Name(), strings.TrimPrefix(d, "sha256:")) })
			}
			return ok
		})
	}
	look(pool.Status{Base: first.Digest, Ready: 2, Used: 1, Leased: 1}, first.Digest)
	if err := c.Rebase(t.Context(), pool.Rebase{File: second.File, Digest: second.Digest}); err != nil {
		t.Fatal(err)
	}
	look(pool.Status{Base: second.Digest, Ready: 2, Used: 1, Leased: 1}, first.Digest, second.Digest)
	// One that comes back unused is of the old image, and goes.
	other := warmtest.Dial(t, s)
	if _, err := other.Get(t.Context(), pool.Get{For: "c", TimeoutMS: 30_000}); err != nil {
		t.Fatal(err)
	}
	if err := c.Release(t.Context(), lent.Lease); err != nil {
		t.Fatal(err)
	}
	look(pool.Status{Base: second.Digest, Ready: 2, Used: 1, Leased: 1}, first.Digest, second.Digest)
	if err := c.Release(t.Context(), held.Lease); err != nil {
		t.Fatal(err)
	}
	look(pool.Status{Base: second.Digest, Ready: 2, Leased: 1}, second.Digest)
	// And back: what is not there any more is unpacked again.
	if err := c.Rebase(t.Context(), pool.Rebase{File: first.File, Digest: first.Digest}); err != nil {
		t.Fatal(err)
	}
	_ = other.Close() // its room is of the second image, and does not go back into stock
	look(pool.Status{Base: first.Digest, Ready: 2}, first.Digest)
}

// Who may use a pool may not end it for all others.
func TestShutdownIsForTheOwner(t *testing.T) {
	const other = 65534
	s := warmtest.Start(t, warm.Options{Runtime: &warmtest.Fake{}, Size: warm.Size{Min: 1, Max: 1}, Users: []uint32{other}})
	if err := os.Chmod(s.Socket(), 0o666); err != nil { //nolint:gosec // stands for a group that the user is in
		t.Fatal(err)
	}
	var c *pool.Client
	var err error
	proc.OnThread(func() {
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, other, other, other); errno != 0 {
			err = errno
			return
		}
		c, err = pool.Dial(t.Context(), s.Socket())
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Echo(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	if err := c.Shutdown(t.Context()); skep.KindOf(err) != skep.Denied || pool.Reason(err) != pool.ReasonDenied {
		t.Errorf("Shutdown by user %d = %v", other, err)
	}
	if err := c.Rebase(t.Context(), pool.Rebase{File: "/x"}); skep.KindOf(err) != skep.Denied || pool.Reason(err) != pool.ReasonDenied {
		t.Errorf("Rebase by user %d = %v", other, err)
	}
	if st, err := warmtest.Dial(t, s).Status(t.Context()); err != nil || !st.Running {
		t.Errorf("status %+v, %v", st, err)
	}
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

// Who came first is served first, who goes waits no more, and an end answers all
// who wait and all who asked for it. Promises L9, L10.
func TestWaitersAreServedInOrder(t *testing.T) {
	gate := make(chan struct{})
	s := warmtest.Start(t, warm.Options{Size: warm.Size{Limit: 8, Creators: 1}, Runtime: &warmtest.Fake{Break: func(*warm.Spec) error {
		<-gate
		return nil
	}}})
	c := warmtest.Dial(t, s)
	type served struct {
		who int
		err error
	}
	got := make(chan served, 8)
	clients := map[int]*pool.Client{}
	wait := func(who, waiting int) {
		t.Helper()
		client := warmtest.Dial(t, s)
		clients[who] = client
		go func() {
			_, err := client.Get(t.Context(), pool.Get{TimeoutMS: 600_000, HoldMS: 60_000})
			got <- served{who, err}
		}()
		warmtest.Await(t, c, func(st *pool.Status) bool { return st.Waiting == waiting })
	}
	for who := range 4 {
		wait(who, who+1)
	}
	_ = clients[1].Close()
	if one := <-got; one.who != 1 || one.err == nil {
		t.Errorf("the client that went: %+v", one)
	}
	warmtest.Await(t, c, func(st *pool.Status) bool { return st.Waiting == 3 })
	for _, who := range []int{0, 2, 3} {
		gate <- struct{}{}
		if one := <-got; one.who != who || one.err != nil {
			t.Errorf("served is %+v, want %d", one, who)
		}
	}
	wait(4, 1)
	wait(5, 2)
	enders := make(chan error, 3)
	for range cap(enders) {
		ender := warmtest.Dial(t, s)
		go func() { enders <- ender.Shutdown(t.Context()) }()
	}
	for range 2 {
		if one := <-got; one.who < 4 || one.err == nil {
			t.Errorf("at the end: %+v", one)
		}
	}
	close(gate)
	for range cap(enders) {
		if err := <-enders; err != nil {
			t.Errorf("Shutdown = %v", err)
		}
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

var gets = flag.Int("gets", 40, "rooms that TestNoBadRoomIsHandedOut takes; 2000 is the long form")

// One start in five fails. Every room that is handed out works. Promise L3; that
// rooms which break later are not handed out is TestBrokenRooms.
func TestNoBadRoomIsHandedOut(t *testing.T) {
	var starts, failed atomic.Int32
	s := warmtest.Start(t, warm.Options{Size: warm.Size{Min: 2, Max: 6}, Runtime: &warmtest.Fake{Break: func(*warm.Spec) error {
		if starts.Add(1) != 3 && rand.IntN(5) != 0 { // the third, so that one does
			return nil
		}
		failed.Add(1)
		return errors.New("broken on purpose")
	}}})
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for range *gets {
		c, err := pool.Dial(t.Context(), s.Socket())
		if err != nil {
			t.Fatal(err)
		}
		r, err := c.Get(t.Context(), pool.Get{For: "test", TimeoutMS: 120_000, Confirm: true})
		if err != nil {
			t.Fatal(err)
		}
		cmd, err := c.Start(t.Context(), pool.Exec{Lease: r.Lease, Args: []string{"/bin/true"}}, [3]*os.File{null, null, null})
		if err != nil {
			t.Fatalf("%s was handed out and starts nothing: %v", r.Lease.Room, err)
		}
		if code, err := cmd.Wait(t.Context()); err != nil || code != 0 {
			t.Fatalf("%s was handed out and does not work: exit code %d, %v", r.Lease.Room, code, err)
		}
		if err := c.Release(t.Context(), r.Lease); err != nil {
			t.Error(err)
		}
		_ = c.Close()
	}
	t.Logf("%d rooms taken; %d of %d starts failed", *gets, failed.Load(), starts.Load())
	if failed.Load() == 0 {
		t.Error("no start failed: this shows nothing")
	}
}

// A room that was not heard of for a minute is asked before it is handed out. L3
// of promises.md.
func TestAnOldRoomIsAsked(t *testing.T) {
	var later atomic.Int64
	fake := &warmtest.Fake{}
	s := warmtest.Start(t, warm.Options{Runtime: fake, Size: warm.Size{Min: 1, Max: 1}, Now: func() time.Time { return time.Now().Add(time.Duration(later.Load())) }})
	c := warmtest.Dial(t, s)
	warmtest.Await(t, c, func(st *pool.Status) bool { return st.Ready == 1 })
	later.Store(int64(2 * time.Minute))
	first, err := c.Get(t.Context(), pool.Get{TimeoutMS: 30_000})
	if err != nil {
		t.Fatal(err) // it is old, and answers
	}
	warmtest.Await(t, c, func(st *pool.Status) bool { return st.Ready == 1 })
	if err := fake.Freeze(); err != nil {
		t.Fatal(err)
	}
	later.Store(int64(4 * time.Minute))
	second, err := c.Get(t.Context(), pool.Get{TimeoutMS: 30_000})
	if err != nil {
		t.Fatal(err)
	}
	st, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	silent := func(room string) bool {
		return slices.ContainsFunc(st.Errors, func(f pool.Failed) bool { return strings.Contains(f.Text, room+" did not answer") })
	}
	if !silent("") || silent(second.Room) || silent(first.Room) || st.Totals.Made < 3 || first.Room == second.Room {
		t.Errorf("%s and %s; %+v", first.Room, second.Room, st)
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
		need.Skip(t, "root", "a pool needs root")
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
