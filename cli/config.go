package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/skepdev/skep/api/skeppb"
	"github.com/skepdev/skep/config"
)

// newConfigCommand groups what is done with a configuration directory.
func newConfigCommand(env *Env) *cobra.Command {
	cmd := group("config", "Check and show the configuration")
	cmd.AddCommand(newConfigValidateCommand(env), newConfigShowCommand(env), newConfigTestHookCommand(env))
	return cmd
}

// newConfigValidateCommand prints every fault of a directory.
func newConfigValidateCommand(env *Env) *cobra.Command {
	var o outputFlags
	cmd := &cobra.Command{
		Use:   "validate DIR",
		Short: "Check a configuration directory",
		Long: "Check a configuration directory as the server would, and print every fault as FILE:LINE: FIELD: what is wrong.\n\n" +
			"Exit codes: 0 it is valid, 1 it is not or cannot be read.",
		Example: "  skep config validate /etc/skep",
		Args:    exactly("a directory"),
		RunE: env.action(func(_ context.Context, _ *cobra.Command, args []string) error {
			snap, err := config.ReadDir(args[0])
			var faults config.Faults
			if err != nil && !errors.As(err, &faults) {
				return err
			}
			type fault struct {
				File  string `json:"file"`
				Line  int    `json:"line,omitempty"`
				Field string `json:"field,omitempty"`
				Text  string `json:"text"`
			}
			out := struct {
				Valid  bool    `json:"valid"`
				Digest string  `json:"digest,omitempty"`
				Faults []fault `json:"faults"`
			}{Valid: err == nil, Faults: []fault{}}
			for _, f := range faults {
				out.Faults = append(out.Faults, fault{f.File, f.Line, f.Field, f.Text})
			}
			if err == nil {
				out.Digest = snap.Digest()
			}
			if o.format != "json" {
				for _, f := range faults {
					fmt.Fprintln(env.Stdout, strings.Map(printable, f.Error()))
				}
				if err == nil {
					fmt.Fprintf(env.Stdout, "%s is valid: %s\n", args[0], describe(stateOf(snap, nil)))
				}
			} else if err := writeJSON(env.Stdout, "-", out); err != nil {
				return err
			}
			if len(faults) > 0 {
				return fmt.Errorf("%s: %s", args[0], counted(len(faults), "fault"))
			}
			return nil
		}),
	}
	o.register(cmd)
	return cmd
}

// newConfigShowCommand prints the configuration of a directory, or of the
// server with what it refuses.
func newConfigShowCommand(env *Env) *cobra.Command {
	var conn connection
	var o outputFlags
	cmd := &cobra.Command{
		Use:   "show [DIR]",
		Short: "Show the configuration of a server, or of a directory",
		Long: "Show the configuration that a server follows, and the changes that it refuses and why; or that of a directory.\n\n" +
			"Exit codes: 0 it is followed as it is, 1 a change is refused or nothing can be shown.",
		Example: "  skep config show\n  skep config show /etc/skep -o json",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageErrorf(cmd, "%s takes at most one directory", cmd.CommandPath())
			}
			return nil
		},
		RunE: env.action(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			state, err := configState(ctx, env, &conn, args)
			if err != nil {
				return err
			}
			err = o.emit(env.Stdout, "table", func() (any, error) { return protoJSON(state) }, func(w *tableWriter) { configTable(w, state) })
			if err != nil {
				return err
			}
			if n := slices.IndexFunc(state.Files, func(f *skeppb.ConfigFile) bool { return f.RefusedSince != nil }); n >= 0 {
				return fmt.Errorf("changes are refused; the last good configuration stays")
			}
			return nil
		}),
	}
	o.register(cmd)
	conn.register(cmd)
	return cmd
}

