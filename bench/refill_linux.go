package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/skepdev/skep/host/launch"
	"github.com/skepdev/skep/internal/proc"
	"github.com/skepdev/skep/internal/stage/ownengine"
)

// refillSlots are ended in turns.
const refillSlots = 4

// refill measures how long a slot of skep host is empty: from the engine's word
// that a container has ended to its word that the next one of the slot runs. The
// engine is a dockerd of the bench's own.
func refill(ctx context.Context, r *run) (rep *Report, err error) {
	if why := ownengine.Missing(); why != "" {
		return nil, fmt.Errorf("a container engine of its own needs %s", why)
	}
	exe, err := r.exe()
	if err != nil {
		return nil, err
	}
	fmt.Fprintln(r.Progress, "a container engine")
	e, err := ownengine.Start(ctx, filepath.Join(r.dir, "d"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, e.Stop()) }()
	// It ends when it is asked to, with 0: no crash that would make a pause.
	if err := e.Tiny(ctx, "bench:1", "bench", "/bin/sh", "-c", "trap 'exit 0' TERM; /bin/busybox sleep 1000000 & wait"); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(r.dir, "host.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p, err := proc.Start(&proc.Cmd{Path: exe, Env: plainEnviron(), Files: []*os.File{nil, log, log}, NewGroup: true, ParentDeath: true, Args: []string{
		"skep", "host", "run", "--engine", e.Host(), "--image", "bench:1", "--refresh-image", "0", "--num-containers", fmt.Sprint(refillSlots), "--network", "none",
		"--root", filepath.Join(r.dir, "b"), "--state-dir", filepath.Join(r.dir, "host"), "--lock-dir", filepath.Join(r.dir, "locks"), "--socket", filepath.Join(r.dir, "h"),
		"--swarming-server", "http://127.0.0.1:1", "--hostname", "bench", "--reboot-command", "", "--engine-restart-command", "", "--max-host-uptime", "0",
	}})
	if err != nil {
		return nil, err
	}
	defer func() {
		_ = p.Terminate()
		p.Wait()
	}()
	rep, err = r.refills(ctx, e)
	if err != nil {
		said, _ := os.ReadFile(log.Name())
		err = fmt.Errorf("%w\n%s", err, said[max(0, len(said)-1000):])
	}
	return rep, err
}

func (r *run) refills(ctx context.Context, e *ownengine.Engine) (*Report, error) {
	labels := map[string]string{launch.LabelLauncher: "skep"}
	type happened struct {
		slot, id, what string
		at             time.Time
	}
	watched, end := context.WithCancel(ctx)
	defer end()
	events, ready := make(chan happened, 1000), make(chan struct{})
	go func() {
		for ev, err := range e.Events(watched, labels, func() { close(ready) }) {
			if err != nil {
				return
			}
			events <- happened{ev.Labels[launch.LabelSlot], ev.Container, ev.Action, time.Now()}
		}
	}()
	<-ready
	runs := map[string]string{} // the container of each slot
	for end := time.Now().Add(30 * time.Second); len(runs) < refillSlots; {
		list, err := e.List(ctx, labels)
		if err != nil {
			return nil, err
		}
		for _, c := range list {
			if c.State == "running" {
				runs[c.Name] = c.ID
			}
		}
		if time.Now().After(end) {
			return nil, errors.New("the slots are not filled within 30 s")
		}
		if err := rest(ctx, 20*time.Millisecond); err != nil {
			return nil, err
		}
	}
	n := r.samples(slowCases["refill"])
	var took []float64
	for i := range n {
		slot := launch.SlotName(i % refillSlots)
		old := runs[slot]
		if err := e.Signal(ctx, old, "SIGTERM"); err != nil {
			return nil, err
		}
		for died := (time.Time{}); runs[slot] == old; {
			select {
			case h := <-events:
				switch {
				case h.slot == slot && h.id == old && h.what == "die":
					died = h.at
				case h.slot == slot && h.id != old && h.what == "start" && !died.IsZero():
					took = append(took, ms(h.at.Sub(died)))
					runs[slot] = h.id
				}
			case <-time.After(20 * time.Second):
				return nil, fmt.Errorf("slot %s is not filled again within 20 s", slot)
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		if err := rest(ctx, 20*time.Millisecond); err != nil {
			return nil, err
		}
	}
	sp := spreadOf(took)
	return &Report{Unit: "ms", Median: sp.Median, P99: sp.P99, N: len(took), Extra: map[string]any{"slots": refillSlots}}, nil
}
