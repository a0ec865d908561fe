// Package fresh shows what a newcomer sees: a clone, make up, a first task.
package fresh

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/skepdev/skep/internal/show/form"
	"github.com/skepdev/skep/internal/stage/fleet"
)

// readyBound is how soon after the build the fleet is to be ready.
var readyBound = form.Of(2*time.Second, 20*time.Second)

// patience is for the build, on a machine that has built nothing before.
const patience = 20 * time.Minute

// Main runs the demonstration and returns an exit code.
func Main([]string) int {
	form.Say()
	dir, err := os.MkdirTemp("", "skep-fresh-")
	if err == nil {
		defer os.RemoveAll(dir)
		err = show(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "show fresh:", err)
		return 1
	}
	fmt.Println("passed")
	return 0
}

func show(dir string) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	clone := filepath.Join(dir, "skep")
	took, err := cloneInto(ctx, clone)
	if err != nil {
		return err
	}
	fmt.Printf("git clone                 %8v\n", took)
	start := time.Now()
	up := strings.Join(fleet.Flags(filepath.Join(dir, "state")), " ")
	f, err := fleet.Start(ctx, clone, "make", "up", "UP="+up)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end(f, dir)) }()
	fmt.Printf("make up, build            %8v\n", (time.Since(start) - f.Ready).Round(time.Millisecond))
	fmt.Printf("make up, until ready      %8v   bound %v\n", f.Ready.Round(time.Millisecond), readyBound)
	if err := firstTask(ctx, clone, f.URL); err != nil {
		return fmt.Errorf("%w\n%s", err, f.Log())
	}
	if f.Ready > readyBound {
		return fmt.Errorf("ready after %v, want %v", f.Ready, readyBound)
	}
	return nil
}

// cloneInto clones the repository around the working directory. What is not
// committed is not in the clone, and that is said.
func cloneInto(ctx context.Context, to string) (time.Duration, error) {
	top, err := exec.CommandContext(ctx, "git", "rev-parse", "--show-toplevel").Output()
	if err != nil {
		return 0, fmt.Errorf("this is no git repository: %w", err)
	}
	from := strings.TrimSpace(string(top))
	if dirty, err := exec.CommandContext(ctx, "git", "-C", from, "status", "--porcelain").Output(); err == nil && len(dirty) > 0 {
		fmt.Printf("note: %d changed files are not committed and so not shown\n", bytes.Count(dirty, []byte("\n")))
	}
	start := time.Now()
	if out, err := exec.CommandContext(ctx, "git", "clone", "-q", from, to).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("git clone: %w\n%s", err, out)
	}
	return time.Since(start).Round(time.Millisecond), nil
}

// firstTask runs what README.md tells a newcomer to run.
func firstTask(ctx context.Context, clone, url string) error {
	cmd := exec.CommandContext(ctx, "bin/skep", "run", "--", "sh", "-c", "echo hi; exit 3")
	cmd.Dir = clone
	cmd.Env = append(os.Environ(), "SKEP_SERVER="+url, "SKEP_TOKEN=")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	start := time.Now()
	err := cmd.Run()
	took := time.Since(start).Round(time.Millisecond)
	code := cmd.ProcessState.ExitCode()
	fmt.Printf("skep run                  %8v   printed %q, exit code %d\n", took, stdout.String(), code)
	if stdout.String() != "hi\n" || code != 3 {
		return fmt.Errorf("skep run printed %q and %q, exit code %d (%w); want %q and 3", stdout.String(), stderr.String(), code, cmp.Or(err, errors.New("no error")), "hi\n")
	}
	return nil
}

// end stops the fleet and looks for what it left behind.
func end(f *fleet.Fleet, dir string) error {
	start := time.Now()
	if err := f.Stop(); err != nil {
		return err
	}
	fmt.Printf("Ctrl-C, until all ended   %8v\n", time.Since(start).Round(time.Millisecond))
	left := processes(dir)
	for end := time.Now().Add(leaving); len(left) > 0 && time.Now().Before(end); left = processes(dir) {
		time.Sleep(20 * time.Millisecond) // between two looks
	}
	if len(left) > 0 {
		return fmt.Errorf("processes are left: %s", strings.Join(left, ", "))
	}
	return nil
}

// leaving is how long a process that was told to end may take to be gone after
// the one that told it.
const leaving = 5 * time.Second

// processes are those whose executable or working directory lies below dir.
func processes(dir string) (left []string) {
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		if filepath.Base(p) == strconv.Itoa(os.Getpid()) {
			continue
		}
		exe, _ := os.Readlink(filepath.Join(p, "exe"))
		cwd, _ := os.Readlink(filepath.Join(p, "cwd"))
		if strings.HasPrefix(exe, dir) || strings.HasPrefix(cwd, dir) {
			left = append(left, fmt.Sprintf("%s (%s in %s)", filepath.Base(p), exe, cwd))
		}
	}
	return left
}
