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

// asked is what the control files of the host say.
func (l *Launcher) asked() Cause {
	switch {
	case l.has(hostStamp):
		return CauseHost
	case l.has(rebootStamp):
		return CauseReboot
	}
	return ""
}

// age is how long the host is up, and how long it may be, 0 = for ever or not
// known. One that nobody may reboot would stay drained and empty.
func (l *Launcher) age() (age, limit time.Duration, err error) {
	most := l.o.Settings().MaxHostAge
	if l.o.HostAge == nil || l.o.Reboot == nil || most == 0 {
		return 0, 0, nil
	}
	if age, err = l.o.HostAge(); err != nil {
		return 0, 0, err
	}
	return age, HostLimit(l.o.FQDN, most), nil
}

// before is why the host is drained before the first look at it: no slot is
// filled that would be drained at once.
func (l *Launcher) before() Cause {
	if cause := l.asked(); cause != "" {
		return cause
	}
	age, limit, _ := l.age() // an error is the step's
	if drain, _ := HostAge(age, limit, 0, 1); drain {
		return CauseHostAge
	}
	return ""
}

// hostStep decides about the host as a whole: control files, its age, reboot.
func (l *Launcher) hostStep(ctx context.Context) (time.Duration, error) {
	if wait := l.rebootWait(); wait > 0 { // nothing begins any more
		return wait, nil
	}
	s := l.o.Settings()
	age, limit, err := l.age()
	reboot := l.has(rebootStamp)
	cause := l.asked()
	running := 0
	list, listed := l.observe(ctx)
	for _, c := range list {
		// One that cannot be ended is not waited for: the reboot is its cure.
		if (c.State == engine.Running || c.State == engine.Paused) && !l.frozen(c) {
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

func (l *Launcher) rebootBegun() bool { return l.rebootWait() > 0 }

// rebootWait is how long a reboot that has begun is waited for. One that did
// not come in that time is forgotten, and the host goes on.
func (l *Launcher) rebootWait() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rebooting == "" {
		return 0
	}
	wait := time.Until(l.rebootAt.Add(treatAgain))
	if wait <= 0 {
		l.log.Error("the host was told to reboot and did not, it goes on", "reason", l.rebooting)
		l.rebooting = ""
	}
	return wait
}

func (l *Launcher) setRebooting(why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rebooting, l.rebootAt = why, time.Now()
}

// maxUpdates is how often a failed update of the engine puts a reboot off,
// whether one launcher tries or each pass is another.
const maxUpdates = 3

// updates is how often the engine could not be updated since the last reboot,
// as the journal keeps it.
type updates struct {
	Failed int `json:"failed"`
}

// updateFailed counts, and returns how often it was.
func (l *Launcher) updateFailed(ctx context.Context) (int, error) {
	l.mu.Lock()
	l.updates.Failed++
	u := l.updates
	l.mu.Unlock()
	note, err := json.Marshal(u)
	if err == nil {
		err = l.journal.Begin(ctx, reconcile.Entry{Key: keyUpdates, Step: "update", At: time.Now(), Note: note})
	}
	return u.Failed, err
}

// reboot updates the engine, if it is to, and restarts the host. promise D16.
func (l *Launcher) reboot(ctx context.Context, why string) error {
	if l.o.UpdateEngine != nil {
		if err := l.o.UpdateEngine(ctx); err != nil {
			n, uncounted := l.updateFailed(ctx)
			l.log.ErrorContext(ctx, "engine not updated before the reboot", "err", err, "try", n)
			if uncounted != nil { // it would put the reboot off for ever
				l.log.ErrorContext(ctx, "failed update not counted, it puts nothing off", "err", uncounted)
			} else if n <= maxUpdates {
				return fmt.Errorf("update engine before reboot, try %d of %d: %w", n, maxUpdates, err)
			}
		}
	}
	// The control file goes first, else the host would reboot for ever. Before
	// that, what it kept from being filled has to be kept by something else.
	l.setRebooting(why)
	stamped := l.has(rebootStamp)
	if err := os.Remove(filepath.Join(l.o.Root, rebootStamp)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.setRebooting("")
		return err
	}
	l.log.WarnContext(ctx, "the host reboots", "reason", why)
	if err := l.o.Reboot(ctx, why); err != nil {
		err = fmt.Errorf("reboot: %w", err)
		if stamped { // it is still asked for
			err = errors.Join(err, l.stamp(rebootStamp))
		}
		l.setRebooting("")
		return err
	}
	l.mu.Lock()
	l.updates = updates{}
	l.mu.Unlock()
	return l.journal.End(ctx, keyUpdates)
}

// doctor treats an engine that does not answer, or serves no slot: ask again,
// restart it, reboot. promise D6.
type doctor struct {
	suspicion chan struct{} // holds one

	// guarded by the launcher's mu
	tried treatment
	sick  map[string]int // by slot: steps in a row without an answer, or without one about its container
}

// treatment is when what was tried last; zero = never.
type treatment struct {
	Restart time.Time `json:"restart,omitzero"`
	Reboot  time.Time `json:"reboot,omitzero"`
	Reason  string    `json:"reason,omitempty"`
}

const (
	// treatAgain is the least time between two tries of the same cure.
	treatAgain = 30 * time.Minute
	// asks is how often an engine is asked before it counts as one that does not
	// answer.
	asks = 5
	// frozenAfter is how long a container that was killed, and then removed by
	// force, may still be there.
	frozenAfter = time.Minute
)

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

// answers asks the engine five times. spec host.md §1.1.
func (l *Launcher) answers(ctx context.Context) (err error) {
	for n := 1; ; n++ {
		if err = l.ask(ctx); err == nil || n == asks {
			return err
		}
		if err := rest(ctx, n); err != nil {
			return err
		}
	}
}

// rest is the pause after try n of asks: 1, 2, 4, 8 s.
func rest(ctx context.Context, n int) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Second << (n - 1)):
		return nil
	}
}

