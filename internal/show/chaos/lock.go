package chaos

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// lockName is the file that a bot locks in its directory.
const lockName = "swarming.lck"

// lockHolder returns the process id in the lock file of a bot's directory, 0
// when there is none. spec bot.md §1.6.
func lockHolder(dir string) int {
	b, err := os.ReadFile(filepath.Join(dir, lockName))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0
	}
	if _, ok := readProcess(pid); !ok {
		return 0
	}
	return pid
}
