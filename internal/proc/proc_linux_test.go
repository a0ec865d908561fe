package proc

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep/internal/need"
)

// TestMain makes the test binary PID 1 of namespaces.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		os.Exit(InitMain())
	}
	os.Exit(m.Run())
}

func shell(script string) *Cmd {
	return &Cmd{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin"}}
}

// output starts c with a pipe and returns how it ended and what it wrote.
func output(t *testing.T, start func(*Cmd) (*Process, error), c *Cmd) (Status, string) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c.Files = []*os.File{nil, w, w}
	p, err := start(c)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return p.Wait(), string(b)
}

func TestStart(t *testing.T) {
	t.Setenv("GORACE", "")
	os.Unsetenv("GORACE") // which children would get
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		c    *Cmd
		code int
		out  string
	}{
		{"exit code and both streams", shell("echo a; echo b >&2; exit 3"), 3, "a\nb\n"},
		{"a signal", shell("kill -TERM $$"), -15, ""},
		{"no inherited environment", shell("env | grep -v -e ^PWD= -e ^_= -e ^SHLVL="), 0, "PATH=/usr/bin:/bin\n"},
		{"an empty stdin", shell("cat; echo end"), 0, "end\n"},
		{"a directory", &Cmd{Path: "/bin/pwd", Args: []string{"pwd", "-P"}, Dir: dir}, 0, dir + "\n"},
		{"a group of its own", &Cmd{Path: "/bin/sh", Args: []string{"sh", "-c", `test "$(ps -o pgid= -p $$ | tr -d ' ')" = $$ && echo yes`}, Env: []string{"PATH=/usr/bin:/bin"}, NewGroup: true}, 0, "yes\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			status, out := output(t, Start, tt.c)
			if status.Code != tt.code || out != tt.out || status.Signal != (tt.code < 0) || status.Ended.IsZero() {
				t.Errorf("%+v, %q", status, out)
			}
		})
	}
}

func TestStartFails(t *testing.T) {
	for _, tt := range []struct {
		name string
		c    *Cmd
		want error
	}{
		{"no executable", &Cmd{Path: "/no/such", Args: []string{"x"}}, syscall.ENOENT},
		{"not executable", &Cmd{Path: "/etc/passwd", Args: []string{"x"}}, syscall.EACCES},
		{"no directory", &Cmd{Path: "/bin/true", Args: []string{"x"}, Dir: "/no/such"}, syscall.ENOENT},
		{"too many arguments", &Cmd{Path: "/bin/true", Args: []string{strings.Repeat("x", 4<<20)}}, syscall.E2BIG},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := Start(tt.c); !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
		})
	}
}

// TestStartOfABusyExecutable waits for who has it open for writing to let go,
// as the children of other goroutines do when they exec, and not for ever.
func TestStartOfABusyExecutable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho ran\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	open := func() *os.File {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	writer := open()
	time.AfterFunc(50*time.Millisecond, func() { writer.Close() })
	if status, out := output(t, Start, &Cmd{Path: path, Args: []string{path}}); status.Code != 0 || out != "ran\n" {
		t.Errorf("%+v, %q", status, out)
	}
	defer open().Close()
	_, err := Start(&Cmd{Path: path, Args: []string{path}})
	if e, ok := errors.AsType[*ExecError](err); !ok || !errors.Is(err, syscall.ETXTBSY) || !e.Program() {
		t.Errorf("error %v while it is written to", err)
	}
}

// TestTankOfALateReader: what the process wrote is not lost when its end is
// known before the reader had a turn, though another holds the pipe.
func TestTankOfALateReader(t *testing.T) {
	tk, err := newTank(10)
	if err != nil {
		t.Fatal(err)
	}
	defer tk.close()
	held, err := syscall.Dup(int(tk.w.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(held)
	if _, err := tk.w.WriteString("last words"); err != nil {
		t.Fatal(err)
	}
	if err := tk.r.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	tk.fill()
	<-tk.done // the reader came too late
	if out, cut := tk.empty(); string(out) != "last words" || cut {
		t.Errorf("%q, cut %v", out, cut)
	}
}

// TestChooseAtOnce: probes of one process do not meet.
func TestChooseAtOnce(t *testing.T) {
	want, err := Choose("")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if got, err := Choose(""); err != nil || got != want {
				t.Errorf("%s, %v, want %s", got, err, want)
			}
		})
	}
	wg.Wait()
}

// TestSignalAfterEnd never reaches whoever has the pid by then.
func TestSignalAfterEnd(t *testing.T) {
	p, err := Start(shell("exit 0"))
	if err != nil {
		t.Fatal(err)
	}
	p.Wait()
	if err := errors.Join(p.Terminate(), p.Kill()); !errors.Is(err, ErrGone) {
		t.Errorf("error %v", err)
	}
}

