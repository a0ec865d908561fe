package runner

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep/api/botapi"
)

// TestAnnounce has bot_main announce the task: a task starts only when the
// server knows of it, does not start when that does not want it, and a failed
// attempt is task_runner's to repeat.
func TestAnnounce(t *testing.T) {
	for _, tt := range []struct {
		name      string
		answer    *botapi.TaskUpdateResponse // nil: an error
		code      int64
		announces bool // task_runner does too; the final update reaches the server always, and output before it when there is time
		output    string
	}{
		{"known", &botapi.TaskUpdateResponse{OK: true}, 0, false, "ran\n"},
		{"not wanted", &botapi.TaskUpdateResponse{OK: true, MustStop: true}, -1, false, ""},
		{"failed", nil, 0, true, "ran\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server, s := newTaskServer(t), newStarter(t)
			sum, err := s.Run(t.Context(), Job{
				Manifest: sh("echo ran"), Server: server.URL, BotID: "bot1", ReceivedAt: time.Now(),
				Update: func(_ context.Context, u *botapi.TaskUpdate) (*botapi.TaskUpdateResponse, error) {
					if u.TaskID != testRunID {
						t.Errorf("announced %q", u.TaskID)
					}
					if u.Final() {
						return nil, errors.New("as the test wants it")
					}
					if tt.answer == nil {
						return nil, errors.New("as the test wants it")
					}
					return tt.answer, nil
				},
			})
			out, updates, errs := server.got()
			if err != nil || sum.ExitCode == nil || *sum.ExitCode != tt.code || len(errs) > 0 {
				t.Errorf("summary %+v, error %v, task errors %v", sum, err, errs)
			}
			server.final(t)
			if first := updates[0]; out != tt.output || (!first.Final() && len(first.Output) == 0) != tt.announces {
				t.Errorf("output %q, want %q; task_runner announces is not %v: %+v", out, tt.output, tt.announces, updates)
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
		Update: func(ctx context.Context, _ *botapi.TaskUpdate) (*botapi.TaskUpdateResponse, error) {
			stop()
			<-ctx.Done()
			return nil, ctx.Err()
		},
	})
	out, _, _ := server.got()
	if err != nil || sum.InternalError == "" || out != "" {
		t.Errorf("summary %+v, error %v, output %q", sum, err, out)
	}
}

// TestAnnouncedWatched has somebody wait for a task's output before it begins:
// no question is needed to learn of it.
func TestAnnouncedWatched(t *testing.T) {
	for _, watched := range []bool{false, true} {
		r := &taskRunner{Job: Job{Announced: true}, timing: defaultTiming, rep: &reporter{}, announced: make(chan announcement, 1)}
		r.announced <- announcement{Done: true, Watched: watched}
		if canceled, err := r.announce(t.Context()); canceled || err != nil || r.rep.watched.Load() != watched {
			t.Errorf("watched is %v, want %v; canceled %v, error %v", r.rep.watched.Load(), watched, canceled, err)
		}
	}
}

// TestFinalByBot has bot_main deliver the end of a short task: no connection
// is made for it.
func TestFinalByBot(t *testing.T) {
	server, s := newTaskServer(t), newStarter(t)
	var updates []*botapi.TaskUpdate
	sum, err := s.Run(t.Context(), Job{
		Manifest: sh("echo ran; exit 4"), Server: server.URL, BotID: "bot1", Session: "s0", ReceivedAt: time.Now(),
		Update: func(_ context.Context, u *botapi.TaskUpdate) (*botapi.TaskUpdateResponse, error) {
			updates = append(updates, u)
			return &botapi.TaskUpdateResponse{OK: true, Session: fmt.Sprintf("s%d", len(updates))}, nil
		},
	})
	_, direct, errs := server.got()
	if len(direct) > 0 { // it lasted long, so that it has a connection of its own
		if u := server.final(t); *u.ExitCode != 4 || len(updates) != 1 {
			t.Errorf("bot_main delivered %+v, task_runner %+v", updates, direct)
		}
		return
	}
	if want := (Summary{ExitCode: code(4), Session: "s2"}); err != nil || cmp.Diff(want, sum) != "" {
		t.Errorf("summary %+v, error %v, want %+v", sum, err, want)
	}
	if len(updates) != 2 || updates[0].Final() || !updates[1].Final() || *updates[1].ExitCode != 4 || string(updates[1].Output) != "ran\n" {
		t.Errorf("updates %+v", updates)
	}
	if len(errs) > 0 {
		t.Errorf("task_runner sent %+v", errs)
	}
}

// TestAnnounceStoppedByWord: the word that the bot stopped is enough, whatever
// became of its signal.
func TestAnnounceStoppedByWord(t *testing.T) {
	r := &taskRunner{Job: Job{Announced: true}, timing: defaultTiming, rep: &reporter{}, announced: make(chan announcement, 1), stopped: make(chan string, 1)}
	r.announced <- announcement{Stopped: true}
	if _, err := r.announce(t.Context()); err == nil || len(r.stopped) != 1 {
		t.Errorf("error %v, %d reasons to stop", err, len(r.stopped))
	}
}
