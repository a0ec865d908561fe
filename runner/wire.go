package runner

import (
	"encoding/json"

	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/internal/proc"
)

// Descriptors of our processes beside standard input (the parent's words, one
// JSON document after the other) and standard error (the raw log).
const (
	runnerNewsFD = 1 // task_runner → bot_main
	runnerLifeFD = 3 // ends with bot_main; not on Windows

	isolatedOutputFD = 1 // the task's output
	isolatedNewsFD   = 3 // run_isolated → task_runner; not on Windows
	isolatedLifeFD   = 4 // ends with bot_main
)

// setup is bot_main's first word to task_runner, passed on to run_isolated: it
// is known before there is a job. The next word is the Job.
type setup struct {
	BotDir  string
	Dir     string // the work directory w
	Out     string // in it, for ${ISOLATED_OUTDIR}
	Temp    string // in it, for temporary files
	Environ []string
	Context json.RawMessage // the LUCI_CONTEXT that the bot itself was given
	Place   proc.Place
	User    *proc.User
	Hide    string
	Ahead   bool // the job will take a while: get everything ready
	Storage Storage
}

// runnerWord is any later word to task_runner.
type runnerWord struct {
	Headers   map[string]string // what Job.Headers are from now on
	Announced *announcement
	Delivered *delivery
}

// announcement is how the announcement of the task went.
type announcement struct {
	Done     bool // the server knows that the task begins here
	Canceled bool // and does not want it any more
	Watched  bool // somebody reads its output as it comes
	Stopped  bool // the bot stopped before it was done: so does the task
}

// delivery is what became of runnerNews.Update.
type delivery struct {
	Done    bool   // the server has it
	Session string // the token of its answer
}

// runnerNews are task_runner's words to bot_main.
type runnerNews struct {
	Ended   bool               `json:"ended,omitempty"`  // the task is over; its report may take long
	Update  *botapi.TaskUpdate `json:"update,omitempty"` // to be delivered by bot_main; a word on it must follow
	Summary *summaryOnWire     `json:"summary,omitempty"`
}

// summaryOnWire is a Summary whole.
type summaryOnWire struct {
	ExitCode      *int64
	HardTimeout   bool
	IOTimeout     bool
	InternalError string
	Reported      bool
	Session       string
}

// isolatedJob is task_runner's second word to run_isolated: what to prepare.
type isolatedJob struct {
	TaskID      string
	Command     []string
	RelativeCwd string
	HardTimeout int64 // seconds, 0 = none
	GracePeriod int64 // seconds
	Environ     []string
	Env         map[string]string // the manifest's
	EnvPrefixes map[string][]string
	Context     map[string]json.RawMessage // LUCI_CONTEXT without its deadline
	Agent       json.RawMessage            `json:",omitempty"` // content of ${BUILDBUCKET_AGENT_CONTEXT_FILE}
	BotFile     []byte
	Caches      []botapi.Cache
	CAS         *casJob  `json:",omitempty"` // nil: no inputs, and outputs go nowhere
	Outputs     []string `json:",omitempty"` // paths below the run directory that are outputs

	Pool         string `json:",omitempty"` // see Job
	MaxProcesses int64  `json:",omitempty"` // in a room of the pool; 0 = as the pool says
	MaxMemory    int64  `json:",omitempty"` // bytes, likewise
}

// casJob is where a task's inputs and outputs are.
type casJob struct {
	URL      string
	Instance string
	Root     string            `json:",omitempty"` // HASH/SIZE of the inputs; "": none
	Trusted  bool              `json:",omitempty"` // the pool's tasks do not write to their inputs
	Own      bool              // the bot's server: Headers are for it
	Headers  map[string]string `json:",omitempty"`
	RootCAs  []byte            `json:",omitempty"` // PEM, beside the system's
}

// isolatedWord is any later word to run_isolated.
type isolatedWord struct {
	Go   bool `json:"go,omitempty"`   // start the command
	Stop bool `json:"stop,omitempty"` // SIGTERM, grace period, SIGKILL; before the start: do not start

	Headers map[string]string `json:"headers,omitempty"` // what casJob.Headers are from now on
}

// isolatedNews are run_isolated's words to task_runner: one when the command
// runs, one when the result is written and nothing is left of the task.
type isolatedNews struct {
	Started bool `json:"started,omitempty"`
	Done    bool `json:"done,omitempty"`
}
