//go:build !linux

// Package trouble shows how the programs of a host take what goes wrong.
package trouble

import (
	"fmt"
	"os"
)

// Main says that it cannot.
func Main([]string) int {
	fmt.Fprintln(os.Stderr, "show trouble: containers need Linux")
	return 1
}
