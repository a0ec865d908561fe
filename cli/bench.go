package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skepdev/skep/bench"
)

// newBenchCommand measures this machine's skep (decisions.md 31).
func newBenchCommand(env *Env) *cobra.Command {
	var out outputFlags
	var opts bench.Options
	var db storeFlags
	var large byteSize
	cmd := &cobra.Command{
		Use:   "bench CASE [flags]",
		Short: "Measure skep on this machine",
		Long: "Measure skep on this machine.\n\n" +
			"dispatch   from submitting a task to its command's first instruction, on an idle bot\n" +
			"lifecycle  durable task lifecycles per second, with simulated bots over HTTP\n" +
			"overhead   what a bot adds to a task, and real tasks per second\n" +
			"cas        archive, cold download and warm inputs: a tree of small files and a large file\n" +
			"pool       from asking a warm pool for a container to having it\n" +
			"cleanroom  what a task costs more in a container of a warm pool\n" +
			"refill     how long a slot of skep host is without a container\n" +
			"idle       memory and processor time of a server with many waiting bots, and of an idle bot\n\n" +
			"A case starts what it needs beside whatever runs on this machine, and leaves nothing behind.\n" +
			"Read its figures as multiples of the yardsticks, which are measured in the same minute.",
		Example:           "  skep bench dispatch\n  skep bench lifecycle -o json",
		Args:              exactly("CASE"),
		ValidArgs:         bench.Cases(),
		ValidArgsFunction: cobra.FixedCompletions(bench.Cases(), cobra.ShellCompDirectiveNoFileComp),
		RunE: env.action(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			if !slices.Contains(bench.Cases(), args[0]) {
				return usageErrorf(cmd, "there is no case %q", args[0])
			}
			if args[0] == "lifecycle" {
				dsn, err := db.dsn(env, "")
				if err != nil {
					return err
				}
				if strings.HasPrefix(dsn, "postgres") {
					opts.DB = dsn
				}
			}
			if isTerminal(env.Stderr) {
				opts.Progress = env.Stderr
			}
			opts.Large = int64(large)
			rep, err := bench.Run(ctx, args[0], opts)
			if err != nil {
				return err
			}
			return out.emit(env.Stdout, "table", func() (any, error) { return rep, nil }, func(t *tableWriter) { printReport(t, rep) })
		}),
	}
	f := cmd.Flags()
	out.register(cmd)
	f.IntVarP(&opts.N, "samples", "n", 0, "how many `SAMPLES` to take, at least 300 but for cas, cleanroom and refill, which take 3, 100 and 40 (default: what the case's time allows)")
	f.IntVar(&opts.Bots, "bots", 0, "how many simulated bots: lifecycle (default 64), idle (default 10000)")
	f.Var(&large, "large", "`SIZE` of the large file of cas (default 1GiB)")
	f.StringVar(&db.db, "db", "", "postgres `URL` for lifecycle; a schema is made there and dropped (default $SKEP_DB, or SQLite)")
	f.StringVar(&opts.BotDir, "bot-dir", "", "`DIR` with skep-bot executables (default: where skep lies)")
	f.StringVar(&opts.Dir, "dir", "", "`DIR` for temporary files, on a disk")
	f.StringArrayVar(&opts.ServerArgs, "server-arg", nil, "`ARGUMENT` for the server under test; repeatable")
	_ = f.MarkHidden("server-arg")
	_ = cmd.MarkFlagDirname("bot-dir")
	_ = cmd.MarkFlagDirname("dir")
	return cmd
}

// printReport prints a report for people: the figure, then what it is read
// against, then what else was found.
func printReport(t *tableWriter, r *bench.Report) {
	y := r.Yardsticks
	t.row(r.Case, figure(r.Median)+" "+r.Unit, "median of "+strconv.Itoa(r.N))
	t.row("", figure(r.P99)+" "+r.Unit, "p99")
	t.row("yardsticks", figure(y.ForkExec)+" ms", "fork+exec of /bin/true")
	t.row("", figure(y.Fsync4K)+" ms", "4 KiB write+fsync")
	t.row("", figure(y.HTTPRTT)+" ms", "loopback HTTP round trip")
	for _, key := range slices.Sorted(maps.Keys(r.Extra)) {
		b, err := json.Marshal(r.Extra[key])
		var v any
		if err == nil {
			err = json.Unmarshal(b, &v)
		}
		if err != nil {
			continue
		}
		m, ok := v.(map[string]any)
		if !ok {
			t.row(key, plain(v), "")
			continue
		}
		for _, sub := range slices.Sorted(maps.Keys(m)) {
			t.row(key, plain(m[sub]), sub)
			key = ""
		}
	}
}

// plain is a value of a report on one line.
func plain(v any) string {
	switch v := v.(type) {
	case float64:
		return figure(v)
	case map[string]any:
		var parts []string
		for _, k := range slices.Sorted(maps.Keys(v)) {
			parts = append(parts, k+" "+plain(v[k]))
		}
		return strings.Join(parts, ", ")
	default:
		return fmt.Sprint(v)
	}
}

// figure prints three digits that count, and whole numbers whole.
func figure(v float64) string {
	switch {
	case v == math.Trunc(v) || math.Abs(v) >= 1000:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case math.Abs(v) >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	default:
		return strconv.FormatFloat(v, 'f', 3, 64)
	}
}
