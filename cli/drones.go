package cli

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/dronepb"
)

// newDronesCommand lists the hosts to which the queen of a server assigns
// devices. spec/host.md §3.4.
func newDronesCommand(env *Env) *cobra.Command {
	var conn connection
	var o outputFlags
	cmd := &cobra.Command{
		Use: "drones [flags]", Short: "List the hosts that a server assigns devices to", Args: noArgs,
		RunE: env.action(func(ctx context.Context, _ *cobra.Command, _ []string) error {
			f, err := conn.open(env)
			if err != nil {
				return err
			}
			drones, err := f.ListDrones(ctx)
			if err != nil {
				return err
			}
			duts, err := f.ListDuts(ctx)
			if err != nil {
				return err
			}
			has := map[string]int{}
			for _, d := range duts.Duts {
				has[d.AssignedDrone]++
			}
			return o.emit(env.Stdout, "table", func() (any, error) { return protoJSONList(drones.Drones) }, func(w *tableWriter) {
				w.row("DRONE", "HOST", "HIVE", "DEVICES", "CAPACITY", "VERSION", "LEASE ENDS")
				for _, d := range drones.Drones {
					w.row(d.Id, d.DroneDescription, d.Hive, fmt.Sprint(has[d.Id]), fmt.Sprint(d.DutCapacity), d.Version, timeCell(d.ExpirationTime))
				}
			})
		}),
	}
	o.register(cmd)
	conn.register(cmd)
	return cmd
}

// newDutsCommand lists the devices that the queen of a server assigns, and
// says which there are.
func newDutsCommand(env *Env) *cobra.Command {
	var conn connection
	var o outputFlags
	cmd := &cobra.Command{
		Use: "duts [flags]", Short: "List the devices that a server assigns to drones, and say which there are", Args: noArgs,
		RunE: env.action(func(ctx context.Context, _ *cobra.Command, _ []string) error {
			f, err := conn.open(env)
			if err != nil {
				return err
			}
			duts, err := f.ListDuts(ctx)
			if err != nil {
				return err
			}
			drones, err := f.ListDrones(ctx)
			if err != nil {
				return err
			}
			host := map[string]string{}
			for _, d := range drones.Drones {
				host[d.Id] = d.DroneDescription
			}
			return o.emit(env.Stdout, "table", func() (any, error) { return protoJSONList(duts.Duts) }, func(w *tableWriter) {
				w.row("DEVICE", "HIVE", "STATE", "DRONE", "HOST")
				for _, d := range duts.Duts {
					w.row(d.Id, d.Hive, dutState(d), d.AssignedDrone, host[d.AssignedDrone])
				}
			})
		}),
	}
	o.register(cmd)
	conn.register(cmd)
	cmd.AddCommand(newDutsDeclareCommand(env), newDutsRemoveCommand(env))
	return cmd
}

// dutState is one word for a device, as its metric has it.
func dutState(d *dronepb.ListDutsResponse_Dut) string {
	switch {
	case d.Draining:
		return "draining"
	case d.AssignedDrone != "":
		return "assigned"
	}
	return "free"
}

func newDutsDeclareCommand(env *Env) *cobra.Command {
	d := declaration{env: env}
	var hive, all string
	cmd := &cobra.Command{
		Use:   "declare {NAME… --hive HIVE | --all FILE} [flags]",
		Short: "Add devices or move them to a hive, or say which there are",
		Long: "Add devices, or say in which hive known ones are. With --all say which devices there are at all: those that the file\n" +
			"does not name are drained and removed.",
		Example: "  skep duts declare row1-host1 row1-host2 --hive site1\n  skep duts declare --all devices.txt",
		RunE: env.action(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			switch {
			case (all != "") == (len(args) > 0):
				return usageErrorf(cmd, "%s takes either names of devices or --all", cmd.CommandPath())
			case all == "" && !cmd.Flags().Changed("hive"):
				return usageErrorf(cmd, "%s needs --hive, to which it moves devices that are known, too; it may be \"\"", cmd.CommandPath())
			case all == "":
				req := &dronepb.DeclareDutsRequest{Incremental: true}
				for _, name := range args {
					req.AvailableDuts = append(req.AvailableDuts, &dronepb.DeclareDutsRequest_Dut{Name: name, Hive: hive})
				}
				return d.send(ctx, req)
			}
			duts, err := readDuts(env, all, hive)
			if err != nil {
				return err
			}
			return d.send(ctx, &dronepb.DeclareDutsRequest{AvailableDuts: duts})
		}),
	}
	cmd.Flags().StringVar(&hive, "hive", "", "`HIVE` of the devices, with --all of those whose line names none")
	cmd.Flags().StringVar(&all, "all", "", "`FILE` of all devices, a line each: NAME [HIVE]; - for stdin, # begins a remark")
	_ = cmd.MarkFlagFilename("all")
	d.register(cmd)
	return cmd
}

func newDutsRemoveCommand(env *Env) *cobra.Command {
	d := declaration{env: env}
	cmd := &cobra.Command{
		Use: "remove NAME… [flags]", Short: "Remove devices; bots that run are drained first",
		RunE: env.action(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageErrorf(cmd, "%s takes names of devices", cmd.CommandPath())
			}
			return d.send(ctx, &dronepb.DeclareDutsRequest{Incremental: true, RemovedDuts: args})
		}),
	}
	d.register(cmd)
	return cmd
}

// declaration is what the commands that declare devices share.
type declaration struct {
	env     *Env
	conn    connection
	o       outputFlags
	confirm bool
}

func (d *declaration) register(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&d.confirm, "confirm-removal", false, "do it however many devices go: settings.cfg bounds that otherwise")
	d.o.register(cmd)
	d.conn.register(cmd)
}

func (d *declaration) send(ctx context.Context, req *dronepb.DeclareDutsRequest) error {
	f, err := d.conn.open(d.env)
	if err != nil {
		return err
	}
	req.ConfirmRemoval = d.confirm
	res, err := f.DeclareDuts(ctx, req)
	if err != nil {
		return err
	}
	return d.o.emit(d.env.Stdout, "table", func() (any, error) { return protoJSON(res) }, func(w *tableWriter) {
		w.row("ADDED", "REMOVED", "MOVED")
		w.row(fmt.Sprint(res.Added), fmt.Sprint(res.Removed), fmt.Sprint(res.Moved))
	})
}

// readDuts reads a list of devices, - for stdin.
func readDuts(env *Env, path, hive string) ([]*dronepb.DeclareDutsRequest_Dut, error) {
	in := env.Stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	var out []*dronepb.DeclareDutsRequest_Dut
	lines := bufio.NewScanner(in)
	for n := 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		switch words := strings.Fields(text); len(words) {
		case 0:
		case 1, 2:
			out = append(out, &dronepb.DeclareDutsRequest_Dut{Name: words[0], Hive: cmp.Or(strings.Join(words[1:], ""), hive)})
		default:
			return nil, skep.Errorf(skep.Invalid, "%s:%d: want a device and its hive, got %q", path, n, strings.TrimSpace(text))
		}
	}
	return out, lines.Err()
}
