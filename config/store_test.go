package config

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

const (
	onePool  = `pool { name: "a" realm: "p:r" }`
	twoPools = onePool + "\n" + `pool { name: "b" realm: "p:r" }`
	inA      = `bot_group { auth { require_token {} } dimensions: "pool:a" }`
	inB      = `bot_group { auth { require_token {} } dimensions: "pool:b" }`
)

func put(t *testing.T, dir string, files Files) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path+"~", []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+"~", path); err != nil { // as editors do
			t.Fatal(err)
		}
	}
}

func open(t *testing.T, dir string, o Options) *Store {
	t.Helper()
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// follow runs s and returns a function that waits until its state is as told.
func follow(t *testing.T, s *Store) func(what string, is func() bool) {
	ctx, cancel := context.WithCancel(context.Background())
	changed, stop := s.Subscribe()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.Run(ctx) // only says that ctx ended
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		stop()
	})
	return func(what string, is func() bool) {
		t.Helper()
		late := time.After(20 * time.Second)
		for !is() {
			select {
			case <-changed:
			case <-late:
				t.Fatalf("never: %s; refused: %v", what, s.Refusals())
			}
		}
	}
}

func refusedFiles(s *Store) []string {
	var out []string
	for _, r := range s.Refusals() {
		out = append(out, r.File)
	}
	return out
}

func TestStoreFollows(t *testing.T) {
	for _, c := range []struct {
		name string
		o    Options
	}{
		{"told by the file system", Options{Settle: time.Millisecond, Resync: time.Hour}},
		{"by looking", Options{Settle: time.Millisecond, Resync: 5 * time.Millisecond}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, keep := t.TempDir(), filepath.Join(t.TempDir(), "keep")
			c.o.Keep = keep
			put(t, dir, Files{"pools.cfg": onePool, "bots.cfg": inA, "scripts/x.star": ""})
			s := open(t, dir, c.o)
			await := follow(t, s)

			put(t, dir, Files{"pools.cfg": twoPools})
			await("the second pool is there", func() bool { return s.Snapshot().Pool("b") != nil })

			put(t, dir, Files{"pools.cfg": onePool + "oops", "settings.cfg": "bot_death_timeout_secs: 90"})
			await("the good file is taken and the bad one refused", func() bool {
				return s.Snapshot().Settings().BotDeath == 90*time.Second && len(s.Refusals()) == 1
			})
			if s.Snapshot().Pool("b") == nil || s.Refusals()[0].File != "pools.cfg" {
				t.Errorf("pools %v, refused %v", s.Snapshot().Pools(), s.Refusals())
			}

			put(t, dir, Files{"pools.cfg": twoPools, "bots.cfg": inB})
			await("the bots are in b and nothing is refused", func() bool {
				return s.Snapshot().Group("x").Pools()[0] == "b" && len(s.Refusals()) == 0
			})

			put(t, dir, Files{"pools.cfg": onePool}) // b is still used
			await("a pool that bots use stays", func() bool { return cmp.Equal(refusedFiles(s), []string{"pools.cfg"}) })

			if err := os.Remove(filepath.Join(dir, "bots.cfg")); err != nil {
				t.Fatal(err)
			}
			await("a file that is gone stays", func() bool { return cmp.Equal(refusedFiles(s), []string{"bots.cfg", "pools.cfg"}) })
			if s.Snapshot().Group("x") == nil || s.Snapshot().Pool("b") == nil {
				t.Error("the last good state is gone")
			}

			// A server that starts now begins with what was good.
			put(t, dir, Files{"bots.cfg": "oops"})
			if _, err := Open(dir, Options{}); err == nil {
				t.Error("opened without a copy")
			}
			again := open(t, dir, Options{Keep: keep})
			if again.Snapshot().Digest() != s.Snapshot().Digest() || len(again.Refusals()) != 2 {
				t.Errorf("digest %s, refused %v", again.Snapshot().Digest(), again.Refusals())
			}
		})
	}
}

// TestStoreFollowsLinks swaps a directory as Kubernetes does.
func TestStoreFollowsLinks(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, Files{"..1/pools.cfg": onePool, "..2/pools.cfg": twoPools, "..1/x.star": "1", "..2/x.star": "2"})
	if err := os.Mkdir(filepath.Join(dir, "scripts"), 0o755); err != nil {
		t.Fatal(err)
	}
	link := func(to, name string) {
		if err := os.Symlink(to, filepath.Join(dir, name)+"~"); err != nil {
			t.Skip(err)
		}
		if err := os.Rename(filepath.Join(dir, name)+"~", filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	link("..1", "..data")
	link("..data/pools.cfg", "pools.cfg")
	link("../..data/x.star", "scripts/x.star")
	s := open(t, dir, Options{Settle: time.Millisecond, Resync: time.Hour})
	await := follow(t, s)
	link("..2", "..data")
	await("the other directory's content", func() bool { return s.Snapshot().Pool("b") != nil })
	if src, _ := s.Snapshot().Script("x.star"); src != "2" {
		t.Errorf("script %q", src)
	}
	link("/etc/hostname", "bots.cfg")
	await("a link out of the directory is refused", func() bool { return cmp.Equal(refusedFiles(s), []string{"bots.cfg"}) })
}

// TestMergeKeepsWhatIsGood: whatever the files become, the configuration is
// valid, files that are not refused are taken as they are, and refused ones
// stay as they were.
func TestMergeKeepsWhatIsGood(t *testing.T) {
	variants := map[string][]string{
		"settings.cfg":   {"", `group { name: "g" member: "user:a" }`, `bot_death_timeout_secs: 1`, `oops`},
		"pools.cfg":      {onePool, twoPools, onePool + ` realm { name: "p:r" grant { to: "group:g" role: ROLE_READER } }`, `pool { }`, `oops`},
		"bots.cfg":       {inA, inB, `bot_group { auth { require_token {} } bot_config_script: "x.star" }`, `bot_group {}`, `oops`},
		"scripts/x.star": {"", "1"},
		"scripts/y.zip":  {"1"},
	}
	names := []string{"settings.cfg", "pools.cfg", "bots.cfg", "scripts/x.star", "scripts/y.zip"}
	rapid.Check(t, func(t *rapid.T) {
		current := Empty()
		for range rapid.IntRange(1, 12).Draw(t, "changes") {
			files := Files{}
			for _, name := range names {
				if i := rapid.IntRange(-1, len(variants[name])-1).Draw(t, name); i >= 0 {
					files[name] = variants[name][i]
				}
			}
			next, refused := merge(current, files, nil)
			if _, err := New(next.files); err != nil {
				t.Fatalf("not valid: %v", err)
			}
			for name := range refused {
				if len(refused[name]) == 0 {
					t.Fatalf("%s is refused without a reason", name)
				}
			}
			for name := range union(files, next.files) {
				got, has := next.files[name]
				want, had := files[name]
				if refused[name] != nil {
					want, had = current.files[name]
				}
				if got != want || has != had {
					t.Fatalf("%s is %q (%v), want %q (%v); refused: %v", name, got, has, want, had, refused)
				}
			}
			good, err := New(files)
			gone := false
			for name := range current.files {
				_, ok := files[name]
				gone = gone || !ok && strings.HasSuffix(name, ".cfg")
			}
			if err == nil && !gone && (len(refused) > 0 || next.Digest() != good.Digest()) {
				t.Fatalf("a good configuration is refused: %v", refused)
			}
			current = next
		}
	})
}

func union(a, b Files) Files {
	out := maps.Clone(a)
	maps.Copy(out, b)
	return out
}
