// Package docker speaks to a Docker Engine over its socket, with the engine's
// own client. Any version from 19.03 (API 1.40) will do.
package docker

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/host/engine"
)

// DefaultHost is where an engine listens unless told otherwise.
const DefaultHost = "unix:///var/run/docker.sock"

// Engine is a Docker Engine.
type Engine struct {
	c       *client.Client
	timeout time.Duration
}

var _ engine.Engine = (*Engine)(nil)

// New returns the engine at host, "unix:///…". It is not asked anything yet.
// timeout bounds each call; 0 = engine.Timeout.
func New(host string, timeout time.Duration) (*Engine, error) {
	c, err := client.New(client.WithHost(host), client.WithUserAgent("skep"))
	if err != nil {
		return nil, skep.Errorf(skep.Invalid, "container engine %q: %v", host, err)
	}
	if timeout == 0 {
		timeout = engine.Timeout
	}
	return &Engine{c: c, timeout: timeout}, nil
}

// Close gives its connections up.
func (e *Engine) Close() error { return e.c.Close() }

// call runs one request within its deadline and says what kind its error is.
func (e *Engine) call(ctx context.Context, what string, do func(context.Context) error) error {
	own, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	err := do(own)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", what, ctx.Err())
	case own.Err() != nil:
		return skep.Errorf(skep.Unavailable, "%s: the container engine did not answer within %v", what, e.timeout)
	}
	return kinded(what, err)
}

func kinded(what string, err error) error {
	kind := skep.Internal
	var dial *net.OpError
	switch {
	case errdefs.IsNotFound(err):
		kind = skep.NotFound
	case errdefs.IsConflict(err):
		kind = skep.Conflict
	case errdefs.IsInvalidArgument(err):
		kind = skep.Invalid
	case client.IsErrConnectionFailed(err), errors.As(err, &dial), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errdefs.IsUnavailable(err):
		kind = skep.Unavailable
	}
	if kind == skep.Internal {
		return fmt.Errorf("%s: %w", what, err)
	}
	return skep.Errorf(kind, "%s: %v", what, err)
}

// Ping implements engine.Engine.
func (e *Engine) Ping(ctx context.Context) error {
	return e.call(ctx, "ping", func(ctx context.Context) error {
		_, err := e.c.Ping(ctx, client.PingOptions{})
		return err
	})
}

func filters(labels map[string]string) client.Filters {
	f := client.Filters{}
	for k, v := range labels {
		f = f.Add("label", k+"="+v)
	}
	return f
}

// List implements engine.Engine.
func (e *Engine) List(ctx context.Context, labels map[string]string) ([]engine.Container, error) {
	var list []engine.Container
	err := e.call(ctx, "list containers", func(ctx context.Context) error {
		res, err := e.c.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: filters(labels)})
		for _, c := range res.Items {
			name := ""
			if len(c.Names) > 0 {
				name = strings.TrimPrefix(c.Names[0], "/")
			}
			list = append(list, engine.Container{
				ID: c.ID, Name: name, State: engine.State(c.State), Labels: c.Labels, ImageID: c.ImageID, Created: time.Unix(c.Created, 0),
			})
		}
		return err
	})
	return list, err
}

// Inspect implements engine.Engine.
func (e *Engine) Inspect(ctx context.Context, id string) (c engine.Container, err error) {
	err = e.call(ctx, "inspect container "+short(id), func(ctx context.Context) error {
		res, err := e.c.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
		if err != nil {
			return err
		}
		got := res.Container
		c = engine.Container{ID: got.ID, Name: strings.TrimPrefix(got.Name, "/"), ImageID: got.Image, Created: instant(got.Created)}
		if got.Config != nil {
			c.Labels = got.Config.Labels
		}
		if s := got.State; s != nil {
			c.State, c.PID, c.ExitCode, c.OOMKilled, c.Error = engine.State(s.Status), s.Pid, s.ExitCode, s.OOMKilled, s.Error
			c.Started, c.Ended = instant(s.StartedAt), instant(s.FinishedAt)
		}
		return nil
	})
	return c, err
}

// instant reads the engine's stamps; it writes the year 1 for never.
func instant(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil || t.Year() <= 1 {
		return time.Time{}
	}
	return t
}

func short(id string) string { return id[:min(len(id), 12)] }

