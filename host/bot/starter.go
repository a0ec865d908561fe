package bot

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/internal/proc"
	"github.com/skepdev/skep/reconcile"
)

// Starter starts bots of one server. Make one with NewStarter and set its
// fields before the first Start; then it may be used by many at once.
type Starter struct {
	// CacheDir holds bot code for all bots of the host, by digest; "" =
	// .bot_code beside the first work directory.
	CacheDir string
	// Token returns the API token that /bot_code is asked with; nil or "" =
	// none.
	Token func() string
	// Env is the environment of all bots, "K=V"; nil = what bots need of this
	// process's (PATH, HOME, TZ, proxies …) and nothing else. What a bot is told
	// by its Config, its id first of all, wins.
	Env []string
	// Journal remembers what was started until nothing of it is left, so that
	// Recover finds it after a crash; nil = nothing is remembered.
	Journal reconcile.Journal
	// Log gets what no caller is told; nil = nothing.
	Log *slog.Logger

	client *http.Client
	url    string

	once   sync.Once
	cache  *cache
	method proc.Method
	none   error // why there is no cgroup
}

// NewStarter returns a Starter of bots for the Swarming server at url, without
// a path: https://host.example.com. c is used to download their code; nil =
// http.DefaultClient.
func NewStarter(c *http.Client, url string) *Starter {
	if c == nil {
		c = http.DefaultClient
	}
	return &Starter{client: c, url: strings.TrimRight(url, "/")}
}

// codeName is the bot's executable in its directory: a zip to Python and an
// executable to the system.
const codeName = "swarming_bot.zip"

// Start starts a bot and returns when its process runs, in its cgroup. When it
// returns an error, nothing is left: no process and no cgroup. Kinds: Invalid
// for a Config that no host can serve, Precondition for one that this host
// cannot, Unavailable when the bot's code cannot be had now.
func (s *Starter) Start(c Config) (Bot, error) {
	switch fi, err := os.Stat(c.WorkDirectory); {
	case c.BotID == "" || strings.ContainsAny(c.BotID, "\x00\n="):
		return nil, skep.Invalidf("BotID", "%q is not the id of a bot", c.BotID)
	case err != nil:
		return nil, skep.Invalidf("WorkDirectory", "%v", err)
	case !fi.IsDir():
		return nil, skep.Invalidf("WorkDirectory", "%s is not a directory", c.WorkDirectory)
	}
	limits, err := limits(c.Resources)
	if err != nil {
		return nil, err
	}
	if c.WorkDirectory, err = filepath.Abs(c.WorkDirectory); err != nil {
		return nil, err
	}
	s.once.Do(func() { s.prepare(filepath.Dir(c.WorkDirectory)) })
	if len(limits) > 0 && s.none != nil {
		return nil, skep.Errorf(skep.Precondition, "bot %s has limits and this host gives no cgroup to keep them; run as root, or in a service with Delegate=yes: %w", c.BotID, s.none)
	}
	exe := filepath.Join(c.WorkDirectory, codeName)
	if _, err := s.cache.code(context.Background(), s.url, c.BotID, exe); err != nil {
		return nil, err
	}
	return s.start(c, limits, exe)
}

// prepare finds out once what the host can do.
func (s *Starter) prepare(parent string) {
	dir := s.CacheDir
	if dir == "" {
		dir = filepath.Join(parent, ".bot_code")
	}
	token := s.Token
	if token == nil {
		token = func() string { return "" }
	}
	s.cache = &cache{dir: dir, client: s.client, token: token}
	if s.Env == nil {
		s.Env = inherited(os.Environ())
	}
	m, err := proc.Choose("")
	switch {
	case err != nil:
		s.none = err
	case runtime.GOOS == "linux" && m != proc.MethodCgroup2 && m != proc.MethodCgroup1:
		s.none = errors.New("neither a cgroup2 file system nor a freezer hierarchy can be used")
	default:
		s.method = m
	}
	if s.none != nil {
		s.log().Warn("no cgroups: what a bot starts may outlive it", "err", s.none)
	}
}

