package bot

import "sync"

// FakeBot is a Bot for tests: it runs until something stops it. Use NewFakeBot
// or the zero value.
type FakeBot struct {
	// DrainFunc is called by Drain; nil = the bot stops.
	DrainFunc func(*FakeBot) error
	// TerminateFunc is called by TerminateOrKill; nil = the bot stops.
	TerminateFunc func(*FakeBot) error

	once sync.Once // makes done
	stop sync.Once
	done chan struct{}
	err  error
}

// NewFakeBot returns a running bot.
func NewFakeBot() *FakeBot { return &FakeBot{} }

func (b *FakeBot) ended() chan struct{} {
	b.once.Do(func() { b.done = make(chan struct{}) })
	return b.done
}

// Wait implements Bot.
func (b *FakeBot) Wait() error {
	<-b.ended()
	return b.err
}

// Drain implements Bot.
func (b *FakeBot) Drain() error {
	if b.DrainFunc != nil {
		return b.DrainFunc(b)
	}
	b.Stop()
	return nil
}

// TerminateOrKill implements Bot.
func (b *FakeBot) TerminateOrKill() error {
	if b.TerminateFunc != nil {
		return b.TerminateFunc(b)
	}
	b.Stop()
	return nil
}

// Stop ends the bot; Wait then returns nil. Stopping it again does nothing.
func (b *FakeBot) Stop() { b.StopWith(nil) }

// StopWith ends the bot; Wait then returns err.
func (b *FakeBot) StopWith(err error) {
	b.stop.Do(func() {
		b.err = err
		close(b.ended())
	})
}
