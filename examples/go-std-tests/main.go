// Command go-std-tests gives real work to a fleet: it turns the tests of Go's
// standard library into tasks, one per package, and compares what the fleet
// says of each package with running the same tests directly.
//
//	go run ./examples/go-std-tests -server http://127.0.0.1:8900 -skep bin/skep
//
// It uses skep as any script would: spawn-tasks with a file of tasks, then
// collect. The bots must run on this computer, as the tasks name files on it.
// It ends with 1 when the two disagree on any package.
package main

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

func main() {
	var r run
	var limit int
	flag.StringVar(&r.server, "server", "http://127.0.0.1:8900", "`URL` of the server")
	flag.StringVar(&r.skep, "skep", "bin/skep", "the skep `executable`")
	flag.IntVar(&limit, "packages", 0, "use only this many packages, spread over the list (0 = all)")
	flag.IntVar(&r.parallel, "parallel", runtime.NumCPU(), "how many compilers run at once")
	flag.DurationVar(&r.timeout, "timeout", 20*time.Minute, "how long all tasks together may take")
	flag.BoolVar(&r.again, "again", false, "run a package on which the two disagree once more before judging it: on a busy machine tests that watch the clock fail by themselves")
	flag.Parse()
	agree, err := r.compare(context.Background(), limit)
	if err != nil {
		fmt.Fprintln(os.Stderr, "go-std-tests:", err)
		os.Exit(1)
	}
	if !agree {
		os.Exit(1)
	}
}

// run is one run of the example.
type run struct {
	server, skep string
	parallel     int
	timeout      time.Duration
	again        bool

	dir string // test binaries and the like, readable by every user
}

// verdict is how the tests of one package went.
type verdict struct {
	ok    bool
	note  string            // what ended it, where that is not simply ok or fail
	tests map[string]string // top-level tests: pass, fail or skip
	took  time.Duration
	bot   string
}

// compare runs everything and prints the table.
func (r *run) compare(ctx context.Context, limit int) (agree bool, err error) {
	if r.skep, err = filepath.Abs(r.skep); err != nil {
		return false, err
	}
	if r.dir, err = publicDir(); err != nil {
		return false, err
	}
	defer os.RemoveAll(r.dir)

	var took stopwatch
	packages, err := choose(ctx, limit)
	if err != nil {
		return false, err
	}
	control, err := writeControl(r.dir)
	if err != nil {
		return false, err
	}
	env, err := shareSource(ctx, r.dir, packages)
	if err != nil {
		return false, err
	}
	packages = append(packages, control)
	took.lap("choose %d packages, and a control that must fail", len(packages)-1)

	if err := r.compile(ctx, packages); err != nil {
		return false, err
	}
	took.lap("compile their tests, %d at once", r.parallel)

	fleet, direct, err := r.both(ctx, packages, env, &took)
	if err != nil {
		return false, err
	}
	if odd := apart(packages, fleet, direct); r.again && len(odd) > 0 {
		f, d, err := r.both(ctx, odd, env, &took)
		if err != nil {
			return false, err
		}
		for _, p := range odd {
			fmt.Printf("%s was run once more: %s\n", p.Path, disagreement(p, fleet[p], direct[p]))
		}
		maps.Copy(fleet, f)
		maps.Copy(direct, d)
	}
	agree = report(os.Stdout, packages, fleet, direct)
	fmt.Print("\n", took.String())
	return agree, nil
}

// both runs packages on the fleet, and then directly.
func (r *run) both(ctx context.Context, packages []*pkg, env map[string]string, took *stopwatch) (fleet, direct map[*pkg]verdict, err error) {
	tasks, err := r.spawn(ctx, packages, env)
	if err != nil {
		return nil, nil, err
	}
	took.lap("submit %d tasks", len(tasks))
	if fleet, err = r.collect(ctx, tasks); err != nil {
		return nil, nil, err
	}
	took.lap("run and collect them")
	if direct, err = runDirectly(ctx, packages); err != nil {
		return nil, nil, err
	}
	took.lap("run go test directly")
	return fleet, direct, nil
}

// publicDir makes a directory that tasks can read: where bots run as root,
// tasks run as another user.
func publicDir() (string, error) {
	dir, err := os.MkdirTemp("", "go-std-tests-")
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755)
}

// output runs a command and returns what it wrote to its standard output; an
// error holds what it complained about.
func output(ctx context.Context, dir string, command ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Dir = dir
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("%s: %w\n%s", strings.Join(command[:min(len(command), 4)], " "), err, stderr.String())
	}
	return out, nil
}

// stopwatch says what took how long.
type stopwatch struct {
	last  time.Time
	lines []string
}

func (s *stopwatch) lap(format string, args ...any) {
	now := time.Now()
	if s.last.IsZero() {
		s.last = started
	}
	line := fmt.Sprintf("%8.1f s  %s", now.Sub(s.last).Seconds(), fmt.Sprintf(format, args...))
	fmt.Fprintln(os.Stderr, line)
	s.lines = append(s.lines, line)
	s.last = now
}

func (s *stopwatch) String() string { return strings.Join(s.lines, "\n") + "\n" }

var started = time.Now()
