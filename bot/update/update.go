// Package update replaces a bot's code without risk. New code is fetched into
// a slot, verified against its digest and tried there; the file that an init
// system starts, the last known good code, is touched only after the new code
// has proved itself. Code that does not reach a successful poll is left again,
// by itself or by a guard that the old code leaves behind.
//
// spec bot.md §8.1 to §8.3, decisions.md 21, 22.
package update

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/skepdev/skep/bot/code"
	"github.com/skepdev/skep/internal/atomicfile"
	"github.com/skepdev/skep/internal/backoff"
)

// Bounds of an update.
const (
	maxCode       = 256 << 20        // bytes of a bot
	checkPatience = 60 * time.Second // for is_fine
	fetchPatience = 30 * time.Minute // for one download, with its pauses
	staleGood     = 7 * 24 * time.Hour
	partSuffix    = ".part"
)

// Code is where bot code comes from. *botapi.Client is one.
type Code interface {
	// BotCode returns the code with this digest from offset on.
	BotCode(ctx context.Context, digest string, offset int64) (io.ReadCloser, error)
}

// Updater is the code of one bot: its slots, its last known good copy and the
// trial under way. It may be used by many goroutines.
type Updater struct {
	Dir     string // bot directory, absolute
	Self    string // the file that runs, absolute
	Version string // its digest
	From    Code
	// Check runs the executable's is_fine and returns what it complained about.
	Check func(ctx context.Context, exe string) error
	Now   func() time.Time
	Log   *slog.Logger

	mu   sync.Mutex
	same os.FileInfo // of a last known good copy that was found to be the running code
}

// slots returns the names of the last known good file and of the two slots in
// the style that name, a file of one of them, has. decisions.md 22.
func slots(name string) (good, one, two string) {
	for _, ext := range []string{".zip", ".exe"} {
		if strings.HasSuffix(name, ext) {
			return "swarming_bot" + ext, "swarming_bot.1" + ext, "swarming_bot.2" + ext
		}
	}
	return "swarming_bot", "swarming_bot.1", "swarming_bot.2"
}

// Good returns the path of the last known good code.
func (u *Updater) Good() string {
	good, _, _ := slots(filepath.Base(u.Self))
	return filepath.Join(u.Dir, good)
}

// Target returns the slot that new code goes to: the one that does not run.
func (u *Updater) Target() string {
	_, one, two := slots(filepath.Base(u.Self))
	if filepath.Base(u.Self) == one {
		return filepath.Join(u.Dir, two)
	}
	return filepath.Join(u.Dir, one)
}

// Ready makes the code with this digest ready to run and returns its path:
// fetched, verified, tried with is_fine, and written down as on trial. On an
// error nothing is changed but the free slot.
func (u *Updater) Ready(ctx context.Context, digest string) (exe string, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !isDigest(digest) {
		return "", fmt.Errorf("told to update to %.80q, which is no digest of bot code", digest)
	}
	exe = u.Target()
	if err := u.fetch(ctx, digest, exe); err != nil {
		return "", fmt.Errorf("fetch bot code %s: %w", digest, err)
	}
	check, cancel := context.WithTimeout(ctx, checkPatience)
	defer cancel()
	if err := u.Check(check, exe); err != nil {
		if check.Err() != nil && ctx.Err() == nil {
			err = fmt.Errorf("it took longer than %v", checkPatience)
		}
		return "", fmt.Errorf("bot code %s is not fine: %w", digest, err)
	}
	if err := u.keepSomeGood(); err != nil {
		return "", fmt.Errorf("keep a copy of the code that works: %w", err)
	}
	// What is run is what was verified: the try above, or anybody else, may have
	// written to the file.
	if have, err := code.Version(exe); err != nil || have != digest {
		return "", fmt.Errorf("bot code %s changed on the disk into %s (%w)", digest, have, err)
	}
	now := u.Now()
	return exe, u.change(func(s *state) {
		s.Trial = &Trial{Version: digest, From: u.Version, Slot: filepath.Base(exe), Began: now, Alive: now}
	})
}

