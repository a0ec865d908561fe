package ownengine

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/skepdev/skep/internal/need"
)

// ForTest starts an engine that ends with the test, which is skipped where there
// can be none. The directory around Engine.Dir is for what else the test needs:
// its path is short.
func ForTest(t *testing.T) *Engine {
	t.Helper()
	if why := Missing(); why != "" {
		need.Skip(t, "docker", why)
	}
	dir, err := os.MkdirTemp("/var/tmp", "skep-engine-") //nolint:usetesting // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	e, err := Start(t.Context(), filepath.Join(dir, "d"))
	if errors.Is(err, errEnded) { // it does when its containerd had no turn for 15 s
		t.Log(err)
		e, err = Start(t.Context(), filepath.Join(dir, "e"))
	}
	if err != nil {
		need.Skip(t, "docker", err.Error())
	}
	t.Cleanup(func() {
		if err := e.Stop(); err != nil {
			t.Error(err)
		}
	})
	return e
}
