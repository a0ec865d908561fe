// Package content shows what content-addressed inputs and outputs promise,
// with real servers and real bots: whole trees come out as they went in
// (trees), how fast that is (speed), that kill -9 loses and leaves nothing
// (kills), that bad content is refused and writes nowhere it should not
// (hostile), and that caches keep their limits for long (soak).
package content

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// options are the flags of all demonstrations.
type options struct {
	bin   string
	short bool
	seed  uint64

	slack float64 // of speed
	kills int     // of kills
	time  time.Duration
}

// shows are the demonstrations.
var shows = map[string]func(context.Context, options) error{
	"trees":   trees,
	"speed":   speed,
	"kills":   kills,
	"hostile": hostile,
	"soak":    soak,
	"share":   share,
}

// Main runs one demonstration and returns an exit code. SKEP_SHOW=short asks
// for a brief form; SKEP_KEEP keeps what it made.
func Main(name string, args []string) int {
	o := options{short: os.Getenv("SKEP_SHOW") == "short", slack: 1, kills: 200, time: 20 * time.Minute}
	if o.short {
		o.slack, o.kills, o.time = 3, 10, 40*time.Second
	}
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.StringVar(&o.bin, "bin", "bin", "`DIR` of skep and skep-bot")
	f.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano()), "of what is drawn")
	switch name {
	case "speed":
		f.Float64Var(&o.slack, "slack", o.slack, "how many times worse than its bound a figure may be")
	case "kills":
		f.IntVar(&o.kills, "kills", o.kills, "how often a process is killed")
	case "soak":
		f.DurationVar(&o.time, "time", o.time, "how long")
	}
	if err := f.Parse(args); err != nil {
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := shows[name](ctx, o); err != nil {
		fmt.Fprintf(os.Stderr, "show %s: %v\n", name, err)
		return 1
	}
	fmt.Println("passed")
	return 0
}
