package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/providerpb"
	"github.com/skepdev/skep/api/providerpb/instancespb"
	"github.com/skepdev/skep/api/providerpb/projectspb"
	"github.com/skepdev/skep/api/prpc"
	"github.com/skepdev/skep/api/skeppb"
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/provider/machine"
	"github.com/skepdev/skep/provider/vmscfg"
	"github.com/skepdev/skep/store"
)

// owns reports whether the caller may see and steer a pool of machines: its
// owners may, and who may steer all.
func (s *Server) owns(ctx context.Context, owners []string) bool {
	m := s.may(ctx)
	return m.server(permSteerMachines) || m.scope != "" && m.rules.Owns != nil &&
		slices.ContainsFunc(owners, func(o string) bool { return m.rules.Owns(o, m.identity) })
}

func noSuchMachinePool(id string) error {
	return skep.Errorf(skep.NotFound, "no such pool of machines, or it is not yours: %.100q", id)
}

// machinePool reads a pool that the caller owns. Others do not learn whether it
// exists.
func (s *Server) machinePool(ctx context.Context, id string) (*store.MachinePool, *provider.Config, error) {
	p, err := s.store.MachinePool(ctx, id)
	if skep.KindOf(err) == skep.NotFound && err != nil {
		return nil, nil, noSuchMachinePool(id)
	}
	if err != nil {
		return nil, nil, err
	}
	var c provider.Config
	if err := json.Unmarshal(p.Config, &c); err != nil {
		return nil, nil, err
	}
	if !s.owns(ctx, c.Owners) {
		return nil, nil, noSuchMachinePool(id)
	}
	if !p.Removed.IsZero() {
		return nil, nil, skep.Errorf(skep.NotFound, "pool %s is removed: no vms.cfg declares it any more, and it is forgotten with its last machine", id)
	}
	return p, &c, nil
}

// steered is machinePool on a server that can do something about it.
func (s *Server) steered(ctx context.Context, id string) (*machine.Reconciler, error) {
	if _, _, err := s.machinePool(ctx, id); err != nil {
		return nil, err
	}
	if s.o.Machines == nil {
		return nil, skep.Errorf(skep.Precondition, "this server looks after no machines: it has no configuration directory (--config)")
	}
	return s.o.Machines, nil
}

func machinePoolPB(p *store.MachinePool, c *provider.Config) *providerpb.Config {
	out := vmscfg.Message(*c)
	out.CurrentAmount = int32(p.Amount)
	for _, d := range p.Duts {
		if out.Duts == nil {
			out.Duts = map[string]*emptypb.Empty{}
		}
		out.Duts[d] = &emptypb.Empty{}
	}
	return out
}

func (s *Server) getMachinePool(ctx context.Context, req *providerpb.GetRequest) (*providerpb.Config, error) {
	p, c, err := s.machinePool(ctx, req.Id)
	if err != nil {
		return nil, err
	}
	return machinePoolPB(p, c), nil
}

// page cuts sorted items to what a page may have. size ≤ 0 = all.
func page[T any](items []T, after string, size int32, name func(*T) string) (out []T, next string) {
	i, found := slices.BinarySearchFunc(items, after, func(t T, a string) int { return strings.Compare(name(&t), a) })
	if found {
		i++
	}
	out = items[i:]
	if size > 0 && len(out) > int(size) {
		out = out[:size]
		next = name(&out[size-1])
	}
	return out, next
}

func (s *Server) listMachinePools(ctx context.Context, req *providerpb.ListRequest) (*providerpb.ListResponse, error) {
	if err := s.mustServer(ctx, permInspectMachines); err != nil {
		return nil, err
	}
	cur, err := s.cursors.open(cursorMachinePools, req.PageToken)
	if err != nil {
		return nil, err
	}
	pools, err := s.store.MachinePools(ctx)
	if err != nil {
		return nil, err
	}
	pools = slices.DeleteFunc(pools, func(p store.MachinePool) bool { return !p.Removed.IsZero() })
	pools, next := page(pools, cur.Name, req.PageSize, func(p *store.MachinePool) string { return p.Prefix })
	out := &providerpb.ListResponse{}
	for i := range pools {
		var c provider.Config
		if err := json.Unmarshal(pools[i].Config, &c); err != nil {
			return nil, err
		}
		if !s.owns(ctx, c.Owners) { // what the machines are told, as scripts with keys, is their owners'
			for k := range c.Attributes.Metadata {
				c.Attributes.Metadata[k].Value = ""
			}
			for k := range c.Attributes.Extra {
				c.Attributes.Extra[k] = ""
			}
		}
		out.Configs = append(out.Configs, machinePoolPB(&pools[i], &c))
	}
	if next != "" {
		out.NextPageToken = s.cursors.seal(cursor{Kind: cursorMachinePools, Name: next})
	}
	return out, nil
}

