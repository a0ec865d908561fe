package docker_test

import (
	"path/filepath"
	"testing"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/host/engine/docker"
	"github.com/skepdev/skep/host/engine/enginetest"
	"github.com/skepdev/skep/internal/stage/ownengine"
)

func TestEngine(t *testing.T) {
	e := ownengine.ForTest(t)
	if err := e.Tiny(t.Context(), "tiny:1", "1", "/bin/busybox"); err != nil {
		t.Fatal(err)
	}
	enginetest.Suite(t, e.Engine, "tiny:1")
}

// One that is not there is Unavailable, whatever is asked.
func TestNoEngine(t *testing.T) {
	e, err := docker.New("unix://"+filepath.Join(t.TempDir(), "s"), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	_, listErr := e.List(t.Context(), nil)
	_, imageErr := e.Image(t.Context(), "x")
	for what, err := range map[string]error{"ping": e.Ping(t.Context()), "list": listErr, "image": imageErr, "pull": e.Pull(t.Context(), "x"), "remove": e.Remove(t.Context(), "x")} {
		if skep.KindOf(err) != skep.Unavailable {
			t.Errorf("%s: %v (%v)", what, err, skep.KindOf(err))
		}
	}
}
