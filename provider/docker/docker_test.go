package docker_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/host/engine"
	"github.com/skepdev/skep/host/engine/enginetest"
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/provider/docker"
	"github.com/skepdev/skep/provider/providertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var ref = "registry/bot@sha256:" + strings.Repeat("a", 64)

func order(name, image string) provider.Order {
	return provider.Order{
		RequestID: uuid.NewString(), Name: name, Labels: map[string]string{provider.LabelOwner: "me"}, Server: "http://skep/",
		Attributes: provider.Attributes{Image: image},
	}
}

func TestSuiteFake(t *testing.T) {
	providertest.Run(t, providertest.Suite{Bubble: true, Fresh: func(t *testing.T) providertest.Subject {
		e := &enginetest.Fake{}
		e.Offer(ref, engine.Image{ID: "sha256:1", Names: []string{ref}})
		p := docker.New(docker.Options{Engine: e})
		t.Cleanup(p.Close)
		bad := order("bad", "registry/bot:latest")
		return providertest.Subject{Provider: p, Order: order("", ref), Bad: bad}
	}})
}

func wantClass(t *testing.T, err error, want provider.Class) {
	t.Helper()
	var e *provider.Error
	if !errors.As(err, &e) || e.Class != want {
		t.Errorf("error is %v, want class %s", err, want)
	}
}

// TestPullFails holds that a failed pull is told once, and tried again.
func TestPullFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &enginetest.Fake{}
		p := docker.New(docker.Options{Engine: e})
		defer p.Close()
		for range 2 {
			if done, err := p.Create(t.Context(), order("vm", ref)); done || err != nil {
				t.Fatal(done, err)
			}
			synctest.Wait()
			_, err := p.Create(t.Context(), order("vm", ref))
			wantClass(t, err, provider.Invalid)
		}
		e.Offer(ref, engine.Image{ID: "sha256:1", Names: []string{ref}})
		if done, err := p.Create(t.Context(), order("vm", ref)); done || err != nil {
			t.Fatal(done, err)
		}
		synctest.Wait()
		if done, err := p.Create(t.Context(), order("vm", ref)); !done || err != nil {
			t.Fatal(done, err)
		}
	})
}

// TestForeign holds that what others made is neither taken over nor removed.
func TestForeign(t *testing.T) {
	e := &enginetest.Fake{}
	e.AddImage(engine.Image{ID: "sha256:1", Names: []string{ref}})
	p := docker.New(docker.Options{Engine: e})
	defer p.Close()
	if _, err := e.Create(t.Context(), engine.Spec{Name: "database", Image: ref}); err != nil {
		t.Fatal(err)
	}
	_, err := p.Create(t.Context(), order("database", ref))
	wantClass(t, err, provider.Conflict)
	done, err := p.Delete(t.Context(), provider.Ref{Name: "database"}, "x")
	if done {
		t.Error("done")
	}
	wantClass(t, err, provider.Permission)
	if all, err := e.List(t.Context(), nil); err != nil || len(all) != 1 {
		t.Errorf("%v %v", all, err)
	}
}

// specs is an engine that keeps what it was asked to make.
type specs struct {
	engine.Engine
	last engine.Spec
}

func (s *specs) Create(ctx context.Context, spec engine.Spec) (string, error) {
	s.last = spec
	return s.Engine.Create(ctx, spec)
}

// TestOwnServer holds that a container gets what its own server vouches for and
// lets it in with, and one of another server gets neither.
func TestOwnServer(t *testing.T) {
	fake := &enginetest.Fake{}
	fake.AddImage(engine.Image{ID: "sha256:1", Names: []string{ref}})
	e := &specs{Engine: fake}
	p := docker.New(docker.Options{
		Engine: e, Servers: []string{"https://skep", "https://also.skep"}, CAFile: "/state/ca.pem", Network: "n",
		Token: func(_ context.Context, bot string) (string, error) { return "token-of-" + bot, nil },
	})
	defer p.Close()
	made := func(name, server, network string) engine.Spec {
		t.Helper()
		o := order(name, ref)
		o.Server, o.Attributes.Network, o.Attributes.Pools = server, network, []string{"a", "b"}
		if done, err := p.Create(t.Context(), o); !done || err != nil {
			t.Fatal(done, err)
		}
		if !slices.Contains(e.last.Env, "SKEP_BOT_POOLS=a,b") || !slices.Contains(e.last.Env, "SWARM_URL="+server+"/bot_code") {
			t.Errorf("environment %v", e.last.Env)
		}
		return e.last
	}
	s := made("vm-1", "https://also.skep", "")
	if !slices.Contains(s.Env, "SKEP_BOOTSTRAP_TOKEN=token-of-vm-1") || len(s.Mounts) != 1 || s.Mounts[0].Source != "/state/ca.pem" || s.Network != "n" {
		t.Errorf("%+v", s)
	}
	if s = made("vm-2", "https://elsewhere", "host"); strings.Contains(strings.Join(s.Env, " "), "token") || len(s.Mounts) != 0 || s.Network != "host" {
		t.Errorf("%+v", s)
	}
}

// TestEnded holds that a container that has ended is told as one.
func TestEnded(t *testing.T) {
	e := &enginetest.Fake{}
	e.AddImage(engine.Image{ID: "sha256:1", Names: []string{ref}})
	p := docker.New(docker.Options{Engine: e})
	defer p.Close()
	if done, err := p.Create(t.Context(), order("vm", ref)); !done || err != nil {
		t.Fatal(done, err)
	}
	c, err := e.Inspect(t.Context(), "vm")
	if err != nil {
		t.Fatal(err)
	}
	for _, ended := range []bool{false, true} {
		in, err := p.Get(t.Context(), provider.Ref{Name: "vm"})
		if err != nil || in.Ended != ended {
			t.Errorf("%+v, %v, want it to have ended: %v", in, err, ended)
		}
		e.End(c.ID, 0)
	}
}

// TestKilledBetween holds that what was made and not started is started.
func TestKilledBetween(t *testing.T) {
	e := &enginetest.Fake{}
	e.AddImage(engine.Image{ID: "sha256:1", Names: []string{ref}})
	fail := true
	e.Fail = func(call string) error {
		if call == "start" && fail {
			return skep.Errorf(skep.Unavailable, "away")
		}
		return nil
	}
	p := docker.New(docker.Options{Engine: e})
	defer p.Close()
	o := order("vm", ref)
	done, err := p.Create(t.Context(), o)
	if done {
		t.Error("done")
	}
	wantClass(t, err, provider.Transient)
	fail = false
	if done, err := p.Create(t.Context(), o); !done || err != nil {
		t.Fatal(done, err)
	}
	if c, err := e.Inspect(t.Context(), "vm"); err != nil || c.State != engine.Running {
		t.Errorf("%+v %v", c, err)
	}
}
