package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/skepdev/skep/api/providerpb"
	"github.com/skepdev/skep/api/providerpb/instancespb"
	"github.com/skepdev/skep/api/skeppb"
	"github.com/skepdev/skep/provider/machine"
)

// newProviderCommand groups what is done with pools of machines.
func newProviderCommand(env *Env) *cobra.Command {
	cmd := group("provider", "Look at pools of machines, and steer them")
	cmd.Long = "Look at pools of machines, and steer them. What pools there are is declared in vms.cfg of the server's configuration\n" +
		"directory; skep server and skep up look after them, or skep provider run. See docs/provider.md."
	cmd.AddCommand(
		newProviderRunCommand(env), newProviderStatusCommand(env), newProviderVMsCommand(env), newProviderConfigCommand(env), newProviderResizeCommand(env),
		newProviderVerb(env, "drain POOL|MACHINE…", "Let machines go after their tasks; a pool keeps none until it is undrained", func(ctx context.Context, f *fleet, name string) (*skeppb.MachineResponse, error) {
			return f.DrainMachine(ctx, name)
		}),
		newProviderVerb(env, "undrain POOL…", "Take the drain of a pool back", func(ctx context.Context, f *fleet, name string) (*skeppb.MachineResponse, error) {
			return f.UndrainMachine(ctx, name)
		}),
		newProviderVerb(env, "replace POOL|MACHINE…", "Replace machines after their tasks; of a pool those that are outdated", func(ctx context.Context, f *fleet, name string) (*skeppb.MachineResponse, error) {
			return f.ReplaceMachine(ctx, name)
		}),
		newProviderReleaseCommand(env), newProviderStepCommand(env),
	)
	return cmd
}

func newProviderStatusCommand(env *Env) *cobra.Command {
	var conn connection
	var o outputFlags
	cmd := &cobra.Command{
		Use:   "status [POOL]",
		Short: "Show how pools of machines do",
		Long: "Show how pools of machines do: how many are wanted, exist, have a bot that is alive, are on their way out, are kept\n" +
			"stopped, are of an older shape; why none can be made, if so, and how long it may take until there are as many as are\n" +
			"wanted.\n\n" +
			"Exit codes: 0 nothing fails, 1 a pool fails or nothing can be shown.",
		Args: atMostOne("a pool"),
		RunE: env.action(func(ctx context.Context, _ *cobra.Command, args []string) error {
			f, err := conn.open(env)
			if err != nil {
				return err
			}
			st, err := f.MachineStatus(ctx, strings.Join(args, ""))
			if err != nil {
				return err
			}
			if len(args) == 1 && len(st.Pools) == 0 {
				return noPool(args[0])
			}
			err = o.emit(env.Stdout, "table", func() (any, error) { return protoJSON(st) }, func(w *tableWriter) { providerTable(w, st) })
			if err != nil {
				return err
			}
			if slices.ContainsFunc(st.Pools, func(p *skeppb.MachinePool) bool { return p.Failure != nil }) {
				return errors.New("machines cannot be made")
			}
			return nil
		}),
	}
	o.register(cmd)
	conn.register(cmd)
	return cmd
}

func noPool(prefix string) error { return fmt.Errorf("no pool of machines: %q", prefix) }

func atMostOne(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 {
			return usageErrorf(cmd, "%s takes at most %s", cmd.CommandPath(), what)
		}
		return nil
	}
}

func providerTable(w *tableWriter, st *skeppb.StatusResponse) {
	w.row("POOL", "KIND", "CONFIGURED", "CREATED", "CONNECTED", "BUSY", "DRAINING", "STOPPED", "OUTDATED", "STATE")
	for _, p := range st.Pools {
		w.row(p.Prefix, p.Kind, fmt.Sprint(p.Configured), fmt.Sprint(p.Created), fmt.Sprint(p.Connected), fmt.Sprint(p.Busy),
			fmt.Sprint(p.Draining), fmt.Sprint(p.Stopped), fmt.Sprint(p.Outdated), poolState(p))
	}
	for _, a := range st.Audits {
		if a.Leaks > 0 {
			w.row(fmt.Sprintf("%s %s %s: %s without a record at the last look, to go when no bot works there", a.Kind, a.Project, a.Zone, counted(int(a.Leaks), "instance")))
		}
	}
}