func (s *Starter) start(c Config, limits []proc.Limit, exe string) (Bot, error) {
	args, path, err := command(c, exe)
	if err != nil {
		return nil, err
	}
	if err := removeStale(c); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(c.LogFile(), os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := &proc.Cmd{
		Path: path, Args: args, Dir: c.WorkDirectory, Files: []*os.File{nil, log, log},
		Env:      environ(s.Env, c.Env, []string{"SWARMING_BOT_ID=" + c.BotID}),
		NewGroup: true, ParentDeath: true,
	}
	if c.Admit != nil {
		if err := c.Admit(); err != nil {
			return nil, err
		}
	}
	b := &process{cfg: c, forget: func() {}, log: s.log(), done: make(chan struct{})}
	if s.none != nil {
		b.proc, err = proc.Start(cmd)
	} else {
		err = s.inPlace(b, cmd, limits)
	}
	if err != nil {
		return nil, skep.Errorf(skep.Precondition, "start bot %s: %w", c.BotID, err)
	}
	go b.follow()
	return b, nil
}

// inPlace starts cmd in a cgroup of its own. The journal names it first.
func (s *Starter) inPlace(b *process, cmd *proc.Cmd, limits []proc.Limit) error {
	ctx := context.Background()
	place, err := proc.PlanLimited(s.method, "skep-bot-"+strings.ToLower(rand.Text()[:16]), limits)
	if err != nil {
		return err
	}
	key := b.cfg.WorkDirectory
	if s.Journal != nil {
		note, err := json.Marshal(place)
		if err != nil {
			return err
		}
		if err := s.Journal.Begin(ctx, reconcile.Entry{Key: key, Step: "start", At: time.Now(), Note: note}); err != nil {
			return err
		}
		b.forget = func() {
			if err := s.Journal.End(ctx, key); err != nil {
				s.log().Warn("the journal keeps what has ended", "bot", b.cfg.BotID, "err", err)
			}
		}
	}
	if err := place.Make(); err != nil {
		b.forget()
		return err
	}
	if b.proc, err = place.StartOne(cmd); err != nil {
		b.clearAway(place)
		b.forget()
		return err
	}
	b.place = place
	return nil
}

// Recover ends everything that an earlier process started according to the
// journal and that is still there. Call it once before the first Start, and
// while no other process uses the journal.
func (s *Starter) Recover(ctx context.Context) error {
	if s.Journal == nil {
		return nil
	}
	entries, err := s.Journal.Entries(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		var place proc.Place
		if err := json.Unmarshal(e.Note, &place); err != nil {
			errs = append(errs, fmt.Errorf("journal: what was started in %s: %w", e.Key, err))
			continue
		}
		if err := clear(&place); err != nil {
			errs = append(errs, fmt.Errorf("what was started in %s: %w", e.Key, err))
			continue
		}
		s.log().Info("a bot of an earlier run is cleared away", "dir", e.Key)
		errs = append(errs, s.Journal.End(ctx, e.Key))
	}
	return errors.Join(errs...)
}

func (s *Starter) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}

// command says how to run the bot in exe: as it is, or by Python.
func command(c Config, exe string) (args []string, path string, err error) {
	f, err := os.Open(exe)
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	var head [4]byte
	_, _ = f.Read(head[:])
	if string(head[:2]) != "PK" { // a bare zip is for Python
		return []string{exe, "start_bot"}, exe, nil
	}
	name := c.PythonVersion
	if name == "" {
		name = "python3"
	}
	if path, err = proc.LookPath(name); err != nil {
		return nil, "", skep.Errorf(skep.Precondition, "the code of bot %s is for Python, and there is no %s here: %w", c.BotID, name, err)
	}
	return []string{name, exe, "start_bot"}, path, nil
}

// passed are the variables that bots get of this process's. decisions.md 13.
var passed = []string{
	"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR", "DISPLAY", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS",
	"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR",
	"SYSTEMROOT", "SystemRoot", "SYSTEMDRIVE", "COMSPEC", "PATHEXT", "TEMP", "TMP", "USERPROFILE", "APPDATA", "LOCALAPPDATA", "PROGRAMDATA", "NUMBER_OF_PROCESSORS",
}

func inherited(all []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return !slices.Contains(passed, name) && !strings.HasPrefix(name, "LC_")
	})
}

// environ joins lists of variables; of those with one name the last stays, so
// that nobody reads another.
func environ(lists ...[]string) []string {
	at := map[string]int{}
	var out []string
	for _, kv := range slices.Concat(lists...) {
		name, _, _ := strings.Cut(kv, "=")
		if i, there := at[name]; there {
			out[i] = kv
			continue
		}
		at[name] = len(out)
		out = append(out, kv)
	}
	return out
}
