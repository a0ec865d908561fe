package machines

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// idleBound is how long a machine without work may go on before it is stopped,
// besides what that takes: the two minutes that demand takes to cool down, and a
// look at it.
const idleBound = 3 * time.Minute

// queue has a pool follow the queue: its machine is made for a task, stopped
// when it had none for a while, started for the next one, and still known to a
// server that was killed in between.
func (s *laptop) queue(ctx context.Context) error {
	if err := s.declare(pool{
		prefix: "queue", most: 2, lifetime: time.Hour,
		provider: `process {} demand { target_wait { duration: "1s" } stopped: 1 }`,
	}); err != nil {
		return err
	}
	// Until it is known no bot could run the task, which would end at once.
	for end := time.Now().Add(patience); exec.CommandContext(ctx, s.skep, "provider", "status", "queue", "-S", s.server.URL).Run() != nil; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			return errors.New("the pool is not known")
		}
	}
	made, took, err := s.task(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("  a task for which no machine was there: done by %s after %v\n", made, took)
	start := time.Now()
	if err := s.rests(ctx, made); err != nil {
		return err
	}
	fmt.Printf("  stopped after %v without work\n", time.Since(start).Round(time.Second))
	for _, how := range []string{"stopped", "stopped, and the server killed"} {
		if how != "stopped" {
			if err := s.rests(ctx, made); err != nil {
				return err
			}
			s.server.Kill()
			if err := s.up(ctx); err != nil {
				return err
			}
			if err := s.rests(ctx, made); err != nil {
				return err
			}
		}
		by, took, err := s.task(ctx)
		switch {
		case err != nil:
			return err
		case by != made:
			return fmt.Errorf("%s, and %s did the next task", how, by)
		}
		fmt.Printf("  %s: the next task was done there after %v\n", how, took)
	}
	if err := s.declare(); err != nil {
		return err
	}
	return s.become(ctx, nil)
}

// task runs one that says which bot it has.
func (s *laptop) task(ctx context.Context) (bot string, took time.Duration, err error) {
	start := time.Now()
	out, err := exec.CommandContext(ctx, s.skep, "run", "-S", s.server.URL, "--", "sh", "-c", "echo $SWARMING_BOT_ID").CombinedOutput()
	if err != nil {
		return "", 0, fmt.Errorf("skep run: %w\n%s", err, out)
	}
	return strings.TrimSpace(string(out)), time.Since(start).Round(10 * time.Millisecond), nil
}

// rests waits until a machine is stopped, as told by the provider, and sees that
// nothing of it runs.
func (s *laptop) rests(ctx context.Context, name string) error {
	for end := time.Now().Add(idleBound); ; time.Sleep(time.Second) {
		out, err := exec.CommandContext(ctx, s.skep, "provider", "vms", "queue", "-S", s.server.URL).CombinedOutput()
		if err == nil && strings.Contains(string(out), name) && strings.Contains(string(out), "STOPPED") {
			break
		}
		if time.Now().After(end) {
			return errors.Join(fmt.Errorf("%s is not stopped:\n%s", name, out), err)
		}
	}
	if left := processes(filepath.Join(s.state(), "machines", name)); len(left) > 0 {
		return fmt.Errorf("%s is stopped, and its processes %v are there", name, left)
	}
	return nil
}
