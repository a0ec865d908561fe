package runner

import (
	"context"
	"errors"
	"testing"
	"time"
)

// TestAnnounce has bot_main announce the task: a task starts only when the
// server knows of it, does not start when that does not want it, and a failed
// attempt is task_runner's to repeat.
func TestAnnounce(t *testing.T) {
	for _, tt := range []struct {
		name     string
		announce func(context.Context) (bool, error)
		code     int64
		updates  int // that reach the server: an announcement of task_runner's, and the final one
		output   string
	}{
		{"known", func(context.Context) (bool, error) { return false, nil }, 0, 1, "ran\n"},
		{"not wanted", func(context.Context) (bool, error) { return true, nil }, -1, 1, ""},
		{"failed", func(context.Context) (bool, error) { return false, errors.New("as the test wants it") }, 0, 2, "ran\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server, s := newTaskServer(t), newStarter(t)
			sum, err := s.Run(t.Context(), Job{
				Manifest: sh("echo ran"), Server: server.URL, BotID: "bot1", ReceivedAt: time.Now(),
				Announce: func(ctx context.Context, task string) (bool, error) {
					if task != testRunID {
						t.Errorf("announced %q", task)
					}
					return tt.announce(ctx)
				},
			})
			out, updates, errs := server.got()
			if err != nil || sum.ExitCode == nil || *sum.ExitCode != tt.code || len(errs) > 0 {
				t.Errorf("summary %+v, error %v, task errors %v", sum, err, errs)
			}
			if len(updates) != tt.updates || out != tt.output {
				t.Errorf("output %q after %d updates, want %q after %d: %+v", out, len(updates), tt.output, tt.updates, updates)
			}
		})
	}
}

// TestAnnounceStopped stops the bot while the server does not answer.
func TestAnnounceStopped(t *testing.T) {
	server, s := newTaskServer(t), newStarter(t)
	ctx, stop := context.WithCancel(t.Context())
	sum, err := s.Run(ctx, Job{
		Manifest: sh("echo ran"), Server: server.URL, BotID: "bot1", ReceivedAt: time.Now(),
		Announce: func(ctx context.Context, _ string) (bool, error) {
			stop()
			<-ctx.Done()
			return false, ctx.Err()
		},
	})
	out, _, _ := server.got()
	if err != nil || sum.InternalError == "" || out != "" {
		t.Errorf("summary %+v, error %v, output %q", sum, err, out)
	}
}
