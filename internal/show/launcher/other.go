//go:build !linux

package launcher

import (
	"fmt"
	"os"
)

// Main says that there is nothing to show.
func Main([]string) int {
	fmt.Fprintln(os.Stderr, "show launcher: containers are for Linux")
	return 0
}
