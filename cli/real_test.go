package cli_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
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
			addr, err := ownAddress()
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
			if addr, err = ownAddress(); err != nil {
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

// ports are those that ownAddress gave away.
var ports struct {
	sync.Mutex
	given map[int]bool
}

// ownAddress returns a loopback address where nothing listens, and nothing will
// but who is told of it: its port is below those that the kernel hands out.
func ownAddress() (string, error) {
	const from = 10_000
	below := 32_768
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		_, _ = fmt.Sscan(string(b), &below) // the first of two numbers
	}
	ports.Lock()
	defer ports.Unlock()
	for range 1000 {
		port := from + rand.N(max(below-from, 1000))
		if ports.given[port] {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		if ports.given == nil {
			ports.given = map[int]bool{}
		}
		ports.given[port] = true
		return l.Addr().String(), l.Close()
	}
	return "", errors.New("no port is free")
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
