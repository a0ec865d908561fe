package bot

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"time"
)

// twice is the time within which a second SIGTERM means "stop now".
const twice = 3 * time.Second

// HandleSignals obeys signals until ctx ends (decisions.md 2): SIGTERM drains,
// two within 3 s or SIGINT stop. Where they exist, SIGUSR1 writes all stacks to
// the log and SIGUSR2 a diagnostic bundle into dir/logs; the bot goes on.
func (b *Bot) HandleSignals(ctx context.Context) {
	c := make(chan os.Signal, 8)
	signal.Notify(c, allSignals...)
	go func() {
		defer signal.Stop(c)
		b.obey(ctx, c)
	}()
}

func (b *Bot) obey(ctx context.Context, c <-chan os.Signal) {
	var last time.Time
	for {
		var sig os.Signal
		select {
		case <-ctx.Done():
			return
		case sig = <-c:
		}
		switch {
		case isSignal(sig, termSignals):
			now := time.Now()
			if !last.IsZero() && now.Sub(last) <= twice {
				b.Stop("SIGTERM was received twice")
				continue
			}
			last = now
			b.Drain("SIGTERM was received")
		case isSignal(sig, stopSignals):
			b.Stop("SIGINT was received")
		case isSignal(sig, stackSignals):
			LogStacks(b.log)
		case isSignal(sig, bundleSignals):
			b.contain(b.writeBundle) // a broken one must not make the bot deaf
		}
	}
}

func (b *Bot) writeBundle() {
	path, err := b.Bundle()
	if err != nil {
		b.log.Error("diagnostic bundle", "err", err)
		return
	}
	b.log.Info("diagnostic bundle written", "path", path)
}

func isSignal(s os.Signal, set []os.Signal) bool {
	for _, o := range set {
		if s == o {
			return true
		}
	}
	return false
}

// LogStacks writes the stacks of all goroutines to log.
func LogStacks(log *slog.Logger) {
	log.Error("stacks of all goroutines\n" + string(Stacks()))
}

// Stacks returns the stacks of all goroutines as text.
func Stacks() []byte {
	for n := 64 << 10; ; n *= 4 {
		buf := make([]byte, n)
		if m := runtime.Stack(buf, true); m < n || n > 16<<20 {
			return bytes.TrimSpace(buf[:m])
		}
	}
}
