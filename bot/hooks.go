package bot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/bot/hook"
	"github.com/skepdev/skep/runner"
)

// Hooks call the administrator's functions. *hook.Host is one.
type Hooks interface {
	Load(ctx context.Context, injected *hook.Script) error
	Has(name string) bool
	Call(ctx context.Context, c hook.Call) (hook.Outcome, error)
	Close() error
}

// hooked is what hooks said, until they are asked again: before each poll. It
// is guarded by Bot.mu, but for held, lastWork and script.
type hooked struct {
	dims     map[string][]string        // of get_dimensions; nil = the machine's
	state    map[string]json.RawMessage // of get_state; nil = the machine's
	dimsIll  string                     // why get_dimensions is not followed
	cacheIll string                     // why no task can get its inputs
	stateIll string                     // why get_state is not followed
	settings hook.Settings
	restart  []string        // messages of bot_restart, to be heeded
	reboot   []string        // messages of host_reboot
	told     json.RawMessage // the state as last told to the server

	held     bool      // ill as it says it is, the server does not believe it: ADR 31
	lastWork time.Time // end of the last task, or the start
	lastIdle time.Time // on_bot_idle during an outage
	script   *hook.Script
}

// hook calls a hook, if there is one, and sees to what it asked for. ok is
// false when there is none or it failed; then the server is told.
// spec bot.md §6.1, §8.7.
func (b *Bot) hook(ctx context.Context, name string, args ...any) (out hook.Outcome, ok bool) {
	out, err := b.hookErr(ctx, name, args...)
	return out, out.Called && err == nil
}

func (b *Bot) hookErr(ctx context.Context, name string, args ...any) (hook.Outcome, error) {
	if b.cfg.Hooks == nil || !b.cfg.Hooks.Has(name) {
		return hook.Outcome{}, nil
	}
	out, err := b.cfg.Hooks.Call(ctx, hook.Call{Hook: name, Args: args, Bot: b.describe()})
	for _, a := range out.Actions {
		b.grant(name, a)
	}
	if err != nil && ctx.Err() == nil {
		b.Error(err.Error())
	}
	return out, err
}

// grant does what a hook asked for, or notes it for the end of the loop.
func (b *Bot) grant(name string, a hook.Action) {
	switch a.Kind {
	case hook.ActionEvent:
		b.out.post(a.Event, a.Text)
	case hook.ActionPrint:
		b.log.Info("hook says", "hook", name, "text", a.Text)
	case hook.ActionRestart:
		b.mu.Lock()
		b.hk.restart = append(b.hk.restart, a.Text)
		b.mu.Unlock()
	case hook.ActionReboot:
		b.mu.Lock()
		b.hk.reboot = append(b.hk.reboot, a.Text)
		b.mu.Unlock()
	}
}

// describe is what hooks are told.
func (b *Bot) describe() hook.Bot {
	dims, state := b.lookAround()
	dims["id"] = []string{b.cfg.ID}
	b.mu.Lock()
	defer b.mu.Unlock()
	state["sleep_streak"] = b.streak
	return hook.Bot{
		ID: b.cfg.ID, SessionID: b.session, Server: b.cfg.Server, Version: b.cfg.Version, BaseDir: b.cfg.Dir,
		Dimensions: b.lastGood, State: b.hk.told, DefaultDimensions: dims, DefaultState: state,
		Idle: b.cfg.Now().Sub(b.hk.lastWork).Seconds(), Restart: strings.Join(b.hk.restart, "\n"),
	}
}

// look asks the hooks what to tell the server. It is called before each poll.
// A hook that fails quarantines the bot for this poll. spec bot.md §6.2, §8.6.
func (b *Bot) look() {
	if b.cfg.Hooks == nil {
		return
	}
	b.hook(b.idle, hook.OnBeforePoll)
	b.lookSettings()
	dims, dimsIll := b.lookDimensions()
	state, stateIll := b.lookState()
	b.mu.Lock()
	defer b.mu.Unlock()
	if dimsIll == "" {
		b.hk.dims = dims
	}
	b.hk.dimsIll, b.hk.state, b.hk.stateIll = dimsIll, state, stateIll
}

func (b *Bot) lookDimensions() (dims map[string][]string, ill string) {
	out, err := b.hookErr(b.idle, hook.GetDimensions)
	if err != nil {
		return nil, err.Error()
	}
	if !out.Called {
		return nil, ""
	}
	if err := json.Unmarshal(out.Value, &dims); err != nil || dims == nil {
		ill = fmt.Sprintf("hook get_dimensions: returned what is no dict of string to list of strings: %v", err)
		b.Error(ill)
		return nil, ill
	}
	dims["id"] = []string{b.cfg.ID}
	return dims, ""
}

