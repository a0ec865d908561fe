package proc

import (
	"fmt"
	"os"
	"syscall"
	"testing"
)

// BenchmarkStart compares ways to start /bin/true with plain fork+exec.
func BenchmarkStart(b *testing.B) {
	b.Run("forkexec", func(b *testing.B) {
		for b.Loop() {
			pid, err := syscall.ForkExec("/bin/true", []string{"true"}, &syscall.ProcAttr{})
			if err != nil {
				b.Fatal(err)
			}
			if _, err := syscall.Wait4(pid, nil, 0, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
	start := func(b *testing.B, c Cmd) {
		for b.Loop() {
			c := c
			p, err := Start(&c)
			if err != nil {
				b.Fatal(err)
			}
			p.Wait()
		}
	}
	plain := Cmd{Path: "/bin/true", Args: []string{"true"}}
	b.Run("process", func(b *testing.B) { start(b, plain) })
	dir := plain
	dir.Dir, dir.NewGroup, dir.ParentDeath = "/tmp", true, true
	b.Run("dir", func(b *testing.B) { start(b, dir) })
	if os.Geteuid() == 0 {
		user := dir
		user.User = &User{UID: 65000, GID: 65000}
		b.Run("user", func(b *testing.B) { start(b, user) })
		user.View = &View{Hide: "/root"}
		b.Run("view", func(b *testing.B) { start(b, user) })
	}
	for _, m := range []Method{MethodCgroup2, MethodCgroup1, MethodSubreaper} {
		b.Run(string(m), func(b *testing.B) {
			if _, err := Choose(m); err != nil {
				b.Skip(err)
			}
			n := 0
			for b.Loop() {
				pl, err := NewPlace(m, fmt.Sprintf("skep-bench-%d-%d", os.Getpid(), n))
				if err != nil {
					b.Fatal(err)
				}
				n++
				c := plain
				p, err := pl.Start(&c)
				if err != nil {
					b.Fatal(err)
				}
				p.Wait()
				if err := pl.Kill(1e9); err != nil {
					b.Fatal(err)
				}
				if err := pl.Remove(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
