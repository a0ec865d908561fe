package bot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"time"
)

// How long a reboot may take. spec bot.md §8.5.
const (
	rebootTries = 15 * time.Minute
	rebootWait  = 5 * time.Minute // after one round of commands
)

// Host restarts the machine by the system's own commands.
type Host struct {
	// Output runs a program and waits for it; its error tells what the program
	// wrote.
	Output func(ctx context.Context, name string, args ...string) ([]byte, error)
	Log    *slog.Logger
}

// rebootCommands are tried in order. spec bot.md §8.5. Root needs no sudo, and
// a container may have none; -n makes sudo fail where it would ask (row B3).
func rebootCommands(goos string, root bool) [][]string {
	var cmds [][]string
	switch goos {
	case "windows":
		return [][]string{{"shutdown", "-r", "-f", "-t", "1"}}
	case "linux":
		cmds = [][]string{{"/sbin/shutdown", "-r", "now"}, {"/sbin/reboot", "-f"}}
	default:
		cmds = [][]string{{"/sbin/shutdown", "-r", "now"}}
	}
	if root {
		return cmds
	}
	for i, c := range cmds {
		cmds[i] = append([]string{"sudo", "-n"}, c...)
	}
	return cmds
}

// Reboot asks for a restart and waits for it, so that it returns only when ctx
// ended (the system stops us) or with the reason why nothing happened.
func (h *Host) Reboot(ctx context.Context, reason string) error {
	end := time.Now().Add(rebootTries)
	for {
		var errs []error
		asked := false
		for _, c := range rebootCommands(runtime.GOOS, os.Geteuid() == 0) {
			h.Log.Warn("rebooting the host", "reason", reason, "command", strings.Join(c, " "))
			out, err := h.Output(ctx, c[0], c[1:]...)
			if err == nil {
				asked = true
				break
			}
			errs = append(errs, fmt.Errorf("%s: %w %s", strings.Join(c, " "), err, strings.TrimSpace(string(out))))
		}
		if !asked {
			// Nothing changes by waiting when no command may be run at all.
			return errors.Join(errs...)
		}
		t := time.NewTimer(min(rebootWait, time.Until(end)))
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-t.C:
		}
		if !time.Now().Before(end) {
			return errors.New("the system accepted the command and did not restart within 15 minutes")
		}
	}
}

// MayReboot asks whether this process may restart the machine, without doing
// it, and returns why not. It never waits for a password. spec bot.md §8.5, row B3.
func (h *Host) MayReboot(ctx context.Context) error {
	return h.mayReboot(ctx, runtime.GOOS, os.Geteuid() == 0)
}

func (h *Host) mayReboot(ctx context.Context, goos string, root bool) error {
	if root || goos == "windows" {
		return nil
	}
	var errs []error
	for _, c := range rebootCommands(goos, false) {
		ask := append([]string{"sudo", "-n", "-l"}, c[2:]...) // c begins with sudo -n
		_, err := h.Output(ctx, ask[0], ask[1:]...)
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", strings.Join(ask, " "), err))
	}
	return fmt.Errorf("this bot may not restart its host: allow its account one of the commands without a password (docs/operations.md), or say reboot none\n%w", errors.Join(errs...))
}
