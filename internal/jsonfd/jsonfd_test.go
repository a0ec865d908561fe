//go:build unix

package jsonfd

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
)

func pair(t testing.TB) (a, b *Conn) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d, err := net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close(); _ = s.Close() })
	return NewConn(d), NewConn(s)
}

func TestFilesComeWithTheirLine(t *testing.T) {
	a, b := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := a.Send("before"); err != nil {
		t.Fatal(err)
	}
	if err := a.Send("with", w); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	for _, want := range []string{`"before"`, `"with"`} {
		if line, err := b.Receive(); err != nil || string(line) != want {
			t.Fatalf("%q, %v; want %s", line, err, want)
		}
	}
	if _, err := b.Take(2); err == nil {
		t.Error("more files than came")
	}
	files, err := b.Take(1)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = files[0].WriteString("hi")
	_ = files[0].Close()
	if got, _ := io.ReadAll(r); string(got) != "hi" {
		t.Errorf("through the file came %q", got)
	}
}

// Whatever comes, what is held is bounded and nothing panics.
func FuzzReceive(f *testing.F) {
	f.Add([]byte("{\"id\":1}\n\"x\"\npart"))
	f.Fuzz(func(t *testing.T, in []byte) {
		a, b := pair(t)
		go func() {
			_, _ = a.Socket().Write(in)
			_ = a.Close()
		}()
		for {
			line, err := b.Receive()
			if cap(b.buf) > 4*MaxLine {
				t.Fatalf("a buffer of %d bytes", cap(b.buf))
			}
			if err != nil {
				return
			}
			var v any
			_ = Decode(line, &v)
		}
	})
}
