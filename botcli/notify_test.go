package botcli

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// patient is when a test gives up: whether something happens at all is asked
// here. An endless hook ends by its limit of a minute at the latest.
const patient = 3 * time.Minute

// listenUnixgram is the socket of a service manager, where there are such.
func listenUnixgram(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	switch {
	case err != nil && runtime.GOOS == "linux":
		t.Fatal(err)
	case err != nil: // other systems have none, or shorter paths
		t.Skip("no unix datagrams here:", err)
	}
	return l
}

// A service manager hears that the bot is up, then that it lives for as long
// as it does. systemd's sd_notify(3), sd_watchdog_enabled(3).
func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l := listenUnixgram(t, path)
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "3000")
	s := openService(slog.New(slog.NewTextHandler(t.Output(), nil)))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	asked := 0
	go func() {
		defer close(ended)
		s.run(ctx, func() bool { asked++; return asked > 2 })
	}()
	var got []string
	buf := make([]byte, 100)
	for len(got) < 3 {
		n, err := l.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(buf[:n]))
	}
	cancel()
	<-ended
	if !strings.HasPrefix(got[0], "READY=1\nMAINPID=") || got[1] != "WATCHDOG=1" || got[2] != "WATCHDOG=1" {
		t.Errorf("got %q", got)
	}
	if asked < 4 {
		t.Errorf("it said that it lives after %d looks; the first two said that it does not", asked)
	}
	_ = os.Remove(path)
}

// A service manager that does not read does not hold the bot.
func TestNotifyNobodyReads(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "notify")
	l := listenUnixgram(t, path)
	defer l.Close()
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for err == nil { // until its queue is full
		_ = c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		_, err = c.Write([]byte("x"))
	}
	var log strings.Builder
	told := make(chan struct{})
	go func() {
		defer close(told)
		(&service{socket: path, log: slog.New(slog.NewTextHandler(&log, nil))}).tell("READY=1")
	}()
	select {
	case <-told:
	case <-time.After(patient):
		t.Fatal("the bot still waits for its service manager")
	}
	if !strings.Contains(log.String(), "does not hear us") {
		t.Errorf("log %q", log.String())
	}
}
