// Package pool speaks with the warm pool of a host: a service, `skep pool
// start`, that keeps containers ready and hands one out in a fraction of a
// millisecond. It holds the messages (wire: docs/wire/pool.md) and a client.
// It is lean, as skep-bot links it; the service is host/warm.
//
// A container that was handed out is a Room. It belongs to the connection that
// asked for it: when that ends, the room is destroyed, or goes back into stock
// when nothing was done in it.
package pool

import (
	"errors"
	"fmt"
	"time"

	"github.com/skepdev/skep"
)

// Request is one line to the service. ID is the client's and comes back in
// every answer; exactly one other field is set.
type Request struct {
	ID       uint64       `json:"id"`
	Echo     *Echo        `json:"echo,omitempty"`
	Get      *Get         `json:"get,omitempty"`
	Confirm  *Confirm     `json:"confirm,omitempty"`
	Bind     *Bind        `json:"bind,omitempty"`
	Exec     *Exec        `json:"exec,omitempty"`
	Signal   *Signal      `json:"signal,omitempty"`
	Release  *Release     `json:"release,omitempty"`
	Status   *StatusAsked `json:"status,omitempty"`
	Rebase   *Rebase      `json:"rebase,omitempty"`
	Shutdown *Shutdown    `json:"shutdown,omitempty"`
}

// Response is one line from the service: an error, or what was asked for. An
// Exec is answered twice: Started, then Exit.
type Response struct {
	ID      uint64   `json:"id"`
	Error   *Error   `json:"error,omitempty"`
	Echo    *Echo    `json:"echo,omitempty"`
	Room    *Room    `json:"room,omitempty"`    // of get and confirm
	Started *Started `json:"started,omitempty"` // of exec
	Exit    *Exit    `json:"exit,omitempty"`    // of exec
	Status  *Status  `json:"status,omitempty"`
	Done    bool     `json:"done,omitempty"` // of bind, signal, release, rebase, shutdown
}

// Echo comes back as it is.
type Echo struct {
	Text string `json:"text"`
}

// Get asks for a room.
type Get struct {
	// For says who or what it is for: an id of up to 128 characters, shown in
	// the status and nowhere used.
	For string `json:"for"`
	// TimeoutMS is how long to wait for one; 0 = not at all, at most a day.
	TimeoutMS int64 `json:"timeout_ms,omitempty"`
	// HoldMS is how long the room waits for another connection of the same user
	// when this one ends before it confirms; 0 = it ends with it.
	HoldMS int64 `json:"hold_ms,omitempty"`
	// Confirm takes it for good at once.
	Confirm bool `json:"confirm,omitempty"`
}

// Confirm says that the room arrived: from here on it is used and never goes
// back into stock. It makes the room this connection's.
type Confirm struct {
	Lease
	// KeepMS is how long the room outlives its connection; 0 = not at all, at
	// most a day.
	KeepMS int64 `json:"keep_ms,omitempty"`
}

// Bind makes a directory of the host appear in a started room. The directory
// comes as an open file with the message.
type Bind struct {
	Lease
	At       string `json:"at"` // absolute; made when it is not there
	ReadOnly bool   `json:"read_only,omitempty"`
}

// Exec starts a command in the room. Its standard input, output and error
// come as three open files with the message.
type Exec struct {
	Lease
	Args []string `json:"args"`          // looked up in the PATH of Env when it has no slash
	Env  []string `json:"env,omitempty"` // "K=V", all of it
	Dir  string   `json:"dir,omitempty"` // absolute; "" = /
	// Task runs it as the user for tasks, without capabilities; otherwise it
	// is the room's root, which is nobody on the host.
	Task   bool    `json:"task,omitempty"`
	Limits *Limits `json:"limits,omitempty"` // of the room from now on, where they are lower than its own
}

// Limits of all processes of a room together; 0 = the pool's.
type Limits struct {
	Memory    int64 `json:"memory,omitempty"`    // bytes
	Processes int64 `json:"processes,omitempty"` // threads count
	MilliCPU  int64 `json:"milli_cpu,omitempty"` // thousandths of a processor's time
}

// Signal sends a signal to the first process of an exec that runs.
type Signal struct {
	Lease
	Exec   uint64 `json:"exec"` // the ID of its request
	Signal int    `json:"signal"`
}

// Release ends a room. It is answered when none of its processes is left; what
// else it consists of is removed afterwards.
type Release struct {
	Lease
}

// StatusAsked asks for the Status.
type StatusAsked struct{}

// Rebase asks for rooms of another base image. It is answered when no room of an
// older one is given out any more; those that were are left alone.
type Rebase struct {
	File   string `json:"file"`   // absolute path of the archive
	Digest string `json:"digest"` // sha256:…
}

