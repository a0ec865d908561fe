package bot

import (
	"runtime"
	"time"

	"github.com/skepdev/skep/api/botapi"
)

// addOurs adds what only skep bots say: which executable is right for them
// (decisions.md 21) and how tasks are confined (decisions.md 5, 11).
func (b *Bot) addOurs(state map[string]any) {
	ours := map[string]any{"os": runtime.GOOS, "arch": runtime.GOARCH, "url": b.cfg.Server}
	if m := b.cfg.Runner.Method(); m != "" {
		ours["containment"] = m
	}
	kind, reason := b.cfg.Runner.Isolation()
	ours["isolation"] = kind
	if reason != "" {
		ours["isolation_reason"] = reason
	}
	state["skep"] = ours
}

// Status is what a person asks a running bot for.
type Status struct {
	ID       string    `json:"id"`
	Version  string    `json:"version"`
	Server   string    `json:"server"`
	Task     string    `json:"task,omitempty"`     // run id in hand
	Draining string    `json:"draining,omitempty"` // why
	Illness  string    `json:"illness,omitempty"`  // why it is quarantined until restart
	Polled   time.Time `json:"polled"`             // last answered poll
	Idle     int       `json:"idle_polls"`         // in a row
	Unsent   int       `json:"unsent_events"`

	botapi.Attributes
}

// Status returns a snapshot.
func (b *Bot) Status() Status {
	attrs := b.attributes()
	b.mu.Lock()
	defer b.mu.Unlock()
	return Status{
		ID: b.cfg.ID, Version: b.cfg.Version, Server: b.cfg.Server, Task: b.task, Draining: b.draining,
		Illness: b.illness, Polled: b.polled, Idle: b.streak, Unsent: b.out.len(), Attributes: attrs,
	}
}

// maxTurn is how long a turn of the loop may take besides a task: a poll waits
// for a minute at most, an update downloads for half an hour.
const maxTurn = 40 * time.Minute

// Alive reports whether the bot's loop goes round: for a watchdog.
func (b *Bot) Alive() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.task != "" || b.turned.IsZero() || b.cfg.Now().Sub(b.turned) < maxTurn
}