// poolState is what is to say about a pool besides its numbers.
func poolState(p *skeppb.MachinePool) string {
	var words []string
	switch {
	case p.Removed:
		words = append(words, "removed")
	case p.Held:
		words = append(words, "drained")
	case p.Replacing:
		words = append(words, "outdated ones are replaced")
	}
	if p.Away {
		words = append(words, "the server on "+p.Host+" is away")
	}
	if f := p.Failure; f != nil {
		text := fmt.Sprintf("%s: %s", f.Class, cmp.Or(f.Text, f.Reason))
		if p.PausedUntil != nil {
			text += ", again at " + p.PausedUntil.AsTime().Local().Format(time.TimeOnly)
		}
		words = append(words, oneLine(text))
	}
	for _, z := range p.FullZones {
		words = append(words, "no room in "+z.Zone+" until "+z.Until.AsTime().Local().Format(time.TimeOnly))
	}
	if p.ExpectedWait != nil {
		words = append(words, "as many as wanted in about "+max(p.ExpectedWait.AsDuration(), time.Second).String()) // 0 = less than a second
	}
	return cmp.Or(strings.Join(words, ", "), "ok")
}

func newProviderVMsCommand(env *Env) *cobra.Command {
	var conn connection
	var o outputFlags
	var filter string
	cmd := &cobra.Command{
		Use:   "vms [POOL]",
		Short: "List machines",
		Long: "List machines, of all pools or of one.\n\n" +
			"A filter is conditions joined by AND: instances.disks.image=NAME, instances.zone=NAME, instances.drained=true,\n" +
			"instances.outdated=true, instances.created>=TIME, instances.created<TIME.",
		Example: "  skep provider vms linux --filter 'instances.outdated=true AND instances.zone=us-central1-a'",
		Args:    atMostOne("a pool"),
		RunE: env.action(func(ctx context.Context, _ *cobra.Command, args []string) error {
			f, err := conn.open(env)
			if err != nil {
				return err
			}
			all := &instancespb.ListResponse{Prefix: strings.Join(args, "")}
			for token := ""; ; {
				res, err := f.ListMachines(ctx, &instancespb.ListRequest{Prefix: all.Prefix, Filter: filter, PageToken: token})
				if err != nil {
					return err
				}
				all.Instances = append(all.Instances, res.Instances...)
				if token = res.NextPageToken; token == "" {
					break
				}
			}
			if all.Prefix != "" && len(all.Instances) == 0 {
				st, err := f.MachineStatus(ctx, all.Prefix)
				if err != nil {
					return err
				}
				if len(st.Pools) == 0 {
					return noPool(all.Prefix)
				}
			}
			return o.emit(env.Stdout, "table", func() (any, error) { return protoJSON(all) }, func(w *tableWriter) {
				w.row("MACHINE", "NAME", "STATE", "PLACE", "CREATED", "END", "NOTE")
				for _, v := range all.Instances {
					var notes []string
					if v.Drained {
						notes = append(notes, "drained")
					}
					if v.Outdated {
						notes = append(notes, "outdated")
					}
					created, end := "-", "-"
					if v.Created != nil {
						at := v.Created.AsTime().Local()
						created, end = at.Format(time.DateTime), at.Add(time.Duration(v.Lifetime)*time.Second).Format(time.DateTime)
					}
					place := strings.Trim(v.Project+"/"+v.Zone, "/")
					w.row(v.Id, v.Hostname, v.State, cmp.Or(place, "-"), created, end, cmp.Or(strings.Join(notes, ", "), "-"))
				}
			})
		}),
	}
	cmd.Flags().StringVar(&filter, "filter", "", "`CONDITIONS` joined by AND")
	o.register(cmd)
	conn.register(cmd)
	return cmd
}

func newProviderConfigCommand(env *Env) *cobra.Command {
	var conn connection
	cmd := &cobra.Command{
		Use:   "config [POOL]",
		Short: "Show pools as they are declared, as JSON",
		Args:  atMostOne("a pool"),
		RunE: env.action(func(ctx context.Context, _ *cobra.Command, args []string) error {
			f, err := conn.open(env)
			if err != nil {
				return err
			}
			var m proto.Message
			if len(args) == 1 {
				m, err = f.GetMachinePool(ctx, args[0])
			} else {
				m, err = f.ListMachinePools(ctx, &providerpb.ListRequest{})
			}
			if err != nil {
				return err
			}
			v, err := protoJSON(m)
			if err != nil {
				return err
			}
			return writeJSON(env.Stdout, "-", v)
		}),
	}
	conn.register(cmd)
	return cmd
}