// ask makes the calls that every slot needs: an engine may answer a ping and
// nothing about containers.
func (l *Launcher) ask(ctx context.Context) error {
	if err := l.o.Engine.Ping(ctx); err != nil {
		return err
	}
	_, err := l.o.Engine.List(ctx, map[string]string{LabelLauncher: l.o.Name})
	return err
}

// unserved is the error of an engine that answers and serves no slot: for each
// slot that has a container that lives, or had a call, the call hung n times in a
// row, or the container cannot be looked at, or not be ended. While one is served
// a cure would end more work than it lets begin. ADR 68.
func (l *Launcher) unserved(n int) (err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for slot, times := range l.doctor.sick {
		if times < n {
			return nil
		}
		err = fmt.Errorf("slot %s: %s", slot, l.problems[slot])
	}
	for _, c := range l.snapshot {
		slot := c.Labels[LabelSlot]
		switch {
		case c.State != engine.Running && c.State != engine.Paused:
		case l.frozenNow(c):
			err = fmt.Errorf("slot %s: container %s cannot be ended", slot, c.ID)
		case l.doctor.sick[slot] == 0:
			return nil
		}
	}
	return err
}

func (l *Launcher) frozen(c engine.Container) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.frozenNow(c)
}

// frozenNow says whether a container lives that was killed, and should have
// ended long ago, also since the engine was restarted. spec host.md §1.5.
func (l *Launcher) frozenNow(c engine.Container) bool {
	d, ok := l.drains[c.Labels[LabelSlot]]
	if !ok || d.Container != c.ID || !d.Late {
		return false
	}
	since := d.Stopped.Add(orElse(l.o.Settings().StopGrace, defaultStopGrace))
	if restart := l.doctor.tried.Restart; restart.After(since) {
		since = restart
	}
	return time.Since(since) >= frozenAfter
}

// recount forgets calls that failed: the engine was away, or had a cure.
func (l *Launcher) recount() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.doctor.sick)
}

// treat looks after the engine until ctx ends.
func (l *Launcher) treat(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.doctor.suspicion:
		}
		err := l.answers(ctx)
		if err == nil {
			err = l.unserved(asks)
		}
		if err != nil {
			l.cure(ctx, err)
		}
	}
}

func (l *Launcher) cure(ctx context.Context, reason error) {
	if ctx.Err() != nil { // it is we who end
		return
	}
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
	l.recount()
}
