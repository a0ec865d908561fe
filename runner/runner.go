// Package runner runs one task at a time on a bot's machine: it starts
// task_runner, which talks to the server, which starts run_isolated, which
// prepares directories and environment and starts the task. All three are
// processes of the bot's one executable, so that each can end what the other
// left when it is killed.
//
//	bot_main      Starter           prepares w/, records the task's cgroup, sweeps
//	task_runner   TaskRunnerMain    updates, output, cancel, I/O timeout
//	run_isolated  RunIsolatedMain   directories, environment, hard timeout, containment
//
// Every level reads a pipe that its parent never closes while it lives. Its
// end means that the parent was killed, and ends everything below at once.
//
// Source: spec bot.md §1, §4, §5, §9; decisions.md 4, 5, 11, 13, 17, 23.
package runner

import (
	"context"
	"encoding/json"
	"log/slog"
	"time"

	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/cas/cache"
	"github.com/skepdev/skep/internal/proc"
)

// Config is what every task of a bot shares.
type Config struct {
	Exe    string // executable whose subcommands are task_runner and run_isolated; "" = this one
	BotDir string // absolute; holds w, c and logs

	// HideDir, around BotDir, is hidden from tasks with it where that takes
	// namespaces: a drone's, with its socket and the other bots; "" = what
	// SKEP_HIDE_DIR says.
	HideDir string

	// Containment forces how surviving processes are found: "cgroup2",
	// "cgroup1", "pidns" or "subreaper"; "" = SKEP_CONTAINMENT, else the first
	// that works.
	Containment string

	// Isolation "none" leaves tasks the bot's own rights; "" = the best that
	// works. See Starter.Isolation.
	Isolation string
	TaskUser  *proc.User // whom tasks run as when the bot is root; nil = an unused pair of ids of our choice

	Environ []string // the bot's environment, of which the allow-list is taken; nil = os.Environ()
	EnvPass []string // further names let through to tasks (task.env_pass); a trailing * matches any rest
	Storage Storage
	MinFree func() int64 // Storage.MinFree from the next runner on; nil = as it is there
	Log     *slog.Logger
}

// Storage is what a bot's caches may take. spec bot.md §4.1, §5.8.
type Storage struct {
	Cache    string       // directory of the content cache; several bots of one user may share it; "" = cas_cache in the bot's
	MaxBytes int64        // of it; 0 = 50 GiB
	MaxItems int          // of it; 0 = any number
	MinFree  int64        // bytes of the disk that stay free as long as there is something to evict; 0 = 2 GiB
	Trusted  bool         // tasks do not write to their inputs, though they could: link them
	Method   cache.Method // forces how inputs come into a run directory; "" = SKEP_INPUTS, else the best that works
}

// Job is one task to run.
type Job struct {
	Manifest    json.RawMessage   // as the server sent it; kept in w/task_runner_in.json
	Server      string            // the bot's base URL
	BotID       string            // who calls; used where the manifest names nobody
	Session     string            // session token
	Headers     map[string]string // authentication headers of the task's calls
	ClientCert  []byte            // PEM, shown in TLS with ClientKey by the task's calls; nil = none
	ClientKey   []byte            // PEM
	RootCAs     []byte            // PEM, beside the system's roots; nil = the system's only
	CostUSDHour float64
	ReceivedAt  time.Time         // when the manifest came; zero = now
	Env         map[string]string // what on_before_task set; "" removes
	BotFile     []byte            // what on_before_task left for ${SWARMING_BOT_FILE}
	CookieDir   string            // botapi.Options.Dir

	// Pool is the socket of a warm pool (host/pool): the command runs in a fresh
	// container of it, which is destroyed afterwards. "" = beside the bot.
	Pool string

	// After is called when the task is over and reported, while its directory
	// still exists; not for a task that did not begin. nil = nobody is.
	After func(Summary) `json:"-"`

	// Update makes one attempt to give the server an update of the task, over a
	// connection that is open already. Run announces with it that the task begins
	// here, while the runner still gets ready, and ends with it a task that needed
	// no connection of its own so far. What fails, or everything when it is nil,
	// task_runner does itself with all patience.
	Update    func(context.Context, *botapi.TaskUpdate) (*botapi.TaskUpdateResponse, error) `json:"-"`
	Updates   bool                                                                          // set by Run: there is an Update
	Announced bool                                                                          // set by Run: a word on the announcement will follow
}

// Summary is how a run went. Where task_runner cannot tell bot_main, it writes
// it to w/task_runner_out.json, without the session. spec bot.md §4.9.
type Summary struct {
	ExitCode              *int64 `json:"exit_code"` // −1: canceled before it began; nil: unknown
	HardTimeout           bool   `json:"hard_timeout"`
	IOTimeout             bool   `json:"io_timeout"`
	InternalError         string `json:"-"`                       // not the task's fault; "" = none
	InternalErrorReported bool   `json:"internal_error_reported"` // the server has it: bot_main need not send task_error
	Session               string `json:"-"`                       // the freshest token
}

// MarshalJSON writes version 3 of task_runner_out.json.
func (s Summary) MarshalJSON() ([]byte, error) {
	type plain Summary
	out := struct {
		plain
		InternalError *string `json:"internal_error"`
		Version       int     `json:"version"`
	}{plain: plain(s), Version: 3}
	if s.InternalError != "" {
		out.InternalError = &s.InternalError
	}
	return json.Marshal(out)
}