func (b *Bot) lookState() (state map[string]json.RawMessage, ill string) {
	out, err := b.hookErr(b.idle, hook.GetState)
	if err != nil {
		return nil, err.Error()
	}
	if !out.Called {
		return nil, ""
	}
	if err := json.Unmarshal(out.Value, &state); err != nil || state == nil {
		ill = fmt.Sprintf("hook get_state: returned what is no dict: %v", err)
		b.Error(ill)
		return nil, ill
	}
	return state, ""
}

// lookSettings asks for settings; without a hook, or when it fails, the
// defaults hold.
func (b *Bot) lookSettings() {
	s := hook.DefaultSettings()
	if out, ok := b.hook(b.idle, hook.GetSettings); ok {
		var err error
		if s, err = hook.MergeSettings(out.Value); err != nil {
			b.Error("hook get_settings: " + err.Error())
		}
	}
	b.mu.Lock()
	b.hk.settings = s
	b.mu.Unlock()
	if m, ok := b.cfg.Machine.(partitioned); ok {
		m.SetFreePartition(s.FreePartition.Root, s.FreePartition.Bot)
	}
	if r, ok := b.cfg.Runner.(caching); ok {
		c := s.Caches.Isolated
		ill := ""
		if err := r.SetCache(int64(min(c.Size, math.MaxInt64)), int(min(c.Items, math.MaxInt32)), c.Dir); err != nil {
			ill = "the cache of inputs cannot be used as it is set up: " + err.Error()
		}
		b.mu.Lock()
		news := ill != b.hk.cacheIll
		b.hk.cacheIll = ill
		b.mu.Unlock()
		if news && ill != "" {
			b.Error(ill)
		}
	}
}

// caching is a Runner with a cache of inputs.
type caching interface {
	SetCache(bytes int64, items int, dir string) error
}

// partitioned is a Machine that checks its disks by rules.
type partitioned interface {
	SetFreePartition(root, bot hook.Partition)
}

// settings are those of the last look.
func (b *Bot) settings() hook.Settings {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.hk.settings
}

// overlay lays what the hooks said over what the machine says. own is why the
// hooks quarantine the bot, machine why its temp files or disks do; state says
// neither. b.mu is held.
func (b *Bot) overlay(dims map[string][]string, state map[string]any) (_ map[string][]string, _ map[string]any, own, machine any) {
	machine = state["quarantined"]
	if b.hk.dims != nil {
		dims = maps.Clone(b.hk.dims)
	}
	switch {
	case b.hk.stateIll != "":
		own = b.hk.stateIll
		state = map[string]any{"running_time": state["running_time"]}
	case b.hk.state != nil:
		next := make(map[string]any, len(b.hk.state)+4)
		for k, v := range b.hk.state {
			next[k] = v
		}
		if next["running_time"] == nil { // servers want it
			next["running_time"] = state["running_time"]
		}
		own = ownReason(b.hk.state["quarantined"], machine)
		state = next
	}
	delete(state, "quarantined")
	return dims, state, own, machine
}

// firstReason picks why the bot is quarantined, nil = it is not. The order is
// that of spec bot.md §8.6: the hook's own, until restart, dimensions, disks.
func firstReason(own any, illness, dimsIll string, machine any) any {
	switch {
	case own != nil:
		return own
	case illness != "":
		return illness
	case dimsIll != "":
		return dimsIll
	}
	return machine
}

// ownReason is what a hook itself says, as opposed to what it passed on from
// the machine; nil when it says nothing that counts as true.
func ownReason(raw json.RawMessage, machine any) any {
	var v any
	if len(raw) == 0 || json.Unmarshal(raw, &v) != nil {
		return nil
	}
	if text, ok := v.(string); ok && machine == any(text) {
		return nil
	}
	switch string(raw) {
	case `null`, `false`, `""`, `0`, `0.0`, `[]`, `{}`:
		return nil
	}
	return raw
}

// reasonText is a reason in words.
func reasonText(why any) string {
	switch w := why.(type) {
	case string:
		return w
	case json.RawMessage:
		var s string
		if json.Unmarshal(w, &s) == nil {
			return s
		}
		return "a hook says so: " + string(w[:min(len(w), 200)])
	}
	return fmt.Sprint(why)
}

// costOf reads a price that the machine or a hook gives.
func costOf(v any) float64 {
	switch n := v.(type) {
	case float64:
		return n
	case json.RawMessage:
		var f float64
		_ = json.Unmarshal(n, &f)
		return f
	}
	return 0
}

// closeHooks ends the hook host.
func (b *Bot) closeHooks() {
	if b.cfg.Hooks == nil {
		return
	}
	if err := b.cfg.Hooks.Close(); err != nil {
		b.log.Warn("the hook host did not end", "err", err)
	}
}

