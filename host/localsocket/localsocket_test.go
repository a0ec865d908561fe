package localsocket

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/skepdev/skep"
)

func TestClear(t *testing.T) {
	listen := func(t *testing.T, path string) net.Listener {
		t.Helper()
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		t.Cleanup(func() { _ = l.Close() })
		return l
	}
	for _, tc := range []struct {
		name  string
		make  func(t *testing.T, path string)
		kind  skep.Kind
		fails bool
	}{
		{"nothing there", func(*testing.T, string) {}, 0, false},
		{"left by a killed program", func(t *testing.T, path string) { _ = listen(t, path).Close() }, 0, false},
		{"somebody listens", func(t *testing.T, path string) { listen(t, path) }, skep.Conflict, true},
		{"a file", func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, skep.Precondition, true},
		{"a link to a socket", func(t *testing.T, path string) {
			_ = listen(t, path+"2").Close()
			if err := os.Symlink(path+"2", path); err != nil {
				t.Fatal(err)
			}
		}, skep.Precondition, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "s") //nolint:usetesting // a socket's path is short
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(dir) })
			path := filepath.Join(dir, "s")
			tc.make(t, path)
			err = Clear(path)
			if (err != nil) != tc.fails || tc.fails && skep.KindOf(err) != tc.kind {
				t.Errorf("Clear = %v (%v)", err, skep.KindOf(err))
			}
			_, err = os.Lstat(path)
			if gone := errors.Is(err, fs.ErrNotExist); gone == tc.fails {
				t.Errorf("it is gone: %v", gone)
			}
		})
	}
}

func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "s") //nolint:usetesting // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

// Of many that start at a socket which a killed program left, one has it, and
// the others hear of that; nothing is left when it ends.
func TestListenAtOnce(t *testing.T) {
	path := socketPath(t)
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	_ = dead.Close()
	type result struct {
		l   *Listener
		err error
	}
	results := make(chan result)
	const n = 8
	for range n {
		go func() {
			l, err := Listen(path, 0o600, -1)
			results <- result{l, err}
		}()
	}
	var ours *Listener
	for range n {
		switch r := <-results; {
		case r.err == nil && ours == nil:
			ours = r.l
		case r.err == nil:
			t.Error("two have it")
			_ = r.l.Close()
		case skep.KindOf(r.err) != skep.Conflict:
			t.Error(r.err)
		}
	}
	if ours == nil {
		t.Fatal("nobody has it")
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("the one that has it is not reached: %v", err)
	}
	_ = c.Close()
	if err := ours.Close(); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// Once it is hidden the path may be another's, which the end does not touch.
func TestHidden(t *testing.T) {
	path := socketPath(t)
	one, err := Listen(path, 0o600, -1)
	if err != nil {
		t.Fatal(err)
	}
	if err := one.Hide(); err != nil {
		t.Fatal(err)
	}
	two, err := Listen(path, 0o600, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer two.Close()
	if err := one.Close(); err != nil {
		t.Error(err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal("the end of one has taken the other's path away")
	}
	_ = c.Close()
}

// Who may not ask is told so.
func TestRefusalIsAnAnswer(t *testing.T) {
	l, err := Listen(socketPath(t), 0o600, -1)
	if err != nil {
		t.Fatal(err)
	}
	var strangers atomic.Bool
	srv := NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }), func(net.Conn) error {
		if strangers.Load() {
			return errors.New("not you")
		}
		return nil
	})
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	defer func() { _, _ = srv.Close(), <-served }()
	for _, tc := range []struct {
		strangers bool
		code      int
		body      string
	}{{true, http.StatusForbidden, `{"error":"not you","reason":"denied"}`}, {false, http.StatusTeapot, ""}} {
		strangers.Store(tc.strangers)
		c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", l.path)
		}}}
		res, err := c.Get("http://host/")
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if got := strings.TrimSpace(string(b)); err != nil || res.StatusCode != tc.code || got != tc.body {
			t.Errorf("a stranger is %v: %s %q, %v", tc.strangers, res.Status, got, err)
		}
		c.CloseIdleConnections()
	}
}
