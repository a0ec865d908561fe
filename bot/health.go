package bot

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/skepdev/skep/bot/hook"
	"github.com/skepdev/skep/bot/recovery"
	"github.com/skepdev/skep/internal/atomicfile"
)

// RecoveryFile is the file of the bot's directory that remembers which steps of
// the recovery ladder were taken: most of them end the process.
const RecoveryFile = "recovery.json"

const maxRecoveryFile = 64 << 10

// checkHome finds out that the bot lives in a home directory, however it came
// there: what a bot deletes must not be a person's. spec bot.md §8.6.
func (b *Bot) checkHome() {
	home, err := os.UserHomeDir()
	if err != nil {
		return
	}
	dir, err := filepath.EvalSymlinks(b.cfg.Dir)
	if err == nil && samePath(home, dir) {
		b.fallIll(fmt.Sprintf("the bot's directory %s is a home directory; move the bot to a directory of its own", b.cfg.Dir))
	}
}

// ill is why the bot gets no tasks as it is now, "" if it may.
func (b *Bot) ill() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.quarantined
}

// heal takes the next step of the recovery ladder when one is due, and restarts
// what has run too long. It is called while idle.
func (b *Bot) heal() {
	s := b.settings()
	why := b.ill()
	if why == "" {
		b.rejuvenate(s)
		return
	}
	if b.hk.held {
		return // so many fall ill at once that the change is doubted, not the bots
	}
	ladder := s.Recovery
	if len(ladder) == 0 { // the hooks name none
		b.mu.Lock()
		ladder = b.ladder
		b.mu.Unlock()
	}
	if len(ladder) == 0 {
		return
	}
	file := filepath.Join(b.cfg.Dir, RecoveryFile)
	history := readSteps(file)
	a := recovery.Plan(b.cfg.Now(), true, ladder, history)
	if a.Rung == nil {
		return
	}
	data, err := json.Marshal(recovery.Remember(history, a.Step))
	if err == nil {
		err = atomicfile.Write(file, data, 0o600)
	}
	if err != nil {
		// A step that is forgotten would be taken for ever.
		b.Error(fmt.Sprintf("the recovery ladder stands still, as its steps cannot be noted: %v", err))
		return
	}
	reason := "recovery: " + why
	switch a.Rung.Do {
	case "run":
		b.runRung(a.Rung, why)
	case "bot_restart":
		b.grant("recovery", hook.Action{Kind: hook.ActionRestart, Text: reason})
	case "host_reboot":
		b.grant("recovery", hook.Action{Kind: hook.ActionReboot, Text: reason})
	}
}

func (b *Bot) runRung(r *hook.Rung, why string) {
	if b.cfg.Output == nil {
		b.Error("the recovery ladder names a command, and this bot cannot run any")
		return
	}
	ctx, cancel := context.WithTimeout(b.idle, r.Timeout())
	defer cancel()
	out, err := b.cfg.Output(ctx, r.Command[0], r.Command[1:]...)
	text := fmt.Sprintf("recovery (%s): ran %s", why, strings.Join(r.Command, " "))
	if err != nil {
		text += fmt.Sprintf(": %v", err)
	}
	if s := strings.TrimSpace(string(out)); s != "" {
		text += "\n" + s[:min(len(s), 2048)]
	}
	b.Error(text)
}

// readSteps returns what was done; a file that cannot be read is none.
func readSteps(name string) []recovery.Step {
	f, err := os.Open(name)
	if err != nil {
		return nil
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxRecoveryFile+1))
	var steps []recovery.Step
	if err != nil || len(data) > maxRecoveryFile || json.Unmarshal(data, &steps) != nil {
		return nil
	}
	return steps
}

// rejuvenate asks for a restart of bot or host that has run longer than it may.
func (b *Bot) rejuvenate(s hook.Settings) {
	if s.Uptime.BotSecs == 0 && s.Uptime.HostSecs == 0 {
		return
	}
	_, state := b.lookAround()
	ages := recovery.Ages{Bot: secondsOf(state["running_time"]), Host: secondsOf(state["uptime"])}
	switch recovery.Tired(ages, s, hook.PseudoRand(b.cfg.ID, 1)) {
	case "bot_restart":
		b.grant("uptime", hook.Action{Kind: hook.ActionRestart, Text: fmt.Sprintf("the bot has run for %v", ages.Bot)})
	case "host_reboot":
		b.grant("uptime", hook.Action{Kind: hook.ActionReboot, Text: fmt.Sprintf("the host has run for %v", ages.Host)})
	}
}

// secondsOf reads a number of seconds as a Machine gives it.
func secondsOf(v any) time.Duration {
	switch n := v.(type) {
	case int:
		return time.Duration(n) * time.Second
	case int64:
		return time.Duration(n) * time.Second
	case float64:
		return time.Duration(n * float64(time.Second))
	}
	return 0
}
