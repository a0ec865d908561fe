//go:build !linux

// Package warm shows the warm pool, on Linux.
package warm

import (
	"fmt"
	"os"
)

// Main says that it cannot.
func Main(string, []string) int {
	fmt.Fprintln(os.Stderr, "show: a pool of containers needs Linux")
	return 1
}

// Canary is not run here.
func Canary([]string) int { return 1 }
