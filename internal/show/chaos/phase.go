package chaos

import (
	"encoding/json"
	"os"
	"path/filepath"
	"time"
)

// phase is a part of a task's way.
type phase string

// The phases, as they are seen from outside.
const (
	phaseSubmit phase = "submit" // the client has sent NewTask and has no answer
	phaseClaim  phase = "claim"  // tasks wait, and a bot has none in hand: its poll is under way
	phaseStart  phase = "start"  // the bot has the manifest, the task has not said that it runs
	phaseOutput phase = "output" // the task runs and prints
	phaseFinal  phase = "final"  // the task has said that it ends, its end has not been taken in yet
	phaseNone   phase = ""       // none of these
)

var phases = []phase{phaseSubmit, phaseClaim, phaseStart, phaseOutput, phaseFinal}

// sight is what can be seen of a bot without asking it or the server.
type sight struct {
	Run  string // whose manifest lies in its work directory; "" = none
	Said string // the last word of that run
	Been bool   // its process has had a task before, so that it must be polling when it has none
	Work bool   // more tasks wait than there are bots
}

// phase says in which phase a bot is.
func (s sight) phase() phase {
	switch {
	case s.Run == "" && s.Been && s.Work:
		return phaseClaim
	case s.Run == "":
		return phaseNone
	case s.Said == "":
		return phaseStart
	case s.Said == wordStart:
		return phaseOutput
	default:
		return phaseFinal
	}
}

// manifestName is the file that a bot makes of the task that it was given,
// before anything of it runs. spec bot.md §4.1.
const manifestName = "task_runner_in.json"

// recordName is where a bot notes the cgroups of its task.
const recordName = "cgroup"

// window looks at the work directories of one bot.
type window struct {
	dir string // the bot's

	// the last look
	path string
	mod  time.Time
	run  string
	been bool
}

// look returns the run id in the bot's hands, "" for none.
func (w *window) look() string {
	path, info := w.manifest()
	if path == "" {
		w.path, w.run = "", ""
		return ""
	}
	if path == w.path && info.ModTime().Equal(w.mod) && w.run != "" {
		return w.run
	}
	b, err := os.ReadFile(path)
	var m struct {
		TaskID string `json:"task_id"`
	}
	if err != nil || json.Unmarshal(b, &m) != nil || m.TaskID == "" {
		w.path, w.run = "", "" // it is just being written, or removed
		return ""
	}
	w.path, w.mod, w.run, w.been = path, info.ModTime(), m.TaskID, true
	return w.run
}

// manifest finds the newest manifest.
func (w *window) manifest() (path string, info os.FileInfo) {
	path = filepath.Join(w.dir, "w", manifestName)
	if fi, err := os.Stat(path); err == nil && fi.Size() > 0 { // else there was one
		return path, fi
	}
	others, _ := filepath.Glob(filepath.Join(w.dir, "w?*", manifestName)) // where w could not be removed
	for _, p := range others {
		if fi, err := os.Stat(p); err == nil && (info == nil || fi.ModTime().After(info.ModTime())) {
			path, info = p, fi
		}
	}
	if info == nil {
		return "", nil
	}
	return path, info
}

// reborn forgets what the bot's earlier process was seen doing.
func (w *window) reborn() { w.been = false }

// places returns the cgroups that the bot's records name now.
func (w *window) places() []string {
	records, _ := filepath.Glob(filepath.Join(w.dir, "w*", recordName))
	var out []string
	for _, path := range records {
		var place struct {
			Dirs []string `json:"dirs"`
		}
		if b, err := os.ReadFile(path); err == nil && json.Unmarshal(b, &place) == nil {
			out = append(out, place.Dirs...)
		}
	}
	return out
}
