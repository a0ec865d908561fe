//go:build !linux

package systemd

import (
	"fmt"
	"os"
)

// Main says that this is for Linux.
func Main([]string) int {
	fmt.Fprintln(os.Stderr, "show systemd: it is for Linux")
	return 1
}
