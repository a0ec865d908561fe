package room

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// keyCalls are the numbers of add_key, request_key and keyctl, which follow each
// other, as the architectures call them that may run in one room.
var keyCalls = []struct{ arch, first, last uint32 }{
	{unix.AUDIT_ARCH_X86_64, 248, 250},
	{unix.AUDIT_ARCH_I386, 286, 288},
	{unix.AUDIT_ARCH_AARCH64, 217, 219},
	{unix.AUDIT_ARCH_ARM, 309, 311},
}

// x32 marks a call of another form of the same architecture.
const x32 = 0x4000_0000

// withoutKeys takes the kernel's keys from the calling thread and all that it
// starts: the calls say that there are none. A key is its user's, who in all
// rooms of a pool is the same; whoever knows its number reads it there, while
// the room lives and a moment longer, and all count against one quota. The
// thread must have no_new_privs.
func withoutKeys() error {
	stmt := func(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }
	jump := func(code uint16, k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: code | unix.BPF_JMP | unix.BPF_K, Jt: yes, Jf: no, K: k}
	}
	const (
		load  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		ret   = unix.BPF_RET | unix.BPF_K
		nr    = 0 // where a call's description has its number,
		arch  = 4 // and its architecture
		allow = unix.SECCOMP_RET_ALLOW
		deny  = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	)
	program := []unix.SockFilter{stmt(load, arch)}
	for _, c := range keyCalls {
		program = append(program,
			jump(unix.BPF_JEQ, c.arch, 0, 6),
			stmt(load, nr),
			stmt(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, ^uint32(x32)),
			jump(unix.BPF_JGE, c.first, 0, 2),
			jump(unix.BPF_JGT, c.last, 1, 0),
			stmt(ret, deny),
			stmt(ret, allow),
		)
	}
	program = append(program, stmt(ret, allow))
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]} //nolint:gosec // thirty
	_, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&filter)))
	if e == unix.ENOSYS || e == unix.EINVAL { // a kernel without filters
		_, keys := unix.KeyctlGetKeyringID(unix.KEY_SPEC_PROCESS_KEYRING, false)
		return unfiltered(e, keys)
	}
	if e != 0 {
		return e
	}
	return nil
}

// unfiltered says whether a task may start where there are no filters, of what a
// call for a key says: it may where nobody has keys, as the call is not there or
// is refused.
func unfiltered(filter, keys error) error {
	if errors.Is(keys, unix.ENOSYS) || errors.Is(keys, unix.EPERM) {
		return nil
	}
	return fmt.Errorf("this kernel has no seccomp filters (%w), so that tasks could read each other's keys: use one with CONFIG_SECCOMP_FILTER, or without CONFIG_KEYS", filter)
}
