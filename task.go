package skep

import (
	"slices"
	"time"
)

// TaskState says where a task is in its life. The numbers are those of the
// wire (spec/api-v2.md §2.6); they look like flags and are plain values.
type TaskState int32

// The states. Pending and Running end by somebody's action, named here; all
// others are final.
const (
	Pending     TaskState = 0x20  // waits for a bot; ends by a claim, a cancel, or the expiry of its last slice
	Running     TaskState = 0x10  // a bot holds it; ends by the bot's final report, or by the server when the bot is lost
	Expired     TaskState = 0x30  // no bot took it in time
	TimedOut    TaskState = 0x40  // hard or I/O timeout
	BotDied     TaskState = 0x50  // the bot was lost or failed internally
	Canceled    TaskState = 0x60  // cancelled before the command started
	Completed   TaskState = 0x70  // the command ended by itself, with any exit code
	Killed      TaskState = 0x80  // stopped on request while running
	NoResource  TaskState = 0x100 // no known bot could ever run it
	ClientError TaskState = 0x200 // inputs named by the requester do not exist
)

var taskStateNames = map[TaskState]string{
	Pending: "PENDING", Running: "RUNNING", Expired: "EXPIRED", TimedOut: "TIMED_OUT", BotDied: "BOT_DIED",
	Canceled: "CANCELED", Completed: "COMPLETED", Killed: "KILLED", NoResource: "NO_RESOURCE", ClientError: "CLIENT_ERROR",
}

// String returns the state's name on the wire.
func (s TaskState) String() string {
	if n, ok := taskStateNames[s]; ok {
		return n
	}
	return "INVALID"
}

// Final reports whether the state is never left again.
func (s TaskState) Final() bool { return s != Pending && s != Running }

// taskMoves is the whole life of a task: a move not listed here is a bug.
var taskMoves = map[TaskState][]TaskState{
	Pending: {Running, Expired, NoResource, Canceled},
	Running: {Completed, TimedOut, BotDied, Canceled, Killed, ClientError},
}

// Fault says whose fault the end of an attempt was.
type Fault string

// The faults a finished attempt can have; "" when it did what was asked.
const (
	FaultNone   Fault = ""
	FaultTask   Fault = "task"   // the command failed
	FaultLimit  Fault = "limit"  // a time limit of the task ended it
	FaultHost   Fault = "host"   // the bot or its host was lost or failed
	FaultServer Fault = "server" // no bot could be found in time
	FaultUser   Fault = "user"   // cancelled, or inputs that do not exist
)

// TaskRequest is what was asked for. It never changes once stored.
type TaskRequest struct {
	ID             TaskID        `json:"id"`
	CreatedAt      time.Time     `json:"created"`
	Name           string        `json:"name"`
	Parent         string        `json:"parent,omitempty"` // run id as given by the caller
	Priority       int32         `json:"priority"`         // 0 (termination) most urgent, 255 least
	Slices         []Slice       `json:"slices"`           // tried in order
	Tags           []string      `json:"tags"`             // sorted, unique, automatic ones included
	User           string        `json:"user,omitempty"`
	Authenticated  string        `json:"authenticated"`   // caller's identity, kind:name
	ServiceAccount string        `json:"service_account"` // "none", "bot" or an e-mail
	Realm          string        `json:"realm,omitempty"`
	PubSubTopic    string        `json:"pubsub_topic,omitempty"`
	PubSubToken    string        `json:"pubsub_token,omitempty"`
	PubSubUserdata string        `json:"pubsub_userdata,omitempty"`
	PingTolerance  time.Duration `json:"ping_tolerance"` // silence of the bot that ends the run as BOT_DIED
	ResultDB       bool          `json:"resultdb,omitempty"`
	UUID           string        `json:"uuid,omitempty"` // makes the call repeatable per caller
	HasSecret      bool          `json:"has_secret,omitempty"`
}

// Slice is one way to run a task.
type Slice struct {
	Properties      Properties    `json:"properties"`
	Expiration      time.Duration `json:"expiration"` // how long it may wait after the slices before it
	WaitForCapacity bool          `json:"wait_for_capacity,omitempty"`
}

