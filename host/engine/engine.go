// Package engine is what the programs of a host ask of a container engine. The
// interface holds the few calls that they make; package docker speaks to a real
// one.
package engine

import (
	"context"
	"iter"
	"strings"
	"time"

	"github.com/skepdev/skep"
)

// Timeout is what one call may take unless its caller says otherwise: an engine
// that hangs keeps one container waiting and no other. promise D4.
const Timeout = 30 * time.Second

// Engine is a container engine. Every call but Events and Pull ends within its
// own deadline, whatever ctx allows; an error of kind skep.Unavailable says
// that the engine did not answer (in time), skep.NotFound that there is no such
// container or image, skep.Conflict that a name is taken or a thing in use.
// Calls may be made by many at once.
type Engine interface {
	Ping(ctx context.Context) error

	// List returns the containers that carry every one of labels, in any state.
	// Started, Ended, PID and ExitCode are left out; see Inspect.
	List(ctx context.Context, labels map[string]string) ([]Container, error)
	// Inspect returns everything about one container.
	Inspect(ctx context.Context, id string) (Container, error)
	Create(ctx context.Context, spec Spec) (id string, err error)
	// Start is nil when the container runs already.
	Start(ctx context.Context, id string) error
	Unpause(ctx context.Context, id string) error
	// Signal sends a signal, "SIGKILL", to the first process of a container. One
	// that does not run is a Conflict.
	Signal(ctx context.Context, id, signal string) error
	// Remove ends a container if need be and takes it away; nil when it is gone.
	Remove(ctx context.Context, id string) error
	// Log returns the last bytes that the container wrote, at most limit.
	Log(ctx context.Context, id string, limit int) ([]byte, error)

	// Image returns the local image that ref, a name or a digest, means.
	Image(ctx context.Context, ref string) (Image, error)
	Images(ctx context.Context) ([]Image, error)
	// Pull fetches ref from its registry, without credentials. It takes as long
	// as ctx allows.
	Pull(ctx context.Context, ref string) error
	// Tag gives the image that ref means one more name; another image loses it.
	Tag(ctx context.Context, ref, name string) error
	// RemoveImage takes away a name, or an image that has no other and that no
	// container uses; else it is a Conflict.
	RemoveImage(ctx context.Context, ref string) error

	// Events yields what happens to containers with these labels, until ctx ends
	// or the stream does. ready, when not nil, is called once nothing is missed
	// any more.
	Events(ctx context.Context, labels map[string]string, ready func()) iter.Seq2[Event, error]
}

// State of a container, as the engine names it.
type State string

const (
	Created    State = "created"    // never started; nothing makes it start by itself
	Running    State = "running"    //
	Paused     State = "paused"     // its processes are frozen
	Restarting State = "restarting" //
	Removing   State = "removing"   //
	Exited     State = "exited"     //
	Dead       State = "dead"       // could not be removed whole
)

// Container is one container.
type Container struct {
	ID      string
	Name    string // without a slash
	State   State
	Labels  map[string]string
	ImageID string
	Created time.Time

	// What Inspect alone tells.
	Started, Ended time.Time // zero = not yet
	PID            int       // of its first process, on the host; 0 = none
	ExitCode       int
	OOMKilled      bool
	Error          string // why it could not be started
}

// Spec is a container to be.
type Spec struct {
	Name, Hostname string
	Image          string // name or id of a local image
	Labels         map[string]string
	Env            []string
	Command        []string // "" = the image's
	Capabilities   []string // all that its processes may have, "CAP_CHOWN"; nil = the engine's default
	Mounts         []Mount
	Devices        []string // paths, the same inside
	Network        string   // "" = the engine's default bridge
	StopSignal     string   // what the engine's own stop sends first
	LogLimit       int64    // bytes of output that the engine keeps; 0 = the engine's default
	ExtraHosts     []string // "name:address"
}

// Mount is a directory or file of the host inside a container.
type Mount struct {
	Source, Target string
	ReadOnly       bool
}

// Image is a local image.
type Image struct {
	ID      string
	Names   []string // "registry/name:tag" and "registry/name@sha256:…"
	Labels  map[string]string
	Created time.Time
}

// Event is something that happened to a container.
type Event struct {
	Container, Action string // "die", "start", …
	Labels            map[string]string
}

// Repository is an image's name without tag and digest, as engines list it:
// those of the registry that is theirs by default without its name.
func Repository(ref string) string {
	ref, _, _ = strings.Cut(ref, "@")
	if i := strings.LastIndexByte(ref, ':'); i > strings.LastIndexByte(ref, '/') {
		ref = ref[:i]
	}
	if short, ok := strings.CutPrefix(ref, "docker.io/"); ok {
		return strings.TrimPrefix(short, "library/")
	}
	return ref
}

// Digest is the digest in ref, "sha256:…", "" when it names none.
func Digest(ref string) string {
	_, digest, _ := strings.Cut(ref, "@")
	return digest
}

// Hung reports whether err says that the engine did not answer.
func Hung(err error) bool { return skep.KindOf(err) == skep.Unavailable }
