package room

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skepdev/skep/internal/need"
	"github.com/skepdev/skep/internal/proc"
)

// Keys are not there, for the thread and for what it starts; the rest is.
func TestWithoutKeys(t *testing.T) {
	const ring = unix.KEY_SPEC_PROCESS_KEYRING
	if os.Getenv("TEST_KEYS") == "child" {
		if _, err := unix.AddKey("user", "test", []byte("x"), ring); err != unix.ENOSYS {
			os.Exit(3)
		}
		os.Exit(0)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var added, got, requested, filtered, child error
	proc.OnThread(func() {
		_, added = unix.AddKey("user", "test", []byte("x"), ring)
		filtered = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
		if filtered == nil {
			filtered = withoutKeys()
		}
		_, got = unix.KeyctlGetKeyringID(ring, false)
		_, requested = unix.RequestKey("user", "test", "", ring)
		cmd := exec.Command(self, "-test.run=^TestWithoutKeys$")
		cmd.Env = append(os.Environ(), "TEST_KEYS=child")
		child = cmd.Run()
	})
	if added != nil {
		need.Skip(t, "keyrings", "keys do not work here without the filter: "+added.Error())
	}
	if filtered != nil || got != unix.ENOSYS || requested != unix.ENOSYS || child != nil {
		t.Errorf("filter: %v; keyctl: %v, request_key: %v, want ENOSYS; a child: %v", filtered, got, requested, child)
	}
}

// Without filters tasks start only where there are no keys; else it is said
// what to do.
func TestUnfiltered(t *testing.T) {
	for _, filter := range []error{unix.ENOSYS, unix.EINVAL} {
		for keys, ok := range map[error]bool{nil: false, unix.ENOKEY: false, unix.ENOSYS: true, unix.EPERM: true} {
			err := unfiltered(filter, keys)
			if (err == nil) != ok || !ok && (!errors.Is(err, filter) || !strings.Contains(err.Error(), "CONFIG_SECCOMP_FILTER")) {
				t.Errorf("filters say %v, keys %v: %v", filter, keys, err)
			}
		}
	}
}
