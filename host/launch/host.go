package launch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/skepdev/skep/host/engine"
	"github.com/skepdev/skep/reconcile"
)

// Control files in Root. spec host.md §1.2.
const (
	hostStamp   = "shutdown.stamp"
	rebootStamp = "reboot.stamp"
	slotStamp   = ".shutdown.stamp" // after a slot's name
)

func (l *Launcher) has(stamp string) bool {
	_, err := os.Lstat(filepath.Join(l.o.Root, stamp))
	return err == nil
}

// stamped are the slots with a control file of their own.
func (l *Launcher) stamped() map[string]bool {
	found := map[string]bool{}
	files, _ := filepath.Glob(filepath.Join(l.o.Root, "*"+slotStamp))
	for _, f := range files {
		found[strings.TrimSuffix(filepath.Base(f), slotStamp)] = true
	}
	return found
}

// watchStamps returns what follows the control files until ctx ends.
func (l *Launcher) watchStamps(ctx context.Context) (func(), error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	if err := w.Add(l.o.Root); err != nil {
		_ = w.Close()
		return nil, err
	}
	return func() {
		defer w.Close()
		for {
			select {
			case <-ctx.Done():
				return
			case ev, ok := <-w.Events:
				if !ok {
					return
				}
				if strings.HasSuffix(ev.Name, ".stamp") && !ev.Has(fsnotify.Chmod) {
					l.Wake()
				}
			case _, ok := <-w.Errors: // events were lost
				if !ok {
					return
				}
				l.Wake()
			}
		}
	}, nil
}

// hostStep decides about the host as a whole: control files, its age, reboot.
func (l *Launcher) hostStep(ctx context.Context) (time.Duration, error) {
	s := l.o.Settings()
	var age time.Duration
	var err error
	if l.o.HostAge != nil {
		age, err = l.o.HostAge()
	}
	limit := time.Duration(0)
	if s.MaxHostAge > 0 && err == nil && l.o.HostAge != nil {
		limit = HostLimit(l.o.FQDN, s.MaxHostAge)
	}
	reboot := l.has(rebootStamp)
	cause := Cause("")
	switch {
	case l.has(hostStamp):
		cause = CauseHost
	case reboot:
		cause = CauseReboot
	}
	running := 0
	list, listed := l.observe(ctx)
	for _, c := range list {
		if c.State == engine.Running || c.State == engine.Paused {
			running++
		}
	}
	var why string
	switch {
	case reboot && listed == nil && running == 0:
		why = "control file"
	case cause == "" && limit > 0:
		drain, now := HostAge(age, limit, s.RebootGrace, running)
		if drain {
			cause = CauseHostAge
		}
		if now && (listed == nil || age-limit > s.RebootGrace) {
			why = fmt.Sprintf("the host is up for %v, its limit is %v", age.Round(time.Minute), limit)
		}
	}
	l.setHost(cause)
	again := time.Duration(0)
	if limit > 0 {
		again = time.Minute
		if age < limit {
			again = limit - age + time.Second
		}
	}
	if why == "" || l.o.Reboot == nil {
		return again, err
	}
	return time.Minute, l.reboot(ctx, why)
}

func (l *Launcher) setHost(cause Cause) {
	l.mu.Lock()
	changed := l.host != cause
	l.host = cause
	l.mu.Unlock()
	if changed {
		l.log.Info("host", "drain", cause)
		l.loop.Wake(l.keys()...)
	}
}

func (l *Launcher) rebootBegun() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rebooting != ""
}

// maxUpdates is how often a failed update of the engine puts a reboot off.
const maxUpdates = 3

// reboot updates the engine, if it is to, and restarts the host. promise D16.
func (l *Launcher) reboot(ctx context.Context, why string) error {
	if l.rebootBegun() {
		return nil
	}
	if l.o.UpdateEngine != nil {
		if err := l.o.UpdateEngine(ctx); err != nil {
			l.mu.Lock()
			l.updates++
			n := l.updates
			l.mu.Unlock()
			l.log.ErrorContext(ctx, "engine not updated before the reboot", "err", err, "try", n)
			if n <= maxUpdates {
				return fmt.Errorf("update engine before reboot, try %d of %d: %w", n, maxUpdates, err)
			}
		}
	}
	if err := os.Remove(filepath.Join(l.o.Root, rebootStamp)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err // else the host would reboot for ever
	}
	l.log.WarnContext(ctx, "the host reboots", "reason", why)
	if err := l.o.Reboot(ctx, why); err != nil {
		return fmt.Errorf("reboot: %w", err)
	}
	l.mu.Lock()
	l.rebooting = why
	l.mu.Unlock()
	return nil
}

// doctor treats an engine that does not answer: ask again, restart it, reboot.
// promise D6.
type doctor struct {
	suspicion chan struct{} // holds one
	tried     treatment
}

// treatment is when what was tried last; zero = never.
type treatment struct {
	Restart time.Time `json:"restart,omitzero"`
	Reboot  time.Time `json:"reboot,omitzero"`
	Reason  string    `json:"reason,omitempty"`
}

// treatAgain is the least time between two tries of the same cure.
const treatAgain = 30 * time.Minute

// rung says which cure is next for an engine that does not answer, "" = none
// now.
func (t treatment) rung(now time.Time) string {
	switch {
	case now.Sub(t.Restart) >= treatAgain:
		return "restart"
	case now.Sub(t.Reboot) >= treatAgain && t.Restart.After(t.Reboot):
		return "reboot"
	}
	return ""
}

func (l *Launcher) noteHung(err error) {
	if engine.Hung(err) {
		l.suspect()
	}
}

func (l *Launcher) suspect() {
	select {
	case l.doctor.suspicion <- struct{}{}:
	default:
	}
}

// treat looks after the engine until ctx ends.
func (l *Launcher) treat(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.doctor.suspicion:
		}
		if err := l.answers(ctx); err != nil && ctx.Err() == nil {
			l.cure(ctx, err)
		}
	}
}

func (l *Launcher) cure(ctx context.Context, reason error) {
	l.mu.Lock()
	tried := l.doctor.tried
	l.mu.Unlock()
	next := tried.rung(time.Now())
	do := l.o.RestartEngine
	switch next {
	case "restart":
		tried.Restart = time.Now()
	case "reboot":
		tried.Reboot = time.Now()
		do = nil
		if l.o.Reboot != nil {
			do = func(ctx context.Context) error { return l.o.Reboot(ctx, "the container engine does not answer") }
		}
	default:
		return
	}
	tried.Reason = reason.Error()
	note, err := json.Marshal(tried)
	if err == nil { // before it happens: a reboot forgets
		err = l.journal.Begin(ctx, reconcile.Entry{Key: keyEngine, Step: next, At: time.Now(), Note: note})
	}
	if err != nil {
		l.log.ErrorContext(ctx, "engine not treated", "err", err)
		return
	}
	l.mu.Lock()
	l.doctor.tried = tried
	l.mu.Unlock()
	l.metrics.cures.WithLabelValues(next).Inc()
	l.log.ErrorContext(ctx, "the container engine does not answer", "cure", next, "may", do != nil, "err", reason)
	if do != nil {
		if err := do(ctx); err != nil {
			l.log.ErrorContext(ctx, "engine not treated", "cure", next, "err", err)
		}
	}
}