// maxDuts bounds how many devices a pool has.
const (
	maxDuts    = 10_000
	maxDutName = 256
)

func (s *Server) updateMachinePool(ctx context.Context, req *providerpb.UpdateRequest) (*providerpb.Config, error) {
	r, err := s.steered(ctx, req.Id)
	if err != nil {
		return nil, err
	}
	paths := req.UpdateMask.GetPaths()
	if len(paths) == 0 {
		return nil, skep.Invalidf("update_mask", "names nothing; want config.current_amount, config.duts, or both")
	}
	var amount *int
	var duts []string
	for _, p := range paths {
		switch p {
		case "config.current_amount":
			n := int(req.Config.GetCurrentAmount())
			if n < 0 {
				return nil, skep.Invalidf("config.current_amount", "is negative")
			}
			amount = &n
		case "config.duts":
			duts = []string{}
			for d := range req.Config.GetDuts() {
				if d == "" || len(d) > maxDutName {
					return nil, skep.Invalidf("config.duts", "the name %.40q of a device has %d bytes, want 1 to %d", d, len(d), maxDutName)
				}
				if err := machine.CheckDevice("config.duts", req.Id, d); err != nil {
					return nil, err
				}
				duts = append(duts, d)
			}
			if len(duts) > maxDuts {
				return nil, skep.Invalidf("config.duts", "has %d devices, want %d at most", len(duts), maxDuts)
			}
		default:
			return nil, skep.Invalidf("update_mask", "%.100q cannot be changed here; only config.current_amount and config.duts can", p)
		}
	}
	if _, err := r.Resize(ctx, req.Id, amount, duts); err != nil {
		return nil, err
	}
	return s.getMachinePool(ctx, &providerpb.GetRequest{Id: req.Id})
}

func fromFiles(file string) error {
	return skep.Errorf(skep.Denied, "this comes from %s of the configuration directory alone", file)
}

func (s *Server) ensureMachinePool(context.Context, *providerpb.EnsureRequest) (*providerpb.Config, error) {
	return nil, fromFiles("vms.cfg")
}

func (s *Server) deleteMachinePool(context.Context, *providerpb.DeleteRequest) (*emptypb.Empty, error) {
	return nil, fromFiles("vms.cfg")
}

func (s *Server) ensureProject(context.Context, *projectspb.EnsureRequest) (*projectspb.Project, error) {
	return nil, fromFiles("projects.cfg")
}

func (s *Server) deleteProject(context.Context, *projectspb.DeleteRequest) (*emptypb.Empty, error) {
	return nil, fromFiles("projects.cfg")
}

func (s *Server) getProject(ctx context.Context, req *projectspb.GetRequest) (*projectspb.Project, error) {
	if err := s.mustServer(ctx, permInspectMachines); err != nil {
		return nil, err
	}
	for _, p := range s.rules().Projects {
		if p.Project == req.Id {
			return p, nil
		}
	}
	return nil, skep.Errorf(skep.NotFound, "no such project: %.100q", req.Id)
}

func (s *Server) listProjects(ctx context.Context, req *projectspb.ListRequest) (*projectspb.ListResponse, error) {
	if err := s.mustServer(ctx, permInspectMachines); err != nil {
		return nil, err
	}
	cur, err := s.cursors.open(cursorProjects, req.PageToken)
	if err != nil {
		return nil, err
	}
	items, next := page(s.rules().Projects, cur.Name, req.PageSize, func(p **projectspb.Project) string { return (*p).Project })
	out := &projectspb.ListResponse{Projects: items}
	if next != "" {
		out.NextPageToken = s.cursors.seal(cursor{Kind: cursorProjects, Name: next})
	}
	return out, nil
}

// isVMCall reports whether ctx is of a call in which a virtual machine may ask
// for itself without a token of ours.
func isVMCall(ctx context.Context) bool {
	c := prpc.CallFrom(ctx)
	return c != nil && c.Request != nil && c.Request.Header.Get(headerVMToken) != "" && strings.HasSuffix(c.Request.URL.Path, "/instances.Instances/Get")
}

// vmOf finds a machine by exactly one of its names.
func (s *Server) vmOf(ctx context.Context, id, hostname string) (*store.VM, error) {
	switch {
	case (id == "") == (hostname == ""):
		return nil, skep.Invalidf("id", "want exactly one of id and hostname")
	case id != "":
		return s.store.VM(ctx, id)
	default:
		return s.store.VMByHostname(ctx, hostname)
	}
}

