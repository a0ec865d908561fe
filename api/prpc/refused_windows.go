package prpc

import "syscall"

// errRefused is the answer of a port that nobody listens on, WSAECONNREFUSED.
const errRefused = syscall.Errno(10061)
