package bot

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/internal/debris"
)

// DroneStarter starts a bot in a new directory below WorkingDir, and removes
// it some time after the bot has ended. WorkingDir belongs to one process at a
// time. spec/host.md §3.1.
type DroneStarter struct {
	// WorkingDir holds the directories of all bots. It must exist.
	WorkingDir string
	// StartBotFunc starts a bot; Starter.Start is one.
	StartBotFunc func(Config) (Bot, error)
	// BotConfigFunc makes the configuration of a bot.
	BotConfigFunc func(botID string, workDir string) Config
	// LogFunc gets what is no reason to fail.
	LogFunc func(string, ...any)

	// Keep is how many directories of ended bots stay for each id, with their
	// logs; 0 = 3, negative = none.
	Keep int
	// KeepBytes is what they may hold for each id; 0 = 1 GiB.
	KeepBytes int64

	mu     sync.Mutex
	active map[string]bool // directories in use
}

// ownerFile names the bot that a directory is of. It lies beside it: what the
// bot does not know in its directory it deletes.
func ownerFile(dir string) string { return dir + ".bot" }

type owner struct {
	BotID string    `json:"bot_id"`
	Made  time.Time `json:"made"`
}

// Start makes a directory and starts a bot in it.
func (s *DroneStarter) Start(botID string) (Bot, error) {
	if botID == "" || botID == "." || botID == ".." || strings.ContainsAny(botID, "/\\\x00\n") {
		return nil, skep.Invalidf("BotID", "%q cannot be the id of a bot", botID)
	}
	dir := filepath.Join(s.WorkingDir, abbrev(botID, 20)+"."+strings.ToLower(rand.Text()[:10]))
	text, err := json.Marshal(owner{BotID: botID, Made: time.Now()})
	if err != nil {
		return nil, err
	}
	s.use(dir, true)
	b, err := s.startIn(botID, dir, text)
	if err != nil {
		s.use(dir, false)
		return nil, errors.Join(err, remove(dir))
	}
	return &housed{Bot: b, left: sync.OnceFunc(func() {
		s.use(dir, false)
		if err := s.sweep(botID); err != nil {
			s.LogFunc("old directories of bot %s: %v", botID, err)
		}
	})}, nil
}

func (s *DroneStarter) startIn(botID, dir string, text []byte) (Bot, error) {
	if err := os.WriteFile(ownerFile(dir), text, 0o644); err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	if err := s.share(dir); err != nil {
		s.LogFunc("bot %s does not share its packages: %v", botID, err)
	}
	return s.StartBotFunc(s.BotConfigFunc(botID, dir))
}

// share links the one directory of the package cache that all bots may use at
// once; its siblings are the bot's own.
func (s *DroneStarter) share(dir string) error {
	shared, err := filepath.Abs(filepath.Join(s.WorkingDir, "cipd_cache"))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(shared, 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, "cipd_cache"), 0o755); err != nil {
		return err
	}
	return os.Symlink(shared, filepath.Join(dir, "cipd_cache", "cache"))
}

func (s *DroneStarter) use(dir string, in bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.active == nil {
		s.active = map[string]bool{}
	}
	if in {
		s.active[dir] = true
	} else {
		delete(s.active, dir)
	}
}

// Sweep removes what earlier processes left in WorkingDir beyond what is to be
// kept. Call it at the start.
func (s *DroneStarter) Sweep() error { return s.sweep("") }

// sweep removes old directories of one bot, of all for "".
func (s *DroneStarter) sweep(botID string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	files, err := filepath.Glob(filepath.Join(s.WorkingDir, "*.bot"))
	if err != nil {
		return err
	}
	type old struct {
		dir  string
		made time.Time
	}
	byID := map[string][]old{}
	for _, file := range files {
		dir := strings.TrimSuffix(file, ".bot")
		if s.active[dir] {
			continue
		}
		var o owner
		text, err := os.ReadFile(file)
		if err == nil {
			err = json.Unmarshal(text, &o)
		}
		if err != nil { // a crash cut it short; it is old all the same
			s.LogFunc("%s does not say whose directory it is: %v", file, err)
			o = owner{}
		}
		if botID == "" || botID == o.BotID {
			byID[o.BotID] = append(byID[o.BotID], old{dir, o.Made})
		}
	}
	keep, room := s.Keep, s.KeepBytes
	if keep == 0 {
		keep = 3
	}
	if room == 0 {
		room = 1 << 30
	}
	var errs []error
	for _, all := range byID {
		slices.SortFunc(all, func(a, b old) int { return b.made.Compare(a.made) })
		left := room
		for i, o := range all {
			if i < keep {
				if left -= size(o.dir); left >= 0 {
					continue
				}
			}
			errs = append(errs, remove(o.dir))
		}
	}
	return errors.Join(errs...)
}

// size is what a bot's directory and its log take.
func size(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if fi, err := d.Info(); err == nil {
				n += fi.Size()
			}
		}
		return nil //nolint:nilerr // what cannot be seen is not counted
	})
	if fi, err := os.Stat(dir + ".log"); err == nil {
		n += fi.Size()
	}
	return n
}

// remove removes a bot's directory and the files beside it, the one that says
// whose it is last.
func remove(dir string) error {
	if err := debris.Remove(dir); err != nil {
		return err
	}
	for _, file := range []string{dir + ".log", dir + ".drain", ownerFile(dir)} {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// housed is a Bot whose directory is given up when it has ended.
type housed struct {
	Bot
	left func()
}

func (b *housed) Wait() error {
	err := b.Bot.Wait()
	b.left()
	return err
}

var (
	ending     = regexp.MustCompile(`[0-9]+[a-zA-Z]?$`)
	onlyEnding = regexp.MustCompile(`^[0-9]+[a-zA-Z]?$`)
)

// abbrev shortens a name to n bytes, not at all for n ≤ 0: of each of several
// words that dashes part it keeps the first character and the number at the
// end. Tools put sockets below directories of this name, and their paths may
// have 104 bytes.
func abbrev(name string, n int) string {
	words := strings.Split(name, "-")
	if len(words) > 1 {
		for i, w := range words {
			if w == "" || onlyEnding.MatchString(w) {
				continue
			}
			first := []rune(w)[0]
			words[i] = string(first) + ending.FindString(strings.TrimPrefix(w, string(first)))
		}
		name = strings.Join(words, "-")
	}
	if n > 0 && len(name) > n {
		name = strings.ToValidUTF8(name[:n], "")
	}
	return name
}
