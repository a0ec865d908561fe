package chaos

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/skepdev/skep/internal/proc"
)

// await fails the test unless cond comes true within some seconds.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); {
		if time.Now().After(end) {
			t.Fatal("never: " + what)
		}
		<-time.After(time.Millisecond)
	}
}

func TestKeeperStartsAgainWhatEnds(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	k := &keeper{name: "child", log: filepath.Join(t.TempDir(), "log"), cmd: func() *proc.Cmd {
		return &proc.Cmd{Path: exe, Args: []string{"child"}, Env: []string{"CHAOS_CHILD=wait"}}
	}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if _, _, err := k.kill(func() {}); !errors.Is(err, errNotRunning) {
		t.Errorf("kill before the start: %v", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- k.run(ctx) }()
	lives := func(not int) func() bool {
		return func() bool {
			p := k.process()
			return p != nil && p.Pid != not
		}
	}
	await(t, "a process", lives(0))
	first := k.process()
	pid, at, err := k.kill(func() {
		if k.process() != first {
			t.Error("another one was started before anybody looked")
		}
	})
	if err != nil || pid != first.Pid || time.Since(at) > 10*time.Second || first.Wait().Code != -9 {
		t.Errorf("kill: %d %v %v, ended with %d", pid, at, err, first.Wait().Code)
	}
	await(t, "a second process", lives(first.Pid))
	if got := k.unexpected(); len(got) != 0 {
		t.Errorf("a kill of ours is no surprise: %v", got)
	}
	second := k.process()
	if err := second.Kill(); err != nil {
		t.Fatal(err)
	}
	await(t, "a third process", lives(second.Pid))
	if got := k.unexpected(); len(got) != 1 || got[0].Code != -9 || got[0].Name != "child" {
		t.Errorf("it ended by itself: %v", got)
	}
	if k.end(10 * time.Second) {
		t.Error("a process that SIGTERM kills did not end by itself")
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, _, err := k.kill(func() {}); !errors.Is(err, errNotRunning) {
		t.Errorf("kill after the end: %v", err)
	}
}

func TestKeeperEndsWithItsContext(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	k := &keeper{name: "child", log: filepath.Join(t.TempDir(), "log"), cmd: func() *proc.Cmd {
		return &proc.Cmd{Path: exe, Args: []string{"child"}, Env: []string{"CHAOS_CHILD=wait"}}
	}}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- k.run(ctx) }()
	await(t, "a process", func() bool { return k.process() != nil })
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	select {
	case <-k.process().Done():
	default:
		t.Error("it is still there")
	}
}