// Create implements engine.Engine.
func (e *Engine) Create(ctx context.Context, s engine.Spec) (id string, err error) {
	host := &container.HostConfig{NetworkMode: container.NetworkMode(s.Network), ExtraHosts: s.ExtraHosts}
	if s.LogLimit > 0 {
		host.LogConfig = container.LogConfig{Type: "json-file", Config: map[string]string{"max-size": strconv.FormatInt(s.LogLimit, 10), "max-file": "2"}}
	}
	for _, m := range s.Mounts {
		host.Mounts = append(host.Mounts, mount.Mount{Type: mount.TypeBind, Source: m.Source, Target: m.Target, ReadOnly: m.ReadOnly})
	}
	for _, d := range s.Devices {
		host.Devices = append(host.Devices, container.DeviceMapping{PathOnHost: d, PathInContainer: d, CgroupPermissions: "rwm"})
	}
	if s.Capabilities != nil {
		host.CapDrop, host.CapAdd = []string{"ALL"}, s.Capabilities
	}
	err = e.call(ctx, "create container "+s.Name, func(ctx context.Context) error {
		res, err := e.c.ContainerCreate(ctx, client.ContainerCreateOptions{
			Name:       s.Name,
			Config:     &container.Config{Hostname: s.Hostname, Image: s.Image, Labels: s.Labels, Env: s.Env, Cmd: s.Command, StopSignal: s.StopSignal},
			HostConfig: host,
		})
		id = res.ID
		return err
	})
	return id, err
}

// Start implements engine.Engine.
func (e *Engine) Start(ctx context.Context, id string) error {
	return e.call(ctx, "start container "+short(id), func(ctx context.Context) error {
		_, err := e.c.ContainerStart(ctx, id, client.ContainerStartOptions{})
		return err
	})
}

// Unpause implements engine.Engine.
func (e *Engine) Unpause(ctx context.Context, id string) error {
	return e.call(ctx, "unpause container "+short(id), func(ctx context.Context) error {
		_, err := e.c.ContainerUnpause(ctx, id, client.ContainerUnpauseOptions{})
		return err
	})
}

// Signal implements engine.Engine.
func (e *Engine) Signal(ctx context.Context, id, signal string) error {
	return e.call(ctx, "signal container "+short(id), func(ctx context.Context) error {
		_, err := e.c.ContainerKill(ctx, id, client.ContainerKillOptions{Signal: signal})
		return err
	})
}

// Remove implements engine.Engine.
func (e *Engine) Remove(ctx context.Context, id string) error {
	err := e.call(ctx, "remove container "+short(id), func(ctx context.Context) error {
		_, err := e.c.ContainerRemove(ctx, id, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
		return err
	})
	if skep.KindOf(err) == skep.NotFound {
		return nil
	}
	return err
}

// Log implements engine.Engine.
func (e *Engine) Log(ctx context.Context, id string, limit int) ([]byte, error) {
	t := tail{limit: limit}
	err := e.call(ctx, "log of container "+short(id), func(ctx context.Context) error {
		r, err := e.c.ContainerLogs(ctx, id, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true})
		if err != nil {
			return err
		}
		defer r.Close()
		return t.read(r)
	})
	t.trim()
	return t.last, err
}

// tail keeps the end of a log.
type tail struct {
	limit int
	last  []byte
}

// read takes frames, an eight byte head (stream, size) before each piece, to
// their end.
func (t *tail) read(r io.Reader) error {
	var head [8]byte
	piece := make([]byte, 32<<10)
	for {
		if _, err := io.ReadFull(r, head[:]); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		for left := int64(binary.BigEndian.Uint32(head[4:])); left > 0; {
			n, err := r.Read(piece[:min(left, int64(len(piece)))])
			t.add(piece[:n])
			left -= int64(n)
			if err != nil && left > 0 {
				return io.ErrUnexpectedEOF
			}
		}
	}
}

func (t *tail) add(b []byte) {
	t.last = append(t.last, b...)
	if len(t.last) > 2*t.limit { // not at every piece
		t.trim()
	}
}

func (t *tail) trim() {
	if over := len(t.last) - t.limit; over > 0 {
		t.last = append(t.last[:0], t.last[over:]...)
	}
}

// Image implements engine.Engine.
func (e *Engine) Image(ctx context.Context, ref string) (i engine.Image, err error) {
	err = e.call(ctx, "look for image "+ref, func(ctx context.Context) error {
		res, err := e.c.ImageInspect(ctx, ref)
		if err != nil {
			return err
		}
		i = engine.Image{ID: res.ID, Names: append(res.RepoTags, res.RepoDigests...), Created: instant(res.Created)}
		if res.Config != nil {
			i.Labels = res.Config.Labels
		}
		return nil
	})
	return i, err
}

