package change

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/bot"
	"github.com/skepdev/skep/bot/code"
	"github.com/skepdev/skep/bot/update"
	"github.com/skepdev/skep/runner"
)

// restartAfter is how long the service manager of a simulated host waits
// before it starts a bot that ended.
const restartAfter = time.Second

// crashMark in an executable makes it end as soon as it is started.
const crashMark = "# crash"

// sim is a simulated host with one bot: the real bot package, with its slots
// and its last known good code on the disk, where only exec, the machine and
// the task's processes are not real (decisions.md 24).
type sim struct {
	id, dir, url string
	interrupted  *atomic.Int64 // tasks that were ended from outside
	crashed      atomic.Bool   // it ran code that crashes
}

// install writes the bot's first code as an installer does.
func (s *sim) install(exe []byte) error {
	if err := os.Mkdir(s.dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(s.good(), exe, 0o755)
}

func (s *sim) good() string { return filepath.Join(s.dir, "swarming_bot") }

// live is the host's service manager: it starts the last known good code
// whenever nothing runs, until ctx ends.
func (s *sim) live(ctx context.Context) error {
	for ctx.Err() == nil {
		exe := filepath.Join(s.dir, "swarming_bot.1")
		data, err := os.ReadFile(s.good())
		if err != nil {
			return err
		}
		if err := os.WriteFile(exe, data, 0o755); err != nil {
			return err
		}
		for exe != "" && ctx.Err() == nil {
			if exe, err = s.run(ctx, exe); err != nil {
				return fmt.Errorf("%s: %w", s.id, err)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(restartAfter):
		}
	}
	return nil
}

// run is one process of the bot. It returns the executable that it becomes, ""
// when it ended.
func (s *sim) run(ctx context.Context, exe string) (next string, err error) {
	data, err := os.ReadFile(exe)
	if err != nil {
		return "", err
	}
	if bytes.Contains(data, []byte(crashMark)) {
		s.crashed.Store(true)
		return "", nil
	}
	version, err := code.Version(exe)
	if err != nil {
		return "", err
	}
	log := slog.New(slog.DiscardHandler)
	o := botapi.Options{Server: s.url, BotID: s.id, Dir: s.dir, Transport: otherArch{http.DefaultTransport.(*http.Transport).Clone()}}
	client, err := botapi.NewClient(o)
	if err != nil {
		return "", err
	}
	defer o.Transport.(otherArch).CloseIdleConnections()
	tasks, err := botapi.NewClient(o)
	if err != nil {
		return "", err
	}
	become := func(to, _ string) error { next = to; return nil }
	b := bot.New(bot.Config{
		ID: s.id, Dir: s.dir, Version: version, Server: s.url, Client: client, Log: log,
		Runner: &simRunner{client: tasks, interrupted: s.interrupted}, Machine: simMachine{s.id, time.Now()},
		Code: &update.Updater{
			Dir: s.dir, Self: exe, Version: version, From: client, Now: time.Now, Log: log,
			Check: func(context.Context, string) error { return nil },
		},
		Become:  become,
		Restart: func(string) error { next = exe; return nil },
	})
	return next, errors.Join(b.Run(ctx))
}

// otherArch makes a bot of this machine say that it has another processor, so
// that the server hands it small code.
type otherArch struct{ *http.Transport }

func simArch() string {
	if runtime.GOARCH == "arm64" {
		return "amd64"
	}
	return "arm64"
}

// RoundTrip sends a request.
func (t otherArch) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		data, err := io.ReadAll(r.Body)
		_ = r.Body.Close()
		if err != nil {
			return nil, err
		}
		data = bytes.Replace(data, []byte(`"arch":"`+runtime.GOARCH+`"`), []byte(`"arch":"`+simArch()+`"`), 1)
		r = r.Clone(r.Context())
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(data)), int64(len(data))
	}
	return t.Transport.RoundTrip(r)
}

type simMachine struct {
	id      string
	started time.Time
}

var ready = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

func (m simMachine) Dimensions() map[string][]string {
	return map[string][]string{"id": {m.id}, "pool": {"default"}, "kind": {"simulated"}}
}

func (m simMachine) State() map[string]any {
	return map[string]any{"running_time": time.Since(m.started).Seconds()}
}
func (simMachine) Ready() <-chan struct{} { return ready }

// simRunner runs tasks by waiting: their command is sleep.
type simRunner struct {
	client      *botapi.Client
	interrupted *atomic.Int64
}

func (*simRunner) Prepare(context.Context) error { return nil }
func (*simRunner) Close() error                  { return nil }
func (*simRunner) Method() string                { return "simulated" }
func (*simRunner) Isolation() (string, string)   { return "none", "it is simulated" }

func (r *simRunner) Run(ctx context.Context, j runner.Job) (runner.Summary, error) {
	var m struct {
		TaskID  string   `json:"task_id"`
		Command []string `json:"command"`
	}
	if err := json.Unmarshal(j.Manifest, &m); err != nil {
		return runner.Summary{}, err
	}
	sum := runner.Summary{Session: j.Session, ExitCode: new(int64)}
	r.client.SetSession(j.Session)
	start := time.Now()
	if err := r.repeat(ctx, &botapi.TaskUpdate{TaskID: m.TaskID, CostUSD: new(float64)}); err != nil {
		r.interrupted.Add(1)
		return runner.Summary{}, err
	}
	d, err := time.ParseDuration(m.Command[len(m.Command)-1] + "s")
	if err != nil {
		return runner.Summary{}, err
	}
	select {
	case <-time.After(d):
	case <-ctx.Done():
		r.interrupted.Add(1)
		return runner.Summary{}, ctx.Err()
	}
	took := time.Since(start).Seconds()
	err = r.repeat(ctx, &botapi.TaskUpdate{TaskID: m.TaskID, CostUSD: new(float64), Duration: &took, ExitCode: sum.ExitCode})
	if j.After != nil {
		j.After(sum)
	}
	return sum, err
}

// repeat sends an update until the server has it.
func (r *simRunner) repeat(ctx context.Context, u *botapi.TaskUpdate) error {
	for {
		_, err := r.client.TaskUpdate(ctx, u)
		if err == nil || !botapi.IsTransient(err) {
			return err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
