// Package fleet runs a skep up of one's own for a demonstration, or a skep
// server or provider: on a free port, with its state in a directory of the
// caller's.
package fleet

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skepdev/skep/internal/proc"
)

// Fleet is a running skep up.
type Fleet struct {
	URL string // of its server

	// Ready is how long it took from the start of skep up to its being ready,
	// whatever ran before that in the same command.
	Ready time.Duration

	p   *proc.Process
	log *tail
}

// Flags of skep up for a fleet beside others, with its state in dir.
func Flags(dir string) []string { return []string{"--listen", "127.0.0.1:0", "--state-dir", dir} }

// Start runs a command that ends in skep up, in directory dir ("" = ours), and
// returns when the fleet is ready. The command may be make: then the time
// counts from the line in which make says what it starts.
func Start(ctx context.Context, dir string, command ...string) (*Fleet, error) {
	path, err := proc.LookPath(command[0])
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	f := &Fleet{log: &tail{}}
	f.p, err = proc.Start(&proc.Cmd{Path: path, Args: command, Env: environ(), Dir: dir, Files: []*os.File{nil, w, w}, NewGroup: true})
	if err != nil {
		_ = r.Close()
		return nil, err
	}
	ready := make(chan struct{})
	go f.read(r, ready)
	select {
	case <-ready:
		return f, nil
	case <-f.p.Done():
		return nil, fmt.Errorf("%s ended before it was ready, exit code %d:\n%s", strings.Join(command, " "), f.p.Wait().Code, f.log)
	case <-ctx.Done():
		_ = f.p.Kill()
		return nil, fmt.Errorf("wait for %s: %w\n%s", strings.Join(command, " "), ctx.Err(), f.log)
	}
}

// environ is ours without what would lead a skep, or a make below ours, astray.
func environ() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		switch name {
		case "SKEP_SERVER", "SKEP_TOKEN", "SKEP_STATE_DIR", "SKEP_DB", "SWARMING_SERVER", "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES":
			return true
		}
		return false
	})
}

// read takes the command's output to its end.
func (f *Fleet) read(r io.ReadCloser, ready chan<- struct{}) {
	defer r.Close()
	start := f.p.Started
	s := bufio.NewScanner(r)
	for s.Scan() {
		line := s.Text()
		f.log.add(line)
		switch {
		case f.URL != "":
		case strings.HasPrefix(line, "bin/skep up"):
			start = time.Now()
		case strings.HasPrefix(line, "skep: ready at "):
			f.Ready = time.Since(start)
			f.URL = strings.Fields(line)[3]
			close(ready)
		case strings.HasPrefix(line, "skep: provider ready; see "):
			f.Ready = time.Since(start)
			f.URL = strings.TrimSuffix(strings.Fields(line)[4], "/metrics")
			close(ready)
		}
	}
	_, _ = io.Copy(io.Discard, r) // a line too long for the scanner
}

// PID is the process id of the command.
func (f *Fleet) PID() int { return f.p.Pid }

// stopTime is more than the bots of an idle fleet need to leave.
const stopTime = 30 * time.Second

// Stop drains the fleet, as Ctrl-C does, and waits for its end.
func (f *Fleet) Stop() error {
	if err := f.p.Terminate(); err != nil && !errors.Is(err, proc.ErrGone) {
		return err
	}
	select {
	case <-f.p.Done():
		return nil
	case <-time.After(stopTime):
		_ = f.p.Kill()
		return fmt.Errorf("the fleet did not end within %v of being asked to:\n%s", stopTime, f.log)
	}
}

// Kill kills the command with SIGKILL and waits for its end. What it started
// goes on.
func (f *Fleet) Kill() {
	_ = f.p.Kill() // it may have ended
	<-f.p.Done()
}

// Log is the end of what the command printed.
func (f *Fleet) Log() string { return f.log.String() }

// tail keeps the last lines.
type tail struct {
	mu    sync.Mutex
	lines []string
}

func (t *tail) add(line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines = append(t.lines, line)
	if len(t.lines) > 100 {
		t.lines = slices.Clone(t.lines[50:])
	}
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var b bytes.Buffer
	for _, l := range t.lines {
		fmt.Fprintln(&b, "  |", l)
	}
	return b.String()
}
