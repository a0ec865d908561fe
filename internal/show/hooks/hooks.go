// Package hooks shows that hooks which loop for ever, allocate without bound,
// raise or return wrong types are contained, reported and quarantined as spec
// bot.md §8.6 says, with real bots and a real server. Issue 3, must show 3.
package hooks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/client"
	"github.com/skepdev/skep/internal/proc"
	"github.com/skepdev/skep/internal/stage/fleet"
)

// patience is how long a bot may take to show what its hook does to it: a hook
// that works without end is stopped by its steps, 20 s at most.
const patience = 3 * time.Minute

// row is one way in which a hook is bad, and what is to come of it.
type row struct {
	name   string
	script string
	ill    string // part of the reason of its quarantine; "" = it works on
	event  string // part of a bot_error; "" = none is needed
	stays  string // KEY=VALUE that its dimensions keep
}

var rows = []row{
	{"get_state raises", "def get_state(bot):\n    fail('broken')\n", "broken", "get_state", ""},
	{"get_state returns a list", "def get_state(bot):\n    return [1]\n", "get_state", "get_state", ""},
	{"get_state returns what JSON cannot hold", "def get_state(bot):\n    return {'f': get_state}\n", "get_state", "get_state", ""},
	{"get_state loops for ever", "def get_state(bot):\n    for _ in range(1 << 40):\n        pass\n", "get_state", "did more than", ""},
	{"get_state allocates without bound", "def get_state(bot):\n    l = []\n    for i in range(1 << 40):\n        l.append('x' * 1000000)\n    return {}\n", "get_state", "get_state", ""},
	{"get_state waits for ever", "def get_state(bot):\n    run(['sleep', '1000'], timeout=1000)\n    return {}\n", "get_state", "get_state", ""},
	{"get_state quarantines the bot", "def get_state(bot):\n    s = bot.default_state()\n    s['quarantined'] = 'by the hook'\n    return s\n", "by the hook", "", ""},
	{"get_dimensions raises", "def get_dimensions(bot):\n    fail('no dimensions')\n", "no dimensions", "get_dimensions", "pool=default"},
	{"get_dimensions returns a string", "def get_dimensions(bot):\n    return 'os=Linux'\n", "get_dimensions", "get_dimensions", "pool=default"},
	{"get_dimensions has a value that is no list", "def get_dimensions(bot):\n    d = bot.default_dimensions()\n    d['x'] = 'y'\n    return d\n", "get_dimensions", "get_dimensions", "pool=default"},
	{"get_dimensions has a key that is not valid", "def get_dimensions(bot):\n    d = bot.default_dimensions()\n    d['a b'] = ['y']\n    return d\n", "dimensions", "", "pool=default"},
	{"the injected script does not load", "fail('at load')\ndef get_state(bot):\n    return {}\n", "do not load", "do not load", ""},
	{"get_settings returns a number", "def get_settings(bot):\n    return 7\n", "", "get_settings", ""},
	{"on_before_poll loops for ever", "def on_before_poll(bot):\n    for _ in range(1 << 40):\n        pass\n", "", "on_before_poll", ""},
	{"on_before_task raises", "def on_before_task(bot, bot_file, command, env):\n    fail('before')\n", "", "before", ""},
	{"on_after_task allocates without bound", "def on_after_task(bot, failure, internal_failure, dimensions, summary):\n    s = 'x'\n    for i in range(64):\n        s = s + s\n", "", "on_after_task", ""},
	{"on_bot_idle loops for ever", "def on_bot_idle(bot, since):\n    for _ in range(1 << 40):\n        pass\n", "", "on_bot_idle", ""},
}

type show struct {
	dir, skep string
	server    *fleet.Fleet
	api       *client.Client
}

// Main runs the demonstration and returns an exit code.
func Main([]string) int {
	dir, err := os.MkdirTemp("", "skep-hooks-")
	if err == nil {
		defer os.RemoveAll(dir)
		s := &show{dir: dir}
		err = s.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "show hooks:", err)
		return 1
	}
	fmt.Println("passed")
	return 0
}

func (s *show) run() (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute) // for all; each has its own patience
	defer cancel()
	if err := os.Chmod(s.dir, 0o755); err != nil { //nolint:gosec // tasks run as another user
		return err
	}
	if s.skep, err = filepath.Abs("bin/skep"); err != nil {
		return err
	}
	if err := s.configure(); err != nil {
		return err
	}
	s.server, err = fleet.Start(ctx, "", s.skep, "server", "--listen", "127.0.0.1:0", "--state-dir", filepath.Join(s.dir, "state"),
		"--config", filepath.Join(s.dir, "config"), "--log-level", "error")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.end()) }()
	if s.api, err = client.New(client.Options{Server: s.server.URL}); err != nil {
		return err
	}
	exe, err := s.fetch(ctx)
	if err != nil {
		return err
	}
	for i := range rows { // before any is started: a child of ours that forks meanwhile would hold the file
		dir := filepath.Join(s.dir, id(i))
		if err := os.Mkdir(dir, 0o755); err != nil { //nolint:gosec // as a bot's directory
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "swarming_bot"), exe, 0o755); err != nil { //nolint:gosec // an executable
			return err
		}
	}
	var wg sync.WaitGroup
	results := make([]error, len(rows))
	at := make(chan struct{}, 4) // few at once: each has processes of its own, and some burn a processor
	for i := range rows {
		wg.Go(func() {
			at <- struct{}{}
			defer func() { <-at }()
			results[i] = s.row(ctx, i)
		})
	}
	wg.Wait()
	failed := 0
	for i, r := range rows {
		verdict := "contained"
		if results[i] != nil {
			verdict = "FAILED: " + results[i].Error()
			failed++
		}
		fmt.Printf("%-45s %s\n", r.name, verdict)
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d rows failed", failed, len(rows))
	}
	return nil
}

