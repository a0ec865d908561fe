package script

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"go.starlark.net/starlark"

	"github.com/skepdev/skep/bot/hook"
)

// botValue is the first argument of every hook. spec bot.md §6.3.
type botValue struct {
	run  *run
	info *hook.Bot
}

func newBot(r *run, b *hook.Bot) *botValue { return &botValue{r, b} }

func (b *botValue) String() string        { return "<bot " + b.info.ID + ">" }
func (b *botValue) Type() string          { return "bot" }
func (b *botValue) Freeze()               {}
func (b *botValue) Truth() starlark.Bool  { return true }
func (b *botValue) Hash() (uint32, error) { return starlark.String(b.info.ID).Hash() }

// botAttrs are the members of bot. A dict or list is a copy.
var botAttrs = map[string]func(*botValue) (starlark.Value, error){
	"id":          func(b *botValue) (starlark.Value, error) { return starlark.String(b.info.ID), nil },
	"session_id":  func(b *botValue) (starlark.Value, error) { return starlark.String(b.info.SessionID), nil },
	"server":      func(b *botValue) (starlark.Value, error) { return starlark.String(b.info.Server), nil },
	"bot_version": func(b *botValue) (starlark.Value, error) { return starlark.String(b.info.Version), nil },
	"base_dir":    func(b *botValue) (starlark.Value, error) { return starlark.String(b.info.BaseDir), nil },
	"swarming_bot_zip": func(b *botValue) (starlark.Value, error) {
		return starlark.String(filepath.Join(b.info.BaseDir, "swarming_bot.zip")), nil
	},
	"config_dir":    func(*botValue) (starlark.Value, error) { return starlark.String(configDir(runtime.GOOS)), nil },
	"idle_secs":     func(b *botValue) (starlark.Value, error) { return starlark.Float(b.info.Idle), nil },
	"dimensions":    func(b *botValue) (starlark.Value, error) { return fromAny(b.info.Dimensions) },
	"state":         func(b *botValue) (starlark.Value, error) { return stateOf(b.info.State) },
	"attributes":    (*botValue).attributes,
	"remote":        none, // credentials stay in the bot
	"session_token": none,

	"rbe_worker_properties": none,

	"default_dimensions": method("default_dimensions", func(b *botValue) (starlark.Value, error) { return fromAny(b.info.DefaultDimensions) }),
	"default_state":      method("default_state", func(b *botValue) (starlark.Value, error) { return fromAny(b.info.DefaultState) }),
	"bot_restart_msg":    method("bot_restart_msg", func(b *botValue) (starlark.Value, error) { return starlark.String(b.info.Restart), nil }),

	"get_pseudo_rand": func(b *botValue) (starlark.Value, error) {
		return starlark.NewBuiltin("get_pseudo_rand", b.pseudoRand), nil
	},
	"post_event":  func(b *botValue) (starlark.Value, error) { return starlark.NewBuiltin("post_event", b.postEvent), nil },
	"post_error":  func(b *botValue) (starlark.Value, error) { return starlark.NewBuiltin("post_error", b.postError), nil },
	"bot_restart": asking("bot_restart", hook.ActionRestart),
	"host_reboot": asking("host_reboot", hook.ActionReboot),
	"restart":     asking("restart", hook.ActionReboot),
}

// configDir is where an administrator may put files for hooks to read; skep
// itself looks at nothing in it. spec bot.md §1.8.
func configDir(goos string) string {
	if goos == "windows" {
		return `C:\swarming_config`
	}
	return "/etc/swarming_config"
}

func none(*botValue) (starlark.Value, error) { return starlark.None, nil }

// Attr implements starlark.HasAttrs.
func (b *botValue) Attr(name string) (starlark.Value, error) {
	if f, ok := botAttrs[name]; ok {
		return f(b)
	}
	return nil, nil //nolint:nilnil // the interpreter's way to say "no such attribute"
}

// AttrNames implements starlark.HasAttrs.
func (b *botValue) AttrNames() []string {
	var names []string
	for n := range botAttrs {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

func (b *botValue) attributes() (starlark.Value, error) {
	dims, err := fromAny(b.info.Dimensions)
	if err != nil {
		return nil, err
	}
	state, err := stateOf(b.info.State)
	if err != nil {
		return nil, err
	}
	d := starlark.NewDict(3)
	_ = d.SetKey(starlark.String("dimensions"), dims)
	_ = d.SetKey(starlark.String("state"), state)
	_ = d.SetKey(starlark.String("version"), starlark.String(b.info.Version))
	return d, nil
}

func stateOf(raw json.RawMessage) (starlark.Value, error) {
	if len(raw) == 0 {
		return starlark.NewDict(0), nil
	}
	return fromJSON(raw)
}

func fromAny(v any) (starlark.Value, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	if string(raw) == "null" {
		return starlark.NewDict(0), nil
	}
	return fromJSON(raw)
}

// method is a member without arguments.
func method(name string, f func(*botValue) (starlark.Value, error)) func(*botValue) (starlark.Value, error) {
	return func(b *botValue) (starlark.Value, error) {
		return starlark.NewBuiltin(name, func(_ *starlark.Thread, fn *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
			if err := starlark.UnpackArgs(fn.Name(), args, kwargs); err != nil {
				return nil, err
			}
			return f(b)
		}), nil
	}
}

// asking is a member that asks the bot for something.
func asking(name, kind string) func(*botValue) (starlark.Value, error) {
	return func(b *botValue) (starlark.Value, error) {
		return starlark.NewBuiltin(name, func(_ *starlark.Thread, fn *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
			var message string
			if err := starlark.UnpackArgs(fn.Name(), args, kwargs, "message", &message); err != nil {
				return nil, err
			}
			return starlark.None, b.run.act(hook.Action{Kind: kind, Text: message})
		}), nil
	}
}

// pseudoRand is constant for a bot and differs between bots: ± width.
func (b *botValue) pseudoRand(_ *starlark.Thread, fn *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	var width starlark.Value
	if err := starlark.UnpackArgs(fn.Name(), args, kwargs, "width", &width); err != nil {
		return nil, err
	}
	w, ok := starlark.AsFloat(width)
	if !ok {
		return nil, fmt.Errorf("get_pseudo_rand: width is a %s, want a number", width.Type())
	}
	return starlark.Float(hook.PseudoRand(b.info.ID, w)), nil
}

func (b *botValue) postEvent(_ *starlark.Thread, fn *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	var event, message string
	if err := starlark.UnpackArgs(fn.Name(), args, kwargs, "event_type", &event, "message", &message); err != nil {
		return nil, err
	}
	if event != "bot_error" && event != "bot_log" {
		return nil, fmt.Errorf("post_event: %q is not bot_error or bot_log", clip(event, 60))
	}
	return starlark.None, b.run.act(hook.Action{Kind: hook.ActionEvent, Event: event, Text: message})
}

const maxFrames = 50 // spec bot.md §8.7

func (b *botValue) postError(t *starlark.Thread, fn *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	var message string
	if err := starlark.UnpackArgs(fn.Name(), args, kwargs, "message", &message); err != nil {
		return nil, err
	}
	var s strings.Builder
	s.WriteString(message + "\nCalling stack:")
	stack := t.CallStack()
	for i := range min(len(stack)-1, maxFrames) { // the last is post_error itself
		f := stack[len(stack)-2-i]
		fmt.Fprintf(&s, "\n  %d  %s:%d:%s()", i, f.Pos.Filename(), f.Pos.Line, f.Name)
	}
	return starlark.None, b.run.act(hook.Action{Kind: hook.ActionEvent, Event: "bot_error", Text: s.String()})
}
