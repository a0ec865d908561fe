//go:build unix

package proc

// Seat is a thread that has entered a View and waits to fork one process
// there, so that the process starts sooner. A nil Seat is a fresh thread.
type Seat struct {
	work chan func()
	err  error // why the view cannot be had; known when work is taken
}

// NewSeat begins to enter v on a thread of its own. Mounts made from now on
// are not part of it. Whoever does not use the Seat calls Leave.
func NewSeat(v *View) *Seat {
	s := &Seat{work: make(chan func())}
	onThread(func() {
		s.err = v.enter()
		if f, ok := <-s.work; ok {
			f()
		}
	})
	return s
}

// Leave gives up a Seat that no process was started on.
func (s *Seat) Leave() {
	if s != nil {
		close(s.work)
	}
}

// run runs f on the thread.
func (s *Seat) run(f func()) {
	if s == nil {
		onThread(f)
		return
	}
	s.work <- f
}
