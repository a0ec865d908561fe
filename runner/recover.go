package runner

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/skepdev/skep/internal/proc"
)

// Recover ends what tasks of a bot that was killed left running, found by the
// records in its work directories, and removes these. It is called before the
// first Prepare, by the process that holds the bot directory's lock.
func Recover(botDir string, log *slog.Logger) error {
	records, err := filepath.Glob(filepath.Join(botDir, "w*", recordFile))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range records {
		if err := recoverOne(path, log); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", path, err))
		}
	}
	dirs, _ := filepath.Glob(filepath.Join(botDir, "w*"))
	for _, dir := range dirs {
		if _, err := os.Stat(filepath.Join(dir, recordFile)); err == nil {
			continue // what it names could not be ended
		}
		errs = append(errs, removeWork(dir))
	}
	return errors.Join(errs...)
}

func recoverOne(path string, log *slog.Logger) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if len(b) == 0 {
		return os.Remove(path) // nothing runs between two tasks
	}
	var place proc.Place
	if err := json.Unmarshal(b, &place); err != nil {
		return errors.Join(err, os.Remove(path)) // cut off while it was written: nothing had started
	}
	log.Warn("cleaning up after a killed bot", "dir", filepath.Dir(path), "method", string(place.Method))
	if err := errors.Join(place.Kill(sweepLimit), place.Remove()); err != nil {
		return err
	}
	return os.Remove(path)
}
