package runner

import (
	"github.com/skepdev/skep/internal/proc"
	"github.com/skepdev/skep/runner/early"
)

// startedEarly returns the run_isolated that was started before anything else,
// nil when none was.
func startedEarly() *isolated {
	c := early.Child
	if c == nil {
		return nil
	}
	return &isolated{
		p:     proc.Started(c.Pid),
		words: inherited(uintptr(c.Words), "words"), output: inherited(uintptr(c.Output), "output"), news: inherited(uintptr(c.News), "news"),
	}
}
