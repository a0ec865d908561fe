package warm_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/host/warm"
	"github.com/skepdev/skep/host/warm/docker"
	"github.com/skepdev/skep/internal/need"
	"github.com/skepdev/skep/internal/proc"
)

// startDocker starts an engine of t's own and returns where it listens. It maps
// users, when that is asked for, by files that only it sees: nothing of the
// host is changed.
func startDocker(t *testing.T, flags ...string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		need.Skip(t, "root", "a container engine needs root")
	}
	for _, name := range []string{"dockerd", "mount", "unshare"} {
		if _, err := proc.LookPath(name); err != nil {
			need.Skip(t, "docker", err.Error())
		}
	}
	dir, err := os.MkdirTemp("/var/tmp", "skep-dockerd-") //nolint:usetesting // rooms' users pass through, and a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil { //nolint:gosec // as said
		t.Fatal(err)
	}
	for _, name := range []string{"subuid", "subgid"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("nobody:1000000:65536\nnogroup:1000000:65536\n"), 0o644); err != nil { //nolint:gosec // as /etc/subuid
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "daemon.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	socket := filepath.Join(dir, "socket")
	args := slices.Concat([]string{
		"unshare", "-m", "sh", "-c", `mount --bind "$1/subuid" /etc/subuid && mount --bind "$1/subgid" /etc/subgid && shift && exec dockerd "$@"`, "sh", dir,
		"--config-file", filepath.Join(dir, "daemon.json"), "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
		"--pidfile", filepath.Join(dir, "pid"), "--host", "unix://" + socket, "--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-masq=false",
	}, flags)
	up := false
	for try := 0; !up && try < 2; try++ { // it ends when its containerd had no turn for 15 s
		up = ready(t, dir, args, log)
	}
	if !up {
		text, _ := os.ReadFile(log.Name())
		need.Skip(t, "docker", "dockerd does not run here: "+string(text[max(0, len(text)-2000):]))
	}
	return "unix://" + socket
}

// ready starts an engine that ends with t and reports whether it is ready,
// rather than ended by itself.
func ready(t *testing.T, dir string, args []string, log *os.File) bool {
	t.Helper()
	path := filepath.Join(dir, "ready")
	_ = os.Remove(path)
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	unshare, err := proc.LookPath("unshare")
	if err != nil {
		t.Fatal(err)
	}
	p, err := proc.Start(&proc.Cmd{
		Path: unshare, Args: args, Env: append(os.Environ(), "NOTIFY_SOCKET="+path), // sd_notify(3)
		Files: []*os.File{nil, log, log}, NewGroup: true, ParentDeath: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		<-p.Done()
		_ = ready.Close() // who waits for it waits no more
	}()
	t.Cleanup(func() {
		_ = p.Terminate()
		<-p.Done()
		if f, err := os.Open(log.Name()); err == nil && t.Failed() {
			text, _ := io.ReadAll(io.LimitReader(f, 64<<10))
			_ = f.Close()
			t.Logf("dockerd:\n%s", text)
		}
	})
	if err := ready.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		return false // it ended
	}
	for said := make([]byte, 4<<10); ; {
		n, err := ready.Read(said)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			t.Fatal("dockerd is not ready within a minute")
		case err != nil: // it ended
			return false
		case bytes.Contains(said[:n], []byte("READY=1")):
			return true
		}
	}
}

func dockerRuntime(t *testing.T) warm.Runtime {
	t.Helper()
	r := &docker.Runtime{Host: startDocker(t, "--userns-remap", "nobody:nogroup")}
	t.Cleanup(func() { _ = r.Close() })
	if err := r.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

// An engine whose containers' root is the host's is not taken.
func TestDockerWithoutMappedUsers(t *testing.T) {
	r := &docker.Runtime{Host: startDocker(t)}
	defer r.Close()
	if err := r.Check(t.Context()); skep.KindOf(err) != skep.Precondition {
		t.Errorf("Check = %v, want a precondition", err)
	}
	none := &docker.Runtime{Host: "unix:///no/such/socket"}
	defer none.Close()
	if err := none.Check(t.Context()); skep.KindOf(err) != skep.Unavailable {
		t.Errorf("Check of no engine = %v, want it unavailable", err)
	}
}
