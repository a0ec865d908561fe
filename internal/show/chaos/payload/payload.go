// Package payload is what a task of the demonstration prints: bytes that
// follow from its run id alone, so that whoever knows the id can tell which
// byte is lost, repeated or foreign.
package payload

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"time"
)

// Size is how many bytes a task prints.
const Size = 64 << 10

// Piece is how many of them it prints at a time.
const Piece = 8 << 10

// Of returns the output of the run with the given id: Size random bytes, of
// which no stretch of some length occurs twice.
func Of(run string) []byte {
	b := make([]byte, Size)
	_, _ = rand.NewChaCha8(sha256.Sum256([]byte(run))).Read(b) // never fails
	return b
}

// Pause returns how long the run takes beside its writing: 20 to 80 ms; one of
// 32 takes 0.4 s and one of 32 takes 2.5 s, so that output leaves the bot in
// several updates.
func Pause(run string) time.Duration {
	sum := sha256.Sum256([]byte("pause " + run))
	switch sum[0] % 32 {
	case 0:
		return 2500 * time.Millisecond
	case 1:
		return 400 * time.Millisecond
	default:
		return time.Duration(20+int(sum[1])%61) * time.Millisecond
	}
}

// probe is how many bytes say for sure where in an output they belong.
const probe = 16

// Diff says in which way got is not what the run prints, "" when it is the
// same. With prefix a shorter got is fine: the run did not end by itself.
func Diff(run string, got []byte, prefix bool) string {
	want := Of(run)
	n := 0
	for n < min(len(got), len(want)) && got[n] == want[n] {
		n++
	}
	switch {
	case n == len(got) && (n == len(want) || prefix):
		return ""
	case n == len(got):
		return fmt.Sprintf("%d bytes, the last %d are lost", len(got), len(want)-n)
	case n == len(want):
		return fmt.Sprintf("%d bytes, %d too many: from %d on %s", len(got), len(got)-n, n, origin(want, got[n:]))
	default:
		return fmt.Sprintf("%d bytes, differs from %d on: %s", len(got), n, origin(want, got[n:]))
	}
}

// origin says where b comes from.
func origin(want, b []byte) string {
	b = b[:min(len(b), probe)]
	if i := bytes.Index(want, b); i >= 0 {
		return fmt.Sprintf("the bytes from %d", i)
	}
	if len(bytes.Trim(b, "\x00")) == 0 {
		return "zeros, a gap"
	}
	return fmt.Sprintf("foreign bytes %q", b)
}
