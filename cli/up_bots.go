package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/bot/code"
	"github.com/skepdev/skep/host/supervise"
	"github.com/skepdev/skep/internal/atomicfile"
	"github.com/skepdev/skep/store"
)

// crew is what the bots of skep up are made of.
type crew struct {
	store *store.Store
	dir   string   // holds one directory per bot
	vars  []string // environment that all bots share

	exe     string // skep-bot without a configuration
	config  code.Config
	version string // digest of the two composed
}

// newCrew composes the bot and returns a supervisor of n of them. Bots of an
// earlier skep up that are too many by now are drained.
func newCrew(ctx context.Context, env *Env, s *service, botDir string, n int) (*supervise.Supervisor, error) {
	c := &crew{store: s.store, dir: filepath.Join(s.stateDir, "bots")}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return nil, err
	}
	c.config = code.Config{Server: s.door.urls[0], ServerVersion: version(), Reboot: "none"}
	if s.door.authority != nil {
		c.config.TLSCA = string(s.door.authority.PEM())
	}
	var err error
	if c.exe, err = findBot(botDir); err != nil {
		return nil, err
	}
	digest := sha256.New()
	if err := c.compose(digest); err != nil {
		return nil, err
	}
	c.version = hex.EncodeToString(digest.Sum(nil))
	token, err := crewToken(ctx, s)
	if err != nil {
		return nil, fmt.Errorf("token of the bots: %w", err)
	}
	c.vars = botEnviron(env.Environ(), token)
	var ids []string
	for i := range n {
		ids = append(ids, fmt.Sprintf("%s--%d", hostName(), i+1))
	}
	var bots []supervise.Bot
	for _, id := range ids {
		bots = append(bots, c.bot(id))
	}
	known, err := os.ReadDir(c.dir)
	if err != nil {
		return nil, err
	}
	for _, entry := range known {
		if entry.IsDir() && !slices.Contains(ids, entry.Name()) {
			b := c.bot(entry.Name())
			b.Retired = true
			bots = append(bots, b)
		}
	}
	return supervise.New(bots, supervise.Options{Log: s.log, MaxPause: 5 * time.Second}), nil
}

func (c *crew) bot(id string) supervise.Bot {
	dir := filepath.Join(c.dir, id)
	return supervise.Bot{
		ID: id, Dir: dir, Env: append(slices.Clone(c.vars), "SWARMING_BOT_ID="+id),
		Prepare: func() (string, error) { return c.prepare(dir) },
		Ended:   func() bool { return c.ended(skep.BotID(id)) },
	}
}

// ended reports whether the last that the server heard of a bot was its
// leave.
func (c *crew) ended(id skep.BotID) bool {
	ctx, cancel := context.WithTimeout(context.Background(), readyPatience)
	defer cancel()
	b, err := c.store.Bot(ctx, id)
	return err == nil && b.Dead && strings.HasPrefix(b.LastEvent, string(skep.EventShutdown))
}

// prepare writes the bot's executable where it is not there yet.
func (c *crew) prepare(dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	path := filepath.Join(dir, "swarming_bot"+exeSuffix())
	if have, err := code.Version(path); err == nil && have == c.version {
		return path, nil
	}
	return path, atomicfile.WriteFrom(path, 0o755, c.compose)
}

// compose writes the executable that the server's /bot_code will hand out:
// skep-bot with its configuration appended.
func (c *crew) compose(w io.Writer) error {
	data, err := os.ReadFile(c.exe)
	if err != nil {
		return err
	}
	if err := code.Compose(w, data, c.config); err != nil {
		return fmt.Errorf("%s: %w", c.exe, err)
	}
	return nil
}

// findBot returns the skep-bot of this platform in dir, or beside skep.
func findBot(dir string) (string, error) {
	if dir == "" {
		self, err := os.Executable()
		if err != nil {
			return "", err
		}
		if self, err = filepath.EvalSymlinks(self); err != nil {
			return "", err
		}
		dir = filepath.Dir(self)
	}
	for _, name := range []string{"skep-bot", "skep-bot-" + runtime.GOOS + "-" + runtime.GOARCH} {
		path := filepath.Join(dir, name+exeSuffix())
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", fmt.Errorf("no skep-bot in %s; build it (make build), or name its directory with --bot-dir", dir)
}

func exeSuffix() string {
	if runtime.GOOS == "windows" {
		return ".exe"
	}
	return ""
}

// hostName is the short name of this machine, which bots' ids begin with.
func hostName() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "localhost"
	}
	short, _, _ := strings.Cut(strings.ToLower(name), ".")
	return short
}

// ours are variables of skep and its user that are no bot's business.
var ours = []string{
	"SKEP_TOKEN", "SKEP_BOT_TOKEN", "SKEP_SERVER", "SKEP_DB", "SKEP_STATE_DIR", "SKEP_CA_FILE", "PGPASSWORD", "PGPASSFILE",
	"SWARMING_BOT_ID", "SWARMING_TASK_ID", "SWARMING_SERVER", "LUCI_CONTEXT",
}

func botEnviron(environ []string, token string) []string {
	out := slices.DeleteFunc(slices.Clone(environ), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return slices.Contains(ours, name)
	})
	if token != "" {
		out = append(out, "SKEP_BOT_TOKEN="+token)
	}
	return out
}
