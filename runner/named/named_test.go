package named

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

type world struct {
	dir string
	now time.Time
}

func (w *world) open(t interface{ Fatal(...any) }) *Caches {
	c, err := Open(Options{Dir: filepath.Join(w.dir, "c"), Now: func() time.Time { return w.now }})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newWorld(t *testing.T) *world {
	return &world{dir: t.TempDir(), now: time.Unix(1_700_000_000, 0)}
}

// use runs a task that appends to a file of its cache, and returns what was in
// it before.
func (w *world) use(t interface{ Fatal(...any) }, name, text string) string {
	c := w.open(t)
	at := filepath.Join(w.dir, "ir")
	if err := c.Install(name, at); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(filepath.Join(at, "f"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if text != "" {
		if err := os.WriteFile(filepath.Join(at, "f"), append(before, text...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.open(t).Uninstall(name, at); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(at); err != nil {
		t.Fatal(err)
	}
	return string(before)
}

func TestKept(t *testing.T) {
	w := newWorld(t)
	got := []string{w.use(t, "go", "a"), w.use(t, "go", "b"), w.use(t, "other", ""), w.use(t, "go", ""), w.use(t, "other", "")}
	if d := cmp.Diff([]string{"", "a", "", "ab", ""}, got); d != "" {
		t.Errorf("contents (-want +got):\n%s", d)
	}
	to, err := filepath.EvalSymlinks(filepath.Join(w.dir, "c", "named", "go"))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(to, "f")); string(b) != "ab" {
		t.Errorf("through the link: %q, %v", b, err)
	}
	b, err := os.ReadFile(filepath.Join(w.dir, "c", "state.json"))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"items":[["go",[["` + filepath.Base(to) + `",2],1700000000]]],"version":3}`
	if string(b) != want {
		t.Errorf("state %s, want %s", b, want)
	}
}

func TestInstallRefuses(t *testing.T) {
	w := newWorld(t)
	c := w.open(t)
	if err := c.Install("go", w.dir); err == nil {
		t.Error("a directory that exists was taken")
	}
	for _, name := range []string{"", "..", "a/b", "A", "a-b"} {
		if err := c.Install(name, filepath.Join(w.dir, "x")); err == nil {
			t.Errorf("%q was taken as a name", name)
		}
	}
}

func TestUninstallRefuses(t *testing.T) {
	w := newWorld(t)
	c := w.open(t)
	link := filepath.Join(w.dir, "link")
	if err := os.Symlink("/etc", link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{link, filepath.Join(w.dir, "absent")} {
		if err := c.Uninstall("go", path); err == nil {
			t.Errorf("%s was kept", path)
		}
	}
	if c.Len() != 0 {
		t.Error("something is kept")
	}
}

func TestBrokenState(t *testing.T) {
	for name, state := range map[string]string{
		"not JSON": "{", "another version": `{"items":[],"version":2}`, "leads out": `{"items":[["a",[["..",1],1]]],"version":3}`,
		"two of one directory": `{"items":[["a",[["xx",1],1]],["b",[["xx",1],1]]],"version":3}`, "a number as an item": `{"items":[1],"version":3}`,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.use(t, "go", "a")
			if err := os.WriteFile(filepath.Join(w.dir, "c", "state.json"), []byte(state), 0o600); err != nil {
				t.Fatal(err)
			}
			if n := w.open(t).Len(); n != 0 {
				t.Errorf("%d caches", n)
			}
			if got := w.use(t, "go", "b") + w.use(t, "go", ""); got != "b" {
				t.Errorf("afterwards %q", got)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	w := newWorld(t)
	names := func(c *Caches) []string { return slices.Sorted(maps.Keys(c.items)) }
	for _, n := range []string{"a", "b", "d", "e"} {
		w.use(t, n, "xyz")
		w.now = w.now.Add(24 * time.Hour)
	}
	c := w.open(t)
	c.opt.MaxItems = 3
	if err := c.Trim("a").Enforce(); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"a", "d", "e"}, names(c)); d != "" {
		t.Errorf("beyond the number (-want +got):\n%s", d)
	}
	c.opt.MaxBytes = 6
	if err := c.Trim().Enforce(); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"d", "e"}, names(c)); d != "" {
		t.Errorf("beyond the bytes (-want +got):\n%s", d)
	}
	w.now = w.now.Add(19*24*time.Hour + time.Hour) // d is 21 days and one hour old
	if err := w.open(t).Trim().Enforce(); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"e"}, names(w.open(t))); d != "" {
		t.Errorf("too old (-want +got):\n%s", d)
	}
}

func TestClean(t *testing.T) {
	w := newWorld(t)
	w.use(t, "a", "1")
	w.use(t, "b", "2")
	c := w.open(t)
	dir := filepath.Join(w.dir, "c")
	if err := errors.Join(
		os.RemoveAll(filepath.Join(dir, c.items["a"].Dir)), // its directory is gone
		os.Remove(filepath.Join(dir, "named", "b")),        // its link is gone
		os.MkdirAll(filepath.Join(dir, "unknown", "x"), 0o700),
		os.Symlink("/etc", filepath.Join(dir, "named", "zz")),
	); err != nil {
		t.Fatal(err)
	}
	if err := c.Clean(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range []string{dir, filepath.Join(dir, "named")} {
		entries, err := os.ReadDir(d)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			got = append(got, e.Name())
		}
	}
	want := []string{c.items["b"].Dir, "named", "state.json", "b"}
	slices.Sort(want[:3])
	slices.Sort(got[:3])
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("left (-want +got):\n%s", d)
	}
	if got := w.use(t, "b", ""); got != "2" {
		t.Errorf("b holds %q", got)
	}
}

// Caches agree with a map, whatever is done to them.
func TestAgreesWithAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "named") //nolint:usetesting // one for each check
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		w := &world{dir: dir, now: time.Unix(1_700_000_000, 0)}
		want := map[string]string{}
		name := rapid.SampledFrom([]string{"a", "b", "long_name_1"})
		t.Repeat(map[string]func(*rapid.T){
			"use": func(t *rapid.T) {
				n, text := name.Draw(t, "name"), rapid.StringMatching(`[a-z]{0,3}`).Draw(t, "text")
				if got := w.use(t, n, text); got != want[n] {
					t.Fatalf("%s holds %q, want %q", n, got, want[n])
				}
				want[n] += text
			},
			"clean": func(t *rapid.T) {
				if err := w.open(t).Clean(); err != nil {
					t.Fatal(err)
				}
			},
			"wait": func(*rapid.T) { w.now = w.now.Add(time.Hour) },
		})
	})
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"items":[["go",[["xY",12],1700000000]]],"version":3}`))
	f.Add([]byte(`{"items":[["go",[["xY",12],1700000000.25]]],"version":3}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := decode(b)
		if err != nil {
			return
		}
		again, err := decode(encode(slices.Clone(list)))
		if err != nil || len(again) != len(list) {
			t.Fatalf("%v became %v, %v", list, again, err)
		}
	})
}
