package runner

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestIdleMemory reports what a waiting pair costs. SKEP_TEST_EXE names the
// executable to measure; without it the test binary is, which is larger.
func TestIdleMemory(t *testing.T) {
	if raceEnabled {
		t.Skip("measures")
	}
	s := newStarter(t, func(c *Config) { c.Exe = os.Getenv("SKEP_TEST_EXE") })
	if err := s.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitIdle(t, s)
	runner := s.ready.p.Pid
	for name, pid := range map[string]int{"task_runner": runner, "run_isolated": only(t, childrenOf(runner))} {
		kb := pss(t, pid)
		t.Logf("%s waits with %.1f MiB PSS", name, float64(kb)/1024)
		if most := 8 << 10; kb > most && os.Getenv("SKEP_TEST_EXE") != "" {
			t.Errorf("%s waits with %d KiB PSS, want at most %d", name, kb, most)
		}
	}
}

func pss(t *testing.T, pid int) (kb int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(l, "Pss:"); ok {
			kb, _ = strconv.Atoi(strings.Fields(rest)[0])
		}
	}
	return kb
}
