package botcli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/skepdev/skep/bot"
	"github.com/skepdev/skep/bot/code"
	"github.com/skepdev/skep/bot/update"
	"github.com/skepdev/skep/internal/logfile"
	"github.com/skepdev/skep/internal/proc"
)

// updater returns what replaces this bot's code.
func (s *site) updater(version string, from update.Code, log *slog.Logger) *update.Updater {
	return &update.Updater{Dir: s.dir, Self: s.exe, Version: version, From: from, Check: checkExe, Now: time.Now, Log: log}
}

// checkExe runs the is_fine of an executable that can be a bot of this
// machine; anything else is not even tried. It gets no credential: it only looks
// whether the server is there.
func checkExe(ctx context.Context, exe string) error {
	if err := code.Inspect(exe, runtime.GOOS, runtime.GOARCH); err != nil {
		return fmt.Errorf("it is not run: %w", err)
	}
	_, err := output(ctx, exe, "is_fine")
	return err
}

// become is bot.Config.Become.
func (s *site) become(log *slog.Logger, lock *bot.Lock, u *update.Updater, exe, reason string) error {
	log.Info("becoming other code", "exe", exe, "reason", reason)
	if t := u.Trial(); t != nil && t.Slot == filepath.Base(exe) {
		pid, err := s.startGuard(t.Version)
		if err != nil {
			log.Warn("nobody watches the update", "err", err)
		}
		return replace(lock, exe, append(s.environ(), envGuard+"="+strconv.Itoa(pid)))
	}
	return replace(lock, exe, s.environ())
}

// startGuard leaves a process of this code behind that outlives it and watches
// over the trial of other code. Credentials go through its standard input.
func (s *site) startGuard(version string) (pid int, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	defer w.Close()
	p, err := proc.Start(&proc.Cmd{
		Path: s.exe, Args: []string{s.exe, "guard", version}, Env: os.Environ(), Files: []*os.File{r}, NewGroup: true,
	})
	if err != nil {
		return 0, err
	}
	return p.Pid, json.NewEncoder(w).Encode(s.secrets) // far shorter than a pipe holds
}

// mourn waits for the guard, which is a child of this process since before its
// exec, so that no trace of it stays when it ends.
func mourn() {
	pid, err := strconv.Atoi(os.Getenv(envGuard))
	os.Unsetenv(envGuard)
	if err != nil || pid <= 0 {
		return
	}
	if p, err := os.FindProcess(pid); err == nil {
		go func() { _, _ = p.Wait() }()
	}
}

// guard is the process that startGuard starts: guard VERSION.
func guard(e Env) int {
	if len(e.Args) != 1 {
		return fail(e, errors.New("guard is started by a bot that updates itself"))
	}
	// The file that runs here may be the slot's predecessor; its name is all that
	// matters.
	s, err := openSite()
	if err != nil {
		return fail(e, err)
	}
	if err := json.NewDecoder(io.LimitReader(e.Stdin, 64<<10)).Decode(&s.secrets); err != nil {
		return fail(e, err)
	}
	_ = bot.HideProcess() // as it holds a credential; where that cannot be, the bot said so
	signal.Ignore(syscall.SIGHUP)
	logs, err := logfile.Open(filepath.Join(s.dir, "logs", "guard.log"))
	if err != nil {
		return fail(e, err)
	}
	defer logs.Close()
	log := logfile.New(logs)
	u := s.updater("", nil, log)
	err = u.Guard(context.Background(), e.Args[0],
		func() {
			if pid, ok := bot.Running(s.dir); ok && pid > 0 {
				if p, err := os.FindProcess(pid); err == nil {
					_ = p.Kill()
				}
			}
		},
		func() bool { _, ok := bot.Running(s.dir); return ok },
		func() error {
			log.Warn("nobody started the bot again; starting the last known good code", "exe", u.Good())
			return execSelf(u.Good(), []string{u.Good(), "start_bot"}, s.environ())
		})
	if err != nil {
		return fail(e, err)
	}
	return 0
}
