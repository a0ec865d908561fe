package runner

import (
	"bytes"
	"path/filepath"
	"testing"
	"time"
)

// FuzzSpool drives a spool as pump and reporter do, in any order, and compares
// what leaves it with what entered.
func FuzzSpool(f *testing.F) {
	f.Add([]byte{10, 200, 3, 255, 255, 128, 7})
	f.Add(bytes.Repeat([]byte{255, 129}, 40))
	f.Fuzz(func(t *testing.T, steps []byte) {
		s := newSpool(filepath.Join(t.TempDir(), "output"))
		defer s.close()
		var in, out []byte
		take := func(n int) {
			b, offset, err := s.next(n, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			if offset != int64(len(out)) {
				t.Fatalf("offset %d, want %d", offset, len(out))
			}
			out = append(out, b...)
			s.sent(len(b))
		}
		for i, step := range steps[:min(len(steps), 100)] {
			n := int(step&127) * 4096
			if step < 128 {
				b := bytes.Repeat([]byte{byte(i)}, n)
				in = append(in, b...)
				if !s.add(b, time.Now()) {
					t.Fatal("no room")
				}
			} else {
				take(n)
			}
			if n, since := s.unsent(); n != int64(len(in)-len(out)) || since.IsZero() != (n == 0) {
				t.Fatalf("%d unsent since %v, want %d", n, since, len(in)-len(out))
			}
		}
		for len(out) < len(in) {
			take(250_000)
		}
		if !bytes.Equal(in, out) {
			t.Fatal("the bytes differ")
		}
	})
}

func TestSpoolCap(t *testing.T) {
	s := newSpool(filepath.Join(t.TempDir(), "output"))
	defer s.close()
	b := make([]byte, 1<<20)
	for range outputCap/len(b) + 3 {
		if !s.add(b, time.Now()) {
			t.Fatal("no room")
		}
		n, _ := s.unsent()
		if n > 2<<20 {
			s.sent(0)
			got, _, err := s.next(1<<20, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			s.sent(len(got))
		}
	}
	if s.total != outputCap || s.dropped != int64((outputCap/len(b)+3)*len(b)-outputCap) {
		t.Errorf("%d bytes taken, %d dropped", s.total, s.dropped)
	}
}

// TestSpoolWithoutDisk takes in nothing rather than lose it.
func TestSpoolWithoutDisk(t *testing.T) {
	s := newSpool(filepath.Join(t.TempDir(), "missing", "output"))
	b := bytes.Repeat([]byte("x"), spoolMemory)
	if !s.add(b, time.Now()) || s.add([]byte("y"), time.Now()) {
		t.Fatal("want room for the first and none for the second")
	}
	got, _, err := s.next(1000, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s.sent(len(got))
	if len(s.room) != 1 || !s.add([]byte("y"), time.Now()) {
		t.Error("no room after bytes were sent")
	}
}
