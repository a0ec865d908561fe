package update

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/skepdev/skep/internal/atomicfile"
)

// StateFile is the file of the bot's directory that remembers a trial over
// starts and crashes.
const StateFile = "update.json"

// Bounds of a trial.
const (
	// Silence is how long code on trial may give no sign of life before the
	// guard ends it.
	Silence = 60 * time.Second
	// MaxTrial is how long it may try to reach its server. The last known good
	// code then tries instead: perhaps the new one cannot.
	MaxTrial = 10 * time.Minute

	firstPause = time.Minute // before code that failed is tried again; doubled each time
	maxPause   = 6 * time.Hour
	maxFailed  = 16
	maxState   = 64 << 10
)

// Trial is code that has not reached a successful poll yet.
type Trial struct {
	Version string    `json:"version"`
	From    string    `json:"from"` // digest of the code that started it
	Slot    string    `json:"slot"` // file name
	Began   time.Time `json:"began"`
	Alive   time.Time `json:"alive"` // last sign of life
}

// Failure is code that did not pass its trial.
type Failure struct {
	Version string    `json:"version"`
	Count   int       `json:"count"`
	Last    time.Time `json:"last"`
}

type state struct {
	Trial  *Trial    `json:"trial,omitempty"`
	Failed []Failure `json:"failed,omitempty"` // oldest first, maxFailed at most
}

// load reads the state; one that cannot be read is none, as everything in it
// can be found out again.
func (u *Updater) load() state {
	var s state
	f, err := os.Open(filepath.Join(u.Dir, StateFile))
	if err != nil {
		return state{}
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxState+1))
	if err != nil || len(data) > maxState || json.Unmarshal(data, &s) != nil {
		return state{}
	}
	if t := s.Trial; t != nil && (!isDigest(t.Version) || filepath.Base(t.Slot) != t.Slot) {
		s.Trial = nil
	}
	s.Failed = slices.DeleteFunc(s.Failed, func(f Failure) bool { return !isDigest(f.Version) || f.Count < 1 })
	return s
}

func (u *Updater) change(edit func(*state)) error {
	s := u.load()
	edit(&s)
	path := filepath.Join(u.Dir, StateFile)
	if s.Trial == nil && len(s.Failed) == 0 {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return atomicfile.Write(path, data, 0o600)
}

// Start looks at what the last start left. onTrial says that this code must
// prove itself: Alive is to be called now and then, and Passed after the first
// successful poll. failed tells of other code that did not pass its trial, ""
// when there is nothing to tell.
func (u *Updater) Start() (onTrial bool, failed string, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	t := u.load().Trial
	switch {
	case t == nil:
		return false, "", nil
	case t.Version == u.Version && t.Slot == filepath.Base(u.Self):
		return true, "", nil
	case t.Version == u.Version: // it is the last known good code by now
		return false, "", u.change(func(s *state) { s.Trial = nil })
	}
	failed = fmt.Sprintf("updating to %s did not work: it ran %v without a successful poll; %s runs again", t.Version, t.Alive.Sub(t.Began).Round(time.Second), u.Version)
	return false, failed, u.change(func(s *state) { s.fail(t.Version, u.Now()) })
}

func (s *state) fail(version string, now time.Time) {
	s.Trial = nil
	f := Failure{Version: version}
	if i := slices.IndexFunc(s.Failed, func(f Failure) bool { return f.Version == version }); i >= 0 {
		f = s.Failed[i]
		s.Failed = slices.Delete(s.Failed, i, i+1)
	}
	f.Count, f.Last = f.Count+1, now
	s.Failed = append(s.Failed, f)
	if len(s.Failed) > maxFailed {
		s.Failed = s.Failed[len(s.Failed)-maxFailed:]
	}
}

// Failed notes that code could not be made ready, so that Pause grows.
func (u *Updater) Failed(version string) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !isDigest(version) {
		return nil
	}
	return u.change(func(s *state) { s.fail(version, u.Now()) })
}

// Pause returns how long to leave this code alone after it failed, 0 = try it.
// The bot runs tasks with what it has meanwhile.
func (u *Updater) Pause(version string) time.Duration {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, f := range u.load().Failed {
		if f.Version == version {
			pause := min(firstPause<<min(f.Count-1, 20), maxPause)
			return max(0, f.Last.Add(pause).Sub(u.Now()))
		}
	}
	return 0
}

// Alive gives the guard a sign of life of code on trial. over says that the
// trial took too long: go back to the last known good code.
func (u *Updater) Alive() (over bool, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	err = u.change(func(s *state) {
		if s.Trial != nil {
			s.Trial.Alive = u.Now()
			over = s.Trial.Alive.Sub(s.Trial.Began) > MaxTrial
		}
	})
	return over, err
}

// Passed ends the trial: this code works.
func (u *Updater) Passed() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.change(func(s *state) {
		s.Trial = nil
		s.Failed = slices.DeleteFunc(s.Failed, func(f Failure) bool { return f.Version == u.Version })
	})
}

// Trial returns the trial under way, nil when there is none.
func (u *Updater) Trial() *Trial {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.load().Trial
}
