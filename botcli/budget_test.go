//go:build unix

package botcli

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/skepdev/skep/bot/code"
)

// What a bot may cost. decisions.md 22, 23; issue 2, "Must show" 4.
const (
	maxSize = 15 << 20 // bytes, stripped, with the zip
	maxPSS  = 25 << 20 // bytes, all processes of an idle bot, with start-ahead
)

// heavy are modules that a bot must not link: they cost size or start-up time
// in every process of every task.
var heavy = regexp.MustCompile(`protobuf|sqlite|pgx|cobra|pflag|grpc|prometheus|opentelemetry|(^|/)skep/(cli|server|store|scheduler|provider|config|client|api)$|skep/api/(swarmingpb|skeppb|prpc)`)

// wire is what of protobuf a bot may link: the bytes of the few messages of
// content-addressed storage. docs/adr/0015 has the price.
var wire = map[string]bool{
	"google.golang.org/protobuf/encoding/protowire": true,
	"google.golang.org/protobuf/internal/detrand":   true,
	"google.golang.org/protobuf/internal/errors":    true,
}

func TestDependencies(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "github.com/skepdev/skep/cmd/skep-bot").Output()
	if err != nil {
		t.Skipf("go list: %v", err)
	}
	for _, pkg := range strings.Fields(string(out)) {
		if heavy.MatchString(pkg) && !wire[pkg] {
			t.Errorf("skep-bot links %s", pkg)
		}
	}
}

// buildBot makes the bot that is delivered.
func buildBot(t testing.TB, server string, files ...code.File) string {
	t.Helper()
	if testing.Short() {
		t.Skip("builds skep-bot")
	}
	dir := botDir(t)
	bare := filepath.Join(dir, "bare")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", bare, "github.com/skepdev/skep/cmd/skep-bot")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	exe, err := os.ReadFile(bare)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "bot", "swarming_bot")
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if err := code.Compose(f, exe, code.Config{Server: server, Reboot: "none"}, files...); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSizeAndStart(t *testing.T) {
	path := buildBot(t, "http://127.0.0.1:1")
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("size %.1f MiB", float64(st.Size())/(1<<20))
	if st.Size() > maxSize {
		t.Errorf("a bot has %d bytes, at most %d are allowed", st.Size(), maxSize)
	}
	// "help" does what task_runner does before it reads its work.
	t.Logf("start of a subcommand %v, of `true` %v (medians)", median(t, path, "help"), median(t, "true"))
	cmd := exec.Command(path, "help")
	cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1")
	trace, _ := cmd.CombinedOutput()
	total := 0.0
	for _, m := range regexp.MustCompile(`init (\S+) @\S+ ms, (\S+) ms clock`).FindAllStringSubmatch(string(trace), -1) {
		ms, _ := strconv.ParseFloat(m[2], 64)
		total += ms
		if ms >= 0.1 {
			t.Logf("init of %s takes %v ms", m[1], ms)
		}
	}
	t.Logf("init in all %.2f ms", total)
}

func median(t *testing.T, name string, args ...string) time.Duration {
	t.Helper()
	var took []time.Duration
	for range 31 {
		start := time.Now()
		if err := exec.Command(name, args...).Run(); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	return took[len(took)/2]
}

func TestIdleMemoryAndFirstPoll(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("/proc")
	}
	s := newFakeServer(t)
	path := buildBot(t, s.URL)
	start := time.Now()
	p := startProcess(t, path, "start_bot")
	s.next(t, "poll", nil)
	t.Logf("first poll %v after the start", time.Since(start))
	// Start-ahead and the trimming of memory take their time; then it must fit.
	var total int
	var tree []string
	waitFor(t, func() bool {
		total, tree = pss(p.Process.Pid)
		return total <= maxPSS && len(tree) >= 3
	})
	t.Logf("idle: %.1f MiB PSS, %v after the start: %s", float64(total)/(1<<20), time.Since(start), strings.Join(tree, ", "))

	for i := range 20 {
		id := fmt.Sprintf("5a000000000%05x", i*16+1)
		s.polls <- runManifest(id, "true")
		s.next(t, "task_update", func(c apiCall) bool { return c.body["task_id"] == id && c.body["exit_code"] != nil })
	}
	s.next(t, "poll", nil)
	waitFor(t, func() bool {
		total, tree = pss(p.Process.Pid)
		return total <= maxPSS && len(tree) >= 3
	})
	t.Logf("idle after 20 tasks: %.1f MiB PSS: %s", float64(total)/(1<<20), strings.Join(tree, ", "))
}

// BenchmarkTask runs `true` with the full process tree, one task after another
// on one bot; an operation is one task. "gap" is from the final update to the
// next poll.
func BenchmarkTask(b *testing.B) {
	s := newFakeServer(b)
	startProcess(b, buildBot(b, s.URL), "start_bot")
	s.next(b, "poll", nil)
	var gap time.Duration
	n := 0
	for b.Loop() {
		n++
		id := fmt.Sprintf("5a000000000%05x", n*16+1)
		s.polls <- runManifest(id, "true")
		final := s.next(b, "task_update", func(c apiCall) bool { return c.body["task_id"] == id && c.body["exit_code"] != nil })
		gap += s.next(b, "poll", nil).at.Sub(final.at)
	}
	b.ReportMetric(float64(gap.Microseconds())/float64(n), "gap-µs/op")
}

// pss sums the memory of a process and everything below it, in bytes.
func pss(pid int) (total int, tree []string) {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if m := regexp.MustCompile(`(?m)^Pss:\s+(\d+) kB`).FindSubmatch(data); m != nil {
		kb, _ := strconv.Atoi(string(m[1]))
		total = kb << 10
		args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		words := strings.Split(string(args), "\x00")
		tree = []string{fmt.Sprintf("%s %.1f", words[min(1, len(words)-1)], float64(kb)/1024)}
	}
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, f := range tasks {
		kids, _ := os.ReadFile(f)
		for _, k := range strings.Fields(string(kids)) {
			n, _ := strconv.Atoi(k)
			sum, sub := pss(n)
			total += sum
			tree = append(tree, sub...)
		}
	}
	return total, tree
}
