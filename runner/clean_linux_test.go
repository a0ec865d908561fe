package runner

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/cas/cache"
)

func TestClean(t *testing.T) {
	url, c := newStorage(t)
	root := tree(t, c, map[string]string{"a": "A", "b": "BB"})
	var dir string
	s := newStarter(t, func(c *Config) { dir = c.BotDir })
	if err := s.Clean(t.Context()); err != nil || exists(filepath.Join(dir, "cas_cache")) {
		t.Errorf("a bot without caches: %v", err)
	}
	server := newTaskServer(t)
	run(t, s, server, sh("echo x > n/f", inputs(url, root), with("caches", []map[string]string{{"name": "go", "path": "n", "hint": "10"}})))
	server.final(t)
	blob := func(text string) string { return filepath.Join(dir, "cas_cache", cas.Sum([]byte(text)).Hash.String()) }
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, "cas_cache", "unknown"), nil, 0o600),
		os.WriteFile(filepath.Join(dir, "cas_cache", "tmp-1-x"), nil, 0o600),
		os.Chmod(blob("A"), 0o644), os.Remove(blob("BB")),
		os.Remove(filepath.Join(dir, "c", "named", "go")),
		os.Mkdir(filepath.Join(dir, "c", "zz"), 0o700),
	); err != nil {
		t.Fatal(err)
	}
	if err := s.Clean(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, p := range []string{"cas_cache/unknown", "cas_cache/tmp-1-x", "c/zz", "c/named/go/f"} {
		got[p] = exists(filepath.Join(dir, p))
	}
	if d := cmp.Diff(map[string]bool{"cas_cache/unknown": false, "cas_cache/tmp-1-x": false, "c/zz": false, "c/named/go/f": true}, got); d != "" {
		t.Errorf("left (-want +got):\n%s", d)
	}
	if fi, err := os.Stat(blob("A")); err != nil || fi.Mode().Perm() != 0o444 {
		t.Errorf("entry: %v, %v", fi, err)
	}
	server = newTaskServer(t)
	run(t, s, server, sh("cat a b", inputs(url, root)))
	if out, _, _ := server.got(); out != "ABB" {
		t.Errorf("afterwards a task reads %q", out)
	}
}

// list is a cache whose entries are 10 bytes each.
type ages struct {
	used     []int // hours ago, oldest first
	enforced bool
}

func (a *ages) Oldest() (time.Time, bool) {
	if len(a.used) == 0 {
		return time.Time{}, false
	}
	return trimNow.Add(-time.Duration(a.used[0]) * time.Hour), true
}
func (a *ages) Evict() (int64, error) { a.used = a.used[1:]; return 10, nil }
func (a *ages) Enforce() error        { a.enforced = true; return nil }

var trimNow = time.Unix(1_700_000_000, 0)

// What goes is older than what stays, wherever it was; nothing goes without a
// reason.
func TestTrimJointly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var all [2]*ages
		for i := range all {
			hours := rapid.SliceOfN(rapid.IntRange(0, 700), 0, 8).Draw(t, "hours")
			for n := range hours { // oldest first
				for m := n + 1; m < len(hours); m++ {
					if hours[m] > hours[n] {
						hours[n], hours[m] = hours[m], hours[n]
					}
				}
			}
			all[i] = &ages{used: hours}
		}
		before := append(append([]int{}, all[0].used...), all[1].used...)
		free, minFree := int64(rapid.IntRange(0, 200).Draw(t, "free")), int64(rapid.IntRange(0, 200).Draw(t, "minFree"))
		if err := trim(trimNow, free, minFree, all[0], all[1]); err != nil {
			t.Fatal(err)
		}
		after := append(append([]int{}, all[0].used...), all[1].used...)
		gone := int64(len(before) - len(after))
		youngest, oldest := 1<<30, 0
		for _, h := range after {
			oldest = max(oldest, h)
		}
		left := map[int]int{}
		for _, h := range after {
			left[h]++
		}
		for _, h := range before {
			if left[h]--; left[h] < 0 {
				youngest = min(youngest, h)
			}
		}
		switch {
		case gone > 0 && youngest < oldest:
			t.Fatalf("%d hours went before %d", youngest, oldest)
		case oldest > 21*24:
			t.Fatalf("%d hours stay", oldest)
		case len(after) > 0 && free+10*gone < minFree:
			t.Fatalf("%d free, %d of them new, want %d", free+10*gone, 10*gone, minFree)
		case gone > 0 && free+10*(gone-1) >= minFree && youngest <= 21*24:
			t.Fatalf("%d hours went without a reason", youngest)
		case !all[0].enforced || !all[1].enforced:
			t.Fatal("the caches' own limits were not looked at")
		}
	})
}

var _ evictor = (*cache.Trimmer)(nil)
