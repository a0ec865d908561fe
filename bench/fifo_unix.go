//go:build unix

package bench

import (
	"os"

	"golang.org/x/sys/unix"
)

// newFIFO makes a FIFO that everybody may write to: a task may run as another
// user.
func newFIFO(path string) (*fifo, error) {
	if err := unix.Mkfifo(path, 0o666); err != nil {
		return nil, &os.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	if err := os.Chmod(path, 0o666); err != nil { // whatever the umask says
		return nil, err
	}
	// Open for writing too: then it never ends, and opening does not wait.
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	return &fifo{path: path, file: f}, nil
}
