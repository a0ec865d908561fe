package drone

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/host/localsocket"
	"github.com/skepdev/skep/internal/atomicfile"
)

// Files of a drone's directory.
const (
	DrainFile  = "drone-agent.drain" // while it is there, the drone drains. spec/host.md §3.3
	SocketFile = "drone.sock"
	LockFile   = "drone.lock" // of the process that has the directory
	heldFile   = "drained"    // JSON: the bots that operators have drained
)

// Door is how operators reach a drone on its host: the drain file in its
// directory, and a socket there that speaks HTTP: GET /status, POST /drain and
// POST /undrain, whose bots=ID names one bot and the whole drone without. A bot
// that was drained stays so until that is taken back, after a restart too.
type Door struct {
	Dir     string
	Manager *Manager
	Agent   *Agent // nil = a declared list
	// Drain lets the whole drone drain, or no more. It is called at the start
	// and with every change of the drain file.
	Drain func(on bool)
	Log   *slog.Logger

	mu sync.Mutex
	on bool

	holding sync.Mutex // of who changes which bots are held
}

// DoorStatus is what GET /status answers.
type DoorStatus struct {
	Draining bool         `json:"draining"`
	Agent    *AgentStatus `json:"queen,omitempty"`
	Bots     []Status     `json:"bots"`
}

// Run serves until ctx ends.
func (d *Door) Run(ctx context.Context) error {
	watch, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer watch.Close()
	if err := watch.Add(d.Dir); err != nil {
		return err
	}
	l, err := localsocket.Listen(filepath.Join(d.Dir, SocketFile), 0o660, -1)
	if err != nil {
		return err
	}
	// The socket's mode says which users may ask; of the drone's own user, which
	// tasks have too where it is not root, no process that comes from the drone.
	srv := localsocket.NewServer(d.handler(), mayAsk)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	defer srv.Close()
	d.look()
	resync := time.NewTicker(30 * time.Second) // a notification may be lost
	defer resync.Stop()
	for {
		select {
		case <-ctx.Done():
			_ = srv.Close()
			if err := <-served; !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return ctx.Err()
		case err := <-served:
			return err
		case e := <-watch.Events:
			if filepath.Base(e.Name) == DrainFile {
				d.look()
			}
		case err := <-watch.Errors:
			if err != nil {
				d.Log.WarnContext(ctx, "watch of the drain file", "err", err)
			}
		case <-resync.C:
			d.look()
		}
	}
}

func (d *Door) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { d.answer(w) })
	mux.HandleFunc("POST /drain", func(w http.ResponseWriter, r *http.Request) { d.drain(w, r, true) })
	mux.HandleFunc("POST /undrain", func(w http.ResponseWriter, r *http.Request) { d.drain(w, r, false) })
	return mux
}

// look follows the drain file.
func (d *Door) look() {
	_, err := os.Lstat(filepath.Join(d.Dir, DrainFile))
	d.mu.Lock()
	defer d.mu.Unlock()
	if on := err == nil; on != d.on {
		d.on = on
		d.Log.Info("drain file", "there", on)
		d.Drain(on)
	}
}

// Load holds the bots that operators have drained. Call it before the first is
// added.
func (d *Door) Load() error {
	text, err := os.ReadFile(d.heldFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var held []string
	if err == nil {
		err = json.Unmarshal(text, &held)
	}
	if err != nil {
		return fmt.Errorf("which bots are drained: %s: %w", d.heldFile(), err)
	}
	for _, id := range held {
		d.Manager.Hold(id)
	}
	return nil
}

func (d *Door) heldFile() string { return filepath.Join(d.Dir, heldFile) }

func (d *Door) drain(w http.ResponseWriter, r *http.Request, on bool) {
	var err error
	if ids := r.URL.Query()["bots"]; len(ids) > 0 {
		err = d.drainBots(ids, on)
	} else {
		err = d.drainAll(on)
	}
	if err == nil {
		d.answer(w)
		return
	}
	kind, status := skep.KindOf(err), http.StatusInternalServerError
	switch kind {
	case skep.NotFound:
		status = http.StatusNotFound
	case skep.Internal: // the directory cannot be written
		kind = skep.Precondition
	default:
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"reason": kind.String(), "error": err.Error()})
}

// drainBots holds bots, or no more. The file is what holds after a restart.
func (d *Door) drainBots(ids []string, on bool) error {
	d.holding.Lock()
	defer d.holding.Unlock()
	was := d.Manager.Held()
	known := slices.Concat(d.Manager.Active(), was)
	var held []string
	for _, id := range ids {
		if !slices.Contains(known, id) {
			return skep.Errorf(skep.NotFound, "no bot %q here; skep drone status lists them", id)
		}
		if on {
			held = append(held, id)
		}
	}
	for _, id := range was {
		if !slices.Contains(ids, id) {
			held = append(held, id)
		}
	}
	slices.Sort(held)
	text, err := json.Marshal(slices.Compact(held))
	if err == nil {
		err = atomicfile.Write(d.heldFile(), append(text, '\n'), 0o644)
	}
	if err != nil {
		return err
	}
	for _, id := range ids {
		if on {
			d.Manager.Hold(id)
		} else {
			d.Manager.Unhold(id)
		}
	}
	return nil
}

// drainAll makes or removes the drain file, which is what holds.
func (d *Door) drainAll(on bool) error {
	path := filepath.Join(d.Dir, DrainFile)
	err := os.Remove(path)
	if on {
		err = os.WriteFile(path, nil, 0o644)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err == nil {
		d.look()
	}
	return err
}

func (d *Door) answer(w http.ResponseWriter) {
	d.mu.Lock()
	s := DoorStatus{Draining: d.on, Bots: d.Manager.Status()}
	d.mu.Unlock()
	if d.Agent != nil {
		a := d.Agent.Status()
		s.Agent = &a
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(s)
}