func (s *Server) getMachine(ctx context.Context, req *instancespb.GetRequest) (*instancespb.Instance, error) {
	if err := s.mustServer(ctx, permInspectMachines); err != nil {
		if !isVMCall(ctx) || req.Hostname == "" {
			return nil, err
		}
		vm, ok := s.callingVM(prpc.CallFrom(ctx).Request, req.Hostname)
		if !ok {
			return nil, err
		}
		v, lookErr := s.store.VMByHostname(ctx, req.Hostname)
		if skep.KindOf(lookErr) == skep.NotFound && lookErr != nil {
			s.metrics.untracked.Add(1)
			return nil, err
		}
		if lookErr != nil {
			return nil, lookErr
		}
		if v.Project != vm.Project || v.Zone != vm.Zone || v.Hostname != vm.Name {
			return nil, err
		}
		return &instancespb.Instance{Hostname: v.Hostname, Swarming: v.Swarming}, nil
	}
	v, err := s.vmOf(ctx, req.Id, req.Hostname)
	if err != nil {
		return nil, err
	}
	shapes, err := s.shapes(ctx)
	if err != nil {
		return nil, err
	}
	return s.machinePB(v, shapes)
}

// shapes are the digests of what pools declare now.
func (s *Server) shapes(ctx context.Context) (map[string]string, error) {
	pools, err := s.store.MachinePools(ctx)
	out := make(map[string]string, len(pools))
	for _, p := range pools {
		out[p.Prefix] = p.Shape
	}
	return out, err
}

func (s *Server) machinePB(v *store.VM, shapes map[string]string) (*instancespb.Instance, error) {
	out := &instancespb.Instance{
		Id: v.ID, Hostname: v.Hostname, Zone: v.Zone, Project: v.Project, Lifetime: int64(v.Lifetime.Seconds()), Swarming: v.Swarming,
		Timeout: int64(v.Timeout.Seconds()), Drained: v.Drained, ConfigRevision: v.Revision, Prefix: v.Prefix,
		Outdated: v.Shape != shapes[v.Prefix], State: string(machine.StateOf(v, s.o.Now())),
	}
	if !v.Created.IsZero() {
		out.Created = timestamppb.New(v.Created)
	}
	if !v.Connected.IsZero() {
		out.Connected = timestamppb.New(v.Connected)
	}
	for _, i := range v.Images {
		out.Disks = append(out.Disks, &instancespb.Disk{Image: i})
	}
	var networks []provider.Address
	if err := json.Unmarshal(v.Networks, &networks); err != nil {
		return nil, fmt.Errorf("networks of %s: %w", v.ID, err)
	}
	for _, n := range networks {
		out.NetworkInterfaces = append(out.NetworkInterfaces, &instancespb.NetworkInterface{InternalIp: n.Internal, ExternalIps: n.External})
	}
	return out, nil
}

// maxMachinesPage is the largest page of machines. spec provider.md §12.
const maxMachinesPage = 5000

func (s *Server) listMachines(ctx context.Context, req *instancespb.ListRequest) (*instancespb.ListResponse, error) {
	if err := s.mustServer(ctx, permInspectMachines); err != nil {
		return nil, err
	}
	f, err := machineFilter(req.Filter)
	if err != nil {
		return nil, err
	}
	cur, err := s.cursors.open(cursorMachines, req.PageToken)
	if err != nil {
		return nil, err
	}
	size := int(req.PageSize)
	if size < 1 || size > maxMachinesPage {
		size = maxMachinesPage
	}
	f.Prefix, f.After, f.Limit = req.Prefix, cur.Name, size+1
	vms, err := s.store.ListVMs(ctx, f)
	if err != nil {
		return nil, err
	}
	shapes, err := s.shapes(ctx)
	if err != nil {
		return nil, err
	}
	out := &instancespb.ListResponse{Prefix: req.Prefix}
	if len(vms) > size {
		vms = vms[:size]
		out.NextPageToken = s.cursors.seal(cursor{Kind: cursorMachines, Name: vms[size-1].ID})
	}
	for i := range vms {
		m, err := s.machinePB(&vms[i], shapes)
		if err != nil {
			return nil, err
		}
		out.Instances = append(out.Instances, m)
	}
	return out, nil
}

