package supervise

import (
	"context"
	"os"
	"strconv"
	"strings"

	"github.com/skepdev/skep/internal/proc"
)

// signalChild ends the process: Windows has no signal that drains a bot.
func signalChild(p *proc.Process, _ ending) error { return p.Kill() }

// lockHolder takes the process in the file as the holder while it lives.
func lockHolder(path string) (pid int, held bool, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, false, err
	}
	pid, err = strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 0 {
		return 0, false, nil
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		return 0, false, nil
	}
	defer p.Release()
	return pid, true, nil
}

// stranger is a bot that an earlier supervisor started.
type stranger struct{ p *os.Process }

func openProcess(pid int, _ string) (process, error) {
	p, err := os.FindProcess(pid)
	if err != nil {
		return nil, err
	}
	return stranger{p}, nil
}

func (s stranger) pid() int            { return s.p.Pid }
func (s stranger) close()              { _ = s.p.Release() }
func (s stranger) signal(ending) error { return s.p.Kill() }

func (s stranger) wait(ctx context.Context) (bool, error) {
	ended := make(chan error, 1)
	go func() { _, err := s.p.Wait(); ended <- err }()
	select {
	case err := <-ended:
		return false, err
	case <-ctx.Done():
		return false, ctx.Err()
	}
}
