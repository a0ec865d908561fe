package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	warmpool "github.com/skepdev/skep/host/pool"
	"github.com/skepdev/skep/internal/proc"
)

// cleanRoom is a fresh container of a warm pool that the task's command runs
// in. It is the connection's, and so ours: the pool destroys it when we are
// gone.
type cleanRoom struct {
	client *warmpool.Client
	room   *warmpool.Room
	ended  bool
}

const (
	roomWait = time.Minute      // for a container of an empty pool
	roomCall = 20 * time.Second // for anything else that a pool is asked for
)

// enterRoom takes a room; from here on the task's files are for its user.
func (r *isolatedRun) enterRoom() error {
	if os.Geteuid() != 0 {
		return errors.New("a task in a clean room needs a bot that runs as root, to give the room's user the task's files; run the bot as root, or let its settings, hooks and pools.cfg name no warm pool")
	}
	ctx, cancel := context.WithTimeout(context.Background(), roomWait+roomCall)
	defer cancel()
	c, err := warmpool.Dial(ctx, r.job.Pool)
	if err != nil {
		return fmt.Errorf("clean room: %w", err)
	}
	room, err := c.Get(ctx, warmpool.Get{For: r.job.TaskID, Confirm: true, TimeoutMS: roomWait.Milliseconds()})
	if err != nil {
		_ = c.Close()
		return fmt.Errorf("clean room: %w", err)
	}
	r.room = &cleanRoom{client: c, room: room}
	r.seat.Leave()
	r.seat, r.view = nil, nil
	r.User = &proc.User{UID: room.UID, GID: room.GID}
	return r.own(r.dirs.run, r.dirs.out, r.dirs.temp, r.dirs.home, r.dirs.context, r.dirs.agent, r.botFile())
}

func (r *isolatedRun) botFile() string {
	if r.job.wantsBotFile() {
		return r.dirs.botFile
	}
	return ""
}

// furnishRoom makes the run's directories appear in the room, where they are
// here.
func (r *isolatedRun) furnishRoom() error {
	ctx, cancel := context.WithTimeout(context.Background(), roomCall)
	defer cancel()
	var binding errgroup.Group // they are in the pool's hands at once
	for _, dir := range []string{r.dirs.run, r.dirs.out, r.dirs.temp} {
		binding.Go(func() error {
			f, err := os.Open(dir)
			if err != nil {
				return err
			}
			defer f.Close()
			return r.room.client.Bind(ctx, r.room.room.Lease, f, dir, false)
		})
	}
	if err := binding.Wait(); err != nil {
		return fmt.Errorf("clean room: %w", err)
	}
	return nil
}

// leaveRoom ends the room, whatever happened.
func (r *isolatedRun) leaveRoom() {
	if err := r.room.end(); err != nil {
		r.log.Warn("clean room not released; the pool ends it", "task", r.job.TaskID, "err", err)
	}
	_ = r.room.client.Close()
}

// end ends everything in the room and returns when nothing runs there any
// more: what the task shares with us is ours again.
func (m *cleanRoom) end() error {
	if m.ended {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), roomCall)
	defer cancel()
	err := m.client.Release(ctx, m.room.Lease)
	if err != nil && warmpool.Reason(err) != warmpool.ReasonGone {
		return fmt.Errorf("end the clean room: %w", err)
	}
	m.ended = true
	return nil
}

func (m *cleanRoom) start(cmd *proc.Cmd, processes, memory int64) (command, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	e := warmpool.Exec{Lease: m.room.Lease, Args: cmd.Args, Env: cmd.Env, Dir: cmd.Dir, Task: true}
	if processes > 0 || memory > 0 {
		e.Limits = &warmpool.Limits{Processes: processes, Memory: memory}
	}
	ctx, cancel := context.WithTimeout(context.Background(), roomCall)
	defer cancel()
	run, err := m.client.Start(ctx, e, [3]*os.File{null, cmd.Files[1], cmd.Files[2]})
	if warmpool.Reason(err) == warmpool.ReasonExec {
		return nil, &proc.ExecError{Path: cmd.Path, Err: roomRefusal{err}}
	}
	if err != nil {
		return nil, err
	}
	c := &roomCommand{room: m, run: run, done: make(chan struct{})}
	go func() {
		code, err := run.Wait(context.Background())
		c.status = proc.Status{Code: code, Err: err, Ended: time.Now(), Signal: code < 0}
		close(c.done)
	}()
	return c, nil
}

// roomRefusal is a room's word that the command cannot be started: its fault.
type roomRefusal struct{ error }

// Is makes it one of those that proc.ExecError counts as the program's.
func (roomRefusal) Is(target error) bool { return target == syscall.ENOENT }

// roomCommand is a command that runs in a room.
type roomCommand struct {
	room   *cleanRoom
	run    *warmpool.Command
	done   chan struct{}
	status proc.Status
}

func (c *roomCommand) Done() <-chan struct{} { return c.done }

func (c *roomCommand) Wait() proc.Status {
	<-c.done
	return c.status
}

func (c *roomCommand) Terminate() error { return c.signal(syscall.SIGTERM) }
func (c *roomCommand) Kill() error      { return c.signal(syscall.SIGKILL) }

func (c *roomCommand) signal(sig syscall.Signal) error {
	ctx, cancel := context.WithTimeout(context.Background(), roomCall)
	defer cancel()
	return c.run.Signal(ctx, int(sig))
}
