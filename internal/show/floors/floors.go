// Package floors measures what a machine of two cores must reach and judges
// it: speed of dispatch, bots and server, and what waiting costs. Each figure
// comes from a case of skep bench.
package floors

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/skepdev/skep/bench"
	"github.com/skepdev/skep/internal/show/chaos"
	"github.com/skepdev/skep/internal/show/form"
)

// options are the flags.
type options struct {
	bin   string
	slack float64
	tries int
	only  []string
}

// Main measures, prints and judges; it returns 0 when every floor is reached.
// SKEP_SHOW=short takes the fewest samples and judges with much slack, as on a
// slow machine shared with others: it finds what broke, the long form finds
// what is slow. SKEP_TEST_POSTGRES names a PostgreSQL; without it one is
// started for the purpose.
func Main(args []string) int {
	o := options{slack: 1, tries: 2}
	if form.Short() {
		o.slack, o.tries = 6, 3
	}
	f := flag.NewFlagSet("floors", flag.ContinueOnError)
	f.StringVar(&o.bin, "bin", "bin", "`DIR` of skep and skep-bot")
	f.Float64Var(&o.slack, "slack", o.slack, "how many times worse than its floor a figure may be")
	f.IntVar(&o.tries, "tries", o.tries, "how often a case is measured until it reaches its floors")
	only := f.String("only", strings.Join(names(), ","), "which `CASES` to measure")
	if err := f.Parse(args); err != nil {
		return 2
	}
	o.only = strings.Split(*only, ",")
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := show(ctx, o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "floors:", err)
		return 1
	}
	return 0
}

// measured is one run of bench with the floors that it is held to.
type measured struct {
	name   string // as -only takes it
	bench  string // case
	db     bool   // on PostgreSQL
	floors []floor
}

// floor is one figure and its bound.
type floor struct {
	what  string
	unit  string
	least bool // bound is the least that it may be, else the most
	bound func(*bench.Report) float64
	get   func(*bench.Report) (float64, bool)
}

func at(v float64) func(*bench.Report) float64 { return func(*bench.Report) float64 { return v } }

// forks is a multiple of what fork+exec takes on this machine now.
func forks(n float64) func(*bench.Report) float64 {
	return func(r *bench.Report) float64 { return n * r.Yardsticks.ForkExec }
}

func median(r *bench.Report) (float64, bool) { return r.Median, true }
func p99(r *bench.Report) (float64, bool)    { return r.P99, true }

// extra is a number of a report's Extra, below further names in maps.
func extra(path ...string) func(*bench.Report) (float64, bool) {
	return func(r *bench.Report) (float64, bool) { return r.Number(path...) }
}

// all is what issue 1 asks for.
var all = []measured{
	{"dispatch", "dispatch", false, []floor{
		{"submit to first instruction, started ahead, median (10 × fork+exec)", "ms", false, forks(10), median},
		{"the same, p99", "ms", false, at(50), p99},
		{"not started ahead, median (20 × fork+exec)", "ms", false, forks(20), extra("no_start_ahead_ms", "median")},
	}},
	{"overhead", "overhead", false, []floor{
		{"bot overhead of a task, median", "ms", false, at(20), median},
		{"/bin/true tasks through 4 bots", "1/s", true, at(100), extra("tasks_per_s")},
	}},
	{"sqlite", "lifecycle", false, []floor{
		{"durable lifecycles, SQLite", "1/s", true, at(2500), extra("lifecycles_per_s")},
	}},
	{"postgres", "lifecycle", true, []floor{
		{"durable lifecycles, PostgreSQL", "1/s", true, at(1500), extra("lifecycles_per_s")},
	}},
	{"idle", "idle", false, []floor{
		{"server with 10,000 waiting bots", "MiB", false, at(400), median},
		{"idle bot with the next task's processes, PSS", "MiB", false, at(25), extra("idle_bot_mib", "pss")},
		{"skep-bot with its configuration", "MiB", false, at(15), extra("skep_bot_size_mib")},
	}},
}

func names() []string {
	var out []string
	for _, m := range all {
		out = append(out, m.name)
	}
	return out
}

