//go:build !windows

package exec

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skepdev/skep/provider"
)

// TestNoRoomToStart: a host that has no descriptors left says nothing about the
// program, which is not to blame and may have been asked before.
func TestNoRoomToStart(t *testing.T) {
	p, _ := boards(t, "b1")
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	low := was
	low.Cur = 0
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	_, err := p.Create(t.Context(), provider.Order{RequestID: "r", Name: "vm-0", Server: "https://skep"})
	if back := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); back != nil {
		t.Fatal(back)
	}
	wantError(t, err, provider.Transient, "start")
	if done, err := p.Create(t.Context(), provider.Order{RequestID: "r", Name: "vm-0", Server: "https://skep"}); !done || err != nil {
		t.Error(done, err)
	}
}