// TestThreadState: what one start did to its thread must not show in another.
func TestThreadState(t *testing.T) {
	before, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		c := shell("pwd")
		c.Dir = "/"
		if os.Geteuid() == 0 {
			c.View = &View{Hide: t.TempDir()}
		}
		if _, out := output(t, Start, c); out != "/\n" {
			t.Fatalf("directory %q", out)
		}
		if _, out := output(t, Start, shell("pwd")); out != before+"\n" {
			t.Fatalf("directory %q, want %q", out, before)
		}
	}
	own, err := os.ReadFile("/proc/thread-self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(own, []byte("skep-")) {
		t.Errorf("we are in %s", own)
	}
}

func eachPlace(t *testing.T, f func(t *testing.T, pl *Place)) {
	for _, m := range linuxMethods {
		t.Run(string(m), func(t *testing.T) {
			if _, err := Choose(m); err != nil {
				if strings.Contains(os.Getenv("SKEP_TEST_REQUIRE"), string(m)) {
					t.Fatal(err)
				}
				t.Skipf("NOT TESTED: %v", err)
			}
			pl, err := NewPlace(m, fmt.Sprintf("skep-test-%d-%s", os.Getpid(), m))
			if err != nil {
				t.Fatal(err)
			}
			pl.Init = []string{os.Args[0], "init"}
			f(t, pl)
			if err := pl.Remove(); err != nil {
				t.Error(err)
			}
			for _, d := range pl.Dirs {
				if _, err := os.Stat(d); err == nil {
					t.Errorf("%s is left", d)
				}
			}
		})
	}
}

func TestPlace(t *testing.T) {
	eachPlace(t, func(t *testing.T, pl *Place) {
		status, out := output(t, pl.Start, shell("echo in; exit 6"))
		if status.Code != 6 || out != "in\n" {
			t.Errorf("%+v, %q", status, out)
		}
		if err := errors.Join(pl.Kill(20*time.Second), pl.Kill(20*time.Second)); err != nil {
			t.Error(err)
		}
	})
}

func TestPlaceReportsStart(t *testing.T) {
	eachPlace(t, func(t *testing.T, pl *Place) {
		if _, err := pl.Start(&Cmd{Path: "/no/such", Args: []string{"x"}}); !errors.Is(err, syscall.ENOENT) {
			t.Errorf("error %v", err)
		}
	})
}

func TestPlaceTerminates(t *testing.T) {
	eachPlace(t, func(t *testing.T, pl *Place) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		c := shell("trap 'exit 7' TERM; echo up; while :; do sleep 0.01; done")
		c.Files = []*os.File{nil, w, w}
		p, err := pl.Start(c)
		w.Close()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Read(make([]byte, 8)); err != nil {
			t.Fatal(err)
		}
		if err := p.Terminate(); err != nil {
			t.Fatal(err)
		}
		if s := p.Wait(); s.Code != 7 {
			t.Errorf("%+v", s)
		}
		if err := errors.Join(pl.Kill(20*time.Second), SweepChildren(20*time.Second)); err != nil {
			t.Error(err)
		}
	})
}

// TestOrphansAreReaped while the task runs.
func TestOrphansAreReaped(t *testing.T) {
	eachPlace(t, func(t *testing.T, pl *Place) {
		count := "ps -eo stat,comm | grep -c '^Z.*skep-orphan'"
		status, out := output(t, pl.Start, shell(`cd "$(mktemp -d)"; cp /bin/true skep-orphan
for i in 1 2 3 4 5 6 7 8 9; do (./skep-orphan &) ; done
for i in $(seq 100); do n=$(`+count+`); test "$n" = 0 && break; sleep 0.02; done; echo $n`))
		if status.Code != 0 || out != "0\n" {
			t.Errorf("%+v, %q zombies", status, out)
		}
		if err := errors.Join(pl.Kill(20*time.Second), SweepChildren(20*time.Second)); err != nil {
			t.Error(err)
		}
	})
}

// TestPlaceNested removes cgroups that a task made inside its own.
func TestPlaceNested(t *testing.T) {
	need.Root(t, "cgroups")
	eachPlace(t, func(t *testing.T, pl *Place) {
		if len(pl.Dirs) == 0 {
			t.Skip("no cgroup")
		}
		inner := filepath.Join(pl.Dirs[0], "a", "b")
		status, out := output(t, pl.Start, shell("mkdir -p "+inner+" && echo $$ > "+inner+"/cgroup.procs && (setsid sleep 300 >/dev/null 2>&1 </dev/null &) ; echo in"))
		if status.Code != 0 || out != "in\n" {
			t.Fatalf("%+v, %q", status, out)
		}
		if err := errors.Join(pl.Kill(20*time.Second), SweepChildren(20*time.Second)); err != nil {
			t.Error(err)
		}
	})
}