// Properties say what to run and on which bot.
type Properties struct {
	Command          []string      `json:"command,omitempty"`
	RelativeCwd      string        `json:"cwd,omitempty"`
	Dimensions       Constraints   `json:"dimensions"` // sorted
	Env              []KeyValue    `json:"env,omitempty"`
	EnvPrefixes      []KeyValues   `json:"env_prefixes,omitempty"`
	Caches           []Cache       `json:"caches,omitempty"`
	CIPD             *CIPDInput    `json:"cipd,omitempty"`
	CASInput         *CASReference `json:"cas_input,omitempty"`
	Outputs          []string      `json:"outputs,omitempty"`
	ExecutionTimeout time.Duration `json:"execution_timeout"`
	GracePeriod      time.Duration `json:"grace_period"`
	IOTimeout        time.Duration `json:"io_timeout"` // 0 = none
	Idempotent       bool          `json:"idempotent,omitempty"`
	Containment      *Containment  `json:"containment,omitempty"`
}

// IsTermination reports whether p is a termination task: nothing but the
// single dimension id. spec/api-v2.md §7.4.
func (p *Properties) IsTermination() bool {
	return len(p.Command) == 0 && len(p.Dimensions) == 1 && p.Dimensions[0].Key == "id" &&
		p.CASInput == nil && p.CIPD == nil && len(p.Caches) == 0 && len(p.Env) == 0
}

// KeyValue is one pair of an ordered map.
type KeyValue struct {
	Key   string `json:"k"`
	Value string `json:"v"`
}

// KeyValues is one entry of an ordered map with several values.
type KeyValues struct {
	Key    string   `json:"k"`
	Values []string `json:"v"`
}

// Cache is a named cache to mount at Path, relative to the task's root.
type Cache struct {
	Name string `json:"name"`
	Path string `json:"path"`
}

// CASReference names a tree in content-addressed storage.
type CASReference struct {
	Instance string `json:"instance"` // projects/<p>/instances/<i>
	Hash     string `json:"hash"`     // SHA-256, lower-case hex
	Size     int64  `json:"size"`     // bytes
}

// CIPDInput lists packages to install before the command runs.
type CIPDInput struct {
	Server   string        `json:"server,omitempty"`
	Client   *CIPDPackage  `json:"client,omitempty"`
	Packages []CIPDPackage `json:"packages,omitempty"`
}

// CIPDPackage is one package.
type CIPDPackage struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Path    string `json:"path,omitempty"`
}

// CIPDPins are the versions that packages resolved to.
type CIPDPins struct {
	Client   *CIPDPackage  `json:"client,omitempty"`
	Packages []CIPDPackage `json:"packages,omitempty"`
}

// Containment is how a task's processes are to be confined; Type has the
// numbers of the wire (spec/api-v2.md §2.9).
type Containment struct {
	Type          int32 `json:"type,omitempty"`
	LowerPriority bool  `json:"lower_priority,omitempty"`
	MaxProcesses  int64 `json:"max_processes,omitempty"`
	MaxMemory     int64 `json:"max_memory,omitempty"` // bytes
}

// ExpiresAt returns when slice i stops waiting for a bot: created plus the
// expirations of slices 0 to i. spec/api-v2.md §6.1.
func (r *TaskRequest) ExpiresAt(i int) time.Time {
	at := r.CreatedAt
	for _, s := range r.Slices[:i+1] {
		at = at.Add(s.Expiration)
	}
	return at
}

// IsTermination reports whether the request asks a bot to end.
func (r *TaskRequest) IsTermination() bool {
	return len(r.Slices) == 1 && r.Slices[0].Properties.IsTermination()
}

// Task is the state of a request: everything about it that changes. Zero
// times mean "not yet".
type Task struct {
	ID         TaskID
	State      TaskState
	Slice      int // index of the slice that waits, runs or ran last
	Priority   int32
	Queue      QueueID // queue of the waiting slice
	ExpiresAt  time.Time
	ModifiedAt time.Time
	StartedAt  time.Time // claim
	EndedAt    time.Time // every final state
	AbandonAt  time.Time // given up, or a stop was asked for
	ContactAt  time.Time // running: when its bot last spoke of it
	Killing    bool      // a stop was asked for while running
	Parent     TaskID

	HasChildren bool // it may have started others

	PingTolerance time.Duration // silence of the bot that ends the run

	Bot      BotID
	ClaimKey string // idempotency key of the poll that claimed it
	Claim    *Claim // what the bot was at that moment

	ExitCode        *int64
	Duration        *float64 // seconds
	Failure         bool
	InternalFailure bool
	Fault           Fault
	CostUSD         float64
	OutputSize      int64 // end of the output, in bytes
	Outcome         *Outcome

	ServerVersions []string
}

// Claim is the bot at the moment it took the task.
type Claim struct {
	Dimensions    Dimensions `json:"dimensions"`
	Version       string     `json:"version,omitempty"`
	IdleSince     time.Time  `json:"idle_since,omitzero"`
	LogsProject   string     `json:"logs_project,omitempty"`
	Authenticated string     `json:"authenticated,omitempty"`
}