func id(i int) string { return fmt.Sprintf("row%02d", i) }

// configure gives each bot a group with a script of its own.
func (s *show) configure() error {
	scripts := filepath.Join(s.dir, "config", "scripts")
	if err := os.MkdirAll(scripts, 0o755); err != nil {
		return err
	}
	var groups strings.Builder
	for i, r := range rows {
		fmt.Fprintf(&groups, "bot_group {\n  bot_id: %q\n  auth { require_token {} }\n  dimensions: \"pool:default\"\n  bot_config_script_star: \"%s.star\"\n}\n", id(i), id(i))
		if err := os.WriteFile(filepath.Join(scripts, id(i)+".star"), []byte(r.script), 0o600); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(s.dir, "config", "bots.cfg"), []byte(groups.String()), 0o600)
}

func (s *show) fetch(ctx context.Context) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.server.URL+"/bot_code", nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("/bot_code answers %s", res.Status)
	}
	return io.ReadAll(res.Body)
}

// row runs one bot with its bad hook and looks what comes of it.
func (s *show) row(ctx context.Context, i int) error {
	r, bot := rows[i], id(i)
	dir := filepath.Join(s.dir, bot)
	name := filepath.Join(dir, "swarming_bot")
	p, err := proc.Start(&proc.Cmd{
		Path: name, Args: []string{name, "start_bot"}, Dir: dir, NewGroup: true,
		Env: []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir, "SWARMING_BOT_ID=" + bot, "SKEP_REBOOT=none"},
	})
	if err != nil {
		return err
	}
	defer func() {
		_ = p.Terminate()
		_ = p.Terminate() // stop, not drain: a hook may take its time
		select {
		case <-p.Done():
		case <-time.After(20 * time.Second):
			_ = p.Kill()
		}
	}()
	if r.ill == "" {
		if err := s.works(ctx, bot); err != nil {
			return err
		}
		// A drained bot's polls do not wait, so that it is idle at once: on_bot_idle comes after a poll.
		if _, err := s.api.DrainBot(ctx, bot, "", -1); err != nil {
			return err
		}
	}
	deadline := time.Now().Add(patience)
	for {
		err := s.look(ctx, bot, &r)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			return err
		}
		time.Sleep(200 * time.Millisecond)
	}
	select {
	case <-p.Done():
		return errors.New("the bot ended")
	default:
		return nil
	}
}

// look holds what the server knows of a bot against its row.
func (s *show) look(ctx context.Context, bot string, r *row) error {
	b, err := s.api.GetBot(ctx, &pb.BotRequest{BotId: bot})
	if err != nil {
		return err
	}
	if b.Quarantined != (r.ill != "") {
		return fmt.Errorf("quarantined %v: %.200s", b.Quarantined, b.State)
	}
	if !strings.Contains(b.State, r.ill) {
		return fmt.Errorf("its state does not say %q: %.300s", r.ill, b.State)
	}
	if key, value, _ := strings.Cut(r.stays, "="); key != "" {
		found := false
		for _, d := range b.Dimensions {
			found = found || d.Key == key && len(d.Value) == 1 && d.Value[0] == value
		}
		if !found {
			return fmt.Errorf("its dimensions lost %s: %v", r.stays, b.Dimensions)
		}
	}
	ev, err := s.api.ListBotEvents(ctx, &pb.BotEventsRequest{BotId: bot, Limit: 200})
	if err != nil {
		return err
	}
	said := ""
	for _, e := range ev.Items {
		if e.EventType == "bot_error" {
			said += e.Message + "\n"
		}
	}
	if r.event != "" && !strings.Contains(said, r.event) {
		return fmt.Errorf("no error event says %q: %.300q", r.event, said)
	}
	return nil
}

// works runs a task on a bot.
func (s *show) works(ctx context.Context, bot string) error {
	res, err := s.api.NewTask(ctx, &pb.NewTaskRequest{
		Name: "on " + bot, Priority: 100, RequestUuid: "hooks-" + bot,
		TaskSlices: []*pb.TaskSlice{{
			ExpirationSecs: 300, WaitForCapacity: true,
			Properties: &pb.TaskProperties{
				Command: []string{"true"}, ExecutionTimeoutSecs: 60, GracePeriodSecs: 30,
				Dimensions: []*pb.StringPair{{Key: "pool", Value: "default"}, {Key: "id", Value: bot}},
			},
		}},
	})
	if err != nil {
		return err
	}
	for end := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		st, err := s.api.GetResult(ctx, &pb.TaskIdWithPerfRequest{TaskId: res.TaskId})
		switch {
		case err != nil:
			return err
		case st.State == pb.TaskState_COMPLETED && st.ExitCode == 0:
			return nil
		case st.State != pb.TaskState_PENDING && st.State != pb.TaskState_RUNNING, time.Now().After(end):
			return fmt.Errorf("its task is %s", st.State)
		}
	}
}

func (s *show) end() error { return s.server.Stop() }
