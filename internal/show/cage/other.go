//go:build !linux

package cage

import (
	"fmt"
	"os"
)

// Main says that this is for Linux.
func Main([]string) int {
	fmt.Fprintln(os.Stderr, "show cage: it looks at what Linux does")
	return 1
}

// Prisoner is for Linux.
func Prisoner([]string) int { return 1 }
