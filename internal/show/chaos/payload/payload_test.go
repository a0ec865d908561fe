package payload

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"
)

func TestOfFollowsFromTheID(t *testing.T) {
	a, again, b := Of("5a01"), Of("5a01"), Of("5a11")
	if len(a) != Size || !bytes.Equal(a, again) {
		t.Error("two answers for one id")
	}
	if bytes.Equal(a, b) || bytes.Contains(b, a[:probe]) {
		t.Error("two ids have the same output")
	}
}

func TestPauseIsBounded(t *testing.T) {
	seen := map[time.Duration]bool{}
	for i := range 1000 {
		d := Pause(string(rune('a'+i%26)) + string(rune(i)))
		if d < 20*time.Millisecond || d > 2500*time.Millisecond {
			t.Fatalf("%v", d)
		}
		seen[d] = true
	}
	if !seen[2500*time.Millisecond] || !seen[400*time.Millisecond] || len(seen) < 30 {
		t.Errorf("%d different pauses", len(seen))
	}
}

func TestDiff(t *testing.T) {
	const run = "5a01"
	want := Of(run)
	for _, tc := range []struct {
		name   string
		got    []byte
		prefix bool
		diff   string
	}{
		{"the same", want, false, ""},
		{"the same, a prefix would do", want, true, ""},
		{"a prefix", want[:100], true, ""},
		{"nothing, a prefix would do", nil, true, ""},
		{"the end is lost", want[:Size-10], false, "65526 bytes, the last 10 are lost"},
		{"everything is lost", nil, false, "0 bytes, the last 65536 are lost"},
		{"a piece is lost", slices.Concat(want[:Piece], want[2*Piece:]), false, "57344 bytes, differs from 8192 on: the bytes from 16384"},
		{"a piece is lost in a prefix", slices.Concat(want[:100], want[200:300]), true, "200 bytes, differs from 100 on: the bytes from 200"},
		{"a piece is repeated", slices.Concat(want[:Piece], want[:Piece], want[Piece:]), false, "73728 bytes, differs from 8192 on: the bytes from 0"},
		{"the end is repeated", slices.Concat(want, want[Size-Piece:]), false, "73728 bytes, 8192 too many: from 65536 on the bytes from 57344"},
		{"a gap", slices.Concat(want[:100], make([]byte, 100), want[200:]), false, "65536 bytes, differs from 100 on: zeros, a gap"},
		{"foreign bytes", slices.Concat(want[:100], []byte("a line of the bot's log"), want[100:]), false, "65559 bytes, differs from 100 on: foreign bytes \"a line of the bo\""},
		{"another task's output", Of("5a11"), false, fmt.Sprintf("65536 bytes, differs from 0 on: foreign bytes %q", Of("5a11")[:probe])},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := Diff(run, tc.got, tc.prefix); got != tc.diff {
				t.Errorf("got  %q\nwant %q", got, tc.diff)
			}
		})
	}
}
