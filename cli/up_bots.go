package cli

import (
	"context"
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
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/rollout"
	"github.com/skepdev/skep/store"
)

// crew is what the bots of skep up are made of.
type crew struct {
	store *store.Store
	dir   string   // holds one directory per bot
	vars  []string // environment that all bots share

	code botCode
	url  string
	ca   string // PEM, as in code.Config
}

// botCode finds what bots are to run.
type botCode interface {
	Code(ctx context.Context, bot skep.BotID, p rollout.Platform, url string) (*rollout.Build, error)
}

// newCrew returns a supervisor of n of them. Bots of an
// earlier skep up that are too many by now are drained.
func newCrew(ctx context.Context, env *Env, s *service, n int) (*supervise.Supervisor, error) {
	c := &crew{store: s.store, dir: filepath.Join(s.stateDir, "bots"), code: s.code, url: s.door.urls[0]}
	if s.door.authority != nil {
		c.ca = string(s.door.authority.PEM())
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return nil, err
	}
	if _, err := c.build(ctx, ""); n > 0 && err != nil {
		return nil, fmt.Errorf("no bot for this machine; build it (make build), or name its directory with --bot-dir: %w", err)
	}
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
		Prepare: func() (string, error) { return c.prepare(skep.BotID(id), dir) },
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

// prepare writes the bot's executable where there is none. A bot that has one
// is told by its server when to change it: a new build reaches the fleet bot by
// bot, also on one machine.
func (c *crew) prepare(id skep.BotID, dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	path := filepath.Join(dir, "swarming_bot"+exeSuffix())
	if conf, err := code.Read(path); err == nil && conf.Server == c.url && conf.TLSCA == c.ca {
		return path, nil
	}
	b, err := c.build(context.Background(), id)
	if err != nil {
		return "", err
	}
	return path, atomicfile.WriteFrom(path, 0o755, func(w io.Writer) error {
		_, err := io.Copy(w, b.Reader())
		return err
	})
}

// build returns what the server's /bot_code hands out to a bot.
func (c *crew) build(ctx context.Context, id skep.BotID) (*rollout.Build, error) {
	return c.code.Code(ctx, id, rollout.Platform{OS: runtime.GOOS, Arch: runtime.GOARCH}, c.url)
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
	"SKEP_TOKEN", "SKEP_BOT_TOKEN", provider.EnvPools, "SKEP_SERVER", "SKEP_DB", "SKEP_STATE_DIR", "SKEP_CA_FILE", "PGPASSWORD", "PGPASSFILE",
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