func newProviderResizeCommand(env *Env) *cobra.Command {
	var conn connection
	var amount int32
	cmd := &cobra.Command{
		Use:   "resize POOL --amount N",
		Short: "Set how many machines a pool aims for, within what is declared",
		Args:  exactly("a pool"),
		RunE: env.action(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			if !cmd.Flags().Changed("amount") {
				return usageErrorf(cmd, "--amount is required")
			}
			f, err := conn.open(env)
			if err != nil {
				return err
			}
			p, err := f.UpdateMachinePool(ctx, &providerpb.UpdateRequest{
				Id: args[0], Config: &providerpb.Config{CurrentAmount: amount}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"config.current_amount"}},
			})
			if err != nil {
				return err
			}
			why := ""
			switch {
			case len(p.Duts) > 0:
				why = ", one for each device"
			case p.CurrentAmount != amount:
				why = fmt.Sprintf(": %d is not within what is declared now", amount)
			}
			f.notef("pool %s aims for %s%s", args[0], counted(int(p.CurrentAmount), "machine"), why)
			return nil
		}),
	}
	cmd.Flags().Int32Var(&amount, "amount", 0, "how many")
	conn.register(cmd)
	return cmd
}

// newProviderVerb tells pools or machines something.
func newProviderVerb(env *Env, use, short string, do func(context.Context, *fleet, string) (*skeppb.MachineResponse, error)) *cobra.Command {
	var conn connection
	verb, _, _ := strings.Cut(use, " ")
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageErrorf(cmd, "%s needs a pool or a machine", cmd.CommandPath())
			}
			return nil
		},
		RunE: env.action(func(ctx context.Context, _ *cobra.Command, args []string) error {
			f, err := conn.open(env)
			if err != nil {
				return err
			}
			var errs []error
			for _, name := range args {
				res, err := do(ctx, f, name)
				switch {
				case err != nil:
					errs = append(errs, fmt.Errorf("%s %s: %w", verb, name, err))
				case res.Done:
					f.notef("%s: %s is under way", name, verb)
				default:
					f.notef("%s: nothing to do", name)
				}
			}
			return errors.Join(errs...)
		}),
	}
	conn.register(cmd)
	return cmd
}

func newProviderReleaseCommand(env *Env) *cobra.Command {
	cmd := newProviderVerb(env, "release POOL…", "Give up pools of a server whose state is lost", func(ctx context.Context, f *fleet, name string) (*skeppb.MachineResponse, error) {
		return f.ReleaseMachinePool(ctx, name)
	})
	cmd.Long = "Give up pools that only one server reached (processes and containers of its host), when that server's state directory is\n" +
		"lost and it never looks after them again; skep provider status shows that it is away. Machines whose bots are alive end\n" +
		"after their tasks, the others are forgotten, and the pool with the last of them. What is left on the host is removed by\n" +
		"hand. A server that declares a pool of this name may have it when it is started, or its vms.cfg changes."
	return cmd
}

func newProviderStepCommand(env *Env) *cobra.Command {
	var conn connection
	var names []string
	for _, s := range machine.Steps {
		names = append(names, string(s))
	}
	cmd := &cobra.Command{
		Use:   "step NAME ID",
		Short: "Run one step of the provider, once",
		Long: "Run one step of the provider, once, wait for it, and say what came of it. A step that does not fit how things are does\n" +
			"nothing.\n\n" +
			"Steps: " + strings.Join(names, ", ") + ".\n" +
			"expand-configs and inspect take a pool, audit takes KIND/PROJECT/ZONE, the others a machine.",
		Example:   "  skep provider step expand-configs linux\n  skep provider step audit gce/my-project/us-central1-a",
		ValidArgs: names,
		Args:      exactly("a step", "an id"),
		RunE: env.action(func(ctx context.Context, _ *cobra.Command, args []string) error {
			f, err := conn.open(env)
			if err != nil {
				return err
			}
			res, err := f.StepMachine(ctx, args[0], args[1])
			if err != nil {
				return err
			}
			said := "done"
			if !res.Done {
				said = "nothing to do"
			}
			f.notef("%s %s: %s", args[0], args[1], oneLine(cmp.Or(res.Text, said)))
			return nil
		}),
	}
	conn.register(cmd)
	return cmd
}
