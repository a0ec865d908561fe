package launch

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/skepdev/skep/internal/atomicfile"
)

// Death is what is kept of a container that ended.
type Death struct {
	Container string    `json:"container"`
	Image     string    `json:"image"`
	Started   time.Time `json:"started"`
	Ended     time.Time `json:"ended"`
	ExitCode  int       `json:"exit_code"`
	OOMKilled bool      `json:"oom_killed,omitempty"`
	Error     string    `json:"error,omitempty"`
	Asked     bool      `json:"asked"` // to end: it drained, or left by itself
	Cause     Cause     `json:"cause,omitempty"`
	Log       string    `json:"log,omitempty"` // file with the last of what it wrote
}

const (
	maxLog    = 1 << 20 // bytes of a log
	maxDeaths = 20      // of a slot
)

// mourn writes a death and its log into the slot's directory, and removes the
// oldest beyond maxDeaths.
func (l *Launcher) mourn(slot string, d Death, log []byte) error {
	l.mu.Lock()
	list := append(slices.Clone(l.deaths[slot]), d)
	again := slices.ContainsFunc(l.deaths[slot], func(old Death) bool { return old.Container == d.Container })
	l.mu.Unlock()
	if again { // its removal failed
		return nil
	}
	if !d.Asked {
		l.metrics.crashes.Inc()
	}
	over := list[:max(0, len(list)-maxDeaths)]
	list = list[len(over):]
	dir := filepath.Join(l.o.StateDir, "deaths", slot)
	name := d.Ended.UTC().Format("20060102T150405.000") + "-" + d.Container[:min(12, len(d.Container))]
	list[len(list)-1].Log = filepath.Join(dir, name+".log")
	l.mu.Lock()
	l.deaths[slot] = list // the pause counts also what cannot be written
	l.mu.Unlock()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	text, err := json.MarshalIndent(list[len(list)-1], "", "  ")
	if err != nil {
		return err
	}
	err = errors.Join(
		atomicfile.Write(filepath.Join(dir, name+".log"), log, 0o600),
		atomicfile.Write(filepath.Join(dir, name+".json"), text, 0o600))
	for _, old := range over {
		err = errors.Join(err, unlink(old.Log), unlink(strings.TrimSuffix(old.Log, ".log")+".json"))
	}
	return err
}

func unlink(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// readDeaths reads what mourn wrote, by slot, oldest first. What cannot be read
// is left alone.
func readDeaths(dir string) (map[string][]Death, error) {
	all := map[string][]Death{}
	slots, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return all, nil
	}
	if err != nil {
		return nil, err
	}
	for _, s := range slots {
		files, err := filepath.Glob(filepath.Join(dir, s.Name(), "*.json"))
		if err != nil {
			return nil, err
		}
		slices.Sort(files)
		for _, file := range files[max(0, len(files)-maxDeaths):] {
			var d Death
			if b, err := os.ReadFile(file); err == nil && json.Unmarshal(b, &d) == nil {
				d.Log = strings.TrimSuffix(file, ".json") + ".log"
				all[s.Name()] = append(all[s.Name()], d)
			}
		}
	}
	return all, nil
}
