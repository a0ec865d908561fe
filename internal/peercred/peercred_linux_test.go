package peercred

import (
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"testing"
)

func TestOf(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	if got, want := mustOf(t, peer), (Cred{os.Geteuid(), os.Getegid(), os.Getpid()}); got != want {
		t.Errorf("Of = %+v, want %+v", got, want)
	}
	one, two := net.Pipe()
	defer one.Close()
	defer two.Close()
	if _, err := Of(one); err == nil {
		t.Error("a pipe has a peer")
	}
}

func mustOf(t *testing.T, c net.Conn) Cred {
	t.Helper()
	cred, err := Of(c)
	if err != nil {
		t.Fatal(err)
	}
	return cred
}

// Whoever belongs to a group does so with another primary group, too.
func TestInGroup(t *testing.T) {
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	ids, err := u.GroupIds()
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		gid, err := strconv.Atoi(id)
		if err != nil {
			t.Fatal(err)
		}
		if !(Cred{UID: os.Getuid(), GID: 1 << 30}).InGroup(gid) {
			t.Errorf("not in our group %d", gid)
		}
	}
	c := Cred{UID: 1 << 30, GID: 7}
	if !c.InGroup(7) || c.InGroup(8) || c.InGroup(-1) {
		t.Error("a user that the system does not know is in its own group, and in no other")
	}
}