func isDigest(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// fetch brings the code with this digest to path. Bytes that did not come yet
// are asked for again where they stopped.
func (u *Updater) fetch(ctx context.Context, digest, path string) error {
	if have, err := code.Version(path); err == nil && have == digest {
		return os.Chmod(path, 0o755) //nolint:gosec // an executable
	}
	ctx, cancel := context.WithTimeout(ctx, fetchPatience)
	defer cancel()
	part := path + partSuffix
	if err := os.Remove(part); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(part, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer os.Remove(part)
	defer f.Close()
	if err := u.download(ctx, digest, f); err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	have, err := code.Version(part)
	if err != nil {
		return err
	}
	if have != digest {
		return fmt.Errorf("what came has the digest %s; it is not run", have)
	}
	if err := os.Chmod(part, 0o755); err != nil { //nolint:gosec // an executable
		return err
	}
	return os.Rename(part, path)
}

func (u *Updater) download(ctx context.Context, digest string, f *os.File) error {
	var (
		at    int64
		pause backoff.Exponential
		fruit = 0 // attempts in a row that brought nothing
	)
	for {
		n, err := u.some(ctx, digest, f, at)
		at += n
		if at > maxCode {
			return fmt.Errorf("it is longer than %d bytes", maxCode)
		}
		if err == nil {
			return nil
		}
		if n > 0 {
			fruit = 0
			pause.Reset()
		}
		if fruit++; fruit > 8 || ctx.Err() != nil {
			return err
		}
		u.Log.WarnContext(ctx, "fetch bot code", "at", at, "err", err)
		if pause.Sleep(ctx, 0) != nil {
			return err
		}
	}
}

// some fetches what one answer brings.
func (u *Updater) some(ctx context.Context, digest string, f *os.File, at int64) (int64, error) {
	body, err := u.From.BotCode(ctx, digest, at)
	if err != nil {
		return 0, err
	}
	defer body.Close()
	return io.Copy(io.NewOffsetWriter(f, at), io.LimitReader(body, maxCode-at+1))
}

// keepSomeGood makes sure that there is something to fall back to.
func (u *Updater) keepSomeGood() error {
	if _, err := code.Read(u.Good()); err == nil {
		return nil
	}
	return u.copyGood()
}

// KeepGood makes the running code the last known good one where that is due:
// when there is none, or another one and a task succeeded with this one or it
// is older than a week. The bot calls it after each task and when idle, never
// while on trial. spec bot.md §8.2.
func (u *Updater) KeepGood(succeeded bool) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.Self == u.Good() {
		return nil
	}
	st, err := os.Stat(u.Good())
	if err == nil {
		if !succeeded && u.Now().Sub(st.ModTime()) < staleGood {
			return nil
		}
		if u.isSelf(st) {
			if now := u.Now(); now.Sub(st.ModTime()) >= staleGood { // ask again in a week
				return os.Chtimes(u.Good(), now, now)
			}
			return nil
		}
	}
	return u.copyGood()
}

// isSelf reports whether the last known good code, st, is the running one. That
// takes reading all of it, some 20 ms, so it is done once for a file, not after
// each task.
func (u *Updater) isSelf(st os.FileInfo) bool {
	if was := u.same; was != nil && os.SameFile(was, st) && was.Size() == st.Size() && was.ModTime().Equal(st.ModTime()) {
		return true
	}
	have, err := code.Version(u.Good())
	if err != nil || have != u.Version {
		return false
	}
	u.same = st
	return true
}

func (u *Updater) copyGood() error {
	src, err := os.Open(u.Self)
	if err != nil {
		return err
	}
	defer src.Close()
	return atomicfile.WriteFrom(u.Good(), 0o755, func(w io.Writer) error {
		_, err := io.Copy(w, src)
		return err
	})
}
