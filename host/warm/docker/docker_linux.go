// Package docker makes warm containers with a Docker Engine. Root of a room is
// nobody on the host here too, which takes an engine that maps users
// (dockerd --userns-remap): the rooms' ids are the engine's.
package docker

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/host/engine"
	"github.com/skepdev/skep/host/engine/docker"
	"github.com/skepdev/skep/host/room"
	"github.com/skepdev/skep/host/warm"
)

// Runtime is a Docker Engine.
type Runtime struct {
	Host string // of the engine, "unix:///…"; "" = docker.DefaultHost

	engine *docker.Engine
	first  uint32 // id on the host that root of its containers is

	mu     sync.Mutex
	images map[string]string // id by digest of the base image
}

// Name implements warm.Runtime.
func (r *Runtime) Name() string { return "docker" }

// Check implements warm.Runtime.
func (r *Runtime) Check(ctx context.Context) (err error) {
	host := r.Host
	if host == "" {
		host = docker.DefaultHost
	}
	if r.engine == nil {
		if r.engine, err = docker.New(host, 0); err != nil {
			return err
		}
	}
	if r.first, err = r.engine.Remap(ctx); err != nil {
		kind := skep.Precondition
		if engine.Hung(err) {
			kind = skep.Unavailable
		}
		return skep.Errorf(kind, "the container engine at %s, see --engine: %w", host, err)
	}
	if r.first == 0 {
		return skep.Errorf(skep.Precondition, "root of a container is root of the host with the container engine at %s; start dockerd with --userns-remap, or take the runtime oci", host)
	}
	return nil
}

// FirstID is the id on the host that root of a room is. Check must have been
// called.
func (r *Runtime) FirstID() uint32 { return r.first }

// Close gives the engine's connections up.
func (r *Runtime) Close() error {
	if r.engine == nil {
		return nil
	}
	return r.engine.Close()
}

// repository names the images of pools, by digest.
const repository = "skep-warm-base"

// image returns the engine's image of a base, which it may have to be given.
func (r *Runtime) image(ctx context.Context, base warm.Base) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if id := r.images[base.Digest]; id != "" {
		return id, nil
	}
	ref := repository + ":" + strings.TrimPrefix(base.Digest, "sha256:")
	i, err := r.engine.Image(ctx, ref)
	if skep.KindOf(err) == skep.NotFound {
		archive, oerr := base.Open()
		if oerr != nil {
			return "", oerr
		}
		defer archive.Close()
		if err := r.engine.Import(ctx, archive, ref); err != nil {
			return "", err
		}
		i, err = r.engine.Image(ctx, ref)
	}
	if err != nil {
		return "", err
	}
	if r.images == nil {
		r.images = map[string]string{}
	}
	r.images[base.Digest] = i.ID
	r.prune(ctx, ref)
	return i.ID, nil
}

// prune removes images of pools that are not in use, but keep.
func (r *Runtime) prune(ctx context.Context, keep string) {
	all, err := r.engine.Images(ctx)
	if err != nil {
		return // the next start tries again
	}
	for _, i := range all {
		for _, name := range i.Names {
			if engine.Repository(name) == repository && name != keep {
				_ = r.engine.RemoveImage(ctx, name) // a conflict while a container is of it
			}
		}
	}
}

// Start implements warm.Runtime.
func (r *Runtime) Start(ctx context.Context, s *warm.Spec) error {
	if s.FirstID != r.first {
		return skep.Errorf(skep.Precondition, "root of the engine's containers is user %d of the host, and the pool's would be %d; start it with --first-id %[1]d", r.first, s.FirstID)
	}
	image, err := r.image(ctx, s.From)
	if err != nil {
		return err
	}
	network := "none"
	if s.HostNetwork {
		network = "host" // an engine that maps users refuses it, and says so
	}
	id, err := r.engine.Create(ctx, engine.Spec{
		Name: s.Name, Hostname: hostname(s), Image: image, Network: network, Capabilities: warm.Capabilities, LogLimit: 64 << 10,
		Command: []string{filepath.Join(room.Dir, room.ProgramName), room.Word}, Env: []string{"GOMAXPROCS=1"},
		Mounts: []engine.Mount{{Source: s.Run, Target: room.Dir, ReadOnly: true}},
	})
	if err != nil {
		return err
	}
	if err := r.engine.Start(ctx, id); err != nil {
		return err
	}
	// The room says that it is up; that it ended, only the engine does.
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		select {
		case <-s.Greeted:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
		c, err := r.engine.Inspect(ctx, id)
		if err != nil {
			return err
		}
		if c.State != engine.Running {
			said, _ := r.engine.Log(ctx, id, 600)
			return fmt.Errorf("the container's first process has ended with exit code %d: %s", c.ExitCode, strings.TrimSpace(string(said)))
		}
	}
}

// hostname is the room's own, where it has a network and so a name.
func hostname(s *warm.Spec) string {
	if s.HostNetwork {
		return ""
	}
	return "room"
}

// Remove implements warm.Runtime.
func (r *Runtime) Remove(ctx context.Context, s *warm.Spec) error {
	return r.engine.Remove(ctx, s.Name)
}