// Outcome is what the final report adds to a task.
type Outcome struct {
	CASOutput   *CASReference  `json:"cas_output,omitempty"`
	CIPDPins    *CIPDPins      `json:"cipd_pins,omitempty"`
	MissingCAS  []CASReference `json:"missing_cas,omitempty"`
	MissingCIPD []CIPDPackage  `json:"missing_cipd,omitempty"`
	Stats       *Stats         `json:"stats,omitempty"`
	Message     string         `json:"message,omitempty"` // why, for a person
}

// Stats are the times, in seconds, that the steps around the command took.
type Stats struct {
	BotOverhead   float64        `json:"bot_overhead,omitempty"`
	Download      *TransferStats `json:"download,omitempty"`
	Upload        *TransferStats `json:"upload,omitempty"`
	Packages      float64        `json:"packages,omitempty"`
	CacheTrim     float64        `json:"cache_trim,omitempty"`
	CachesInstall float64        `json:"caches_install,omitempty"`
	CachesRemove  float64        `json:"caches_remove,omitempty"`
	Cleanup       float64        `json:"cleanup,omitempty"`
}

// TransferStats is one transfer of inputs or outputs. The items are packed
// lists of sizes, spec/bot.md §5.9.
type TransferStats struct {
	Duration     float64 `json:"duration,omitempty"`
	InitialItems int32   `json:"initial_items,omitempty"`
	InitialSize  int64   `json:"initial_size,omitempty"`
	ItemsCold    []byte  `json:"items_cold,omitempty"`
	ItemsHot     []byte  `json:"items_hot,omitempty"`
}

// Move takes the task to another state at now. A move that taskMoves does not
// list is a Conflict and changes nothing.
func (t *Task) Move(to TaskState, now time.Time) error {
	if !slices.Contains(taskMoves[t.State], to) {
		return Errorf(Conflict, "task %s is %s and cannot become %s", t.ID, t.State, to)
	}
	t.State, t.ModifiedAt = to, now
	if to.Final() {
		t.EndedAt = now
	}
	return nil
}

// Report is what a bot says of its task. Every report may be repeated.
type Report struct {
	Bot     BotID
	Task    TaskID
	CostUSD float64
	Start   int64  // offset of Output, ≥ 0
	Output  []byte // may be empty
	Ending  *Ending
	Outcome *Outcome // with Ending
}

// Ending is why a run ends, as far as its bot or the server knows.
type Ending struct {
	ExitCode    *int64
	Duration    *float64 // seconds
	HardTimeout bool
	IOTimeout   bool
	Canceled    bool // the bot had not started the command
	Lost        bool // bot lost, gone to other work, or it reported an internal error
	MissingIn   bool // inputs do not exist
}

// End ends a run at now: it chooses the state and derives exit code, duration
// and flags by the first rule that matches. spec/api-v2.md §9.3.
func (t *Task) End(e Ending, now time.Time) error {
	exit, dur := e.ExitCode, e.Duration
	lost := e.Lost || e.MissingIn
	fallBack := func() {
		if exit == nil {
			exit = new(int64(-1))
		}
		if dur == nil {
			dur = new(max(0, now.Sub(t.StartedAt).Seconds()))
		}
	}
	failed := func() bool { return exit != nil && *exit != 0 }
	var (
		to       TaskState
		failure  bool
		internal bool
		fault    Fault
		abandon  = t.AbandonAt
	)
	switch {
	case e.Canceled:
		to, exit, dur, fault = Canceled, nil, nil, FaultUser
		if abandon.IsZero() {
			abandon = now
		}
	case e.HardTimeout || e.IOTimeout:
		fallBack()
		to, failure, fault = TimedOut, true, FaultLimit
	case t.Killing:
		if lost {
			fallBack()
		}
		to, failure, internal, fault = Killed, failed(), lost, FaultUser
	case e.MissingIn:
		fallBack()
		to, internal, abandon, fault = ClientError, true, now, FaultUser
	case e.Lost:
		fallBack()
		to, internal, abandon, fault = BotDied, true, now, FaultHost
	case exit != nil:
		to, failure = Completed, failed()
		if failure {
			fault = FaultTask
		}
	default:
		return Errorf(Internal, "task %s: an ending without a reason", t.ID)
	}
	if err := t.Move(to, now); err != nil {
		return err
	}
	t.ExitCode, t.Duration = exit, dur
	t.Failure, t.InternalFailure, t.Fault, t.AbandonAt = failure, internal, fault, abandon
	return nil
}
