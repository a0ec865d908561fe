package chaos

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/internal/show/chaos/payload"
)

// Pauses between two looks.
const (
	glance = 200 * time.Microsecond // while waiting for a moment to strike
	stroll = 3 * time.Millisecond   // while nothing is due
)

// tries bounds how often one strike is repeated because its moment was missed.
const tries = 24

// hunt does every strike of the plan, each when its share of the tasks has
// ended and a bot is in its phase.
func (fl *fleet) hunt(ctx context.Context) error {
	defer fl.tasks.allowed.Store(int64(fl.form.Tasks))
	for i, s := range fl.form.Plan {
		fl.tasks.allowed.Store(int64(fl.form.allowed(i)))
		if err := fl.until(ctx, func() bool { return fl.ledger.ended() >= fl.form.due(i) }); err != nil {
			return fmt.Errorf("strike %d, %s in %s: %w", i+1, s.Victim, s.Phase, err)
		}
		for try := 0; ; try++ {
			ok, err := fl.strike(ctx, i, s)
			if err != nil {
				return fmt.Errorf("strike %d, %s in %s: %w", i+1, s.Victim, s.Phase, err)
			}
			if ok || try == tries {
				break
			}
		}
	}
	return nil
}

// until looks at everything from time to time until cond holds.
func (fl *fleet) until(ctx context.Context, cond func() bool) error {
	for {
		if _, err := fl.look(); err != nil {
			return err
		}
		if cond() {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(stroll):
		}
	}
}

// look sees all bots as they are now.
func (fl *fleet) look() ([]sight, error) {
	work := fl.waiting() > 2*len(fl.bots)
	out := make([]sight, len(fl.bots))
	for i, b := range fl.bots {
		before := b.run
		out[i] = sight{Run: b.look(), Work: work, Been: b.been}
		if b.run != "" && b.run != before {
			for _, dir := range b.places() {
				fl.places[dir] = true
			}
		}
	}
	if err := fl.ledger.read(); err != nil { // after the manifests: a task's words come later than its manifest
		return nil, err
	}
	for i := range out {
		out[i].Said = fl.ledger.said(out[i].Run)
	}
	return out, nil
}

// waiting returns how many acknowledged tasks have not ended, about: those that
// died with their bots say no last word.
func (fl *fleet) waiting() int {
	return int(fl.tasks.acked.Load()) - fl.ledger.ended() - int(fl.died.Load())
}

// scarce reports whether tasks would run out before the plan is done: moments
// that were missed cost tasks too.
func (fl *fleet) scarce() bool { return fl.waiting() < 6*len(fl.bots) }

// errNoMoment says that no bot came into the phase.
var errNoMoment = errors.New("the moment did not come")

// strike waits for the moment, kills, and looks whether it was that moment. It
// returns false when it has to be done again.
func (fl *fleet) strike(ctx context.Context, i int, s strike) (bool, error) {
	switch {
	case s.Phase == phaseSubmit:
		return fl.strikeSubmit(ctx, i, s.Victim)
	case s.Victim.onBot():
		return fl.strikeBot(ctx, s, momentPatience)
	default:
		return fl.strikeServer(ctx, s)
	}
}

// strikeBot kills a bot or one of its helpers.
func (fl *fleet) strikeBot(ctx context.Context, s strike, patience time.Duration) (bool, error) {
	wake := func() {}
	if s == (strike{victimBot, phaseFinal}) {
		// An end is taken in within a few milliseconds; by a server at rest it is not.
		if _, _, err := fl.moment(ctx, strike{victimRunner, phaseOutput}, patience); err != nil {
			return false, err
		}
		wake, patience = fl.server.rest(), longPatience
		defer wake()
	}
	b, see, err := fl.moment(ctx, s, patience)
	if errors.Is(err, errNoMoment) && patience == longPatience {
		return false, nil // the task ended before the server rested
	}
	if err != nil {
		return false, err
	}
	k := kill{Victim: s.Victim, Bot: b.id, Run: see.Run}
	var after []sight
	var lookErr error
	look := func() { after, lookErr = fl.look() }
	if s.Victim == victimBot {
		k.Gone, err = fl.killBot(b, &k, look)
	} else {
		err = fl.killHelper(b, &k, look)
	}
	if err != nil {
		return false, nil //nolint:nilerr // the victim had just ended, the moment is over
	}
	if lookErr != nil {
		return false, lookErr
	}
	if then := fl.sightOf(after, b); then.phase() == s.Phase && then.Run == see.Run {
		k.Phase = s.Phase
	} else if s.Victim.isHelper() && then.Run == "" && fl.ledger.said(see.Run) == see.Said {
		k.Phase = s.Phase // the bot has tidied up already
	}
	if see.Run != "" {
		fl.died.Add(1)
	}
	wake()
	if k.Phase == phaseFinal && !fl.confirm(ctx, see.Run, k.At) {
		k.Phase = phaseNone
	}
	fl.kills = append(fl.kills, k)
	return k.Phase == s.Phase, nil
}

