package enginetest

import (
	"testing"

	"github.com/skepdev/skep/host/engine"
)

func TestFake(t *testing.T) {
	f := &Fake{Output: "hello\n"}
	f.AddImage(engine.Image{ID: "sha256:1", Names: []string{"tiny:1"}})
	Suite(t, f, "tiny:1")
}
