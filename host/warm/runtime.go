package warm

import "context"

// Spec is one room: what a Runtime needs to make it, and to find everything of
// it again. It is in the journal before anything is made.
type Spec struct {
	Name string `json:"name"` // unique on the host; of the runtime's container, too
	Dir  string `json:"dir"`  // the room's own directory; holds upper, work, root and run
	Base string `json:"base"` // root directory of the base image, never written to
	From Base   `json:"from"` // the archive that it is of; see Base.Open
	Run  string `json:"run"`  // comes to be room.Dir in the room; below Dir

	// FirstID is the user and group id on the host that root of the room is;
	// IDs is how many follow.
	FirstID uint32 `json:"first_id"`
	IDs     uint32 `json:"ids"`

	HostNetwork bool `json:"host_network,omitempty"`

	// Greeted is closed when the room has said hello: a Start that cannot tell
	// otherwise whether it went well waits for it.
	Greeted <-chan struct{} `json:"-"`
}

// Base is the image that rooms begin as: a tar archive of a root file system,
// plain, gzip or zstd.
type Base struct {
	File   string `json:"file"`
	Digest string `json:"digest"` // "sha256:" and the hexadecimal digest of File

	root string // unpacked
}

// Runtime makes containers. Its calls may be made by many at once, for
// different rooms; warmtest.Suite is what they promise.
type Runtime interface {
	// Name is the runtime's word in flags and status.
	Name() string
	// Check says what is missing on this host: nil, or a Precondition error.
	Check(ctx context.Context) error
	// Start makes and starts the room; its first process is room.ProgramName in
	// room.Dir, with the argument room.Word. It returns when that was started,
	// which need not have said hello. What a failed Start left, Remove removes.
	Start(ctx context.Context, s *Spec) error
	// Remove removes what Start made, outside of s.Dir too, and ends what runs in
	// it. It may be called for what is gone, half made, or was never made.
	Remove(ctx context.Context, s *Spec) error
}

// Capabilities of the room's root: those that a package manager or a login
// needs, within its user namespace. Tasks have none.
var Capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP",
	"CAP_NET_BIND_SERVICE", "CAP_NET_ADMIN", "CAP_SYS_CHROOT", "CAP_KILL",
}
