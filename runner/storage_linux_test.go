package runner

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/cas/cache"
	"github.com/skepdev/skep/cas/disk"
	"github.com/skepdev/skep/cas/reapi"
	"github.com/skepdev/skep/cas/remote"
	"github.com/skepdev/skep/internal/need"
)

// newStorage is a server's storage with a client of it.
func newStorage(t testing.TB) (url string, c *remote.Client) {
	t.Helper()
	store, err := disk.Open(t.Context(), disk.Options{Dir: filepath.Join(t.TempDir(), "cas"), MinFree: 1})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := reapi.New(reapi.Options{Store: reapi.OnDisk(store)}).GRPC()
	go func() { _ = g.Serve(l) }()
	url = "grpc://" + l.Addr().String()
	if c, err = remote.New(remote.Options{URL: url}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		g.Stop()
		_ = store.Close()
	})
	return url, c
}

// tree uploads files; a name that ends in * is executable, a value that begins
// with -> is a link.
func tree(t testing.TB, c *remote.Client, files map[string]string) cas.Digest {
	t.Helper()
	o := outputs{dirs: map[string]*outDir{}}
	o.dir("")
	for name, text := range files {
		name, exec := strings.CutSuffix(name, "*")
		base := filepath.Base(name)
		d := o.dir(parent(name))
		if to, ok := strings.CutPrefix(text, "-> "); ok {
			d.links[base] = cas.Symlink{Name: base, Target: to}
			continue
		}
		d.files[base] = cas.File{Name: base, Digest: cas.Sum([]byte(text)), Executable: exec}
		o.srcs = append(o.srcs, remote.Source{Digest: cas.Sum([]byte(text)), Data: []byte(text)})
	}
	root := o.tree("")
	if _, err := c.Upload(t.Context(), o.srcs, nil); err != nil {
		t.Fatal(err)
	}
	return root
}

