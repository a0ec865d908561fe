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

	"github.com/rogpeppe/go-internal/testscript"
)

// TestReal runs the command line against real servers and bots: the test's
// executable is skep, skep-bot, and the composed bot.
func TestReal(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("bots are complete on Linux only")
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/real",
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
			env.Defer(func() { endBots(filepath.Join(env.WorkDir, "st", "bots")) })
			return nil
		},
	})
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

// endBots kills what a failed script left behind.
func endBots(dir string) {
	locks, _ := filepath.Glob(filepath.Join(dir, "*", "swarming.lck"))
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
