package runner

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/skepdev/skep/cas/cache"
	"github.com/skepdev/skep/internal/proc"
	"github.com/skepdev/skep/runner/named"
)

// cleanFlag makes run_isolated clean the caches and end.
const cleanFlag = "--clean"

// SetCache says where the content cache is and what it may have from the next
// runner on: bytes (0 = 50 GiB), entries (0 = any number), and its directory, an
// absolute path that several bots of one user may share ("" = the one of
// Config). A Precondition error means that inputs cannot come that way on this
// machine; what was set holds nevertheless. One goroutine calls it.
func (s *Starter) SetCache(bytes int64, items int, dir string) error {
	s.mu.Lock()
	s.cfg.Storage.MaxBytes, s.cfg.Storage.MaxItems = bytes, items
	s.cfg.Storage.Cache = cmp.Or(dir, s.cacheDir)
	st, user := s.storage(), s.iso.User
	s.mu.Unlock()
	if st.Method == cache.Auto && dir == "" || s.checked == st.Cache {
		return nil // nothing that could be wrong, or known to be right
	}
	err := s.checkCache(st, user)
	if s.checked = st.Cache; err != nil {
		s.checked = ""
	}
	return err
}

func (s *Starter) checkCache(st Storage, user *proc.User) error {
	c, err := openStorage(st, s.cfg.Log)
	if err != nil {
		return err
	}
	defer c.Close()
	at, err := os.MkdirTemp(s.cfg.BotDir, "w.check")
	if err != nil {
		return err
	}
	defer os.RemoveAll(at)
	how := cache.How{Method: st.Method, UID: -1, Trusted: st.Trusted, Scratch: at}
	if user != nil {
		how.UID, how.GID = int(user.UID), int(user.GID)
	}
	return c.Check(how, at)
}

// storage is what tasks are told of the caches now. s.mu is held.
func (s *Starter) storage() Storage {
	st := s.cfg.Storage
	if s.cfg.MinFree != nil {
		st.MinFree = s.cfg.MinFree()
	}
	return st
}

// Clean brings the caches in order, in a process of its own, before the first
// task: what a kill or an operator left is removed or repaired, and limits
// hold. It may take minutes. spec bot.md §5.8.
func (s *Starter) Clean(ctx context.Context) error {
	s.mu.Lock()
	u := setup{BotDir: s.cfg.BotDir, Storage: s.storage()}
	s.mu.Unlock()
	if !exists(u.Storage.Cache) && !exists(filepath.Join(u.BotDir, "c")) {
		return nil
	}
	raw, err := s.rawLog()
	if err != nil {
		return err
	}
	defer raw.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer w.Close()
	p, err := proc.Start(&proc.Cmd{
		Path: s.cfg.Exe, Args: []string{s.cfg.Exe, "run_isolated", cleanFlag}, Dir: s.cfg.BotDir,
		Files: []*os.File{r, raw, raw}, NewGroup: true, Env: baseEnviron(s.cfg.Environ, nil),
	})
	_ = r.Close()
	if err != nil {
		return fmt.Errorf("clean the caches: %w", err)
	}
	if err := json.NewEncoder(w).Encode(u); err != nil {
		return errors.Join(err, p.Kill())
	}
	select {
	case <-p.Done():
	case <-ctx.Done():
		_ = p.Kill()
	}
	if st := p.Wait(); st.Code != 0 {
		return fmt.Errorf("cleaning the caches ended with %d; see run_isolated.log", st.Code)
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// cleanMain is run_isolated --clean. It ends with its parent.
func cleanMain() int {
	words := json.NewDecoder(os.Stdin)
	var u setup
	if code, ok := nextWord(words, &u, "run_isolated"); !ok {
		return code
	}
	log, closeLog := openLog(filepath.Join(u.BotDir, "logs", "run_isolated.log"))
	defer closeLog()
	go func() {
		var none isolatedWord
		if words.Decode(&none) != nil {
			os.Exit(1)
		}
	}()
	began := time.Now()
	if err := clean(u, log); err != nil {
		log.Error("caches not clean", "err", err)
		return 1
	}
	log.Info("caches are clean", "took", time.Since(began))
	return 0
}

func clean(u setup, log *slog.Logger) error {
	var errs []error
	var list []evictor
	n, err := named.Open(named.Options{Dir: filepath.Join(u.BotDir, "c"), Log: log})
	if err == nil {
		err = n.Clean()
		list = append(list, n.Trim())
	}
	errs = append(errs, err)
	if exists(u.Storage.Cache) {
		c, err := openStorage(u.Storage, log)
		if err == nil {
			err = c.Clean(context.Background())
		}
		errs = append(errs, err)
		if err == nil {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			if t, err := c.Trim(ctx); err == nil { // else others use it, and trim it
				list = append(list, t)
				defer func() { _ = t.Close() }()
			}
		}
	}
	free, err := cache.Free(u.BotDir)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	return errors.Join(append(errs, trim(time.Now(), free, max(u.Storage.MinFree, 2<<30), list...))...)
}
