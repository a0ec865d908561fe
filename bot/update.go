package bot

import (
	"context"
	"fmt"
	"time"

	"github.com/skepdev/skep/api/botapi"
)

// Code is the bot's own code. *update.Updater is one, and says more.
type Code interface {
	Start() (onTrial bool, failed string, err error)
	Ready(ctx context.Context, digest string) (exe string, err error)
	Failed(digest string) error
	Pause(digest string) time.Duration
	KeepGood(succeeded bool) error
	Alive() (over bool, err error)
	Passed() error
	Good() string
}

const (
	aliveEvery  = 10 * time.Second       // sign of life of code on trial
	provingWait = 100 * time.Millisecond // its polls wait
	// refusedPause is how long a bot sleeps that is told to become what failed
	// before: the server may change its mind at any moment.
	refusedPause = 5 * time.Second
)

// prove looks at what the last start left, and when this code is on trial,
// gives signs of life until it passed.
func (b *Bot) prove() {
	if b.cfg.Code == nil {
		return
	}
	onTrial, failed, err := b.cfg.Code.Start()
	if err != nil {
		b.log.Error("state of the last update", "err", err)
	}
	if failed != "" {
		b.Error(failed)
	}
	if !onTrial {
		return
	}
	trial, passed := context.WithCancel(b.hard)
	b.passed = passed
	go func() {
		t := time.NewTicker(aliveEvery)
		defer t.Stop()
		for {
			select {
			case <-trial.Done():
				return
			case <-t.C:
			}
			over, err := b.cfg.Code.Alive()
			if err != nil {
				b.log.Error("sign of life", "err", err)
			}
			if over {
				b.giveUp()
				return
			}
		}
	}()
}

// pass ends the trial: a poll was answered. It is called for every poll.
func (b *Bot) pass() {
	if b.passed == nil {
		return
	}
	if err := b.cfg.Code.Passed(); err != nil {
		b.log.Error("end of the trial", "err", err)
		return
	}
	b.log.Info("the new code works", "version", b.cfg.Version)
	b.passed()
	b.passed = nil
}

// giveUp goes back to the last known good code: this one never reached its
// server. What runs then reports it.
func (b *Bot) giveUp() {
	b.log.Error("no successful poll with this code; going back", "version", b.cfg.Version, "to", b.cfg.Code.Good())
	if err := b.cfg.Become(b.cfg.Code.Good(), "the new code reached no server"); err != nil {
		b.log.Error("go back", "err", err)
	}
}

// update replaces this process by one with the code that the server names.
// It returns when that did not work; the bot then stays what it is.
// spec bot.md §8.1.
func (b *Bot) update(digest string) {
	if b.cfg.Code == nil || b.cfg.Become == nil {
		b.Error(fmt.Sprintf("told to update to %s, which this bot (%s) cannot do", digest, b.cfg.Version))
		_ = b.badCmds.Sleep(b.idle, 0)
		return
	}
	if pause := b.cfg.Code.Pause(digest); pause > 0 {
		b.log.Warn("told to update to code that failed", "version", digest, "again_in", pause)
		b.pause(min(pause, refusedPause))
		return
	}
	exe, err := b.cfg.Code.Ready(b.idle, digest)
	if b.idle.Err() != nil {
		return
	}
	if err == nil {
		b.last(botapi.EventShutdown, "About to restart: Updating to "+digest)
		b.farewell(false)
		b.closeRunner()
		err = b.cfg.Become(exe, "Updating to "+digest)
		if err == nil { // somebody else carries on, as on Windows or in a test
			b.Drain("updated to " + digest)
			return
		}
	}
	b.Error(fmt.Sprintf("updating to %s did not work: %v", digest, err))
	b.pause(refusedPause)
	if err := b.cfg.Code.Failed(digest); err != nil {
		b.log.Error("note the failed update", "err", err)
	}
}

func (b *Bot) pause(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-b.idle.Done():
	}
}

// keepGood makes the code that runs the one to fall back to, where it is due.
func (b *Bot) keepGood(succeeded bool) {
	if b.cfg.Code == nil || b.passed != nil {
		return
	}
	if err := b.cfg.Code.KeepGood(succeeded); err != nil {
		b.Error(fmt.Sprintf("keep a copy of the code that works: %v", err))
	}
}
