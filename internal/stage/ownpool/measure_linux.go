package ownpool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/cas/archive"
	"github.com/skepdev/skep/cas/remote"
	"github.com/skepdev/skep/client"
	"github.com/skepdev/skep/host/pool"
	"github.com/skepdev/skep/internal/stage/fleet"
)

// Latency is what clients of a pool wait for: a connection and an empty round
// trip, a connection and a get, a get alone, /bin/true in the room, its release.
type Latency struct{ Echo, Whole, Get, Exec, Release []time.Duration }

// Latency measures n times, each with a stock of so many rooms.
func (s *Service) Latency(ctx context.Context, stock, n int) (*Latency, error) {
	l := &Latency{}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	for range n {
		// What a connection and an empty round trip take, on this machine and in
		// this minute: the yardstick.
		began := time.Now()
		c, err := pool.Dial(ctx, s.At())
		if err != nil {
			return nil, err
		}
		if _, err := c.Echo(ctx, "x"); err != nil {
			return nil, err
		}
		l.Echo = append(l.Echo, time.Since(began))
		_ = c.Close()
		began = time.Now()
		if c, err = pool.Dial(ctx, s.At()); err != nil {
			return nil, err
		}
		at := time.Now()
		r, err := c.Get(ctx, pool.Get{For: "latency"})
		end := time.Now()
		if err != nil {
			return nil, err
		}
		l.Whole, l.Get = append(l.Whole, end.Sub(began)), append(l.Get, end.Sub(at))
		at = time.Now()
		cmd, err := c.Start(ctx, pool.Exec{Lease: r.Lease, Args: []string{"/bin/true"}}, [3]*os.File{null, null, null})
		if err != nil {
			return nil, err
		}
		if code, err := cmd.Wait(ctx); err != nil || code != 0 {
			return nil, fmt.Errorf("/bin/true in a room: %d, %w", code, err)
		}
		l.Exec = append(l.Exec, time.Since(at))
		at = time.Now()
		if err := c.Release(ctx, r.Lease); err != nil {
			return nil, err
		}
		l.Release = append(l.Release, time.Since(at))
		_ = c.Close()
		if _, err := s.Await(ctx, time.Minute, "full again", Quiet(stock)); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// Bots is a skep up with one bot.
type Bots struct {
	Fleet *fleet.Fleet
	Dir   string // everything that it has

	api *client.Client
}

// StartBots starts one with all that it has in dir. Its tasks run in rooms of the
// pool at socket; "" = as they do without. Of its environment it gets NAME=VALUE
// of env besides ours.
func StartBots(ctx context.Context, skep, dir, socket string, env ...string) (*Bots, error) {
	scripts := filepath.Join(dir, "config", "scripts")
	if err := os.MkdirAll(scripts, 0o755); err != nil {
		return nil, err
	}
	script := "def get_settings(bot):\n    return {}\n"
	if socket != "" {
		script = fmt.Sprintf("def get_settings(bot):\n    return {'task': {'pool': %q}}\n", socket)
	}
	if err := os.WriteFile(filepath.Join(scripts, "bot_config.star"), []byte(script), 0o600); err != nil {
		return nil, err
	}
	flags := append(fleet.Flags(filepath.Join(dir, "state")), "--bots", "1", "--config", filepath.Join(dir, "config"), "--log-level", "error")
	command := append([]string{skep, "up"}, flags...)
	if len(env) > 0 {
		command = slices.Concat([]string{"env"}, env, command)
	}
	f, err := fleet.Start(ctx, "", command...)
	if err != nil {
		return nil, err
	}
	api, err := client.New(client.Options{Server: f.URL})
	if err != nil {
		return nil, errors.Join(err, f.Stop())
	}
	return &Bots{f, dir, api}, nil
}

// Task is one of a bot.
type Task struct {
	Command []string
	Inputs  cas.Digest // of the root; the zero Digest = none
	Cache   string     // a named cache, at "cache"; "" = none
}

// Run runs a shell script as a task and returns what it wrote, and how long the
// bot had it.
func (b *Bots) Run(ctx context.Context, script string) (string, time.Duration, error) {
	return b.Do(ctx, Task{Command: []string{"sh", "-c", script}, Cache: "shared"})
}

// Upload puts a directory into the bots' storage.
func (b *Bots) Upload(ctx context.Context, dir string) (root cas.Digest, err error) {
	to, err := remote.New(remote.Options{URL: b.Fleet.URL})
	if err != nil {
		return cas.Digest{}, err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	t, err := archive.Upload(ctx, to, dir, archive.Options{})
	if err != nil {
		return cas.Digest{}, err
	}
	return t.Root, nil
}

// Do runs a task and returns what it wrote, and how long the bot had it.
func (b *Bots) Do(ctx context.Context, task Task) (string, time.Duration, error) {
	p := &pb.TaskProperties{
		Command: task.Command, ExecutionTimeoutSecs: 60, GracePeriodSecs: 1,
		Dimensions: []*pb.StringPair{{Key: "pool", Value: "default"}},
	}
	if task.Cache != "" {
		p.Caches = []*pb.CacheEntry{{Name: task.Cache, Path: "cache"}}
	}
	if task.Inputs != (cas.Digest{}) {
		p.CasInputRoot = &pb.CASReference{
			CasInstance: "projects/skep/instances/default",
			Digest:      &pb.Digest{Hash: task.Inputs.Hash.String(), SizeBytes: task.Inputs.Size},
		}
	}
	t, err := b.api.NewTask(ctx, &pb.NewTaskRequest{
		Name: "room", Priority: 100,
		TaskSlices: []*pb.TaskSlice{{ExpirationSecs: 600, WaitForCapacity: true, Properties: p}},
	})
	if err != nil {
		return "", 0, err
	}
	for began := time.Now(); ; {
		r, err := b.api.GetResult(ctx, &pb.TaskIdWithPerfRequest{TaskId: t.GetTaskId()})
		if err != nil {
			return "", 0, err
		}
		if r.GetState() != pb.TaskState_PENDING && r.GetState() != pb.TaskState_RUNNING {
			out, err := b.api.GetStdout(ctx, &pb.TaskIdWithOffsetRequest{TaskId: t.GetTaskId(), Length: 1 << 20})
			if err != nil {
				return "", 0, err
			}
			if r.GetState() != pb.TaskState_COMPLETED || r.GetExitCode() != 0 {
				return "", 0, fmt.Errorf("task %s is %v, exit code %d: %s\n%s", t.GetTaskId(), r.GetState(), r.GetExitCode(), out.GetOutput(), b.Fleet.Log())
			}
			return string(out.GetOutput()), r.GetCompletedTs().AsTime().Sub(r.GetStartedTs().AsTime()), nil
		}
		if time.Since(began) > 2*time.Minute {
			return "", 0, fmt.Errorf("task %s is still %v\n%s", t.GetTaskId(), r.GetState(), b.Fleet.Log())
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// RoomCost runs the same task beside a bot and in a room, in turns, n times, and
// returns how long the bots had them. Before each there is a stock of rooms.
func (s *Service) RoomCost(ctx context.Context, stock int, outside, inside *Bots, n int) (out, in []time.Duration, err error) {
	const first = 3 // those of a bot are dearer
	for i := range n + first {
		_, o, err := outside.Run(ctx, "true")
		if err != nil {
			return nil, nil, err
		}
		if _, err := s.Await(ctx, time.Minute, "stocked", Quiet(stock)); err != nil {
			return nil, nil, err
		}
		_, r, err := inside.Run(ctx, "true")
		if err != nil {
			return nil, nil, err
		}
		if i >= first {
			out, in = append(out, o), append(in, r)
		}
	}
	return out, in, nil
}
