// Package hook runs the administrator's hooks: Starlark functions with the
// names of spec bot.md §6.2 that shape a bot. They are not trusted to be
// correct: they run in a child process of the bot, the hook host, which has
// limits of time, steps and memory, holds no credential of the bot, and is
// replaced when it dies. This package is the bot's side; package script is the
// child's, and alone links the interpreter.
//
// The bot and its host exchange frames; see Frame. docs/hooks.md is what an
// administrator reads.
package hook

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Names of the hooks. spec bot.md §6.2.
const (
	SetupBot                 = "setup_bot"
	GetDimensions            = "get_dimensions"
	GetState                 = "get_state"
	GetSettings              = "get_settings"
	GetAuthenticationHeaders = "get_authentication_headers"
	OnBotStartup             = "on_bot_startup"
	OnHandshake              = "on_handshake"
	OnBeforePoll             = "on_before_poll"
	OnAfterPoll              = "on_after_poll"
	OnBotIdle                = "on_bot_idle"
	OnBeforeTask             = "on_before_task"
	OnAfterTask              = "on_after_task"
	OnBotShutdown            = "on_bot_shutdown"
)

// Mode says which of the two scripts answers a call. spec bot.md §6.1.
type Mode uint8

// Modes of a call.
const (
	NotChained Mode = iota // the injected script if it defines the hook, else the base
	Chained                // the base, then the injected; the last one's value counts
	BaseOnly               // the base
)

// Rule is how one hook is called.
type Rule struct {
	Name  string
	Mode  Mode
	Args  []string      // after bot
	Limit time.Duration // wall time of one script's function
	Want  string        // what it returns, in words; "" = nothing that counts
}

// Rules are all hooks there are. spec bot.md §6.2; the limits are ours.
var Rules = []Rule{
	{SetupBot, BaseOnly, nil, 5 * time.Minute, "a bool"},
	{GetDimensions, NotChained, nil, 20 * time.Second, "a dict of string to list of strings"},
	{GetState, NotChained, nil, 20 * time.Second, "a dict that JSON can hold"},
	{GetSettings, NotChained, nil, 10 * time.Second, "a dict"},
	{GetAuthenticationHeaders, NotChained, nil, 30 * time.Second, "a tuple (dict of string to string or None, expiry in seconds since 1970 or None)"},
	{OnBotStartup, Chained, nil, time.Minute, ""},
	{OnHandshake, Chained, nil, time.Minute, ""},
	{OnBeforePoll, NotChained, nil, 10 * time.Second, ""},
	{OnAfterPoll, NotChained, []string{"cmd"}, 10 * time.Second, ""},
	{OnBotIdle, Chained, []string{"since_last_action"}, time.Minute, ""},
	{OnBeforeTask, Chained, []string{"bot_file", "command", "env"}, time.Minute, ""},
	{OnAfterTask, Chained, []string{"failure", "internal_failure", "dimensions", "summary"}, 2 * time.Minute, ""},
	{OnBotShutdown, Chained, nil, 30 * time.Second, ""},
}

// RuleOf returns the rule of a hook.
func RuleOf(name string) (Rule, bool) {
	for _, r := range Rules {
		if r.Name == name {
			return r, true
		}
	}
	return Rule{}, false
}

// Limits of the hook host. They are generous for hooks that work and small
// beside what a machine has.
const (
	MaxScript  = 1 << 20     // bytes of one script
	MaxSteps   = 100_000_000 // Starlark steps of one call and script, about a second
	MaxAnswer  = 1 << 20     // bytes of a returned value as JSON
	MaxHeap    = 192 << 20   // bytes of live values; the host ends the call beyond it
	MaxData    = 512 << 20   // bytes of private memory, kept by the kernel where it can; also of each command
	MaxActions = 64          // events and requests of one call
	MaxPrint   = 16 << 10    // bytes that one call prints into the bot's log
	MaxShow    = 1 << 20     // bytes that one evaluation of a person prints

	EvalLimit = time.Minute // of one evaluation of a person

	loadLimit = 10 * time.Second
	slack     = 2 * time.Second // what the host may take to say that a hook took too long
)

// Script is one source of hooks.
type Script struct {
	Name     string `json:"name"` // as error texts call it
	Source   string `json:"source"`
	Revision string `json:"revision,omitempty"`
}

// mayDefine reports whether the text mentions any hook at all. It is not a
// parser: a text from outside is only parsed in the hook host.
func (s *Script) mayDefine() bool {
	if s == nil {
		return false
	}
	for _, r := range Rules {
		if strings.Contains(s.Source, r.Name) {
			return true
		}
	}
	return false
}

// Bot is what hooks are told about the bot. spec bot.md §6.3. It holds no
// session token and no credential.
type Bot struct {
	ID         string              `json:"id"`
	SessionID  string              `json:"session_id"`
	Server     string              `json:"server"`
	Version    string              `json:"bot_version"`
	BaseDir    string              `json:"base_dir"`
	Dimensions map[string][]string `json:"dimensions"` // of the last poll
	State      json.RawMessage     `json:"state"`      // of the last poll; a JSON object or empty

	// What the bot says without hooks, computed now.
	DefaultDimensions map[string][]string `json:"default_dimensions"`
	DefaultState      map[string]any      `json:"default_state"`

	Idle    float64 `json:"idle"`    // seconds since the last task ended, or the start
	Restart string  `json:"restart"` // messages of bot_restart that wait to be acted upon
}

// Call is one call of a hook.
type Call struct {
	Hook string
	Args []any // after bot; what JSON can hold
	Bot  Bot
}

// Kinds of Action.
const (
	ActionEvent   = "event"       // Event, Text
	ActionRestart = "bot_restart" // Text
	ActionReboot  = "host_reboot" // Text
	ActionPrint   = "print"       // Text

	// Of a person at `skep-bot shell` only; no hook may ask for these.
	ActionStacks = "stacks"
	ActionBundle = "bundle"
	ActionDrain  = "drain" // Text: why
	ActionStop   = "stop"  // Text: why
)

// Action is what a hook asked the bot to do. Actions of a call that failed
// count too.
type Action struct {
	Kind  string `json:"kind"`
	Event string `json:"event,omitempty"`
	Text  string `json:"text"`
}

// Outcome is what a call gave.
type Outcome struct {
	Called  bool              // some script defines the hook
	Value   json.RawMessage   // of the last function called; "null" if it returned nothing
	Args    []json.RawMessage // the arguments as the functions left them; lists and dicts can be changed
	Actions []Action
	Took    time.Duration
}

// Cause says how a hook failed.
type Cause string

// Causes.
const (
	CauseRaised Cause = "raised" // fail(), a wrong operation, a wrong argument
	CauseType   Cause = "type"   // it returned what the hook must not return
	CauseSteps  Cause = "steps"  // more than MaxSteps
	CauseTime   Cause = "time"   // longer than its rule says
	CauseMemory Cause = "memory" // more than MaxHeap
	CauseDied   Cause = "died"   // the hook host ended
	CauseLoad   Cause = "load"   // a script does not compile
)

// Error is a failure of a hook, contained. Text is for a person: what happened
// and where, at most about 2 KiB of traceback. spec bot.md §8.7.
type Error struct {
	Hook  string `json:"hook"`
	Cause Cause  `json:"cause"`
	Text  string `json:"text"`
}

func (e *Error) Error() string { return fmt.Sprintf("hook %s: %s", e.Hook, e.Text) }
