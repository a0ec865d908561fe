package runner

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// BenchmarkForkExec is the yardstick: fork, exec and wait for /bin/true.
func BenchmarkForkExec(b *testing.B) {
	for b.Loop() {
		pid, err := syscall.ForkExec("/bin/true", []string{"true"}, &syscall.ProcAttr{})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := syscall.Wait4(pid, nil, 0, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRun runs /bin/true through the whole process tree against a local
// server. first_ms is from Run to the task's process.
func BenchmarkRun(b *testing.B) {
	for _, mode := range []struct {
		name        string
		ahead, idle bool
	}{{"ahead", true, true}, {"busy", true, false}, {"cold", false, false}} {
		b.Run(mode.name, func(b *testing.B) {
			server, s := newTaskServer(b), newStarter(b, func(c *Config) { c.Exe = os.Getenv("SKEP_TEST_EXE") })
			m := manifest([]string{"/bin/true"})
			var total time.Duration
			before := cpuTime()
			for b.Loop() {
				if mode.ahead {
					b.StopTimer()
					if err := s.Prepare(b.Context()); err != nil {
						b.Fatal(err)
					}
					if mode.idle {
						waitIdle(b, s)
					}
					b.StartTimer()
				}
				began := time.Now()
				run(b, s, server, m)
				took := time.Since(began)
				u := server.final(b)
				if *u.ExitCode != 0 {
					b.Fatalf("final update %+v", u)
				}
				total += took
			}
			b.ReportMetric(float64(total.Microseconds())/1000/float64(b.N), "ms/run")
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64((cpuTime()-before).Microseconds())/1000/float64(b.N), "cpu-ms/run")
		})
	}
}

// cpuTime is what this process and those it waited for have used.
func cpuTime() time.Duration {
	var sum time.Duration
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if syscall.Getrusage(who, &u) == nil {
			sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	}
	return sum
}

// waitIdle returns when the waiting pair is blocked in its reads.
func waitIdle(t testing.TB, s *Starter) {
	t.Helper()
	for end := time.Now().Add(patient); ; time.Sleep(time.Millisecond) {
		if kids := childrenOf(s.ready.p.Pid); len(kids) == 1 && cpu(kids[0]) == cpuAfter(kids[0]) {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the waiting pair does not come to rest")
		}
	}
}

func childrenOf(pid int) (kids []int) {
	names, _ := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/children")
	for _, n := range names {
		b, _ := os.ReadFile(n)
		for _, f := range strings.Fields(string(b)) {
			kid, _ := strconv.Atoi(f)
			kids = append(kids, kid)
		}
	}
	return kids
}

// cpu is how often a process was switched, voluntarily or not.
func cpu(pid int) string {
	b, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/schedstat")
	return string(b)
}

func cpuAfter(pid int) string {
	time.Sleep(30 * time.Millisecond)
	return cpu(pid)
}
