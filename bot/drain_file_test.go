package bot

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A drain file ends the wait of a poll, is told to the server, and its removal
// brings the bot back, all within seconds.
func TestDrainFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		f.server.answer = func(_ *fakeServer, c call) (int, string) {
			if c.path == "poll" {
				if c.state()["maintenance"] != nil {
					return 200, `{"cmd":"sleep","duration":30}`
				}
				return hold(c)
			}
			return 0, ""
		}
		wait := f.start(t)
		last := func() (maintenance string, at time.Time) {
			polls := f.server.of("poll")
			c := polls[len(polls)-1]
			maintenance, _ = c.state()["maintenance"].(string)
			return maintenance, c.at
		}
		time.Sleep(10 * time.Second)
		if m, _ := last(); m != "" {
			t.Fatalf("maintenance %q without a drain file", m)
		}
		name := filepath.Join(f.cfg.Dir, DrainFile)
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		if m, at := last(); !strings.Contains(m, "file drain") || time.Since(at) > 3*time.Second {
			t.Errorf("after 3 s the server was told %q", m)
		}
		polls := f.server.of("poll")
		if a, b := polls[len(polls)-2], polls[len(polls)-1]; a.str("request_uuid") != b.str("request_uuid") {
			t.Error("a task that was given to the poll that was broken off would be lost")
		}
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		if m, _ := last(); m != "" {
			t.Errorf("3 s after the file is gone the server is told %q", m)
		}
		f.Drain("test")
		wait()
	})
}
