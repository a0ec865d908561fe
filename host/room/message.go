// Package room is the first process of a warm container: it tells the pool
// that the container is up, starts the commands that the pool asks for,
// reaps, and ends — with the whole container — when the pool is gone.
package room

// Dir is where the pool's own directory is in a container: the socket to say
// hello at, and this program.
const Dir = "/.skep"

// Names in Dir.
const (
	SocketName  = "socket"
	ProgramName = "room"
)

// Word is the argument that makes the program a room's first process.
const Word = "room"

// Order is a line from the pool. ID is the pool's; exactly one other field is
// set.
type Order struct {
	ID     uint64  `json:"id"`
	Ping   bool    `json:"ping,omitempty"`
	Exec   *Exec   `json:"exec,omitempty"` // standard input, output and error come with it
	Signal *Signal `json:"signal,omitempty"`
}

// Exec is a command to start.
type Exec struct {
	Args []string `json:"args"`
	Env  []string `json:"env,omitempty"`
	Dir  string   `json:"dir,omitempty"`
	Task bool     `json:"task,omitempty"`
}

// Signal is one for the process of an earlier exec.
type Signal struct {
	Exec   uint64 `json:"exec"`
	Signal int    `json:"signal"`
}

// News is a line from the room. Hello comes first and by itself; an exec is
// answered twice, with PID or Error, and with Exit.
type News struct {
	ID    uint64 `json:"id,omitempty"`
	Hello bool   `json:"hello,omitempty"`
	Pong  bool   `json:"pong,omitempty"`
	PID   int    `json:"pid,omitempty"`
	Exit  *int   `json:"exit,omitempty"` // exit code; -N when signal N killed it
	Error string `json:"error,omitempty"`
}

// TaskUID and TaskGID are, in a room, the user that tasks run as.
const (
	TaskUID = 1000
	TaskGID = 1000
)