// inject loads the group's script, if it is another than before. One that does
// not load quarantines the bot until restart; the base hooks go on.
// spec bot.md §6.1.
func (b *Bot) inject(res *botapi.HandshakeResponse) {
	if b.cfg.Hooks == nil {
		return
	}
	var s *hook.Script
	if res.BotConfig != nil && strings.TrimSpace(*res.BotConfig) != "" {
		s = &hook.Script{Name: res.BotConfigName, Source: *res.BotConfig, Revision: res.BotConfigRev}
		if s.Name == "" {
			s.Name = "bot_config"
		}
	}
	if sameScript(s, b.hk.script) {
		return
	}
	b.hk.script = s
	err := b.cfg.Hooks.Load(b.idle, s)
	if err == nil || b.idle.Err() != nil {
		return
	}
	if s == nil {
		b.fallIll("the hooks do not load: " + err.Error())
		return
	}
	why := fmt.Sprintf("the hooks of this bot's group (%s) do not load: %v", s.Name, err)
	if path.Ext(s.Name) == ".py" {
		why += "\nskep-bot runs Starlark; docs/hooks.md says how a bot_config.py becomes a bot_config.star"
	}
	b.fallIll(why)
	if err := b.cfg.Hooks.Load(b.idle, nil); err != nil {
		b.Error("the base hooks do not load either: " + err.Error())
	}
}

func sameScript(a, c *hook.Script) bool {
	if a == nil || c == nil {
		return a == c
	}
	return *a == *c
}

// begin loads the base hooks and lets them set up. spec bot.md §6.2.
func (b *Bot) begin() {
	b.hk.lastWork = b.cfg.Now()
	b.checkHome()
	if b.cfg.Hooks == nil {
		return
	}
	if err := b.cfg.Hooks.Load(b.idle, nil); err != nil && b.idle.Err() == nil {
		b.fallIll("the base hooks do not load: " + err.Error())
	}
	if b.cfg.SetUp {
		b.setUp()
	}
	b.look()
	if b.cfg.Hooks.Has(hook.OnBotStartup) {
		b.hook(b.idle, hook.OnBotStartup)
		b.look()
	}
}

// setUp calls setup_bot; when that says that the host must be restarted, it is.
func (b *Bot) setUp() {
	out, ok := b.hook(b.idle, hook.SetupBot)
	if ok && string(out.Value) == "false" {
		b.askReboot("setup_bot wants the host to restart")
		b.heed()
	}
}

func (b *Bot) askReboot(why string) {
	b.grant(hook.SetupBot, hook.Action{Kind: hook.ActionReboot, Text: why})
}

// afterPoll tells the hooks what the server said; cmd "" = it did not answer.
func (b *Bot) afterPoll(cmd string) {
	if b.cfg.Hooks == nil {
		return
	}
	var arg any
	if cmd != "" {
		arg = cmd
	}
	b.hook(b.idle, hook.OnAfterPoll, arg)
}

// idling tells the hooks that there is nothing to do, heals what is ill, and
// heeds what they ask for.
func (b *Bot) idling() {
	b.hook(b.idle, hook.OnBotIdle, b.cfg.Now().Sub(b.hk.lastWork).Seconds())
	b.heal()
	b.heed()
}

// backingOff tells the hooks that the server does not answer; not at every of
// many quick attempts.
func (b *Bot) backingOff() {
	if now := b.cfg.Now(); b.cfg.Hooks != nil && now.Sub(b.hk.lastIdle) >= 10*time.Second {
		b.hk.lastIdle = now
		b.hook(b.idle, hook.OnBotIdle, now.Sub(b.hk.lastWork).Seconds())
	}
}

// heed does what hooks asked for: a reboot, else a restart. It is called when
// nothing else is in hand. spec bot.md §8.4 item 6.
func (b *Bot) heed() {
	b.mu.Lock()
	restart, reboot := b.hk.restart, b.hk.reboot
	b.hk.restart, b.hk.reboot = nil, nil
	b.mu.Unlock()
	switch {
	case b.idle.Err() != nil:
	case len(reboot) > 0:
		b.reboot(strings.Join(reboot, "\n"))
	case len(restart) > 0:
		b.restart(strings.Join(restart, "\n"))
	}
}

// farewell lets the hooks tidy up and sends what they had to say. spec bot.md
// §8.8.
func (b *Bot) farewell(rebooting bool) {
	if b.cfg.Hooks == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(b.hard), 30*time.Second)
	defer cancel()
	if rebooting {
		b.hook(ctx, hook.SetupBot)
	}
	b.hook(ctx, hook.OnBotShutdown)
	if b.out.len() > 0 {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(b.hard), leaveTime)
		defer cancel()
		b.out.flush(ctx)
	}
}

