package cli_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/skepdev/skep/internal/pgtest"
)

// TestReal runs the command line against real servers and bots: the test's
// executable is skep, skep-bot, and the composed bot.
func TestReal(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("bots are complete on Linux only")
	}
	testscript.Run(t, testscript.Params{
		Dir:  "testdata/real",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"until": until},
		Setup: func(env *testscript.Env) error {
			addr, err := freeAddress()
			if err != nil {
				return err
			}
			env.Setenv("ADDR", addr)
			env.Setenv("SKEP_SERVER", "http://"+addr)
			env.Setenv("STATE", filepath.Join(env.WorkDir, "st"))
			env.Setenv("SKEP_STATE_DIR", filepath.Join(env.WorkDir, "st"))
			env.Setenv("USER", "ann")
			env.Setenv("GORACE", os.Getenv("GORACE"))
			for _, dir := range []string{"st/bots", "st/machines", "p1/machines", "cloud"} {
				env.Defer(func() { endBots(filepath.Join(env.WorkDir, dir), "*") })
			}
			if addr, err = freeAddress(); err != nil {
				return err
			}
			env.Setenv("ADDR2", addr)
			if strings.Contains(env.Getenv("WORK"), "script-postgres") {
				env.Setenv("SKEP_DB", pgtest.DSN(env.T().(testing.TB)))
			}
			return nil
		},
	})
}

// until repeats a line of shell until it succeeds, with ! until it fails.
func until(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: [!] until 'LINE OF SHELL'")
	}
	for end := time.Now().Add(3 * time.Minute); (ts.Exec("sh", "-c", args[0]) == nil) == neg; {
		if time.Now().After(end) {
			ts.Fatalf("that is still not so: %s", args[0])
		}
		time.Sleep(250 * time.Millisecond) // each look starts programs
	}
}

// freeAddress returns a loopback address where nothing listens now.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// endBots kills what a failed script left behind: bots in directories of dir
// with such a name.
func endBots(dir, name string) {
	locks, _ := filepath.Glob(filepath.Join(dir, name, "swarming.lck"))
	for _, lock := range locks {
		b, err := os.ReadFile(lock)
		if err != nil {
			continue
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && strings.HasPrefix(string(line), filepath.Dir(lock)) {
			if p, err := os.FindProcess(pid); err == nil {
				_ = p.Kill()
			}
		}
	}
}
