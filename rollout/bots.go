package rollout

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/store"
)

func parsePlatform(s string) Platform {
	os, arch, _ := strings.Cut(s, "/")
	return Platform{os, arch}
}

// Contact is a handshake or a poll of a skep-bot.
type Contact struct {
	Bot       skep.BotID
	Version   string // digest of the code that it runs
	Platform         // as it says
	URL       string // of the server, as it knows it
	Handshake bool
	Ill       bool // it is in quarantine
}

// Expected returns the digest of the code that a bot should run, "" when what
// it runs will do; and notes what the contact tells of a rollout. A bot that
// polls and is told another digest than its own must be told to update.
func (k *Keeper) Expected(ctx context.Context, c Contact) (digest string, err error) {
	b, err := k.Code(ctx, c.Bot, c.Platform, c.URL)
	if kind := skep.KindOf(err); err != nil && (kind == skep.NotFound || kind == skep.Unavailable) {
		return "", nil // there is no better code for it
	}
	if err != nil {
		return "", err
	}
	k.mu.Lock()
	seen := k.known[c.Bot]
	if seen == nil {
		seen = &botSeen{}
		k.known[c.Bot] = seen
	}
	running := ""
	if own := k.digests[c.Version]; own != nil {
		running = own.Release
	}
	if seen.release != running {
		*seen = botSeen{release: running}
	}
	seen.ill, seen.at = c.Ill, k.o.Now()
	said, next := k.told[c.Bot], k.state.Next
	tell, result := false, ""
	switch {
	case next == "" || k.state.Halted != "":
	case said.digest != "" && said.digest == c.Version: // however late
		if said.result != resultOK {
			result = resultOK
		}
	case said.digest != "" && said.result == "" && c.Handshake: // it comes back as what it was
		result = resultLost
	case b.Release == next && b.Digest != c.Version && b.Digest != said.digest && !c.Handshake:
		tell = true
		k.told[c.Bot] = telling{digest: b.Digest}
	}
	if result != "" {
		k.told[c.Bot] = telling{said.digest, result}
	}
	mended := k.wrong[c.Bot] && b.Digest == c.Version
	k.mu.Unlock()
	if !tell && !mended && result == "" {
		return b.Digest, nil
	}
	if result == resultLost {
		k.o.Log.WarnContext(ctx, "a bot did not update", "bot", c.Bot, "want", said.digest, "have", c.Version)
	}
	err = k.o.Store.Update(ctx, func(tx *store.Tx) error {
		if mended {
			if err := tx.ForgetMismatch(c.Bot); err != nil {
				return err
			}
		}
		switch {
		case tell:
			return tx.TellBot(store.RolloutBot{Bot: c.Bot, Release: b.Release, Digest: b.Digest, Told: tx.Now})
		case result != "":
			return tx.SettleBot(c.Bot, next, result)
		}
		return nil
	})
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case err != nil: // the next contact tells it again
		k.told[c.Bot] = said
	case mended:
		delete(k.wrong, c.Bot)
	}
	return b.Digest, err
}

func (k *Keeper) settle(ctx context.Context, bot skep.BotID, release, result string) error {
	return k.o.Store.Update(ctx, func(tx *store.Tx) error { return tx.SettleBot(bot, release, result) })
}

// Mismatched notes that what a bot downloaded had another digest than it was
// told, until it comes with the right code all the same. One that was told to
// run the next release and is not back yet counts as crashed, too.
func (k *Keeper) Mismatched(ctx context.Context, bot skep.BotID) error {
	k.mu.Lock()
	said, next := k.told[bot], k.state.Next
	crashed := next != "" && k.state.Halted == "" && said.digest != "" && said.result == ""
	k.mu.Unlock()
	err := k.o.Store.Update(ctx, func(tx *store.Tx) error {
		if crashed {
			if err := tx.SettleBot(bot, next, resultOther); err != nil {
				return err
			}
		}
		return tx.NoteMismatch(bot)
	})
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.wrong[bot] = true
	if crashed && k.told[bot] == said {
		k.told[bot] = telling{said.digest, resultOther}
	}
	return nil
}

// Ended notes the end of a task on a bot; failed, that a fault of the bot
// ended it.
func (k *Keeper) Ended(bot skep.BotID, failed bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if s := k.known[bot]; s != nil {
		s.tasks++
		if failed {
			s.failed++
		}
	}
}

// Run drives the rollout until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
		if err := k.look(ctx); err != nil && ctx.Err() == nil {
			k.o.Log.WarnContext(ctx, "rollout", "err", err)
		}
	}
}

// look is one turn: what other servers decided, who is late, what to do.
func (k *Keeper) look(ctx context.Context) error {
	if err := k.reload(ctx); err != nil {
		return err
	}
	k.mu.Lock()
	s := k.state
	k.mu.Unlock()
	k.forget()
	if s.Next == "" || s.Halted != "" {
		return nil
	}
	if err := k.note(ctx, s.Next); err != nil {
		return err
	}
	c, err := k.count(ctx, s.Next)
	if err != nil {
		return err
	}
	now, set := k.o.Now(), k.o.Settings()
	if Plan(now, s, c, set).Rev == s.Rev {
		return nil
	}
	return k.change(ctx, func(_ *store.Tx, stored State) (State, error) {
		if stored.Rev != s.Rev {
			return stored, nil
		}
		return Plan(now, stored, c, set), nil
	})
}