// Shutdown asks the service to end. It is answered when everything is removed.
type Shutdown struct{}

// Lease names a room and its hand-out: a room that went back into stock and
// came to another has another generation.
type Lease struct {
	Room       string `json:"room"`
	Generation uint64 `json:"generation,omitempty"` // 0 = whatever it is, for people
}

// Room is a container that was handed out.
type Room struct {
	Lease
	UID uint32 `json:"uid"` // on the host, of processes that run with Task
	GID uint32 `json:"gid"`
}

// Started says that the command runs.
type Started struct {
	PID int `json:"pid"` // in the room
}

// Exit says how the command ended.
type Exit struct {
	Code int `json:"code"` // exit code; -N when signal N killed it
}

// Status of a pool. C6 and C8 of mission.md.
type Status struct {
	Running  bool     `json:"running"` // false while it ends
	Socket   string   `json:"socket"`
	Runtime  string   `json:"runtime"`
	Base     string   `json:"base"` // digest of the base image
	UptimeMS int64    `json:"uptime_ms"`
	Capacity int      `json:"capacity"` // the most stock
	Wanted   int      `json:"wanted"`   // stock that demand asks for now
	Ready    int      `json:"ready"`    // in stock
	Making   int      `json:"making"`   // creators at work
	Leased   int      `json:"leased"`   // handed out and not confirmed
	Used     int      `json:"used"`     // confirmed
	Ending   int      `json:"ending"`   // being destroyed
	Waiting  int      `json:"waiting"`  // gets that wait
	Clients  int      `json:"clients"`
	Paused   string   `json:"paused,omitempty"` // why nothing is made now
	Totals   Totals   `json:"totals"`
	Held     []Held   `json:"held,omitempty"`   // handed out rooms, the 100 oldest
	Errors   []Failed `json:"errors,omitempty"` // the last 100, oldest first
}

// Totals count since the service began.
type Totals struct {
	Made     uint64 `json:"made"`     // rooms that became ready
	Failed   uint64 `json:"failed"`   // rooms that did not
	Served   uint64 `json:"served"`   // gets that got one
	Refused  uint64 `json:"refused"`  // gets that did not
	Returned uint64 `json:"returned"` // rooms that went back into stock
	Removed  uint64 `json:"removed"`  // rooms destroyed
	Lost     uint64 `json:"lost"`     // rooms that ended by themselves
	Clients  uint64 `json:"clients"`
	Rejected uint64 `json:"rejected"` // clients and messages
}

// Held is a room that was handed out.
type Held struct {
	Room  string `json:"room"`
	For   string `json:"for"`
	UID   uint32 `json:"uid"` // of its client
	AgeMS int64  `json:"age_ms"`
	Used  bool   `json:"used"`
}

// Failed is an error of the service.
type Failed struct {
	At    time.Time `json:"at"`
	Cause string    `json:"cause"` // a word: make, remove, client, accept
	Text  string    `json:"text"`
}

// Error is a refusal: Kind and Reason for programs, Text for people.
type Error struct {
	Kind   string `json:"kind"`   // as skep.Kind
	Reason string `json:"reason"` // see docs/wire/pool.md
	Text   string `json:"text"`
}

// Error implements error.
func (e *Error) Error() string { return e.Text }

// Unwrap returns the error's kind, for skep.KindOf.
func (e *Error) Unwrap() error {
	return skep.Errorf(skep.ParseKind(e.Kind), "%s", e.Text)
}

// Reasons of refusals.
const (
	ReasonMalformed = "malformed"  // not a message; the connection ends
	ReasonInvalid   = "invalid"    // a field has no value that it may have
	ReasonNoStock   = "no_stock"   // none came within the time
	ReasonNotYours  = "not_yours"  // no such room, or another's
	ReasonGone      = "gone"       // the room has ended
	ReasonStopping  = "stopping"   // the service ends
	ReasonTooMany   = "too_many"   // clients, or requests under way
	ReasonDenied    = "denied"     // the peer may not use this pool
	ReasonExec      = "exec"       // the command cannot be started
	ReasonBind      = "bind"       // the directory cannot be bound
	ReasonCannot    = "cannot"     // the service failed at it
	ReasonNoService = "no_service" // the client's: nobody answers at the socket
)

// Reason returns the reason of a refusal in err's chain, or "".
func Reason(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Reason
	}
	return ""
}

// Refusef makes a refusal.
func Refusef(kind skep.Kind, reason, format string, args ...any) *Error {
	return &Error{Kind: kind.String(), Reason: reason, Text: fmt.Sprintf(format, args...)}
}