// beforeTask lets on_before_task change the task's environment and name a warm
// pool, and passes on what settings let through. All of it travels with the job.
// decisions.md 13, 23.
func (b *Bot) beforeTask(job *runner.Job, m *botapi.Manifest) {
	job.Pool = b.settings().Task.Pool
	if m.Skep != nil && m.Skep.Pool != "" {
		job.Pool = m.Skep.Pool
	}
	env := passed(os.Environ(), b.settings().Task.EnvPass)
	if b.cfg.Hooks != nil && b.cfg.Hooks.Has(hook.OnBeforeTask) {
		b.askBeforeTask(job, env)
	}
	if len(env) > 0 {
		job.Env = env
	}
}

func (b *Bot) askBeforeTask(job *runner.Job, env map[string]string) {
	file, err := b.writeBotFile()
	if err != nil {
		b.Error(fmt.Sprintf("on_before_task gets no bot file: %v", err))
	} else {
		defer os.Remove(file)
	}
	all := map[string]string{}
	for _, kv := range os.Environ() {
		if k, v, ok := strings.Cut(kv, "="); ok && k != "" && !secretName(k) {
			all[k] = v
		}
	}
	command := []string{"task_runner"}
	out, err := b.hookErr(b.hard, hook.OnBeforeTask, file, command, all)
	if err != nil || len(out.Args) != 3 {
		return // the task runs as without the hook
	}
	var wish struct {
		Pool *string `json:"pool"`
	}
	if err := json.Unmarshal(out.Value, &wish); err != nil {
		b.Error(fmt.Sprintf("on_before_task returned something else than None or a dict with pool, a string; it is ignored: %v", err))
	} else if wish.Pool != nil {
		job.Pool = *wish.Pool
	}
	if data, err := readBotFile(file); err == nil {
		job.BotFile = data
	} else if file != "" {
		b.Error(fmt.Sprintf("on_before_task left no usable bot file: %v", err))
	}
	var argv []string
	if json.Unmarshal(out.Args[1], &argv) != nil || !slices.Equal(argv, command) {
		b.Error("on_before_task changed the arguments of task_runner, which has none of this kind here; they are ignored")
	}
	var after map[string]string
	if err := json.Unmarshal(out.Args[2], &after); err != nil {
		b.Error(fmt.Sprintf("on_before_task left env as something else than a dict of string to string; it is ignored: %v", err))
		return
	}
	maps.Copy(env, envChanges(all, after))
}

// envChanges says what to set, and with "" what to remove, to come from before
// to after.
func envChanges(before, after map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range after {
		if old, ok := before[k]; (!ok || old != v) && k != "" && !strings.ContainsAny(k, "=\x00") && !strings.Contains(v, "\x00") {
			out[k] = v
		}
	}
	for k := range before {
		if _, ok := after[k]; !ok {
			out[k] = ""
		}
	}
	return out
}

// secretName tells variables that are for skep's own processes.
func secretName(name string) bool { return strings.HasPrefix(strings.ToUpper(name), "SKEP_") }

// passed are the variables that task.env_pass names; never one of skep's own.
func passed(environ, names []string) map[string]string {
	out := map[string]string{}
	for _, kv := range environ {
		k, v, ok := strings.Cut(kv, "=")
		if ok && k != "" && v != "" && !secretName(k) && slices.ContainsFunc(names, func(p string) bool { return matchesName(p, k) }) {
			out[k] = v
		}
	}
	return out
}

func matchesName(pattern, name string) bool {
	if runtime.GOOS == "windows" {
		pattern, name = strings.ToUpper(pattern), strings.ToUpper(name)
	}
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(name, prefix)
	}
	return pattern == name
}

const maxBotFile = 1 << 20 // bytes

// writeBotFile writes what the bot says of itself for on_before_task to read
// and to replace.
func (b *Bot) writeBotFile() (string, error) {
	data, err := json.Marshal(b.attributes())
	if err != nil {
		return "", err
	}
	f, err := os.CreateTemp("", "skep-bot-file-*.json")
	if err != nil {
		return "", err
	}
	_, err = f.Write(data)
	return f.Name(), errors.Join(err, f.Close())
}

func readBotFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxBotFile+1))
	if err == nil && len(data) > maxBotFile {
		err = fmt.Errorf("it is longer than %d bytes", maxBotFile)
	}
	return data, err
}

// afterTask tells the hooks how a task went, while its directory still exists.
func (b *Bot) afterTask(m *botapi.Manifest, sum runner.Summary) {
	if b.cfg.Hooks == nil {
		return
	}
	failed := sum.ExitCode == nil || *sum.ExitCode != 0 || sum.HardTimeout || sum.IOTimeout
	b.hook(b.hard, hook.OnAfterTask, failed, sum.InternalError != "", m.Dimensions, sum)
}

// worked notes the end of a task.
func (b *Bot) worked() { b.hk.lastWork = b.cfg.Now() }