// Images implements engine.Engine.
func (e *Engine) Images(ctx context.Context) ([]engine.Image, error) {
	var list []engine.Image
	err := e.call(ctx, "list images", func(ctx context.Context) error {
		res, err := e.c.ImageList(ctx, client.ImageListOptions{})
		for _, i := range res.Items {
			list = append(list, engine.Image{ID: i.ID, Names: append(i.RepoTags, i.RepoDigests...), Labels: i.Labels, Created: time.Unix(i.Created, 0)})
		}
		return err
	})
	return list, err
}

// Pull implements engine.Engine.
func (e *Engine) Pull(ctx context.Context, ref string) error {
	r, err := e.c.ImagePull(ctx, ref, client.ImagePullOptions{})
	if err == nil {
		defer r.Close()
		err = r.Wait(ctx)
	}
	if err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("pull %s: %w", ref, ctx.Err())
		}
		return kinded("pull "+ref, err)
	}
	return nil
}

// Import makes an image called ref of a tar archive of a root file system, plain
// or compressed. It takes as long as ctx allows.
func (e *Engine) Import(ctx context.Context, archive io.Reader, ref string) error {
	r, err := e.c.ImageImport(ctx, client.ImageImportSource{Source: archive, SourceName: "-"}, ref, client.ImageImportOptions{})
	if err != nil {
		return kinded("import "+ref, err)
	}
	defer r.Close()
	for d := json.NewDecoder(r); ; { // one object a step; a late error is one of them
		var step struct {
			Error string `json:"error"`
		}
		switch err := d.Decode(&step); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return kinded("import "+ref, err)
		case step.Error != "":
			return fmt.Errorf("import %s: %s", ref, step.Error)
		}
	}
}

// Remap returns the id on the host that root of a container is, user and group
// alike, or 0 when it is root.
func (e *Engine) Remap(ctx context.Context) (first uint32, err error) {
	err = e.call(ctx, "ask how users are mapped", func(ctx context.Context) error {
		res, err := e.c.Info(ctx, client.InfoOptions{})
		if err != nil || !slices.ContainsFunc(res.Info.SecurityOptions, func(o string) bool { return strings.HasPrefix(o, "name=userns") }) {
			return err
		}
		// The engine tells only by the name of the directory that it keeps for them.
		uid, gid, _ := strings.Cut(filepath.Base(res.Info.DockerRootDir), ".")
		n, err := strconv.ParseUint(uid, 10, 32)
		if err != nil || uid != gid {
			return fmt.Errorf("the engine maps users, and its directory %s does not say to which", res.Info.DockerRootDir)
		}
		first = uint32(n)
		return nil
	})
	return first, err
}

// Tag implements engine.Engine.
func (e *Engine) Tag(ctx context.Context, ref, name string) error {
	return e.call(ctx, "tag image "+ref, func(ctx context.Context) error {
		_, err := e.c.ImageTag(ctx, client.ImageTagOptions{Source: ref, Target: name})
		return err
	})
}

// RemoveImage implements engine.Engine.
func (e *Engine) RemoveImage(ctx context.Context, ref string) error {
	err := e.call(ctx, "remove image "+ref, func(ctx context.Context) error {
		_, err := e.c.ImageRemove(ctx, ref, client.ImageRemoveOptions{PruneChildren: true})
		return err
	})
	if skep.KindOf(err) == skep.NotFound {
		return nil
	}
	return err
}

// Events implements engine.Engine.
func (e *Engine) Events(ctx context.Context, labels map[string]string, ready func()) iter.Seq2[engine.Event, error] {
	return func(yield func(engine.Event, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		res := e.c.Events(ctx, client.EventsListOptions{Filters: filters(labels).Add("type", string(events.ContainerEventType))})
		if ready != nil {
			ready()
		}
		for {
			select {
			case m := <-res.Messages:
				if !yield(engine.Event{Container: m.Actor.ID, Action: string(m.Action), Labels: m.Actor.Attributes}, nil) {
					return
				}
			case err := <-res.Err:
				if ctx.Err() == nil {
					yield(engine.Event{}, kinded("events", err))
				}
				return
			}
		}
	}
}