// list reads a tree back as tree takes it.
func list(t testing.TB, c *remote.Client, ref *botapi.CASReference) map[string]string {
	t.Helper()
	if ref == nil {
		return nil
	}
	root, err := cas.NewDigest(ref.Digest.Hash, ref.Digest.SizeBytes)
	if err != nil {
		t.Fatal(err)
	}
	dirs, err := c.Tree(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	var walk func(at string, d *cas.Directory)
	walk = func(at string, d *cas.Directory) {
		for _, f := range d.Files {
			b, err := c.Blob(t.Context(), f.Digest)
			if err != nil {
				t.Fatal(err)
			}
			name := at + f.Name
			if f.Executable {
				name += "*"
			}
			out[name] = string(b)
		}
		for _, l := range d.Symlinks {
			out[at+l.Name] = "-> " + l.Target
		}
		for _, s := range d.Dirs {
			if s.Digest == cas.Empty {
				out[at+s.Name+"/"] = ""
			}
			walk(at+s.Name+"/", dirs[s.Digest.Hash])
		}
	}
	walk("", dirs[root.Hash])
	return out
}

func inputs(url string, root cas.Digest) func(map[string]any) {
	return func(m map[string]any) {
		m["cas_input_root"] = map[string]any{"cas_instance": "i", "digest": map[string]any{"hash": root.Hash.String(), "size_bytes": root.Size}}
		m["skep"] = map[string]any{"cas": url}
	}
}

// ways are those in which tasks are isolated and get their inputs here.
func ways(t *testing.T) map[string]func(*Config) {
	if os.Geteuid() != 0 {
		if strings.Contains(os.Getenv("SKEP_TEST_REQUIRE"), "root") {
			t.Fatal("SKEP_TEST_REQUIRE names root")
		}
		t.Log("SKIPPED: links and overlays need root")
		return map[string]func(*Config){"copy": func(c *Config) { c.Storage.Method = cache.Copy }}
	}
	return map[string]func(*Config){
		"link": func(c *Config) { c.Storage.Method = cache.Link },
		"copy": func(c *Config) { c.Storage.Method = cache.Copy },
		"overlay": func(c *Config) {
			c.Storage.Method, c.Isolation = cache.Overlay, "none"
		},
	}
}

func TestInputsAndOutputs(t *testing.T) {
	for name, way := range ways(t) {
		t.Run(name, func(t *testing.T) {
			url, c := newStorage(t)
			root := tree(t, c, map[string]string{"a": "A", "bin/run*": "#!/bin/sh\ncat a l > out/made; echo kept >> cache/f; cat cache/f\n", "l": "-> bin/../a", "out/was": "W"})
			s := newStarter(t, way)
			for n, text := range []string{"kept\n", "kept\nkept\n"} {
				server := newTaskServer(t)
				sum := run(t, s, server, manifest([]string{"bin/run"}, inputs(url, root), with("outputs", []string{"out", "absent"}),
					with("caches", []map[string]string{{"name": "go", "path": "cache", "hint": "-1"}})))
				out, _, _ := server.got()
				if sum.ExitCode == nil || *sum.ExitCode != 0 || out != text {
					t.Fatalf("summary %+v, output %q, want %q", sum, out, text)
				}
				u := server.final(t)
				want := map[string]string{"out/made": "AA", "out/was": "W"}
				if d := cmp.Diff(want, list(t, c, u.CASOutputRoot)); d != "" {
					t.Errorf("outputs (-want +got):\n%s", d)
				}
				cold, _ := cas.UnpackSizes(u.IsolatedStats.Download.ItemsCold)
				hot, _ := cas.UnpackSizes(u.IsolatedStats.Download.ItemsHot)
				if got := []int{len(cold), len(hot)}; !slices.Equal(got, []int{3 * (1 - n), 3 * n}) {
					t.Errorf("cold and hot %v in task %d", got, n)
				}
			}
		})
	}
}

func TestMissingInputs(t *testing.T) {
	url, c := newStorage(t)
	gone := cas.Sum([]byte("gone"))
	dir := (&cas.Directory{Files: []cas.File{{Name: "f", Digest: gone}}}).Encode()
	up := (&cas.Directory{Symlinks: []cas.Symlink{{Name: "l", Target: "../x"}}}).Encode()
	if _, err := c.Upload(t.Context(), []remote.Source{{Digest: cas.Sum(dir), Data: dir}, {Digest: cas.Sum(up), Data: up}}, nil); err != nil {
		t.Fatal(err)
	}
	s := newStarter(t)
	for _, tc := range []struct {
		name   string
		root   cas.Digest
		digest cas.Digest
		status string
	}{
		{"no such tree", gone, gone, "missing"},
		{"no such file", cas.Sum(dir), gone, "missing"},
		{"link out of the tree", cas.Sum(up), cas.Sum(up), "digest_invalid"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			server := newTaskServer(t)
			sum := run(t, s, server, sh("true", inputs(url, tc.root)))
			_, _, errs := server.got()
			if sum.ExitCode != nil || len(errs) != 1 {
				t.Fatalf("summary %+v, errors %+v", sum, errs)
			}
			want := []botapi.MissingCAS{{Status: tc.status, Digest: tc.digest.String(), Instance: "i"}}
			if d := cmp.Diff(want, errs[0].ClientError.MissingCAS); d != "" {
				t.Errorf("missing_cas (-want +got):\n%s", d)
			}
		})
	}
}