// machineFilter reads conditions that AND joins: instances.disks.image=NAME,
// instances.zone=NAME, instances.drained=true, instances.outdated=true,
// instances.created>=TIME and instances.created<TIME. promise P28.
func machineFilter(text string) (f store.VMFilter, err error) {
	if strings.TrimSpace(text) == "" {
		return f, nil
	}
	if len(text) > 1000 {
		return f, skep.Invalidf("filter", "has %d bytes, want 1000 at most", len(text))
	}
	seen := map[string]bool{}
	for term := range strings.SplitSeq(text, " AND ") {
		term = strings.TrimSpace(term)
		i := strings.IndexAny(term, "=<>")
		if i < 0 {
			return f, skep.Invalidf("filter", "%.100q is no condition, as instances.disks.image=NAME", term)
		}
		field, value := strings.TrimSpace(strings.TrimPrefix(term[:i], "instances.")), term[i:]
		op := value[:1]
		if strings.HasPrefix(value, ">=") {
			op = ">="
		}
		value = strings.Trim(strings.TrimSpace(value[len(op):]), `"`)
		if strings.ContainsAny(value, " \t=<>") { // no name has these: nothing would be found, and nobody would know why
			return f, skep.Invalidf("filter", "%.100q is no single condition; join conditions by AND, in capitals", term)
		}
		if seen[field+op] {
			return f, skep.Invalidf("filter", "%s%s is there twice; only one counts", field, op)
		}
		seen[field+op] = true
		switch {
		case field == "disks.image" && op == "=" && value != "":
			f.Image = value
		case field == "zone" && op == "=" && value != "":
			f.Zone = value
		case (field == "drained" || field == "outdated") && op == "=":
			yes, err := strconv.ParseBool(value)
			if err != nil {
				return f, skep.Invalidf("filter", "%s is %.40q, want true or false", field, value)
			}
			if field == "drained" {
				f.Drained = &yes
			} else {
				f.Outdated = &yes
			}
		case field == "created" && (op == ">=" || op == "<"):
			at, err := time.Parse(time.RFC3339, value)
			if err != nil {
				return f, skep.Invalidf("filter", "created is compared with %.40q, want a time as 2026-01-31T12:00:00Z", value)
			}
			if op == "<" {
				f.Created = at
			} else {
				f.CreatedFrom = at
			}
		default:
			return f, skep.Invalidf("filter", "%.100q is not supported; there are disks.image=, zone=, drained=, outdated=, created>= and created<", term)
		}
	}
	return f, nil
}

func (s *Server) deleteMachine(ctx context.Context, req *instancespb.DeleteRequest) (*emptypb.Empty, error) {
	v, err := s.vmOf(ctx, req.Id, req.Hostname)
	if skep.KindOf(err) == skep.NotFound && err != nil {
		if err := s.mustServer(ctx, permSteerMachines); err != nil {
			return nil, err
		}
		return &emptypb.Empty{}, nil
	}
	if err != nil {
		return nil, err
	}
	r, err := s.steered(ctx, v.Prefix)
	if skep.KindOf(err) == skep.NotFound && err != nil && s.may(ctx).server(permSteerMachines) {
		return &emptypb.Empty{}, nil // its pool was taken out, and it goes
	}
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, r.Drain(ctx, v.ID)
}

func (s *Server) machineStatus(ctx context.Context, req *skeppb.StatusRequest) (*skeppb.StatusResponse, error) {
	if err := s.mustServer(ctx, permInspectMachines); err != nil {
		return nil, err
	}
	out := &skeppb.StatusResponse{}
	if s.o.Machines == nil {
		return out, nil
	}
	all, err := s.o.Machines.Status(ctx, req.Pool)
	if err != nil {
		return nil, err
	}
	for i := range all {
		st := &all[i]
		p := &skeppb.MachinePool{
			Prefix: st.Pool.Prefix, Kind: st.Pool.Kind, Configured: int32(st.Configured), Planned: int32(st.Planned), Created: int32(st.Created),
			Connected: int32(st.Connected), Busy: int32(st.Busy), Draining: int32(st.Draining), Outdated: int32(st.Outdated), Stopped: int32(st.Stopped),
			Removed: !st.Pool.Removed.IsZero(), Held: st.Pool.Held, Replacing: st.Pool.Replacing,
		}
		p.Host, p.Away = st.Host, st.Away
		if st.Wait > 0 {
			p.ExpectedWait = durationpb.New(st.Wait.Round(time.Second))
		}
		for _, z := range st.Zones {
			p.FullZones = append(p.FullZones, &skeppb.MachineZone{Zone: z.Zone, Until: timestamppb.New(z.Until)})
		}
		if f := st.Pool.Failure; !f.At.IsZero() {
			p.Failure = &skeppb.MachineFailure{Class: f.Class, Reason: f.Reason, Text: f.Text, Code: int32(f.Code), At: timestamppb.New(f.At)}
		}
		if st.Pool.Paused.After(s.o.Now()) {
			p.PausedUntil = timestamppb.New(st.Pool.Paused)
		}
		out.Pools = append(out.Pools, p)
	}
	for _, a := range s.o.Machines.Audits() {
		out.Audits = append(out.Audits, &skeppb.MachineAudit{
			Kind: a.Kind, Project: a.Project, Zone: a.Zone, At: timestamppb.New(a.At), Instances: int32(a.Instances), Leaks: int32(a.Leaks),
		})
	}
	return out, nil
}

