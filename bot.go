package skep

import (
	"encoding/json"
	"time"
)

// Bot is what the server knows of a bot.
type Bot struct {
	ID            BotID
	Dimensions    Dimensions      // effective: server-assigned values replace the bot's own
	State         json.RawMessage // a JSON object as the bot sent it
	Version       string          // digest of its code
	SessionID     string          // one process of the bot
	Authenticated string          // identity, kind:name
	ExternalIP    string
	DimensionsKey int64 // names Dimensions in the store: equal sets have equal keys; 0 = not stored yet

	FirstSeen time.Time
	LastSeen  time.Time
	IdleSince time.Time // zero while it is not idle

	Task        TaskID // what it runs; kept when it goes missing
	TaskName    string
	Quarantined string // reason; "" = healthy
	Maintenance string // reason; "" = not in maintenance
	Dead        bool
	Terminated  TaskID // termination task that ended it
	LastEvent   string // key of the last event, to drop its repetition
	Deleted     bool   // rebuilt from old events; there is no live record
}

// Idle reports whether the bot waits for work: it runs nothing and nothing
// keeps it from running. Dead bots count as idle. spec/api-v2.md §7.2.
func (b *Bot) Idle() bool { return b.Dead || !b.IdleSince.IsZero() }

// EventType names something that happened to a bot. spec/scheduler.md §8.2.
type EventType string

// The events.
const (
	EventConnected  EventType = "bot_connected"
	EventIdle       EventType = "bot_idle"
	EventSleep      EventType = "request_sleep"
	EventUpdate     EventType = "request_update"
	EventRestart    EventType = "request_restart"
	EventTask       EventType = "request_task"
	EventTerminate  EventType = "bot_terminate"
	EventTaskUpdate EventType = "task_update"
	EventCompleted  EventType = "task_completed"
	EventKilled     EventType = "task_killed"
	EventTaskError  EventType = "task_error"
	EventRebooting  EventType = "bot_rebooting"
	EventError      EventType = "bot_error"
	EventLog        EventType = "bot_log"
	EventShutdown   EventType = "bot_shutdown"
	EventMissing    EventType = "bot_missing"
	EventDeleted    EventType = "bot_deleted"
)

// BotEvent is one line of a bot's history.
type BotEvent struct {
	Seq         int64 // order among the bot's events
	At          time.Time
	Type        EventType
	Message     string
	Task        TaskID
	Dimensions  Dimensions
	State       json.RawMessage
	Version     string
	SessionID   string
	ExternalIP  string
	Authn       string
	Quarantined string
	Maintenance string
}