// strikeServer kills the server, the database, or skep up. It comes back after
// at most maxDown; a strike of the plan may fall into that time.
func (fl *fleet) strikeServer(ctx context.Context, s strike) (bool, error) {
	b, see, err := fl.moment(ctx, s, momentPatience)
	if err != nil {
		return false, err
	}
	keep := fl.server
	if s.Victim == victimDatabase {
		keep = fl.database
	}
	k := kill{Victim: s.Victim, Caught: map[phase]int{}}
	during, both := fl.form.During[s]
	both = both && !fl.struck[s]
	struck := !both
	down := time.Duration(fl.rng.Int64N(int64(maxDown)))
	bots := fl.pids()
	var lookErr error
	k.PID, k.At, err = keep.kill(func() {
		var after []sight
		if after, lookErr = fl.look(); lookErr != nil {
			return
		}
		if then := fl.sightOf(after, b); then.phase() == s.Phase && then.Run == see.Run {
			k.Phase = s.Phase
		}
		k.catch(after)
		if both {
			struck, _ = fl.strikeBot(ctx, during, maxDown) // without a server the moment may not come
		}
		time.Sleep(down)
	})
	if err != nil {
		return false, nil //nolint:nilerr // the victim had just ended, the moment is over
	}
	if err := errors.Join(lookErr, fl.ready(ctx, 30*time.Second)); err != nil {
		return false, err
	}
	if s.Victim == victimUp {
		k.Orphans = orphans(bots, fl.pids())
	}
	if k.Phase == phaseFinal && !fl.confirm(ctx, see.Run, k.At) {
		k.Phase = phaseNone
	}
	fl.kills = append(fl.kills, k)
	fl.struck[s] = true
	for try := 0; !struck && try < tries; try++ {
		if struck, err = fl.strikeBot(ctx, during, momentPatience); err != nil {
			return false, err
		}
	}
	return k.Phase == s.Phase, nil
}

// maxDown is how long a server that was killed stays away at most.
const maxDown = time.Second

// catch notes in which phases bots were.
func (k *kill) catch(all []sight) {
	for _, x := range all {
		if p := x.phase(); p != phaseNone {
			k.Caught[p]++
		}
	}
}

// orphans says which bots are other processes now, "" for none. Those that did
// not run before do not count.
func orphans(before, after []int) string {
	for i, pid := range before {
		if pid != 0 && after[i] != pid {
			return fmt.Sprintf("bots were %v, are %v", before, after)
		}
	}
	return ""
}

func (fl *fleet) sightOf(all []sight, b *member) sight {
	for i, x := range fl.bots {
		if x == b && i < len(all) {
			return all[i]
		}
	}
	return sight{}
}

