package enginetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/host/engine"
)

// Suite is what engine.Engine promises. image is a local image that, with the
// command of Sleeps, writes "hello" and goes on for ever; nothing else uses it.
func Suite(t *testing.T, e engine.Engine, image string) {
	ctx := t.Context()
	labels := map[string]string{"dev.skep.enginetest": fmt.Sprint(time.Now().UnixNano())}
	spec := engine.Spec{Name: "enginetest", Image: image, Labels: labels, Command: Sleeps, Network: "none"}
	kind := func(what string, err error, want skep.Kind) {
		t.Helper()
		if err == nil || skep.KindOf(err) != want {
			t.Errorf("%s: %v (%v), want %v", what, err, skep.KindOf(err), want)
		}
	}
	ok := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	ok("ping", e.Ping(ctx))

	// Images.
	i, err := e.Image(ctx, image)
	ok("image", err)
	if i.ID == "" || !slices.Contains(i.Names, image) {
		t.Errorf("image %s: %+v", image, i)
	}
	if same, err := e.Image(ctx, i.ID); err != nil || same.ID != i.ID {
		t.Errorf("image by its id: %+v, %v", same, err)
	}
	_, err = e.Image(ctx, "enginetest-nowhere:1")
	kind("an image that is not here", err, skep.NotFound)
	all, err := e.Images(ctx)
	ok("images", err)
	if !slices.ContainsFunc(all, func(o engine.Image) bool { return o.ID == i.ID && slices.Contains(o.Names, image) }) {
		t.Errorf("images lack %s: %+v", image, all)
	}
	if err := e.Pull(ctx, "127.0.0.1:1/enginetest-nowhere:1"); err == nil {
		t.Error("an image that is nowhere was pulled")
	}
	ok("remove an image that is not here", e.RemoveImage(ctx, "enginetest-nowhere:1"))

	// What does not exist.
	_, err = e.Inspect(ctx, "enginetest-nobody")
	kind("inspect nobody", err, skep.NotFound)
	kind("signal nobody", e.Signal(ctx, "enginetest-nobody", "SIGKILL"), skep.NotFound)
	kind("start nobody", e.Start(ctx, "enginetest-nobody"), skep.NotFound)
	_, err = e.Log(ctx, "enginetest-nobody", 10)
	kind("log of nobody", err, skep.NotFound)
	ok("remove nobody", e.Remove(ctx, "enginetest-nobody"))
	other := spec
	other.Image = "enginetest-nowhere:1"
	_, err = e.Create(ctx, other)
	kind("create of an image that is not here", err, skep.NotFound)

	// A life.
	watched, end := context.WithCancel(ctx)
	defer end()
	ready := make(chan struct{})
	events := make(chan engine.Event, 1000)
	go func() {
		defer close(events)
		for ev, err := range e.Events(watched, labels, func() { close(ready) }) {
			if err != nil {
				return
			}
			events <- ev
		}
	}()
	<-ready
	id, err := e.Create(ctx, spec)
	ok("create", err)
	defer func() { _ = e.Remove(context.WithoutCancel(ctx), id) }()
	_, err = e.Create(ctx, spec)
	kind("a second of the name", err, skep.Conflict)
	state := func(want engine.State) engine.Container {
		t.Helper()
		list, err := e.List(ctx, labels)
		ok("list", err)
		if len(list) != 1 || list[0].ID != id || list[0].Name != spec.Name || list[0].State != want || list[0].ImageID != i.ID || !has(list[0].Labels, labels) || list[0].Created.IsZero() {
			t.Fatalf("list: %+v, want one that is %s", list, want)
		}
		c, err := e.Inspect(ctx, id)
		ok("inspect", err)
		if c.ID != id || c.Name != spec.Name || c.State != want || c.ImageID != i.ID || !has(c.Labels, labels) {
			t.Fatalf("inspect: %+v, want %s", c, want)
		}
		return c
	}
	if c := state(engine.Created); !c.Started.IsZero() || !c.Ended.IsZero() || c.PID != 0 {
		t.Errorf("never started: %+v", c)
	}
	if list, err := e.List(ctx, map[string]string{"dev.skep.enginetest": "another"}); err != nil || len(list) != 0 {
		t.Errorf("with other labels: %+v, %v", list, err)
	}
	kind("signal to what does not run", e.Signal(ctx, id, "SIGKILL"), skep.Conflict)
	ok("start", e.Start(ctx, id))
	ok("start again", e.Start(ctx, id))
	if c := state(engine.Running); c.Started.IsZero() || !c.Ended.IsZero() || c.PID == 0 {
		t.Errorf("started: %+v", c)
	}
	kind("remove an image in use", e.RemoveImage(ctx, image), skep.Conflict)
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) { // it runs before it writes
		log, err := e.Log(ctx, id, 1<<10)
		ok("log", err)
		if strings.Contains(string(log), "hello") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("log: %q", log)
		}
	}
	ok("signal", e.Signal(ctx, id, "SIGKILL"))
	die := func() {
		t.Helper()
		for {
			select {
			case ev, more := <-events:
				if !more {
					t.Fatal("the events ended")
				}
				if ev.Action == "die" && ev.Container == id && has(ev.Labels, labels) {
					return
				}
			case <-time.After(30 * time.Second):
				t.Fatal("no event of the end")
			}
		}
	}
	die()
	if c := state(engine.Exited); c.ExitCode != 137 || c.Ended.IsZero() || c.PID != 0 {
		t.Errorf("killed: %+v", c)
	}
	if log, err := e.Log(ctx, id, 1<<10); err != nil || !strings.Contains(string(log), "hello") {
		t.Errorf("log: %q, %v", log, err)
	}
	if log, err := e.Log(ctx, id, 3); err != nil || len(log) != 3 {
		t.Errorf("the last 3 bytes of the log: %q, %v", log, err)
	}
	ok("start anew", e.Start(ctx, id))
	ok("remove what runs", e.Remove(ctx, id))
	die()
	_, err = e.Inspect(ctx, id)
	kind("inspect what was removed", err, skep.NotFound)
	ok("remove again", e.Remove(ctx, id))

	// Whoever does not wait any more is told so.
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := e.List(gone, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("list for nobody: %v", err)
	}
	// A second name keeps it.
	kind("tag what is not here", e.Tag(ctx, "enginetest-nowhere:1", "enginetest-second:1"), skep.NotFound)
	ok("tag", e.Tag(ctx, image, "enginetest-second:1"))
	ok("remove the image's first name", e.RemoveImage(ctx, image))
	_, err = e.Image(ctx, image)
	kind("the removed name", err, skep.NotFound)
	if same, err := e.Image(ctx, "enginetest-second:1"); err != nil || same.ID != i.ID {
		t.Errorf("image by its second name: %+v, %v", same, err)
	}
	ok("remove the image", e.RemoveImage(ctx, "enginetest-second:1"))
	_, err = e.Image(ctx, i.ID)
	kind("the removed image", err, skep.NotFound)
}

// Sleeps is the command of the suite's containers.
var Sleeps = []string{"sh", "-c", "echo hello; exec /bin/busybox sleep 1000"}
