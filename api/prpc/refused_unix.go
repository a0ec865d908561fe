//go:build !windows

package prpc

import "syscall"

// errRefused is the answer of a port that nobody listens on.
const errRefused = syscall.ECONNREFUSED
