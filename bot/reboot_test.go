package bot

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRebootCommands(t *testing.T) {
	tests := []struct {
		goos string
		root bool
		want string
	}{
		{"linux", false, "sudo -n /sbin/shutdown -r now; sudo -n /sbin/reboot -f"},
		{"linux", true, "/sbin/shutdown -r now; /sbin/reboot -f"},
		{"darwin", false, "sudo -n /sbin/shutdown -r now"},
		{"windows", false, "shutdown -r -f -t 1"},
	}
	for _, tt := range tests {
		var got []string
		for _, c := range rebootCommands(tt.goos, tt.root) {
			got = append(got, strings.Join(c, " "))
		}
		if d := cmp.Diff(tt.want, strings.Join(got, "; ")); d != "" {
			t.Errorf("%s, root %v (-want +got):\n%s", tt.goos, tt.root, d)
		}
	}
}

// No command is run by these tests: Output is a fake.
func TestReboot(t *testing.T) {
	t.Run("nothing may be run", func(t *testing.T) {
		h := &Host{Log: slog.New(slog.DiscardHandler), Output: func(context.Context, string, ...string) ([]byte, error) {
			return nil, errors.New("a password is required")
		}}
		if err := h.Reboot(t.Context(), "test"); err == nil || !strings.Contains(err.Error(), "a password is required") {
			t.Errorf("err = %v, want the reason", err)
		}
	})
	t.Run("accepted and ignored", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := 0
			h := &Host{Log: slog.New(slog.DiscardHandler), Output: func(context.Context, string, ...string) ([]byte, error) {
				n++
				return nil, nil
			}}
			start := time.Now()
			err := h.Reboot(t.Context(), "test")
			if took := time.Since(start); err == nil || took != 15*time.Minute || n != 3 {
				t.Errorf("err = %v after %v and %d tries, want an error after 15 minutes and 3", err, took, n)
			}
		})
	})
	t.Run("the system stops us", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			h := &Host{Log: slog.New(slog.DiscardHandler), Output: func(context.Context, string, ...string) ([]byte, error) { return nil, nil }}
			if err := h.Reboot(ctx, "test"); err != context.DeadlineExceeded {
				t.Errorf("err = %v", err)
			}
		})
	})
}

func TestMayReboot(t *testing.T) {
	for _, tt := range []struct {
		name, goos string
		root       bool
		allowed    string // what sudo -n -l allows
		asked      int
		want       string // in the error; "" = none
	}{
		{"root", "linux", true, "", 0, ""},
		{"Windows", "windows", false, "", 0, ""},
		{"the first", "linux", false, "/sbin/shutdown", 1, ""},
		{"the second", "linux", false, "/sbin/reboot", 2, ""},
		{"nothing", "linux", false, "none", 2, "may not restart its host"},
		{"nothing on a Mac", "darwin", false, "none", 1, "a password is required"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			asked := 0
			h := &Host{Output: func(_ context.Context, name string, args ...string) ([]byte, error) {
				asked++
				if name != "sudo" || len(args) < 4 || args[0] != "-n" || args[1] != "-l" {
					t.Errorf("ran %s %q: that would do more than ask", name, args)
				}
				if args[2] == tt.allowed {
					return nil, nil
				}
				return nil, errors.New("sudo: a password is required")
			}}
			err := h.mayReboot(t.Context(), tt.goos, tt.root)
			if asked != tt.asked || (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("asked %d times, %v", asked, err)
			}
		})
	}
}
