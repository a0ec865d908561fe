package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skepdev/skep/bot/hook"
	hookscript "github.com/skepdev/skep/bot/hook/script"
	"github.com/skepdev/skep/bot/platform"
	"github.com/skepdev/skep/config"
)

// hookHostCommand is the hidden subcommand that runs hooks for test-hook, as
// skep-bot's of the same name does for a bot.
const hookHostCommand = "hook_host"

func newHookHostCommand() *cobra.Command {
	return &cobra.Command{
		Use: hookHostCommand, Hidden: true, Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			if code := hookscript.Main(); code != 0 {
				return &exitError{code: code}
			}
			return nil
		},
	}
}

// hookTest is what test-hook prints.
type hookTest struct {
	Hook    string            `json:"hook"`
	Called  bool              `json:"called"`
	Value   json.RawMessage   `json:"value,omitempty"`
	Args    []json.RawMessage `json:"args,omitempty"` // as the hook left them
	Actions []hook.Action     `json:"actions,omitempty"`
	Error   *hook.Error       `json:"error,omitempty"`
	TookMS  float64           `json:"took_ms"`
}

// newConfigTestHookCommand runs one hook here, with the limits of a bot.
func newConfigTestHookCommand(env *Env) *cobra.Command {
	var botID, group string
	var args []string
	dims := pairs{what: "k=v"}
	var names []string
	for _, r := range hook.Rules {
		names = append(names, r.Name)
	}
	cmd := &cobra.Command{
		Use:   "test-hook DIR HOOK",
		Short: "Run a hook of a configuration directory on this machine",
		Long: "Run a hook of a configuration directory on this machine, against a fake bot and with a bot's limits, and print what it gave as JSON. " +
			"What it runs and reads is real; what it asks of the bot is only printed.\n\n" +
			"The base script is scripts/bot_config.star; with --bot-id, the script of that bot's group is injected as at its handshake.\n\n" +
			"Hooks: " + strings.Join(names, ", ") + ".\n\n" +
			"Exit codes: 0 the hook did its work, or there is no such function; 1 it failed and was contained, or a script does not load.",
		Example: "  skep config test-hook /etc/skep get_dimensions --bot-id lab1-07 -d os=Linux\n" +
			"  skep config test-hook /etc/skep on_after_poll --arg '\"sleep\"'",
		Args: exactly("a directory", "a hook"),
		RunE: env.action(func(ctx context.Context, cmd *cobra.Command, pos []string) error {
			rule, ok := hook.RuleOf(pos[1])
			if !ok {
				return usageErrorf(cmd, "there is no hook %q; hooks are %s", pos[1], strings.Join(names, ", "))
			}
			values, err := hookArgs(rule, args)
			if err != nil {
				return usageErrorf(cmd, "--arg: %w", err)
			}
			base, injected, err := hookScripts(pos[0], botID, group)
			if err != nil {
				return err
			}
			fake := dims.sorted()
			over := map[string][]string{}
			for _, p := range fake {
				over[p.key] = append(over[p.key], p.value)
			}
			return testHook(ctx, env, base, injected, rule, values, fakeBot(ctx, botID, over))
		}),
	}
	f := cmd.Flags()
	f.StringVar(&botID, "bot-id", "b1", "id of the fake bot; the script of its group is injected")
	f.StringVar(&group, "script", "", "inject scripts/`NAME` instead of the group's script")
	f.VarP(&dims, "dimension", "d", "dimension of the fake bot, as k=v; repeatable; in place of this machine's")
	f.StringArrayVar(&args, "arg", nil, "`JSON` of an argument after bot; repeatable, in order")
	return cmd
}

// hookScripts reads the base script and the one to inject; either may be nil.
func hookScripts(dir, botID, name string) (base, injected *hook.Script, err error) {
	snap, err := config.ReadDir(dir)
	if err != nil {
		return nil, nil, err
	}
	read := func(name string) *hook.Script {
		if text, ok := snap.Script(name); ok {
			return &hook.Script{Name: name, Source: text}
		}
		return nil
	}
	base = read("bot_config.star")
	if name == "" {
		if g := snap.Group(botID); g != nil {
			name = g.StarScript
		}
	}
	if name != "" {
		if injected = read(name); injected == nil {
			return nil, nil, fmt.Errorf("%s has no scripts/%s", dir, name)
		}
	}
	if base == nil && injected == nil {
		return nil, nil, fmt.Errorf("%s has neither scripts/bot_config.star nor a script for this bot's group", dir)
	}
	return base, injected, nil
}

// hookArgs are the arguments of a hook after bot: those given, else such as a
// bot might send.
func hookArgs(rule hook.Rule, given []string) ([]any, error) {
	if len(given) > len(rule.Args) {
		return nil, fmt.Errorf("%s takes %d (%s), got %d", rule.Name, len(rule.Args), strings.Join(rule.Args, ", "), len(given))
	}
	environ := map[string]string{"PATH": os.Getenv("PATH")}
	out := map[string][]any{
		hook.OnAfterPoll:  {"sleep"},
		hook.OnBotIdle:    {60.0},
		hook.OnBeforeTask: {filepath.Join(os.TempDir(), "bot_file.json"), []string{"task_runner"}, environ},
		hook.OnAfterTask:  {false, false, map[string][]string{}, map[string]any{"exit_code": 0}},
	}[rule.Name]
	for i, g := range given {
		var v any
		if err := json.Unmarshal([]byte(g), &v); err != nil {
			return nil, fmt.Errorf("%s is not JSON: %w", g, err)
		}
		out[i] = v
	}
	return out, nil
}

// fakeBot is a bot on this machine that nobody runs.
func fakeBot(ctx context.Context, id string, dims map[string][]string) hook.Bot {
	dir := os.TempDir()
	m := platform.New(ctx, platform.Options{BotID: id, Dir: dir})
	all := m.Dimensions()
	maps.Copy(all, dims)
	for _, vs := range all {
		slices.Sort(vs)
	}
	state := m.State()
	state["sleep_streak"] = 0
	text, _ := json.Marshal(state)
	return hook.Bot{
		ID: id, SessionID: "test", Server: "http://127.0.0.1:8900", Version: strings.Repeat("0", 64), BaseDir: dir,
		Dimensions: all, State: text, DefaultDimensions: all, DefaultState: state, Idle: 60,
	}
}

func testHook(ctx context.Context, env *Env, base, injected *hook.Script, rule hook.Rule, args []any, bot hook.Bot) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	h := hook.NewHost(hook.Options{
		Exe: self, Name: "skep", Args: []string{hookHostCommand}, Dir: bot.BaseDir, Env: env.Environ(), Base: base,
	})
	defer h.Close()
	res := hookTest{Hook: rule.Name}
	err = h.Load(ctx, injected)
	var out hook.Outcome
	if err == nil {
		out, err = h.Call(ctx, hook.Call{Hook: rule.Name, Args: args, Bot: bot})
	}
	if errors.As(err, &res.Error) {
		err = &exitError{code: 1}
	}
	if err == nil || res.Error != nil {
		res.Called, res.Value, res.Args, res.Actions = out.Called, out.Value, out.Args, out.Actions
		res.TookMS = float64(out.Took.Microseconds()) / 1000
		if res.Error == nil && rule.Name == hook.GetSettings && out.Called {
			if _, bad := hook.MergeSettings(out.Value); bad != nil {
				res.Error, err = &hook.Error{Hook: rule.Name, Cause: hook.CauseType, Text: bad.Error()}, &exitError{code: 1}
			}
		}
		if werr := writeJSON(env.Stdout, "-", res); werr != nil {
			return werr
		}
	}
	return err
}
