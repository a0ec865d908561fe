package runner

import "os"

// inherited returns a pipe that our parent gave us.
func inherited(fd uintptr, name string) *os.File {
	if fd == 0 {
		return os.Stdin
	}
	return os.NewFile(fd, name)
}

// inheritedOutput returns a pipe that our parent gave us to write to: there is
// only standard output here, whose handle is not its number.
func inheritedOutput(fd uintptr, name string) *os.File {
	if fd == 1 {
		return os.Stdout
	}
	return os.NewFile(fd, name)
}