func show(ctx context.Context, o options, out io.Writer) error {
	dsn, end, err := database(ctx, o)
	if err != nil {
		return err
	}
	defer func() {
		if err := end(); err != nil {
			fmt.Fprintln(out, err)
		}
	}()
	if o.slack != 1 {
		fmt.Fprintf(out, "The floors are wider than those promised, by %g ×: this finds what broke, not what is slow.\n", o.slack)
	}
	m := bench.Machine()
	fmt.Fprintf(out, "%s, %d cores, %s, %s\n", m.CPU, m.Cores, m.Kernel, m.Go)
	missed := 0
	for _, c := range all {
		if !slices.Contains(o.only, c.name) {
			continue
		}
		n, err := o.measure(ctx, c, dsn, out)
		if err != nil {
			return err
		}
		missed += n
	}
	if missed > 0 {
		return fmt.Errorf("%d floors are not reached", missed)
	}
	return nil
}

// database returns a PostgreSQL to measure on.
func database(ctx context.Context, o options) (dsn string, end func() error, err error) {
	none := func() error { return nil }
	if dsn = os.Getenv("SKEP_TEST_POSTGRES"); dsn != "" || !slices.Contains(o.only, "postgres") {
		return dsn, none, nil
	}
	dir, err := os.MkdirTemp("", "skep-floors-")
	if err != nil {
		return "", nil, err
	}
	remove := func() error { return os.RemoveAll(dir) }
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", nil, errors.Join(err, remove())
	}
	dsn, stop, err := chaos.PrivatePostgres(ctx, filepath.Join(dir, "pg"))
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("PostgreSQL: %w; name one in SKEP_TEST_POSTGRES, or leave it out: -only", err), remove())
	}
	return dsn, func() error { return errors.Join(stop(), remove()) }, nil
}

// measure runs one case until it reaches its floors or has had its tries, and
// returns how many of them the last try missed.
func (o *options) measure(ctx context.Context, c measured, dsn string, out io.Writer) (missed int, err error) {
	opts := bench.Options{Exe: filepath.Join(o.bin, "skep"), BotDir: o.bin}
	if c.db {
		opts.DB = dsn
	}
	for try := 1; try <= o.tries; try++ {
		start := time.Now()
		rep, err := bench.Run(ctx, c.bench, opts)
		if err != nil && form.Short() && ctx.Err() == nil { // a try without a figure
			fmt.Fprintf(out, "\n%s: try %d of %d: %v\n", c.name, try, o.tries, err)
			missed = len(c.floors)
			continue
		}
		if err != nil {
			return 0, err
		}
		y := rep.Yardsticks
		fmt.Fprintf(out, "\n%s: n = %d, %.0f s; fork+exec %.2f ms, 4 KiB write+fsync %.2f ms, HTTP round trip %.3f ms; %s %s\n",
			c.name, rep.N, time.Since(start).Seconds(), y.ForkExec, y.Fsync4K, y.HTTPRTT, rep.Extra["engine"], settings(rep))
		missed = 0
		t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
		for _, f := range c.floors {
			if !f.judge(t, rep, o.slack) {
				missed++
			}
		}
		if err := t.Flush(); err != nil {
			return 0, err
		}
		if missed == 0 {
			break
		}
	}
	return missed, nil
}

// settings tells how durable a commit was.
func settings(r *bench.Report) string {
	m, _ := r.Extra["durability"].(map[string]string)
	var out []string
	for k, v := range m {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// judge prints one line and reports whether the floor is reached.
func (f *floor) judge(t io.Writer, r *bench.Report, slack float64) bool {
	got, ok := f.get(r)
	bound, sign := f.bound(r)*slack, "≤"
	if f.least {
		bound, sign = f.bound(r)/slack, "≥"
	}
	reached := ok && (cmp.Compare(got, bound) <= 0) != f.least || ok && got == bound
	verdict := "reached"
	if !reached {
		verdict = "MISSED"
	}
	fmt.Fprintf(t, "%.2f\t%s %.2f\t%s\t  %s\t  %s\t\n", got, sign, bound, f.unit, verdict, f.what)
	return reached
}
