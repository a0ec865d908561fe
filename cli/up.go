package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/skepdev/skep/host/supervise"
)

// newUpCommand: a server and its bots on this machine (decisions.md 2, 4, 22).
func newUpCommand(env *Env) *cobra.Command {
	var flags serverFlags
	var bots int
	cmd := &cobra.Command{
		Use:   "up [flags]",
		Short: "Run a whole fleet on this machine",
		Long: "Run a whole fleet on this machine: a server and its bots.\n\n" +
			"Ctrl-C lets the bots finish what they run and then ends; a second Ctrl-C cancels what they run.\n" +
			"Bots outlive a killed skep up, with their tasks; the next one takes them over. Starting again resumes.",
		Example: "  skep up\n  skep run -- sh -c 'echo hi; exit 3'    # in a second terminal",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if bots < 0 {
				return usageErrorf(cmd, "--bots must not be negative")
			}
			s, err := openService(cmd.Context(), env, &flags, "none")
			if err != nil {
				return err
			}
			crew, err := newCrew(cmd.Context(), env, s, bots)
			if err != nil {
				s.close()
				return err
			}
			return (&fleetUp{env: env, service: s, bots: crew, want: bots}).run(cmd.Context())
		},
	}
	flags.register(cmd)
	cmd.Flags().IntVar(&bots, "bots", 4, "how many bots to keep running")
	return cmd
}

// fleetUp is one skep up.
type fleetUp struct {
	env     *Env
	service *service
	bots    *supervise.Supervisor
	want    int
}

// run serves until the user ends it: the first interrupt drains the bots, the
// second stops them, the third leaves them.
func (u *fleetUp) run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	served := make(chan error, 1)
	go func() { served <- u.service.run(ctx) }()
	left := make(chan struct{})     // closed when no bot is left
	draining := make(chan struct{}) // closed by the first interrupt
	go func() {
		defer close(left)
		_ = u.bots.Run(ctx) // only says that ctx ended
		if m := u.service.machines; m != nil && ctx.Err() == nil {
			select {
			case <-draining:
				_ = m.local.Wait(ctx) // likewise
			case <-ctx.Done():
			}
		}
	}()
	ready := make(chan int, 1)
	go func() { ready <- u.awaitBots(ctx) }()

	ending := 0
	for {
		select {
		case n := <-ready:
			u.service.announce(ctx, u.env, fmt.Sprintf(" with %s; try: %s", count(n, "bot"), u.firstTask()))
		case err := <-served: // by itself: the bots stay for the next skep up
			stop()
			<-left
			if err == nil {
				err = errors.New("the server ended")
			}
			return err
		case <-u.env.Interrupts:
			switch ending++; ending {
			case 1:
				fmt.Fprintln(u.env.Stderr, "skep: draining; bots finish what they run, a second Ctrl-C cancels it")
				u.bots.Drain()
				if m := u.service.machines; m != nil {
					m.local.DrainAll()
				}
				close(draining)
				go func() { <-left; stop() }()
			case 2:
				fmt.Fprintln(u.env.Stderr, "skep: stopping")
				u.bots.Stop()
				if m := u.service.machines; m != nil {
					m.local.StopAll()
				}
			default:
				return &exitError{code: exitCanceled, err: errors.New("left; bots that still run are taken over by the next skep up")}
			}
		case <-ctx.Done():
			<-left
			if err := <-served; err != nil {
				return err
			}
			if ending == 0 {
				return ctx.Err()
			}
			return nil
		}
	}
}

// count is a number of things in words for people.
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// firstTask is a command line that works in a second terminal: with the program
// as this one was called, which need not be on the PATH.
func (u *fleetUp) firstTask() string {
	words := []string{cmp.Or(u.env.Program, "skep"), "run"}
	if url := u.service.door.urls[0]; url != defaultServer {
		words = append(words, "-S", url)
	}
	return quoteCommand(append(words, "--", "echo", "hi"))
}

const (
	readyPatience = 5 * time.Second
	readyLook     = 10 * time.Millisecond
)

// awaitBots waits, not for long, until the server knows every bot, and returns
// how many it knows. A first skep run then finds one. A bot that was taken
// over is known already: it comes back when it next has something to say.
func (u *fleetUp) awaitBots(ctx context.Context) int {
	want := u.want
	has := u.bots.Has
	if m := u.service.machines; m != nil {
		want += m.wantedHere(u.service.config)
		has = func(id string) bool { return u.bots.Has(id) || m.local.Has(id) }
	}
	ctx, cancel := context.WithTimeout(ctx, readyPatience)
	defer cancel()
	for {
		n := 0
		if bots, err := u.service.store.BotsAfter(ctx, "", pageSize); err == nil {
			for _, b := range bots {
				if !b.Dead && has(string(b.ID)) {
					n++
				}
			}
		}
		if n >= want || sleep(ctx, readyLook) != nil {
			return n
		}
	}
}