func configState(ctx context.Context, env *Env, conn *connection, args []string) (*skeppb.ConfigState, error) {
	if len(args) == 1 {
		snap, err := config.ReadDir(args[0])
		if err != nil {
			for line := range strings.Lines(err.Error()) {
				fmt.Fprintln(env.Stderr, strings.Map(printable, strings.TrimSpace(line)))
			}
			return nil, fmt.Errorf("%s is not valid", args[0])
		}
		return stateOf(snap, nil), nil
	}
	f, err := conn.open(env)
	if err != nil {
		return nil, err
	}
	return f.GetConfig(ctx)
}

func configTable(w *tableWriter, s *skeppb.ConfigState) {
	if s.Digest == "" {
		w.row("no configuration directory: every pool exists, and every bot with a token may come in")
		return
	}
	w.row("digest", s.Digest)
	pools := strings.Join(s.Pools, " ")
	if !slices.ContainsFunc(s.Files, func(f *skeppb.ConfigFile) bool { return f.Name == "pools.cfg" }) {
		pools = "(every pool exists)"
	}
	w.row("pools", pools)
	w.row("bot groups", fmt.Sprint(s.BotGroups))
	if len(s.MachinePools) > 0 {
		w.row("machine pools", strings.Join(s.MachinePools, " "))
	}
	for _, o := range s.Owners {
		w.row("owners of "+o.Of, strings.Join(o.Names, " "))
	}
	for _, f := range s.Files {
		state := "followed"
		if f.RefusedSince != nil {
			state = "REFUSED since " + f.RefusedSince.AsTime().Local().Format(time.DateTime)
		}
		w.row(f.Name, f.Sha256, state)
		for _, fault := range f.Faults {
			w.row("  " + fault)
		}
	}
}

// stateOf puts a configuration, and what is refused, into the API's words.
func stateOf(snap *config.Snapshot, refused []config.Refusal) *skeppb.ConfigState {
	s := &skeppb.ConfigState{Digest: snap.Digest(), Pools: snap.Pools(), BotGroups: int32(len(snap.Groups()))}
	byName := map[string]*skeppb.ConfigFile{}
	for name, content := range snap.Files() {
		sum := sha256.Sum256([]byte(content))
		byName[name] = &skeppb.ConfigFile{Name: name, Sha256: hex.EncodeToString(sum[:])}
	}
	for _, r := range refused {
		f := byName[r.File]
		if f == nil {
			f = &skeppb.ConfigFile{Name: r.File}
			byName[r.File] = f
		}
		f.RefusedSince = timestamppb.New(r.Since)
		for _, fault := range r.Faults {
			f.Faults = append(f.Faults, fault.Error())
		}
	}
	for _, f := range byName {
		s.Files = append(s.Files, f)
	}
	for _, name := range s.Pools {
		if who := snap.Pool(name).Owners; len(who) > 0 {
			s.Owners = append(s.Owners, &skeppb.Owners{Of: "pool " + name, Names: who})
		}
	}
	for _, m := range snap.Machines() {
		s.MachinePools = append(s.MachinePools, m.Prefix)
		if len(m.Owners) > 0 {
			s.Owners = append(s.Owners, &skeppb.Owners{Of: "machines " + m.Prefix, Names: m.Owners})
		}
	}
	slices.Sort(s.MachinePools)
	for _, g := range snap.Groups() {
		if len(g.Owners) > 0 {
			s.Owners = append(s.Owners, &skeppb.Owners{Of: fmt.Sprintf("bots.cfg:%d", g.Line), Names: g.Owners})
		}
	}
	slices.SortFunc(s.Files, func(a, b *skeppb.ConfigFile) int { return strings.Compare(a.Name, b.Name) })
	return s
}

// describe is one line about a configuration.
func describe(s *skeppb.ConfigState) string {
	what := []string{counted(len(s.Files), "file"), counted(len(s.Pools), "pool"), counted(int(s.BotGroups), "bot group")}
	if n := len(s.MachinePools); n > 0 {
		what = append(what, counted(n, "machine pool"))
	}
	return strings.Join(append(what, "digest "+s.Digest), ", ")
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
