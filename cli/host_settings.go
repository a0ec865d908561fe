package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/spf13/cobra"

	"github.com/skepdev/skep/host/launch"
)

// hostSettings are the launcher's, which a file may change while it runs.
type hostSettings struct {
	flags   launch.Settings
	current atomic.Pointer[launch.Settings]
}

// hostFile is the form of --settings. A field that is missing is the flag's.
type hostFile struct {
	Slots          *int    `json:"num_containers"`
	Image          *string `json:"image"`
	MaxAge         *int    `json:"max_container_uptime"` // minutes
	MaxUnavailable *int    `json:"max_unavailable"`
}

func (f *hostFlags) liveSettings(cmd *cobra.Command) (*hostSettings, error) {
	s := &hostSettings{flags: launch.Settings{
		Slots: f.slots, Image: f.image, MaxAge: time.Duration(f.maxAge) * time.Minute, MaxUnavailable: f.maxUnavailable,
		Deadline: f.deadline, StopGrace: f.stopGrace, RefreshImage: f.refresh, Deadlines: map[launch.Cause]time.Duration{},
		MaxHostAge: time.Duration(f.maxHostAge) * time.Minute, RebootGrace: time.Duration(f.rebootGrace) * time.Minute,
	}}
	if s.flags.Image == "" {
		s.flags.Image = "gcr.io/" + f.registry + "/" + f.imageName
	}
	for cause, text := range f.deadlines {
		d, err := time.ParseDuration(text)
		known := false
		for _, c := range launch.Causes {
			known = known || string(c) == cause
		}
		if err != nil || !known {
			return nil, usageErrorf(cmd, "--drain-deadline-for is %s=%s, want one of %v and a duration", cause, text, launch.Causes)
		}
		s.flags.Deadlines[launch.Cause(cause)] = d
	}
	s.current.Store(&s.flags)
	if f.settings == "" {
		return s, nil
	}
	return s, s.read(f.settings)
}

func (s *hostSettings) now() launch.Settings { return *s.current.Load() }

// read takes the file over whole, or not at all.
func (s *hostSettings) read(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var file hostFile
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&file); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	next := s.flags
	var errs []error
	number := func(name string, from *int, least, most int, set func(int)) {
		switch {
		case from == nil:
		case *from < least || *from > most:
			errs = append(errs, fmt.Errorf("%s: %s is %d, want %d to %d", path, name, *from, least, most))
		default:
			set(*from)
		}
	}
	number("num_containers", file.Slots, 0, 1000, func(n int) { next.Slots = n })
	number("max_container_uptime", file.MaxAge, 0, 525600, func(n int) { next.MaxAge = time.Duration(n) * time.Minute })
	number("max_unavailable", file.MaxUnavailable, 1, 1000, func(n int) { next.MaxUnavailable = n })
	if file.Image != nil {
		next.Image = *file.Image
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	s.current.Store(&next)
	return nil
}

// follow returns what reads the file again whenever it changes, until ctx ends.
// A file that is not valid leaves the last settings in force.
func (s *hostSettings) follow(path string, changed func(), log *slog.Logger) (func(context.Context), error) {
	if path == "" {
		return func(context.Context) {}, nil
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	if err := w.Add(filepath.Dir(path)); err != nil { // editors replace the file
		_ = w.Close()
		return nil, err
	}
	return func(ctx context.Context) {
		defer w.Close()
		for {
			select {
			case <-ctx.Done():
				return
			case ev := <-w.Events:
				if filepath.Base(ev.Name) != filepath.Base(path) || ev.Has(fsnotify.Chmod) {
					continue
				}
			case _, ok := <-w.Errors: // events were lost
				if !ok {
					return
				}
			}
			if err := s.read(path); err != nil {
				log.WarnContext(ctx, "settings refused, the last ones stay", "err", err)
				continue
			}
			changed()
		}
	}, nil
}
