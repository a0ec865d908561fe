package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

const (
	dispatchColdSamples = 100                   // without start-ahead, into Extra
	dispatchRowSamples  = 100                   // without a rest, into Extra
	dispatchRest        = 30 * time.Millisecond // until a bot is idle again, with the next processes ready
	dispatchColdRest    = 15 * time.Millisecond // until one is that prepares nothing
)

// dispatch measures the time from the call that submits a task to the first
// thing that its command does, on one idle real bot. The command writes a byte
// into a FIFO; the stamp is taken when the byte arrives here. Extra tells the
// same without processes started ahead, the same with start-ahead for tasks
// that follow each other without a rest, so that the bot is still busy with the
// last one's end; and how much of it is the command's own start.
func dispatch(ctx context.Context, r *run) (*Report, error) {
	fifo, err := newFIFO(filepath.Join(r.dir, "fifo"))
	if err != nil {
		return nil, err
	}
	defer fifo.Close()
	own, err := fifo.commandAlone()
	if err != nil {
		return nil, err
	}
	fmt.Fprintln(r.Progress, "one bot, started ahead")
	s, err := r.fleet(ctx, 1, "SKEP_START_AHEAD=1")
	if err != nil {
		return nil, err
	}
	ahead, err := s.dispatches(ctx, fifo, r.samples(minSamples), dispatchRest)
	var row []float64
	if err == nil {
		row, err = s.dispatches(ctx, fifo, dispatchRowSamples, 0)
	}
	if err = errors.Join(err, s.stop()); err != nil {
		return nil, err
	}
	fmt.Fprintln(r.Progress, "one bot, not started ahead")
	c, err := r.fleet(ctx, 1, "SKEP_START_AHEAD=0")
	if err != nil {
		return nil, err
	}
	cold, err := c.dispatches(ctx, fifo, dispatchColdSamples, dispatchColdRest)
	if err = errors.Join(err, c.stop()); err != nil {
		return nil, err
	}
	sp := spreadOf(ahead)
	return &Report{Unit: "ms", Median: sp.Median, P99: sp.P99, N: len(ahead), Extra: s.about(map[string]any{
		"no_start_ahead_ms":  spreadOf(cold),
		"no_start_ahead_n":   len(cold),
		"back_to_back_ms":    spreadOf(row),
		"back_to_back_n":     len(row),
		"command":            fifo.command("FIFO"),
		"command_alone_ms":   own,
		"rest_between_tasks": dispatchRest.String(),
	})}, nil
}

// dispatches takes n samples on a fleet of one bot, with a rest after each.
func (s *service) dispatches(ctx context.Context, fifo *fifo, n int, pause time.Duration) ([]float64, error) {
	if err := s.settle(ctx); err != nil {
		return nil, err
	}
	req := request("", fifo.command(fifo.path)...)
	var took []float64
	for i := range n + 5 { // a few to warm up
		start := time.Now()
		ans, err := s.client.NewTask(ctx, req)
		if err != nil {
			return nil, err
		}
		arrived, err := fifo.await(10 * time.Second)
		if err != nil {
			return nil, fmt.Errorf("task %s did not speak: %w; %s", ans.TaskId, err, s.lastWords())
		}
		if i >= 5 {
			took = append(took, ms(arrived.Sub(start)))
		}
		if _, err := s.await(ctx, ans.TaskId); err != nil {
			return nil, err
		}
		if err := rest(ctx, pause); err != nil {
			return nil, err
		}
	}
	return took, nil
}

// fifo is where commands speak.
type fifo struct {
	path string
	file *os.File
}

// command returns the cheapest program of every machine that writes to a
// named file at once: the shell opens it and its own echo writes.
func (f *fifo) command(path string) []string {
	return []string{"/bin/sh", "-c", "echo>$0", path}
}

// await returns when the next command spoke.
func (f *fifo) await(limit time.Duration) (time.Time, error) {
	if err := f.file.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return time.Time{}, err
	}
	var b [1]byte
	_, err := f.file.Read(b[:])
	return time.Now(), err
}

func (f *fifo) Close() error { return errors.Join(f.file.Close(), os.Remove(f.path)) }

// commandAlone measures, as a median in ms, what the command costs when this
// process starts it without any fleet.
func (f *fifo) commandAlone() (float64, error) {
	argv := f.command(f.path)
	var children []*os.Process
	took, err := medianOf(100, func(int) error {
		p, err := os.StartProcess(argv[0], argv, &os.ProcAttr{Files: []*os.File{nil, nil, nil}})
		if err != nil {
			return err
		}
		children = append(children, p)
		_, err = f.await(10 * time.Second)
		return err
	})
	for _, p := range children {
		_, _ = p.Wait()
	}
	return took, err
}
