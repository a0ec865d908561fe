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

	mu      sync.Mutex
	p       *proc.Process
	cause   string // who makes it end; "" = nobody does
	started int
	exits   []exit // those without a cause
}

// early is the life of a process that did not get going; the next try pauses.
const early = 2 * time.Second

// run keeps the process until ctx ends or end is called, and returns when it
// is gone.
func (k *keeper) run(ctx context.Context) error {
	for {
		p, err := k.start()
		if err != nil {
			return fmt.Errorf("start %s: %w", k.name, err)
		}
		select {
		case <-p.Done():
		case <-ctx.Done():
			k.because(causeEnd)
			_ = p.Kill()
			p.Wait()
		}
		k.mu.Lock()
		cause := k.cause
		if cause == "" {
			k.exits = append(k.exits, exit{k.name, p.Wait().Code, p.Wait().Ended})
		}
		if cause != causeEnd {
			k.cause = ""
		}
		k.mu.Unlock()
		if cause == causeEnd {
			return nil
		}
		if cause == "" && p.Wait().Ended.Sub(p.Started) < early {
			select {
			case <-time.After(200 * time.Millisecond):
			case <-ctx.Done():
				return nil
			}
		}
	}
}

const (
	causeKill = "kill"
	causeEnd  = "end"
)

func (k *keeper) start() (*proc.Process, error) {
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
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.p = p
	k.started++
	return p, nil
}

// because notes why the process is about to end.
func (k *keeper) because(cause string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.cause != causeEnd {
		k.cause = cause
	}
}

// process returns the present one and how often one was started; nil before
// the first.
func (k *keeper) process() (*proc.Process, int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.p, k.started
}

var errNotRunning = errors.New("it does not run")

// kill is kill -9. It returns when the process is gone.
func (k *keeper) kill() (pid int, at time.Time, err error) {
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
		return p.Pid, at, err // it has ended by itself just now
	}
	p.Wait()
	return p.Pid, at, nil
}

// end asks the process to end (SIGTERM) and returns when it has: true when it
// did so within patience and with code 0. Otherwise it was killed.
func (k *keeper) end(patience time.Duration) bool {
	k.because(causeEnd)
	p, _ := k.process()
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
