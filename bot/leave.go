package bot

import (
	"context"
	"fmt"
	"time"

	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/internal/backoff"
)

// leaveTime is how long a bot that ends tries to say so. A server that cannot
// be reached finds out by itself.
const leaveTime = 5 * time.Second

// leave sends what the outbox still holds and then the one bot_shutdown.
// spec bot.md §8.8.
func (b *Bot) leave(why string) {
	b.last(botapi.EventShutdown, why)
	b.farewell(false)
	b.log.Info("bot ends", "reason", why)
}

// last sends the outbox and one more event, within leaveTime.
func (b *Bot) last(kind, text string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(b.hard), leaveTime)
	defer cancel()
	b.out.flush(ctx)
	e := event{kind, text, newUUID()}
	var pause backoff.Exponential
	for {
		err := b.send(ctx, e)
		if err == nil {
			return
		}
		b.log.Warn("event not sent", "event", kind, "err", err)
		if !botapi.IsTransient(err) || pause.Sleep(ctx, 0) != nil {
			return
		}
	}
}

// terminate ends the bot for good, as task asks. spec bot.md §3.4.
func (b *Bot) terminate(task string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(b.hard), leaveTime)
	defer cancel()
	var pause backoff.Exponential
	for {
		_, err := b.cfg.Client.TaskUpdate(ctx, &botapi.TaskUpdate{TaskID: task, Duration: new(float64), ExitCode: new(int64)})
		if err == nil {
			break
		}
		b.log.Warn("report the termination", "task", task, "err", err)
		if !botapi.IsTransient(err) || pause.Sleep(ctx, 0) != nil {
			break
		}
	}
	b.Drain("terminated by task " + task)
}

// restart replaces this process by a new one. spec bot.md §8.1.
func (b *Bot) restart(reason string) {
	if b.cfg.Restart == nil {
		b.fallIll("told to restart (" + reason + "), which this bot cannot do")
		_ = b.badCmds.Sleep(b.idle, 0)
		return
	}
	b.last(botapi.EventShutdown, "About to restart: "+reason)
	b.farewell(false)
	b.closeRunner()
	err := b.cfg.Restart(reason)
	if err == nil { // somebody else carries on, as on Windows or in a test
		b.Drain("restarted: " + reason)
		return
	}
	b.fallIll(fmt.Sprintf("restarting (%s) did not work: %v", reason, err))
	_ = b.badCmds.Sleep(b.idle, 0)
}

// reboot restarts the host. spec bot.md §8.5.
func (b *Bot) reboot(reason string) {
	if b.cfg.Reboot == nil {
		b.Error("told to reboot the host (" + reason + "), which this bot is not allowed to do")
		_ = b.badCmds.Sleep(b.idle, 0)
		return
	}
	b.last(botapi.EventRebooting, reason)
	b.farewell(true)
	b.closeRunner()
	err := b.cfg.Reboot(b.idle, reason)
	if b.idle.Err() != nil {
		return
	}
	b.fallIll(fmt.Sprintf("rebooting the host (%s) did not work: %v", reason, err))
	_ = b.badCmds.Sleep(b.idle, 0)
}
