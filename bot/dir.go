package bot

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/bot/update"
	"github.com/skepdev/skep/internal/debris"
)

// Files of the bot's directory that are ours beside those of spec bot.md §1.5.
const (
	MarkerFile = "swarming.dir" // says that the directory belongs to a bot
	LockFile   = "swarming.lck" // spec bot.md §1.6
	DrainFile  = "drain"        // while it is there, the bot takes no new work
)

// owned are the entries that a bot's directory may hold; everything else is
// deleted when the bot starts. The work directories w… are not among them, so
// that leftovers vanish. spec bot.md §1.5.
var owned = []string{
	"swarming_bot.zip", "swarming_bot.1.zip", "swarming_bot.2.zip",
	"swarming_bot", "swarming_bot.1", "swarming_bot.2",
	"swarming_bot.exe", "swarming_bot.1.exe", "swarming_bot.2.exe",
	LockFile, MarkerFile, SocketFile, "start_bot.sh", BootstrapFile, CredentialFile, ClientCertFile, ClientKeyFile, update.StateFile, RecoveryFile, OutboxFile, DrainFile,
	"logs", "c", "cas_cache", "cas_kvs_cache_db", "cipd_cache", "*-cacert.pem",
	"README", "README.md", ".vpython3", "tmp",
}

func isOwned(name string) bool {
	return slices.ContainsFunc(owned, func(pattern string) bool {
		ok, _ := filepath.Match(pattern, name)
		return ok
	})
}

const markerText = `This directory belongs to a skep bot, which deletes what it does not know
whenever it starts. Keep nothing of your own here.
`

// CheckName refuses a bot's executable with a name that the bot would delete
// as a stranger's.
func CheckName(exe string) error {
	if name := filepath.Base(exe); !strings.HasPrefix(name, "swarming_bot") || !isOwned(name) {
		return skep.Errorf(skep.Precondition, "%s is a bot and must be called swarming_bot, swarming_bot.exe or swarming_bot.zip; rename it", exe)
	}
	return nil
}

// CheckDir refuses a directory that a bot must not take: home directories, the
// root, and any without the marker that holds something else than a bot's
// files. Nothing is changed. decisions.md 6.
func CheckDir(dir string) error {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	if home, err := os.UserHomeDir(); err == nil && samePath(home, real) {
		return refuseDir(dir, "it is your home directory")
	}
	if filepath.Dir(real) == real {
		return refuseDir(dir, "it is the root of a file system")
	}
	if _, err := os.Lstat(filepath.Join(real, MarkerFile)); err == nil {
		return nil
	}
	entries, err := os.ReadDir(real)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !isOwned(e.Name()) {
			return refuseDir(dir, fmt.Sprintf("it holds %q, which is not a bot's", e.Name()))
		}
	}
	return nil
}

func refuseDir(dir, why string) error {
	return skep.Errorf(skep.Precondition,
		"%s cannot become a bot's directory: %s, and a bot deletes what it does not know. Make an empty directory, copy the bot into it and start it there", dir, why)
}

func samePath(a, b string) bool {
	if r, err := filepath.EvalSymlinks(a); err == nil {
		a = r
	}
	return a == b
}

// MarkDir makes a directory that CheckDir accepts the bot's own.
func MarkDir(dir string) error {
	path := filepath.Join(dir, MarkerFile)
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	return os.WriteFile(path, []byte(markerText), 0o644)
}

// CleanDir deletes what does not belong in a marked directory, and returns an
// error for each entry that it could not delete.
func CleanDir(dir string) []error {
	if _, err := os.Lstat(filepath.Join(dir, MarkerFile)); err != nil {
		return []error{fmt.Errorf("clean %s: it is not marked as a bot's: %w", dir, err)}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return []error{fmt.Errorf("clean %s: %w", dir, err)}
	}
	var errs []error
	for _, e := range entries {
		if isOwned(e.Name()) {
			continue
		}
		if err := debris.Remove(filepath.Join(dir, e.Name())); err != nil {
			errs = append(errs, fmt.Errorf("clean %s: %w", dir, err))
		}
	}
	return errs
}
