package content

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// resident is the resident memory of a process in MiB.
func resident(pid int) (float64, error) { return rollup(pid, "Rss:") }

// proportional is its memory with a share of what it has in common with
// others, in MiB.
func proportional(pid int) (float64, error) { return rollup(pid, "Pss:") }

func rollup(pid int, name string) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(b) {
		if f := strings.Fields(string(line)); len(f) == 3 && f[0] == name {
			kb, err := strconv.ParseFloat(f[1], 64)
			return kb / 1024, err
		}
	}
	return 0, fmt.Errorf("process %d says nothing of %s", pid, name)
}