// confirm asks the server whether a task had not ended at the moment of a
// kill: its bot had said so to nobody, or died with it.
func (fl *fleet) confirm(ctx context.Context, run string, at time.Time) bool {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		r, err := fl.client.GetResult(ctx, &pb.TaskIdWithPerfRequest{TaskId: taskOf(run)})
		if err != nil {
			return false
		}
		if r := resultOf(r); !r.Completed.IsZero() {
			return r.Completed.After(at)
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// momentPatience is how long a phase is waited for; with tasks waiting each
// comes many times a second.
const momentPatience = 20 * time.Second

// lingering is how long a task runs that tells whether anything of it outlives
// its bot: a short one may end by itself before anybody looks.
const lingering = time.Second

// longPatience is how long a strike waits for such a task.
const longPatience = 5 * time.Second

// moment waits until some bot is in the strike's phase and returns it. A bot
// is best killed while it runs a long task.
func (fl *fleet) moment(ctx context.Context, s strike, patience time.Duration) (*member, sight, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	choosy := s.Victim == victimBot && s.Phase == phaseOutput
	for begun := time.Now(); ; {
		all, err := fl.look()
		if err != nil {
			return nil, sight{}, err
		}
		any := !choosy || time.Since(begun) > longPatience
		for _, i := range fl.rng.Perm(len(all)) {
			if all[i].phase() == s.Phase && (any || payload.Pause(all[i].Run) > lingering) && fl.bots[i].pid() != 0 {
				return fl.bots[i], all[i], nil
			}
		}
		select {
		case <-ctx.Done():
			return nil, sight{}, errNoMoment
		case <-time.After(glance):
		}
	}
}

// strikeSubmit kills while NewTask calls have no answer.
func (fl *fleet) strikeSubmit(ctx context.Context, i int, v victim) (bool, error) {
	keep := fl.server
	if v == victimDatabase {
		keep = fl.database
	}
	for {
		if fl.tasks.acked.Load() >= int64(fl.form.Tasks) {
			return false, errors.New("everything is submitted already")
		}
		if fl.tasks.acked.Load() >= int64(fl.form.acked(i)) && fl.tasks.pending.Load() > 0 {
			break
		}
		if fl.tasks.acked.Load() >= fl.tasks.allowed.Load() { // all wait for the strike: some more are under way when it falls
			fl.tasks.allowed.Add(int64(fl.form.acked(0)))
		}
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		time.Sleep(glance)
	}
	k := kill{Victim: v, Caught: map[phase]int{}}
	failed := fl.tasks.failed.Load()
	var after []sight
	var err, lookErr error
	pending := int64(0)
	if k.PID, k.At, err = keep.kill(func() {
		pending = fl.tasks.pending.Load()
		after, lookErr = fl.look()
	}); err != nil || lookErr != nil {
		return false, errors.Join(err, lookErr)
	}
	k.catch(after)
	if err := fl.ready(ctx, 30*time.Second); err != nil {
		return false, err
	}
	// Calls were under way just before; those of a dead server fail at once,
	// those of a dead database may wait.
	k.Pending = int(fl.tasks.failed.Load() - failed)
	if pending > 0 || k.Pending > 0 {
		k.Phase = phaseSubmit
	}
	fl.kills = append(fl.kills, k)
	return k.Phase == phaseSubmit, nil
}

// treePatience bounds the wait for a dead bot's processes.
const treePatience = 10 * time.Second

// killBot kills bot_main and returns how long it took until nothing below it
// was left, negative when something stayed. Every second time, by chance, the
// next bot starts only then; else it meets what is still dying.
func (fl *fleet) killBot(b *member, k *kill, look func()) (time.Duration, error) {
	tree := below(b.pid())
	for _, dir := range b.places() {
		fl.places[dir] = true
	}
	gone := time.Duration(-1)
	measure := func(at time.Time) {
		for end := at.Add(treePatience); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
			if !anyAlive(tree) {
				gone = time.Since(at)
				return
			}
		}
	}
	alone := fl.rng.IntN(2) == 0 || k.Run != "" && payload.Pause(k.Run) > lingering
	var err error
	k.PID, k.At, err = fl.killMain(b, func(at time.Time) {
		look() // before a new bot tidies up
		if alone {
			measure(at)
		}
	})
	if err == nil && !alone {
		measure(k.At)
	}
	b.reborn()
	return gone, err
}

func (fl *fleet) killMain(b *member, look func(time.Time)) (int, time.Time, error) {
	if b.keep != nil {
		at := time.Now()
		return b.keep.kill(func() { look(at) })
	}
	p, ok := readProcess(b.pid())
	if !ok {
		return 0, time.Time{}, errNotRunning
	}
	at := time.Now()
	if err := p.kill(); err != nil {
		return p.PID, at, err
	}
	look(at)
	return p.PID, at, nil
}

func anyAlive(ps []process) bool {
	for _, p := range ps {
		if p.alive() {
			return true
		}
	}
	return false
}

// killHelper kills a bot's task_runner or run_isolated.
func (fl *fleet) killHelper(b *member, k *kill, look func()) error {
	for _, p := range below(b.pid()) {
		if f := strings.Fields(p.Cmd); len(f) == 2 && f[1] == string(k.Victim) {
			k.PID, k.At = p.PID, time.Now()
			if err := p.kill(); err != nil {
				return err
			}
			for end := k.At.Add(time.Second); p.alive() && time.Now().Before(end); {
				time.Sleep(glance)
			}
			look()
			return nil
		}
	}
	return errNotRunning
}
