package store

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

// TestOutputAgreesWithABuffer writes pieces at any offset, in any order and
// again, and compares with the same done to a slice of bytes.
func TestOutputAgreesWithABuffer(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		n := 0
		rapid.Check(t, func(rt *rapid.T) {
			n++
			req, task := newTask(n)
			create(t, s, req, task, nil)
			var want []byte
			size := int64(0)
			for range rapid.IntRange(1, 12).Draw(rt, "writes") {
				start := rapid.OneOf(rapid.Just(size), rapid.Int64Range(0, 300), rapid.Just(int64(pieceBytes-1))).Draw(rt, "start")
				length := rapid.OneOf(rapid.IntRange(0, 80), rapid.Just(pieceBytes+3)).Draw(rt, "length")
				data := bytes.Repeat([]byte{rapid.Byte().Draw(rt, "byte")}, length)
				if err := s.Update(t.Context(), func(tx *Tx) error {
					task, err := tx.LockTask(req.ID)
					if err != nil {
						return err
					}
					if task.OutputSize, err = tx.WriteOutput(req.ID, task.OutputSize, start, data); err != nil {
						return err
					}
					return tx.Touch(task)
				}, KeyTask(req.ID)); err != nil {
					rt.Fatal(err)
				}
				if end := start + int64(length); end > int64(len(want)) && length > 0 {
					want = append(want, make([]byte, end-int64(len(want)))...)
				}
				copy(want[min(start, int64(len(want))):], data)
				size = int64(len(want))
			}
			off := rapid.Int64Range(0, size+5).Draw(rt, "offset")
			limit := rapid.Int64Range(0, size+5).Draw(rt, "limit")
			got, err := s.Output(t.Context(), req.ID, size, off, limit)
			if err != nil {
				rt.Fatal(err)
			}
			end := size
			if limit > 0 {
				end = min(size, off+limit)
			}
			if off < size && !bytes.Equal(got, want[off:end]) || off >= size && len(got) > 0 {
				rt.Fatalf("read %d bytes at %d: differ from what was written", len(got), off)
			}
			task, err = s.Task(t.Context(), req.ID)
			if err != nil || task.OutputSize != size {
				rt.Fatalf("size is %d, want %d (%v)", task.OutputSize, size, err)
			}
		})
	})
}

func TestOutputBeyondTheLimitIsDropped(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		req, task := newTask(0)
		create(t, s, req, task, nil)
		write := func(size, start int64, data string) int64 {
			if err := s.Update(t.Context(), func(tx *Tx) (err error) {
				size, err = tx.WriteOutput(req.ID, size, start, []byte(data))
				return err
			}); err != nil {
				t.Fatal(err)
			}
			return size
		}
		if got := write(0, MaxOutput+5, "lost"); got != 0 {
			t.Errorf("size %d after a write beyond the limit", got)
		}
		if got := write(0, MaxOutput-2, "kept and lost"); got != MaxOutput {
			t.Errorf("size %d, want %d", got, int64(MaxOutput))
		}
		got, err := s.Output(t.Context(), req.ID, MaxOutput, MaxOutput-2, 10)
		if err != nil || string(got) != "ke" {
			t.Errorf("got %q, %v", got, err)
		}
	})
}