// named finds what a name is of: a pool, or else a machine.
func (s *Server) named(ctx context.Context, name string) (r *machine.Reconciler, pool string, v *store.VM, err error) {
	if name == "" {
		return nil, "", nil, skep.Invalidf("name", "is required: a pool, or a machine")
	}
	if _, err = s.store.MachinePool(ctx, name); err == nil {
		r, err = s.steered(ctx, name)
		return r, name, nil, err
	}
	if skep.KindOf(err) != skep.NotFound {
		return nil, "", nil, err
	}
	if v, err = s.store.VM(ctx, name); skep.KindOf(err) == skep.NotFound && err != nil {
		v, err = s.store.VMByHostname(ctx, name)
	}
	if err != nil {
		if may := s.mustServer(ctx, permInspectMachines); may != nil {
			return nil, "", nil, may
		}
		if skep.KindOf(err) == skep.NotFound {
			err = skep.Errorf(skep.NotFound, "no such pool of machines, and no such machine: %.100q", name)
		}
		return nil, "", nil, err
	}
	r, err = s.steered(ctx, v.Prefix)
	return r, "", v, err
}

func (s *Server) drainMachine(ctx context.Context, req *skeppb.MachineRequest) (*skeppb.MachineResponse, error) {
	r, pool, v, err := s.named(ctx, req.Name)
	if err != nil {
		return nil, err
	}
	if v == nil {
		done, err := r.Hold(ctx, pool, true)
		return &skeppb.MachineResponse{Done: done}, err
	}
	return &skeppb.MachineResponse{Done: !v.Drained}, r.Drain(ctx, v.ID)
}

func (s *Server) undrainMachine(ctx context.Context, req *skeppb.MachineRequest) (*skeppb.MachineResponse, error) {
	r, pool, v, err := s.named(ctx, req.Name)
	if err != nil {
		return nil, err
	}
	if v != nil {
		return nil, skep.Errorf(skep.Precondition, "the drain of a machine stays: its pool %s makes another one in its place", v.Prefix)
	}
	done, err := r.Hold(ctx, pool, false)
	return &skeppb.MachineResponse{Done: done}, err
}

func (s *Server) replaceMachine(ctx context.Context, req *skeppb.MachineRequest) (*skeppb.MachineResponse, error) {
	r, pool, v, err := s.named(ctx, req.Name)
	if err != nil {
		return nil, err
	}
	if v != nil {
		done, err := r.Replace(ctx, v.ID)
		return &skeppb.MachineResponse{Done: done}, err
	}
	done, err := r.ReplaceOutdated(ctx, pool)
	return &skeppb.MachineResponse{Done: done}, err
}

// releaseMachines is for who steers all: an owner of the pool cannot know that
// a server never comes back.
func (s *Server) releaseMachines(ctx context.Context, req *skeppb.MachineRequest) (*skeppb.MachineResponse, error) {
	if err := s.mustServer(ctx, permSteerMachines); err != nil {
		return nil, err
	}
	if s.o.Machines == nil {
		return nil, skep.Errorf(skep.Precondition, "this server looks after no machines: it has no configuration directory (--config)")
	}
	if req.Name == "" {
		return nil, skep.Invalidf("name", "is required: a pool")
	}
	return &skeppb.MachineResponse{Done: true}, s.o.Machines.Release(ctx, req.Name, callerOf(ctx).identity)
}

func (s *Server) stepMachine(ctx context.Context, req *skeppb.StepRequest) (*skeppb.MachineResponse, error) {
	if err := s.mustServer(ctx, permSteerMachines); err != nil {
		return nil, err
	}
	if s.o.Machines == nil {
		return nil, skep.Errorf(skep.Precondition, "this server looks after no machines: it has no configuration directory (--config)")
	}
	did, err := s.o.Machines.RunStep(ctx, machine.Step(req.Step), req.Id)
	if e, ok := errors.AsType[*provider.Error](err); ok {
		return nil, skep.Errorf(skep.Unavailable, "the cloud refused: %w", e)
	}
	return &skeppb.MachineResponse{Done: did.Done, Text: did.Text}, err
}
