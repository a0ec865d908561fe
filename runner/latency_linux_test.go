package runner

import (
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestFirstInstruction reports how long a task's own clock reading comes after
// Run, less the yardstick of starting the same program directly.
func TestFirstInstruction(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("measures")
	}
	var direct, ahead []float64
	for range 50 {
		began := time.Now()
		out, err := exec.Command("/bin/date", "+%s%N").Output()
		if err != nil {
			t.Skip(err)
		}
		direct = append(direct, since(began, string(out)))
	}
	s := newStarter(t)
	for range 30 {
		server := newTaskServer(t)
		if err := s.Prepare(t.Context()); err != nil {
			t.Fatal(err)
		}
		waitIdle(t, s)
		began := time.Now()
		run(t, s, server, manifest([]string{"/bin/date", "+%s%N"}))
		out, _, _ := server.got()
		ahead = append(ahead, since(began, out))
	}
	report := func(name string, v []float64) string {
		slices.Sort(v)
		return fmt.Sprintf("%s: median %.2f ms, p95 %.2f ms", name, v[len(v)/2], v[len(v)*95/100])
	}
	t.Log(report("fork+exec of date", direct))
	t.Log(report("Run to date, start-ahead", ahead))
}

func since(began time.Time, nanos string) float64 {
	n, err := strconv.ParseInt(strings.TrimSpace(nanos), 10, 64)
	if err != nil {
		return -1
	}
	return float64(n-began.UnixNano()) / 1e6
}
