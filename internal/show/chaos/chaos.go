// Package chaos shows that kill -9 of any process at any moment loses nothing
// that was acknowledged: tasks are submitted to a real server with real bots
// while the server, the bots, their helpers and the database are killed and
// started again, and what comes out is judged from outside.
//
// What is looked at: the client's own list of acknowledged ids; one file to
// which every task appends a line when it starts and one when it ends; its
// output, which follows from its id; the bots' work directories; the process
// table. What is asked of the server are states and outputs only.
package chaos

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// The runs that there are.
const (
	engineSQLite   = "sqlite"
	enginePostgres = "postgres"
	engineUp       = "up" // skep up on SQLite, killed itself
)

// options are the flags.
type options struct {
	engines []string
	seed    uint64
	keep    bool
	bin     string
	short   bool
}

// Main runs the demonstration and returns 0 when nothing was found wrong.
// SKEP_SHOW=short makes it brief; SKEP_TEST_REQUIRE=postgres makes a missing
// PostgreSQL a failure.
func Main(args []string) int {
	o, err := parse(args, os.Stderr)
	if err != nil {
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := show(ctx, o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		return 1
	}
	return 0
}

func parse(args []string, stderr io.Writer) (options, error) {
	o := options{short: os.Getenv("SKEP_SHOW") == "short"}
	f := flag.NewFlagSet("chaos", flag.ContinueOnError)
	f.SetOutput(stderr)
	engines := f.String("engines", strings.Join([]string{engineSQLite, enginePostgres, engineUp}, ","), "what to run")
	f.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano()), "chooses victims, order and moments")
	f.BoolVar(&o.keep, "keep", false, "keep the directories of all runs, not only of failed ones")
	f.StringVar(&o.bin, "bin", "", "`DIR` of skep, skep-bot and work, the tasks' command; what is not there is built there")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	o.engines = strings.Split(*engines, ",")
	for _, e := range o.engines {
		if !slices.Contains([]string{engineSQLite, enginePostgres, engineUp}, e) {
			err := fmt.Errorf("-engines: %q is not sqlite, postgres or up", e)
			fmt.Fprintln(stderr, err)
			return o, err
		}
	}
	return o, nil
}

// show does all runs and prints what they found.
func show(ctx context.Context, o options, out io.Writer) error {
	if _, err := marked("/nothing is marked like this"); err != nil {
		return fmt.Errorf("this demonstration reads the process table of Linux: %w", err)
	}
	prog, clean, err := o.programs(ctx)
	if err != nil {
		return err
	}
	defer clean()
	if o.short {
		fmt.Fprintln(out, "The bounds of time are wider than those promised: this finds what broke, not what is slow.")
	}
	fmt.Fprintf(out, "chaos: seed %d\n", o.seed)
	bad := 0
	for _, engine := range o.engines {
		rep, err := o.one(ctx, engine, prog)
		if errors.Is(err, errSkipped) {
			fmt.Fprintf(out, "\n%s: SKIPPED: %v\n", engine, err)
			continue
		}
		if rep != nil {
			rep.print(out)
			bad += len(rep.violations)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", engine, err)
		}
	}
	if bad > 0 {
		return fmt.Errorf("%d violations", bad)
	}
	return nil
}

// programs finds or builds the executables; clean removes what was built only
// for this run.
func (o options) programs(ctx context.Context) (_ programs, clean func(), err error) {
	dir, clean := o.bin, func() {}
	if dir == "" {
		if dir, err = os.MkdirTemp("", "skep-chaos-bin-"); err != nil {
			return programs{}, nil, err
		}
		clean = func() { _ = os.RemoveAll(dir) }
		if err := os.Chmod(dir, 0o755); err != nil { // tasks may be other users
			clean()
			return programs{}, nil, err
		}
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return programs{}, nil, err
	}
	p, err := build(ctx, dir)
	if err != nil {
		clean()
		return programs{}, nil, err
	}
	return p, clean, nil
}

// errSkipped says that a run cannot be done here and need not.
var errSkipped = errors.New("not installed")

// longest bounds one run, whatever hangs.
const longest = 4 * time.Minute

// one does one run in a directory of its own.
func (o options) one(ctx context.Context, engine string, prog programs) (_ *report, err error) {
	limit := longest
	if o.short { // on a machine that has other work
		limit *= 3
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	root, err := os.MkdirTemp("", "skep-chaos-")
	if err != nil {
		return nil, err
	}
	if root, err = filepath.EvalSymlinks(root); err != nil { // as the process table shows it
		return nil, err
	}
	var rep *report
	defer func() {
		if o.keep || err != nil && !errors.Is(err, errSkipped) || rep != nil && len(rep.violations) > 0 {
			fmt.Fprintf(os.Stderr, "chaos: logs and state of %s are in %s\n", engine, root)
			return
		}
		_ = os.RemoveAll(root)
	}()
	rng := rand.New(rand.NewPCG(o.seed, uint64(len(engine))))
	form := o.form(engine, rng)
	begun := time.Now()
	fl, err := newFleet(root, form, prog, rng)
	if err != nil {
		return nil, err
	}
	if err := o.equip(ctx, engine, fl); err != nil {
		return nil, err
	}
	before, err := marked(root)
	if err != nil {
		return nil, err
	}
	e, err := fl.run(ctx)
	if e != nil {
		rep = newReport(engine, e, fl, len(before), time.Since(begun))
	}
	return rep, err
}

// equip makes what the fleet of an engine consists of.
func (o options) equip(ctx context.Context, engine string, fl *fleet) error {
	switch engine {
	case engineUp:
		fl.addUp()
		return nil
	case enginePostgres:
		bin, err := postgresHome(ctx)
		if err != nil {
			if strings.Contains(os.Getenv("SKEP_TEST_REQUIRE"), "postgres") {
				return err
			}
			return fmt.Errorf("%w: %w", errSkipped, err)
		}
		var dsn string
		if fl.database, dsn, err = newDatabase(ctx, bin, fl.path("pg"), fl.path("log", "postgres")); err != nil {
			return err
		}
		fl.addServer(dsn)
	default:
		fl.addServer("")
	}
	return fl.addBots()
}

func (o options) form(engine string, rng *rand.Rand) form {
	switch {
	case engine == engineUp:
		return upForm(o.short, rng)
	case o.short:
		return shortForm(engine, rng)
	default:
		return longForm(engine, rng)
	}
}
