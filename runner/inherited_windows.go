package runner

import "os"

// inherited returns a pipe that our parent gave us.
func inherited(fd uintptr, name string) *os.File {
	if fd == 0 {
		return os.Stdin
	}
	return os.NewFile(fd, name)
}
