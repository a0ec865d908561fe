//go:build !linux

// Package machines shows that pools of machines become what is declared.
package machines

import (
	"fmt"
	"os"
)

// Main says that it cannot.
func Main([]string) int {
	fmt.Fprintln(os.Stderr, "show machines: bots are complete on Linux only")
	return 1
}
