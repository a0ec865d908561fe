package drone

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Files of a drone's directory.
const (
	DrainFile  = "drone-agent.drain" // while it is there, the drone drains. spec/host.md §3.3
	SocketFile = "drone.sock"
	LockFile   = "drone.lock" // of the process that has the directory
)

// Door is how operators reach a drone on its host: the drain file in its
// directory, and a socket there that speaks HTTP: GET /status, POST /drain and
// POST /undrain, whose bots=ID names one bot and the whole drone without.
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
	path := filepath.Join(d.Dir, SocketFile)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) { // the directory is ours: a dead one's
		return err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return err
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return errors.Join(err, l.Close())
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { d.answer(w) })
	mux.HandleFunc("POST /drain", func(w http.ResponseWriter, r *http.Request) { d.drain(w, r, true) })
	mux.HandleFunc("POST /undrain", func(w http.ResponseWriter, r *http.Request) { d.drain(w, r, false) })
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
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

func (d *Door) drain(w http.ResponseWriter, r *http.Request, on bool) {
	bots := r.URL.Query()["bots"]
	switch {
	case len(bots) > 0 && on:
		for _, id := range bots {
			d.Manager.Drain(id)
		}
	case len(bots) > 0:
		for _, id := range bots {
			d.Manager.Undrain(id)
		}
	default: // the file is what holds, after a restart too
		path := filepath.Join(d.Dir, DrainFile)
		err := os.Remove(path)
		if on {
			err = os.WriteFile(path, nil, 0o644)
		} else if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		d.look()
	}
	d.answer(w)
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
