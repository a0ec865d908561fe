package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/skepdev/skep/internal/proc"
)

// keeper keeps one process alive: it starts it again, at once, when it ends.
// Its methods may be called at once by many; run once.
type keeper struct {
	name string
	cmd  func() *proc.Cmd // a fresh one at each call, without Files
	log  string           // file for its standard output and error

	scene sync.Mutex // held from a kill until what it left was looked at

	mu    sync.Mutex
	p     *proc.Process
	cause string // who makes it end; "" = nobody does
	exits []exit // those without a cause
}

// early is the life of a process that did not get going; the next try pauses.
const early = 2 * time.Second

// run keeps the process until ctx ends or end is called, and returns when it
// is gone.
func (k *keeper) run(ctx context.Context) error {
	for {
		p, err := k.start()
		if err != nil || p == nil {
			return err
		}
		select {
		case <-p.Done():
		case <-ctx.Done():
			k.because(causeEnd)
			_ = p.Kill()
		}
		status := p.Wait()
		k.mu.Lock()
		cause := k.cause
		if cause == "" {
			k.exits = append(k.exits, exit{k.name, status.Code, status.Ended})
		}
		if cause == causeKill {
			k.cause = ""
		}
		k.mu.Unlock()
		if cause == "" && status.Ended.Sub(p.Started) < early {
			select {
			case <-time.After(200 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}
}

const (
	causeKill = "kill"
	causeEnd  = "end"
)

// start starts the process once nobody looks at what its predecessor left. It
// returns nil when there shall be none.
func (k *keeper) start() (*proc.Process, error) {
	k.scene.Lock()
	defer k.scene.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.cause == causeEnd {
		return nil, nil
	}
	f, err := os.OpenFile(k.log, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd := k.cmd()
	cmd.Files = []*os.File{nil, f, f}
	cmd.ParentDeath = true // nothing outlives us, whatever becomes of us
	p, err := proc.Start(cmd)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", k.name, err)
	}
	k.p = p
	return p, nil
}

// because notes why the process is about to end.
func (k *keeper) because(cause string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cause = cause
}

// process returns the present one, or the last; nil before the first.
func (k *keeper) process() *proc.Process {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.p
}

var errNotRunning = errors.New("it does not run")

// kill is kill -9. When the process is gone it calls look, and only then
// another one is started.
func (k *keeper) kill(look func()) (pid int, at time.Time, err error) {
	k.scene.Lock()
	defer k.scene.Unlock()
	k.mu.Lock()
	p := k.p
	if p == nil || k.cause != "" {
		k.mu.Unlock()
		return 0, time.Time{}, errNotRunning
	}
	k.cause = causeKill
	k.mu.Unlock()
	at = time.Now()
	if err := p.Kill(); err != nil {
		k.because("") // it has ended by itself just now
		return p.Pid, at, err
	}
	p.Wait()
	look()
	return p.Pid, at, nil
}

// end asks the process to end (SIGTERM) and returns when it has: true when it
// did so within patience and with code 0. Otherwise it was killed.
func (k *keeper) end(patience time.Duration) bool {
	k.scene.Lock()
	k.because(causeEnd)
	p := k.process()
	k.scene.Unlock()
	if p == nil {
		return false
	}
	_ = p.Terminate()
	select {
	case <-p.Done():
		return p.Wait().Code == 0
	case <-time.After(patience):
		_ = p.Kill()
		p.Wait()
		return false
	}
}

// unexpected returns how it ended without a cause.
func (k *keeper) unexpected() []exit {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append([]exit(nil), k.exits...)
}
