// Package lies shows that a bot never runs bot code that is not what it was
// promised, or not for it. Servers hand out truncated, swapped and foreign code,
// scripts, zip bombs and bytes without end; real bots must refuse them, say so,
// and go on working with the code that they have.
package lies

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/skepdev/skep/bot/code"
	"github.com/skepdev/skep/internal/proc"
)

const (
	patience  = 5 * time.Minute // for all bots to refuse, run a task and leave
	atOnce    = 4               // bots
	maxMemory = 160 << 20       // bytes resident at most, of a bot that was lied to
	markName  = "mark"          // in the zip of a tattler: where to write that it ran
)

// Main runs the demonstration and returns an exit code.
func Main(args []string) int {
	flags := flag.NewFlagSet("lies", flag.ExitOnError)
	_ = flags.Parse(args)
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "show lies:", err)
		return 1
	}
	return 0
}

// Tattle is what this program does when it was taken for a bot: it leaves a
// mark and fails. ok is false when it was started as itself.
func Tattle() (ok bool) {
	if !strings.HasPrefix(filepath.Base(os.Args[0]), "swarming_bot") {
		return false
	}
	exe, err := os.Executable()
	if err != nil {
		return true
	}
	if mark, err := code.ReadFile(exe, markName); err == nil {
		if f, err := os.OpenFile(string(mark), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err == nil {
			fmt.Fprintln(f, strings.Join(os.Args[1:], " "))
			_ = f.Close()
		}
	}
	fmt.Fprintln(os.Stderr, "this is no bot")
	return true
}

func run() error {
	dir, err := os.MkdirTemp("", "skep-lies-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	exe, err := os.ReadFile("bin/skep-bot")
	if err != nil {
		return fmt.Errorf("%w; make build makes it", err)
	}
	lies, err := all(dir)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var (
		wg    sync.WaitGroup
		start = time.Now()
		errs  = make([]error, len(lies))
	)
	fmt.Printf("%-52s %9s %9s  %s\n", "what the server hands out", "resident", "executed", "the bot says")
	// All are written before the first starts: a child that is just being made has
	// this process's open files for a moment, and a program that anybody has open
	// for writing cannot be started.
	servers := make([]*liar, len(lies))
	for i, l := range lies {
		if servers[i], err = l.prepare(exe); err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
		defer servers[i].close()
	}
	turns := make(chan struct{}, atOnce)
	for i, l := range lies {
		wg.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			if errs[i] = l.tell(ctx, servers[i]); errs[i] != nil {
				errs[i] = fmt.Errorf("%s: %w", l.name, errs[i])
			}
		})
	}
	wg.Wait()
	for i, l := range lies {
		if errs[i] == nil {
			fmt.Printf("%-52s %7.1fMB %9s  %.150s\n", l.name, float64(l.memory)/1e6, l.executed(), l.said)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	fmt.Printf("%d lies, none was believed; each bot said so, ran a task afterwards and left when told, %v in all\n", len(lies), time.Since(start).Round(time.Millisecond))
	return nil
}

// prepare starts a server that lies and writes its bot.
func (l *lie) prepare(exe []byte) (*liar, error) {
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return nil, err
	}
	s, err := serve(l)
	if err != nil {
		return nil, err
	}
	if err := compose(l.bot(), exe, s.url); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (l *lie) bot() string { return filepath.Join(l.dir, "swarming_bot") }

// tell starts the bot of a server that lies, and judges what it did.
func (l *lie) tell(ctx context.Context, s *liar) (err error) {
	path := l.bot()
	before, err := code.Version(path)
	if err != nil {
		return err
	}
	log, err := os.Create(l.dir + ".log")
	if err != nil {
		return err
	}
	defer log.Close()
	defer func() {
		if err != nil {
			text, _ := os.ReadFile(filepath.Join(l.dir, "logs", "swarming_bot.log"))
			err = fmt.Errorf("%w\n%s", err, text[max(0, len(text)-2000):])
		}
	}()
	p, err := proc.Start(&proc.Cmd{
		Path: path, Args: []string{path, "start_bot"}, Dir: l.dir, Files: []*os.File{nil, log, log}, NewGroup: true,
		Env: []string{"PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Dir(l.dir), "SWARMING_BOT_ID=liar", "SKEP_REBOOT=none"},
	})
	if err != nil {
		return err
	}
	defer func() { _ = p.Kill() }()
	select {
	case <-s.told:
	case <-p.Done():
		return fmt.Errorf("the bot ended by itself, exit code %d", p.Wait().Code)
	case <-ctx.Done():
		return fmt.Errorf("the bot did not refuse it and run a task within %v; %s", patience, s.state())
	}
	l.memory = resident(p.Pid)
	s.mayEnd()
	select {
	case <-p.Done():
	case <-ctx.Done():
		return errors.New("the bot did not end when it was told to")
	}
	if err := s.verdict(before); err != nil {
		return err
	}
	if l.memory > maxMemory {
		return fmt.Errorf("the bot took %d MB, want %d at most", l.memory>>20, maxMemory>>20)
	}
	after, err := code.Version(path)
	if err != nil || after != before {
		return fmt.Errorf("the last known good code was %s and is %s, %w", before, after, err)
	}
	if parts, _ := filepath.Glob(filepath.Join(l.dir, "*.part")); len(parts) > 0 {
		return fmt.Errorf("left behind: %v", parts)
	}
	if got := l.executed(); got != l.mayRun() {
		return fmt.Errorf("it was run: %s, want %s", got, l.mayRun())
	}
	return nil
}

// compose writes a bot of a server to path.
func compose(path string, exe []byte, server string, files ...code.File) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	return errors.Join(code.Compose(f, exe, code.Config{Server: server, Reboot: "none"}, files...), f.Close())
}

// resident is the most memory that a process ever had, 0 where the system does
// not tell.
func resident(pid int) int64 {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(data)) {
		var kb int64
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kb); err == nil {
			return kb << 10
		}
	}
	return 0
}

// foreign is a skep-bot for another platform: the one of `make bots`, or a new
// one in dir.
func foreign(dir, goos, goarch string) ([]byte, error) {
	ext := ""
	if goos == "windows" {
		ext = ".exe"
	}
	name := "skep-bot-" + goos + "-" + goarch + ext
	if data, err := os.ReadFile(filepath.Join("bin", name)); err == nil {
		return data, nil
	}
	path := filepath.Join(dir, name)
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "./cmd/skep-bot")
	cmd.Env = append(os.Environ(), "GOOS="+goos, "GOARCH="+goarch, "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build %s: %w\n%s", name, err, out)
	}
	return os.ReadFile(path)
}
