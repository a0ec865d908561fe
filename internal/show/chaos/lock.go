package chaos

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// lockHolder returns the process id in the lock file of a bot's directory, 0
// when there is none. spec bot.md §1.6.
func lockHolder(dir string) int {
	b, err := os.ReadFile(filepath.Join(dir, "swarming.lck"))
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return pid
}