// What a task may not read, it cannot make the bot read for it.
func TestOutputsStayTheTasksOwn(t *testing.T) {
	url, c := newStorage(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf(`mkdir -p out "$1" && cd out && echo fine > fine && ln -s fine inside
ln -s %[1]s direct; ln -s ../.. up; ln -s / root; mkfifo pipe; ln -s pipe topipe
mkdir sub; ln -s ../sub sub/loop; ln -s ../../../../../../..%[1]s sub/far
cp -P direct up inside "$1"; mkfifo "$1/pipe"; ln -s %[1]s "$1/abs"; echo x > "$1/x"; mkdir "$1/empty"`, secret)
	for _, iso := range []string{"", "none"} {
		server, s := newTaskServer(t), newStarter(t, func(c *Config) { c.Isolation = iso })
		sum := run(t, s, server, manifest([]string{"/bin/sh", "-c", script, "sh", "${ISOLATED_OUTDIR}"}, inputs(url, cas.Digest{}), with("outputs", []string{"out", "../../../logs", secret})))
		if sum.ExitCode == nil || *sum.ExitCode != 0 {
			t.Fatalf("summary %+v", sum)
		}
		got := list(t, c, server.final(t).CASOutputRoot)
		for name, text := range got {
			if strings.Contains(text, "secret") && !strings.HasPrefix(text, "-> ") {
				t.Errorf("%s holds what only the bot may read", name)
			}
			if strings.Count(name, "loop") > 0 && strings.Count(name, "loop") < cas.MaxDepth {
				delete(got, name)
			}
		}
		want := map[string]string{"x": "x\n", "inside": "-> fine", "empty/": "", "out/fine": "fine\n", "out/inside": "fine\n", "out/sub/": ""}
		for name := range got {
			if _, ok := want[name]; !ok {
				t.Errorf("%s = %q was uploaded", name, got[name])
			}
		}
		for _, name := range []string{"x", "inside", "empty/", "out/fine", "out/inside"} {
			if got[name] != want[name] {
				t.Errorf("%s = %q, want %q", name, got[name], want[name])
			}
		}
	}
}

// refusing is the address of a socket that is ours and listens to nobody.
func refusing(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	at, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", at.(*syscall.SockaddrInet4).Port)
}

// A canceled task gives up its download, and counts none of it as its own
// time; an outage makes it wait.
func TestCancelWhileInputsCome(t *testing.T) {
	nobody := refusing(t)
	server, s := newTaskServer(t), newStarter(t)
	done := make(chan Summary)
	go func() {
		done <- run(t, s, server, sh("echo ran", with("io_timeout", 1), with("hard_timeout", 1), inputs("grpc://"+nobody, cas.Sum([]byte("x")))))
	}()
	server.until(t, "announced", func() bool { return len(server.updates) > 0 })
	select {
	case s := <-done:
		t.Fatalf("it did not wait: %+v", s)
	case <-time.After(1500 * time.Millisecond): // longer than both limits
	}
	server.set(func() { server.stop = true })
	sum := <-done
	if out, _, _ := server.got(); out != "" || sum.IOTimeout || sum.HardTimeout || sum.InternalError != "" {
		t.Errorf("output %q, summary %+v", out, sum)
	}
}

// What a killed run_isolated leaves mounted is gone with its work directory,
// and the cache is whole.
func TestKilledUnderAnOverlay(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("overlays need root")
	}
	url, c := newStorage(t)
	root := tree(t, c, map[string]string{"a": "A", "d/b": "B"})
	server := newTaskServer(t)
	var dir string
	s := newStarter(t, func(c *Config) { c.Isolation, dir = "none", c.BotDir })
	done := make(chan Summary)
	go func() {
		done <- run(t, s, server, sh("rm a; echo x > d/b; echo $PPID; exec sleep 60", inputs(url, root)))
	}()
	server.set(func() { server.watched = true })
	server.until(t, "the task runs", func() bool { return strings.HasSuffix(string(server.output), "\n") })
	var pid int
	if _, err := fmt.Sscan(string(server.output), &pid); err != nil {
		t.Fatal(err)
	}
	b, _ := os.ReadFile("/proc/mounts")
	if !strings.Contains(string(b), dir) {
		t.Fatal("nothing is mounted: the test tests nothing")
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-done
	if b, _ = os.ReadFile("/proc/mounts"); strings.Contains(string(b), dir) {
		t.Errorf("left mounted:\n%s", b)
	}
	server = newTaskServer(t)
	sum := run(t, s, server, sh("cat a d/b", inputs(url, root)))
	if out, _, _ := server.got(); out != "AB" {
		t.Errorf("the next task reads %q, summary %+v", out, sum)
	}
}

// How inputs come is the bot's business: when that cannot be, no requester is
// to blame.
func TestImpossibleMethodIsTheBotsFault(t *testing.T) {
	url, c := newStorage(t)
	root := tree(t, c, map[string]string{"a": "A"})
	s := newStarter(t, func(cfg *Config) { cfg.Storage.Method = "teleport" })
	server := newTaskServer(t)
	run(t, s, server, sh("true", inputs(url, root)))
	_, _, errs := server.got()
	if len(errs) != 1 || len(errs[0].ClientError.MissingCAS) != 0 || !strings.Contains(errs[0].Message, "teleport") {
		t.Errorf("errors %+v, want one that blames nobody's inputs", errs)
	}
	if err := s.SetCache(0, 0, ""); err == nil {
		t.Error("a method that does not exist passes for usable")
	}
}

// What was asked for and cannot be is refused before any task, and not done in
// another way; once it can be, the refusal ends.
func TestImpossibleReflinkIsRefused(t *testing.T) {
	elsewhere, err := os.MkdirTemp("/dev/shm", "skep-test-") //nolint:usetesting // must be on another file system: blocks are never shared between two
	if err != nil {
		need.Skip(t, "shm", err.Error())
	}
	t.Cleanup(func() { _ = os.RemoveAll(elsewhere) })
	url, c := newStorage(t)
	root := tree(t, c, map[string]string{"a": "A"})
	s := newStarter(t, func(cfg *Config) { cfg.Storage.Method = cache.Reflink })
	shared := filepath.Join(elsewhere, "cache")
	for range 2 { // it is not forgotten
		if err := s.SetCache(0, 0, shared); skep.KindOf(err) != skep.Precondition || !strings.Contains(err.Error(), "reflink") {
			t.Fatalf("SetCache: %v, want a Precondition error about reflinks", err)
		}
	}
	server := newTaskServer(t)
	run(t, s, server, sh("echo ran", inputs(url, root)))
	out, _, errs := server.got()
	if out != "" || len(errs) != 1 || len(errs[0].ClientError.MissingCAS) != 0 || !strings.Contains(errs[0].Message, "reflink") {
		t.Errorf("output %q, errors %+v, want one that blames nobody's inputs", out, errs)
	}
	s.mu.Lock()
	s.cfg.Storage.Method = cache.Copy
	s.mu.Unlock()
	if err := s.SetCache(0, 0, shared); err != nil {
		t.Errorf("by copies: %v", err)
	}
}

func TestSharedCacheMustBeOne(t *testing.T) {
	s := newStarter(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "thesis.tex"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.SetCache(0, 0, dir); err == nil || !strings.Contains(err.Error(), "thesis.tex") {
		t.Errorf("a directory with other files: %v", err)
	}
	if err := s.SetCache(0, 7, filepath.Join(dir, "cache")); err != nil {
		t.Error(err)
	}
	if st := s.storage(); st.MaxItems != 7 || st.Cache != filepath.Join(dir, "cache") {
		t.Errorf("storage %+v", st)
	}
}

// TestStorageHeaders: a bot without a token shows its session to its server's
// storage, and to no other.
func TestStorageHeaders(t *testing.T) {
	for _, tt := range []struct {
		name    string
		headers map[string]string
		session string
		cas     string
		want    map[string]string
	}{
		{"a token", map[string]string{"authorization": "Bearer t"}, "s", "", map[string]string{"authorization": "Bearer t"}},
		{"a VM", map[string]string{"X-Luci-Gce-Vm-Token": "v"}, "s", "", map[string]string{"X-Luci-Gce-Vm-Token": "v", "Authorization": "Session s"}},
		{"a certificate", nil, "s", "", map[string]string{"Authorization": "Session s"}},
		{"nothing", nil, "", "", nil},
		{"another storage", nil, "s", "grpcs://elsewhere", nil},
	} {
		r := &taskRunner{Job: Job{Session: tt.session, Server: "https://h"}, manifest: &botapi.Manifest{
			CASInputRoot: &botapi.CASReference{Instance: "i"}, Skep: &botapi.ManifestSkep{CAS: tt.cas},
		}}
		r.headers.Store(&tt.headers)
		if diff := cmp.Diff(tt.want, r.storage().Headers); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// TestSessionIsRenewed: run_isolated is told of the session of the newest
// answer, once, unless a token makes it needless.
func TestSessionIsRenewed(t *testing.T) {
	for _, headers := range []map[string]string{nil, {"Authorization": "Bearer t"}} {
		read, words, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		r := &taskRunner{Job: Job{Session: "s0"}, iso: &isolated{words: words}, log: testLog(t)}
		r.headers.Store(&headers)
		r.handed.Store(true)
		for _, s := range []string{"s0", "", "s1", "s1", "s2"} {
			r.renew(s)
		}
		_ = words.Close()
		var got []string
		for dec := json.NewDecoder(read); ; {
			var w isolatedWord
			if dec.Decode(&w) != nil {
				break
			}
			got = append(got, w.Headers["Authorization"])
		}
		_ = read.Close()
		want := []string{"Session s1", "Session s2"}
		if headers != nil {
			want = nil
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("with %v (-want +got):\n%s", headers, diff)
		}
	}
}
