package update

import (
	"context"
	"time"
)

// guardStep is how often a guard looks.
const guardStep = time.Second

// Guard watches over a trial from outside: a process of the old code that the
// new code cannot hang or crash. It returns when the trial of version is over.
// When the code on trial gives no sign of life, kill ends it, and when nobody
// has started a bot in the directory after some time, start does, with the last
// known good code; it returns only when that did not work.
func (u *Updater) Guard(ctx context.Context, version string, kill func(), running func() bool, start func() error) error {
	t := time.NewTicker(guardStep)
	defer t.Stop()
	var alone time.Time // since when no bot runs
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
		trial := u.Trial()
		if trial == nil || trial.Version != version {
			return nil
		}
		now := u.Now()
		switch {
		case running():
			alone = time.Time{}
			if now.Sub(trial.Alive) > Silence {
				u.Log.WarnContext(ctx, "the new code gives no sign of life; ending it", "version", version)
				kill()
			}
		case alone.IsZero():
			alone = now
		case now.Sub(alone) > startPatience: // whoever starts bots here had its time
			return start()
		}
	}
}

// startPatience is how long a service manager gets to start the bot again.
const startPatience = 20 * time.Second
