package launch

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// Whatever the lock file says and whatever runs: the process that is found is
// in the container, is the one that the file names, and holds the lock.
// promise D2.
func TestFindBotIsNeverWrong(t *testing.T) {
	dir := t.TempDir()
	n, right := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		root := filepath.Join(dir, strconv.Itoa(n))
		slot, proc := filepath.Join(root, "slot"), filepath.Join(root, "proc")
		put := func(path, text string) {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				rt.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				rt.Fatal(err)
			}
		}
		link := func(to, path string) {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				rt.Fatal(err)
			}
			if err := os.Symlink(to, path); err != nil {
				rt.Fatal(err)
			}
		}
		text := rapid.OneOf(rapid.SampledFrom([]string{"7", "7", "7\n", "7\n", "8", "8\n", "9", " 7", "07", "10", "", "0", "-7", "7\n8", "x", "99999999999"}), rapid.StringN(0, 40, 64)).Draw(rt, "text")
		lock := filepath.Join(slot, lockPath)
		put(lock, text)
		put(filepath.Join(slot, "other"), "")
		link("pid:[1]", filepath.Join(proc, "self/ns/pid"))
		link("pid:[2]", filepath.Join(proc, "100/ns/pid"))
		put(filepath.Join(proc, "100/status"), "NSpid:\t100\t1\n")
		good := map[int]int{}
		for i := range rapid.IntRange(0, 4).Draw(rt, "processes") {
			pid, inner := 200+i, 7+i
			p := filepath.Join(proc, strconv.Itoa(pid))
			// Half of them are as a bot is; else hardly any would be found.
			bot := rapid.Bool().Draw(rt, "as a bot")
			ns := rapid.SampledFrom([]int{1, 2, 2, 2, 3}).Draw(rt, "namespace")
			if bot {
				ns = 2
			}
			link(fmt.Sprintf("pid:[%d]", ns), filepath.Join(p, "ns/pid"))
			put(filepath.Join(p, "status"), fmt.Sprintf("Name:\tx\nNSpid:\t%d\t%d\n", pid, inner))
			file := rapid.SampledFrom([]string{lock, lock, lock, filepath.Join(slot, "other")}).Draw(rt, "open")
			if bot {
				file = lock
			}
			link(file, filepath.Join(p, "fd/3"))
			info := rapid.SampledFrom([]string{"pos:\t0\n", "pos:\t0\nlock:\t1: FLOCK  ADVISORY  WRITE 200 fe:00:1 0 EOF\n", "lock:\t1: FLOCK  ADVISORY  WRITE 200 fe:00:1 0 EOF\n", "lock:\t1: POSIX  ADVISORY  WRITE 200 fe:00:1 0 EOF\n", "lock:\t1: FLOCK  ADVISORY  READ 200 fe:00:1 0 EOF\n"}).Draw(rt, "info")
			if bot {
				info = "pos:\t0\nlock:\t1: FLOCK  ADVISORY  WRITE 200 fe:00:1 0 EOF\n"
			}
			put(filepath.Join(p, "fdinfo/3"), info)
			if ns == 2 && file == lock && (info[0] == 'l' || len(info) > 10) && containsAll(info, "FLOCK", "WRITE") {
				good[inner] = pid
			}
		}
		pid, err := findBot(proc, slot, 100)
		want := 0
		if inner, err := strconv.ParseUint(strings.TrimSpace(text[:min(32, len(text))]), 10, 31); err == nil {
			want = good[int(inner)]
		}
		if pid != want || (err == nil) != (want != 0) {
			rt.Fatalf("found %d (%v), want %d", pid, err, want)
		}
		if want != 0 {
			right++
		}
	})
	if right == 0 {
		t.Error("no bot was ever found: the test shows nothing")
	}
}

func containsAll(s string, words ...string) bool {
	for _, w := range words {
		found := false
		for i := 0; i+len(w) <= len(s); i++ {
			found = found || s[i:i+len(w)] == w
		}
		if !found {
			return false
		}
	}
	return true
}

func TestFindBotRefusesLinksAndPipes(t *testing.T) {
	slot := t.TempDir()
	if err := os.MkdirAll(filepath.Join(slot, "swarming"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/proc/self/stat", filepath.Join(slot, lockPath)); err != nil {
		t.Fatal(err)
	}
	if pid, err := findBot("/proc", slot, os.Getpid()); err == nil {
		t.Errorf("a link led to process %d", pid)
	}
}
