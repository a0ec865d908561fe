package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/skepdev/skep/bot/code"
	"github.com/skepdev/skep/rollout"
)

// botPlatforms are those that `make bots` builds for. decisions.md 37.
var botPlatforms = []rollout.Platform{
	{OS: "linux", Arch: "amd64"},
	{OS: "linux", Arch: "arm64"},
	{OS: "darwin", Arch: "amd64"},
	{OS: "darwin", Arch: "arm64"},
	{OS: "windows", Arch: "amd64"},
	{OS: "windows", Arch: "arm64"},
}

// openCode offers the fleet the bots in dir, or beside skep. reboot is
// code.Config's.
func (s *service) openCode(ctx context.Context, dir, reboot string) error {
	var err error
	o := rollout.Options{Store: s.store, URLs: s.door.urls, Wake: s.sched.Wake, Log: s.log}
	if s.config != nil {
		o.Settings = s.config.rollout
	}
	if s.code, err = rollout.New(ctx, o); err != nil {
		return err
	}
	if dir, err = botDirectory(dir); err != nil {
		return err
	}
	r := &rollout.Release{Exes: map[string]string{}, ServerVersion: version(), Reboot: reboot}
	if s.door.authority != nil {
		r.TLSCA = string(s.door.authority.PEM())
	}
	parts := map[string]string{} // path by hash
	for _, p := range botPlatforms {
		for _, path := range botFiles(dir, p) {
			h, err := hashFile(path)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			r.Exes[p.String()], parts[h] = h, path
			break
		}
	}
	if len(r.Exes) == 0 {
		s.log.InfoContext(ctx, "no skep-bot to hand out", "dir", dir)
		return nil
	}
	s.release, s.parts = r, parts
	return s.offer(ctx, false)
}

// offer offers the release with the base script of hooks as it is now; changed
// as rollout's. It is called by one goroutine at a time.
func (s *service) offer(ctx context.Context, changed bool) error {
	if s.release == nil {
		return nil
	}
	text := ""
	if s.config != nil {
		text = s.config.script(baseHooks)
	}
	if changed && text == s.hooks {
		return nil
	}
	r := *s.release
	var textHash string
	if text != "" {
		sum := sha256.Sum256([]byte(text))
		textHash = hex.EncodeToString(sum[:])
		r.Files = map[string]string{code.HooksName: textHash}
	}
	err := s.code.Offer(ctx, &r, func(h string) ([]byte, error) {
		if h == textHash {
			return []byte(text), nil
		}
		return os.ReadFile(s.parts[h])
	}, changed)
	if err == nil {
		s.hooks = text
	}
	return err
}

// baseHooks is the script under scripts/ that is part of the bot code.
const baseHooks = "bot_config.star"

// configChanged follows a change of the configuration.
func (s *service) configChanged(ctx context.Context) {
	s.sched.EndWaits()
	if err := s.offer(ctx, true); err != nil {
		s.log.ErrorContext(ctx, "the changed hooks are not handed out", "err", err)
	}
	if s.machines != nil {
		if err := s.machines.follow(ctx); err != nil {
			s.log.ErrorContext(ctx, "the changed pools of machines are not followed", "err", err)
		}
	}
}

// botDirectory is where skep-bot executables lie: dir, or where skep lies.
func botDirectory(dir string) (string, error) {
	if dir != "" {
		return dir, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	if self, err = filepath.EvalSymlinks(self); err != nil {
		return "", err
	}
	return filepath.Dir(self), nil
}

// botFiles are the names that the executable for a platform may have in dir.
func botFiles(dir string, p rollout.Platform) []string {
	ext := ""
	if p.OS == "windows" {
		ext = ".exe"
	}
	names := []string{filepath.Join(dir, "skep-bot-"+p.OS+"-"+p.Arch+ext)}
	if p.OS == runtime.GOOS && p.Arch == runtime.GOARCH {
		names = append([]string{filepath.Join(dir, "skep-bot"+ext)}, names...)
	}
	return names
}

func hashFile(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:]), nil
}