// note adds to the store what this server heard of bots with the next release
// since the last time: other servers hear other bots, or other polls of them.
func (k *Keeper) note(ctx context.Context, next string) error {
	var news []store.RolloutBot
	k.mu.Lock()
	for id, s := range k.known {
		if s.release == next && (!s.noted || s.tasks != s.notedTasks || s.failed != s.notedFailed || s.ill != s.notedIll) {
			news = append(news, store.RolloutBot{Bot: id, Release: next, Tasks: s.tasks - s.notedTasks, Failed: s.failed - s.notedFailed, Ill: s.ill})
		}
	}
	k.mu.Unlock()
	if len(news) == 0 {
		return nil
	}
	slices.SortFunc(news, func(a, b store.RolloutBot) int { return strings.Compare(string(a.Bot), string(b.Bot)) })
	err := k.o.Store.Update(ctx, func(tx *store.Tx) error {
		for _, b := range news {
			if err := tx.AddRolloutTasks(b); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, b := range news {
		if s := k.known[b.Bot]; s != nil && s.release == next {
			s.noted, s.notedIll = true, b.Ill
			s.notedTasks += b.Tasks
			s.notedFailed += b.Failed
		}
	}
	return nil
}

// count looks how the bots of a rollout are and gives up on those that are
// late.
func (k *Keeper) count(ctx context.Context, next string) (c Counts, err error) {
	bots, err := k.o.Store.RolloutBots(ctx, next)
	if err != nil {
		return c, err
	}
	now, set := k.o.Now(), k.o.Settings()
	set.complete()
	confirmed := map[skep.BotID]bool{}
	for _, b := range bots {
		late := b.Result == "" && now.Sub(b.Told) > set.Answer
		switch {
		case late:
			if err := k.settle(ctx, b.Bot, next, resultLost); err != nil {
				return c, err
			}
			k.mu.Lock()
			k.told[b.Bot] = telling{b.Digest, resultLost}
			k.mu.Unlock()
			c.Crashed++
		case b.Result == "":
			c.Waiting++
		case b.Result == resultOK:
			c.Confirmed++
			confirmed[b.Bot] = true
			c.Tasks, c.Failed = c.Tasks+b.Tasks, c.Failed+b.Failed
			if b.Ill {
				c.Ill++
			}
		default:
			c.Crashed++
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	lowest := 100.0
	for id, s := range k.known {
		if n := Canary(id); n < lowest || n == lowest && id < c.Lowest {
			lowest, c.Lowest = n, id
		}
		if confirmed[id] && s.release == next {
			continue // counted above, by all servers
		}
		c.Others++
		c.OthersTasks, c.OthersFailed = c.OthersTasks+s.tasks, c.OthersFailed+s.failed
		if s.ill {
			c.OthersIll++
		}
	}
	return c, nil
}

// silent is how long a bot may be silent and still count.
const silent = 10 * time.Minute

func (k *Keeper) forget() {
	k.mu.Lock()
	defer k.mu.Unlock()
	old := k.o.Now().Add(-silent)
	for id, s := range k.known {
		if s.at.Before(old) {
			delete(k.known, id)
		}
	}
}

// Status is what an operator sees.
type Status struct {
	State
	Counts
	Crashes []skep.BotID // that did not come back with the new code
	Others  []skep.BotID // bots that got other code than they were told, in the rollout or outside of one
}

// Status returns how the rollout goes.
func (k *Keeper) Status(ctx context.Context) (Status, error) {
	if err := k.reload(ctx); err != nil {
		return Status{}, err
	}
	k.mu.Lock()
	st := Status{State: k.state, Others: slices.Sorted(maps.Keys(k.wrong))}
	k.mu.Unlock()
	if st.Next == "" {
		return st, nil
	}
	var err error
	if st.Counts, err = k.count(ctx, st.Next); err != nil {
		return st, err
	}
	bots, err := k.o.Store.RolloutBots(ctx, st.Next)
	for _, b := range bots {
		if b.Result == resultLost || b.Result == resultOther {
			st.Crashes = append(st.Crashes, b.Bot)
		}
		if b.Result == resultOther {
			st.Others = append(st.Others, b.Bot)
		}
	}
	slices.Sort(st.Crashes)
	slices.Sort(st.Others)
	st.Others = slices.Compact(st.Others)
	return st, err
}

// Halt gives the new release to nobody any more; who has it goes back.
func (k *Keeper) Halt(ctx context.Context, why string) error {
	return k.steer(ctx, func(s *State) error {
		if s.Next == "" {
			return skep.Errorf(skep.Precondition, "no release is being rolled out")
		}
		s.Halted = why
		return nil
	})
}

// Resume begins a halted rollout again.
func (k *Keeper) Resume(ctx context.Context) error {
	return k.steer(ctx, func(s *State) error {
		if s.Halted == "" {
			return skep.Errorf(skep.Precondition, "no rollout is halted")
		}
		s.Halted, s.Stage, s.Since, s.Chosen = "", StageCanary, k.o.Now(), ""
		return nil
	})
}

func (k *Keeper) steer(ctx context.Context, edit func(*State) error) error {
	return k.change(ctx, func(_ *store.Tx, s State) (State, error) {
		err := edit(&s)
		s.Rev++
		return s, err
	})
}
