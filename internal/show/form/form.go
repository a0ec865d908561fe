// Package form tells which form of a demonstration runs. The long one judges
// what is promised. The short one, SKEP_SHOW=short, runs for every change beside
// other work on a small machine and finds what broke, not what is slow: there is
// less of everything in it, and bounds of time are several times wider.
package form

import (
	"fmt"
	"os"
)

// Short says whether it is the short one.
func Short() bool { return os.Getenv("SKEP_SHOW") == "short" }

// Of is a value of the long form, and what it is in the short one.
func Of[T any](long, short T) T {
	if Short() {
		return short
	}
	return long
}

// Say says of a short form that judges times what these prove.
func Say() {
	if Short() {
		fmt.Println("The bounds of time are wider than those promised: this finds what broke, not what is slow.")
	}
}