func TestView(t *testing.T) {
	need.Root(t, "mounts")
	hidden := t.TempDir()
	for _, d := range []string{"bot/w/ir", "bot/secret"} {
		if err := os.MkdirAll(filepath.Join(hidden, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	keep := filepath.Join(hidden, "bot/w/ir")
	c := shell("cd " + hidden + " && find . | sort; echo x > bot/w/ir/f; touch y 2>/dev/null || echo refused")
	c.View = &View{Hide: hidden, Keep: []string{keep}}
	status, out := output(t, Start, c)
	if want := ".\n./bot\n./bot/w\n./bot/w/ir\nrefused\n"; status.Code != 0 || out != want {
		t.Errorf("%+v, %q", status, out)
	}
	if b, err := os.ReadFile(filepath.Join(keep, "f")); err != nil || string(b) != "x\n" {
		t.Errorf("what was written: %q, %v", b, err)
	}
	c = shell("true")
	c.View = &View{Hide: hidden, Keep: []string{"/etc"}}
	if _, err := Start(c); err == nil {
		t.Error("a path outside can be kept")
	}
}

// TestViewCover: of a directory that lies elsewhere nothing is seen, and nothing
// written there; one that is missing is none; who starts the task sees it still.
func TestViewCover(t *testing.T) {
	need.Root(t, "mounts")
	shared := t.TempDir()
	secret := filepath.Join(shared, "secret")
	if err := os.WriteFile(secret, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		view View
		want string
	}{
		{"not covered", View{}, "secret\n"},
		{"covered", View{Cover: []string{shared}}, "refused\n"},
		{"with one that is missing before it", View{Cover: []string{filepath.Join(shared, "gone"), shared}}, "refused\n"},
		{"beside what is hidden", View{Hide: t.TempDir(), Cover: []string{shared}}, "refused\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := shell("ls " + shared + "; rm -f " + shared + "/new; (echo y > " + shared + "/new) 2>/dev/null || echo refused")
			c.View = &tt.view
			status, out := output(t, Start, c)
			if status.Code != 0 || out != tt.want {
				t.Errorf("%+v, %q, want %q", status, out, tt.want)
			}
			if err := os.Remove(filepath.Join(shared, "new")); (err == nil) != (tt.name == "not covered") {
				t.Errorf("what was written below it: %v", err)
			}
			if b, err := os.ReadFile(secret); err != nil || string(b) != "x" {
				t.Errorf("outside of the view: %q, %v", b, err)
			}
		})
	}
	c := shell("true")
	c.View = &View{Cover: []string{secret}}
	if _, err := Start(c); err == nil {
		t.Error("a file passes for a directory that is covered")
	}
}

func TestParseHierarchies(t *testing.T) {
	for _, tt := range []struct {
		name, mounts, own string
		want              cgroups
	}{
		{"unified", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw", "0::/user.slice/a.service\n", cgroups{unified: "/sys/fs/cgroup/user.slice/a.service"}},
		{
			"hybrid", "1 2 0:1 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n" +
				"3 2 0:2 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n4 2 0:3 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids",
			"9:name=systemd:/\n8:pids:/x\n6:freezer:/\n0::/\n",
			cgroups{unified: "/sys/fs/cgroup/unified", freezer: "/sys/fs/cgroup/freezer", pids: "/sys/fs/cgroup/pids/x"},
		},
		{"container: a part is mounted", "1 2 0:1 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup rw", "0::/docker/abc/sub\n", cgroups{unified: "/sys/fs/cgroup/sub"}},
		{"we are outside of what is mounted", "1 2 0:1 /a /cg rw - cgroup2 cgroup rw", "0::/b\n", cgroups{unified: "/cg"}},
		{"joined controllers and escapes", `1 2 0:1 / /my\040cg rw - cgroup cgroup rw,cpu,freezer`, "2:cpu,freezer:/t\n", cgroups{freezer: "/my cg/t"}},
		{"none", "1 2 0:1 / / rw - ext4 /dev/sda rw\nshort\n", "", cgroups{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, cgroupsOf(parseHierarchies(tt.mounts, tt.own)), cmp.AllowUnexported(cgroups{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func FuzzParseHierarchies(f *testing.F) {
	f.Add(`1 2 0:1 / /my\040cg rw - cgroup cgroup rw,cpu,freezer`, "2:cpu,freezer:/t\n")
	f.Fuzz(func(t *testing.T, mounts, own string) { parseHierarchies(mounts, own) })
}

func TestIsolateNamesOnePairPerBot(t *testing.T) {
	a, b := Isolate("/bots/a", nil), Isolate("/bots/b", nil)
	need.Root(t, "users of their own")
	if a.User == nil || b.User == nil || *a.User == *b.User || a.User.UID < narrowFirst {
		t.Errorf("%+v and %+v", a.User, b.User)
	}
	if mine := (&User{UID: 1234, GID: 5}); Isolate("/bots/a", mine).User != mine {
		t.Error("another user than asked for")
	}
}
