package server

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/providerpb"
	"github.com/skepdev/skep/api/providerpb/instancespb"
	"github.com/skepdev/skep/client"
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/provider/machine"
	"github.com/skepdev/skep/store"
)

// pools is a server that looks after pool p of 2 to 5 machines, of which user
// ann is an owner, and pool q. Nothing runs its loop: steps are run by name.
func pools(t *testing.T) (f *fleet, admin, ann, bob string) {
	t.Helper()
	return poolsOf(t, nil)
}

// poolsOf is pools with a cloud; nil = there is none.
func poolsOf(t *testing.T, cloud provider.Provider) (f *fleet, admin, ann, bob string) {
	t.Helper()
	var rec *machine.Reconciler
	f = serve(t, func(o *Options) {
		o.Open = false
		var err error
		rec, err = machine.New(t.Context(), o.Store, o.Scheduler, func(string, []string) (provider.Provider, error) {
			if cloud != nil {
				return cloud, nil
			}
			return nil, &provider.Error{Class: provider.Invalid, Reason: "NONE", Text: "no cloud here"}
		}, machine.Options{})
		if err != nil {
			t.Fatal(err)
		}
		o.Machines = rec
		rules := &Rules{Owns: func(owner, identity string) bool { return owner == identity }}
		o.Rules = func() *Rules { return rules }
	})
	c := provider.Config{
		Prefix: "p", Kind: "fake", Amount: provider.Amount{Min: 2, Max: 5}, Lifetime: time.Hour, Owners: []string{"user:ann"},
		Attributes: provider.Attributes{
			Zone: "z", Disks: []provider.Disk{{Image: "global/images/bot-1"}}, Metadata: []provider.Metadata{{Key: "startup-script", Value: "key=hunter2"}},
		},
	}
	d := c
	d.Prefix, d.Owners = "q", nil
	if err := rec.Import(t.Context(), []provider.Config{c, d}, nil); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"p", "q"} {
		if _, err := rec.RunStep(t.Context(), machine.ExpandConfigs, p); err != nil {
			t.Fatal(err)
		}
	}
	admin = f.token(NewToken{Name: "root", Scope: ScopeAdmin})
	ann, bob = f.token(NewToken{Name: "ann", Scope: ScopeUser}), f.token(NewToken{Name: "bob", Scope: ScopeUser})
	if err := f.server.tokens.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	return f, admin, ann, bob
}

// Who may see pools of machines, and who may steer them.
func TestWhoMaySteerMachines(t *testing.T) {
	f, admin, ann, bob := pools(t)
	bot := f.token(NewToken{Name: "b", Scope: ScopeBot, Bots: []string{"*"}})
	if err := f.server.tokens.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	tokens := map[string]string{"admin": admin, "ann": ann, "bob": bob, "bot": bot, "nobody": ""}
	const ok = skep.Kind(200)
	for _, m := range []struct {
		name string
		call func(context.Context, *client.Client) error
		want map[string]skep.Kind // admin, ann, bob, bot, nobody
	}{
		{"Configuration.Get", func(ctx context.Context, c *client.Client) error {
			_, err := c.GetMachinePool(ctx, "p")
			return err
		}, map[string]skep.Kind{"admin": ok, "ann": ok, "bob": skep.NotFound, "bot": skep.NotFound, "nobody": skep.Unauthenticated}},
		{"Configuration.Get of another's", func(ctx context.Context, c *client.Client) error {
			_, err := c.GetMachinePool(ctx, "q")
			return err
		}, map[string]skep.Kind{"admin": ok, "ann": skep.NotFound, "bob": skep.NotFound, "bot": skep.NotFound, "nobody": skep.Unauthenticated}},
		{"Configuration.List", func(ctx context.Context, c *client.Client) error {
			_, err := c.ListMachinePools(ctx, &providerpb.ListRequest{})
			return err
		}, map[string]skep.Kind{"admin": ok, "ann": ok, "bob": ok, "bot": skep.Denied, "nobody": skep.Unauthenticated}},
		{"Instances.Delete", func(ctx context.Context, c *client.Client) error {
			return c.DeleteMachine(ctx, &instancespb.DeleteRequest{Id: "p-7"})
		}, map[string]skep.Kind{"admin": ok, "ann": skep.Denied, "bob": skep.Denied, "bot": skep.Denied, "nobody": skep.Unauthenticated}},
		{"Machines.Drain", func(ctx context.Context, c *client.Client) error {
			_, err := c.DrainMachine(ctx, "p")
			return err
		}, map[string]skep.Kind{"admin": ok, "ann": ok, "bob": skep.NotFound, "bot": skep.NotFound, "nobody": skep.Unauthenticated}},
		{"Machines.Release", func(ctx context.Context, c *client.Client) error {
			_, err := c.ReleaseMachinePool(ctx, "p")
			return err
		}, map[string]skep.Kind{"admin": skep.Precondition, "ann": skep.Denied, "bob": skep.Denied, "bot": skep.Denied, "nobody": skep.Unauthenticated}},
		{"Machines.Step", func(ctx context.Context, c *client.Client) error {
			_, err := c.StepMachine(ctx, "inspect", "p")
			return err
		}, map[string]skep.Kind{"admin": ok, "ann": skep.Denied, "bob": skep.Denied, "bot": skep.Denied, "nobody": skep.Unauthenticated}},
	} {
		for who, token := range tokens {
			err := m.call(t.Context(), f.as(token))
			if want := m.want[who]; want == ok && err != nil || want != ok && (err == nil || skep.KindOf(err) != want) {
				t.Errorf("%s by %s: %v (%v), want %v", m.name, who, err, skep.KindOf(err), want)
			}
		}
	}
}

// All paths of a mask are done, or none. promise P18.
func TestUpdateMachinePool(t *testing.T) {
	f, _, ann, _ := pools(t)
	c := f.as(ann)
	update := func(amount int32, duts []string, paths ...string) (*providerpb.Config, error) {
		m := &providerpb.Config{CurrentAmount: amount}
		for _, d := range duts {
			if m.Duts == nil {
				m.Duts = map[string]*emptypb.Empty{}
			}
			m.Duts[d] = &emptypb.Empty{}
		}
		return c.UpdateMachinePool(t.Context(), &providerpb.UpdateRequest{Id: "p", Config: m, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths}})
	}
	for _, tc := range []struct {
		name   string
		amount int32
		duts   []string
		paths  []string
		want   string // amount and devices, or what the refusal says
	}{
		{"nothing", 4, nil, nil, "names nothing"},
		{"an amount", 4, nil, []string{"config.current_amount"}, "4 0"},
		{"more than there may be", 40, nil, []string{"config.current_amount"}, "5 0"},
		{"one good path and a bad one", 3, nil, []string{"config.current_amount", "config.lifetime"}, "cannot be changed here"},
		{"a negative amount", -1, nil, []string{"config.current_amount"}, "is negative"},
		{"devices", 0, []string{"a", "b", "c"}, []string{"config.duts"}, "3 3"},
		{"a device without a name", 0, []string{""}, []string{"config.duts"}, "has 0 bytes"},
		{"an amount beside devices", 5, nil, []string{"config.current_amount"}, "a machine for each of its 3 devices"},
		{"as many as there are devices", 3, nil, []string{"config.current_amount"}, "3 3"},
		{"both", 3, nil, []string{"config.current_amount", "config.duts"}, "3 0"},
	} {
		got, err := update(tc.amount, tc.duts, tc.paths...)
		if err != nil {
			if kind := skep.KindOf(err); !strings.Contains(err.Error(), tc.want) || kind != skep.Invalid && kind != skep.Precondition {
				t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
			}
			continue
		}
		if s := fmt.Sprint(got.CurrentAmount, len(got.Duts)); s != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, s, tc.want)
		}
	}
}

// A name that is none, and one of a pool that was given up, are told apart by
// whoever steers it; others do not learn that there was a pool.
func TestSteeringWhatIsNotThere(t *testing.T) {
	f, admin, ann, bob := pools(t)
	if err := f.server.o.Machines.Import(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ token, name, want string }{
		{admin, "p", "pool p is removed"},
		{ann, "p", "pool p is removed"},
		{bob, "p", "no such pool of machines, or it is not yours"},
		{admin, "nobody", `no such pool of machines, and no such machine: "nobody"`},
		{bob, "nobody", `no such pool of machines, and no such machine: "nobody"`},
	} {
		if _, err := f.as(tc.token).DrainMachine(t.Context(), tc.name); skep.KindOf(err) != skep.NotFound || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
	if _, err := f.as(admin).GetMachinePool(t.Context(), "p"); skep.KindOf(err) != skep.NotFound {
		t.Errorf("a pool that was given up is shown: %v", err)
	}
}

// One existing client writes the mask as an object, with the names of the fields.
func TestMaskAsAnObject(t *testing.T) {
	f, admin, _, _ := pools(t)
	for _, tc := range []struct {
		mask string
		code int
		want string
	}{
		{`"config.currentAmount"`, 200, `"currentAmount":4`},
		{`{"paths":["config.current_amount"]}`, 200, `"currentAmount":5`},
		{`{"paths":["config.current_amount","config.lifetime"]}`, 400, "cannot be changed here"},
		{`{"paths":[]}`, 400, "names nothing"},
		{`{"paths":"config.current_amount"}`, 400, "could not decode"},
		{`["config.current_amount"]`, 400, "could not decode"},
	} {
		amount := map[string]string{`"config.currentAmount"`: "4"}[tc.mask]
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, f.url+"/prpc/config.Configuration/Update",
			strings.NewReader(`{"id":"p","config":{"currentAmount":`+cmp.Or(amount, "5")+`},"update_mask":`+tc.mask+`}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Accept", "application/json")
		req.Header.Set("Authorization", "Bearer "+admin)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if got := strings.ReplaceAll(string(body), " ", ""); err != nil || res.StatusCode != tc.code || !strings.Contains(got, strings.ReplaceAll(tc.want, " ", "")) {
			t.Errorf("%s: %d %s, %v; want %d, %s", tc.mask, res.StatusCode, body, err, tc.code, tc.want)
		}
	}
}

// A pool that follows the queue has no size of anybody's choice, but for devices.
func TestResizeWithDemand(t *testing.T) {
	f, admin, _, _ := pools(t)
	c := provider.Config{
		Prefix: "d", Kind: "fake", Amount: provider.Amount{Max: 5}, Lifetime: time.Hour, Attributes: provider.Attributes{Zone: "z"},
		Demand: &provider.Demand{Dimensions: map[string][]string{"os": {"Linux"}}, TargetWait: time.Minute},
	}
	if err := f.server.o.Machines.Import(t.Context(), []provider.Config{c}, []string{"p", "q"}); err != nil {
		t.Fatal(err)
	}
	update := func(duts map[string]*emptypb.Empty, paths ...string) error {
		_, err := f.as(admin).UpdateMachinePool(t.Context(), &providerpb.UpdateRequest{
			Id: "d", Config: &providerpb.Config{CurrentAmount: 3, Duts: duts}, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths},
		})
		return err
	}
	if err := update(nil, "config.current_amount"); skep.KindOf(err) != skep.Precondition || !strings.Contains(err.Error(), "warm of demand") {
		t.Errorf("an amount: %v", err)
	}
	if p, err := f.store.MachinePool(t.Context(), "d"); err != nil || p.Amount != 0 {
		t.Errorf("it aims for %d, %v", p.Amount, err)
	}
	if err := update(map[string]*emptypb.Empty{"a": {}}, "config.duts", "config.current_amount"); err != nil {
		t.Errorf("devices: %v", err)
	}
}

// A machine of a pool that was taken out goes anyway: to say so is no mistake.
func TestDeleteMachineOfARemovedPool(t *testing.T) {
	f, admin, ann, _ := pools(t)
	if err := f.store.Update(t.Context(), func(tx *store.Tx) error {
		p, err := tx.LockMachinePool("p")
		if err != nil {
			return err
		}
		p.Removed = tx.Now
		return tx.SaveMachinePool(p)
	}); err != nil {
		t.Fatal(err)
	}
	if err := f.as(admin).DeleteMachine(t.Context(), &instancespb.DeleteRequest{Id: "p-0"}); err != nil {
		t.Errorf("admin: %v", err)
	}
	if err := f.as(ann).DeleteMachine(t.Context(), &instancespb.DeleteRequest{Id: "p-0"}); skep.KindOf(err) != skep.NotFound {
		t.Errorf("its owner until then: %v", err)
	}
}

// Who misspells a pool is not told that there is no such machine.
func TestNeitherPoolNorMachine(t *testing.T) {
	f, admin, _, _ := pools(t)
	_, err := f.as(admin).UndrainMachine(t.Context(), "lunix")
	if skep.KindOf(err) != skep.NotFound || !strings.Contains(err.Error(), `no such pool of machines, and no such machine: "lunix"`) {
		t.Errorf("%v", err)
	}
}

// The names of the machines of devices are as short as those of others.
func TestLongDeviceNames(t *testing.T) {
	f, admin, _, _ := pools(t)
	long := strings.Repeat("l", 50)
	c := provider.Config{Prefix: long, Kind: "fake", Amount: provider.Amount{Min: 1, Max: 5}, Lifetime: time.Hour, Attributes: provider.Attributes{Zone: "z"}}
	if err := f.server.o.Machines.Import(t.Context(), []provider.Config{c}, []string{"p", "q"}); err != nil {
		t.Fatal(err)
	}
	_, err := f.as(admin).UpdateMachinePool(t.Context(), &providerpb.UpdateRequest{
		Id: long, Config: &providerpb.Config{Duts: map[string]*emptypb.Empty{"rack1-host2": {}}}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"config.duts"}},
	})
	if skep.KindOf(err) != skep.Invalid || !strings.Contains(err.Error(), "choose a shorter prefix") {
		t.Errorf("%v", err)
	}
	if p, err := f.store.MachinePool(t.Context(), long); err != nil || len(p.Duts) > 0 {
		t.Errorf("it has %v, %v", p, err)
	}
}

func TestListMachines(t *testing.T) {
	f, _, _, bob := pools(t)
	c := f.as(bob)
	var got []string
	for token := ""; ; {
		res, err := c.ListMachines(t.Context(), &instancespb.ListRequest{PageSize: 3, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range res.Instances {
			got = append(got, v.Id+" "+v.State)
		}
		if token = res.NextPageToken; token == "" {
			break
		}
	}
	if s := strings.Join(got, ", "); s != "p-0 PLANNED, p-1 PLANNED, q-0 PLANNED, q-1 PLANNED" {
		t.Errorf("machines: %s", s)
	}
	for filter, want := range map[string]int{
		"": 4, "instances.disks.image=bot-1": 4, "instances.disks.image=bot": 0, "instances.zone=z AND instances.drained=false": 4, "instances.outdated=true": 0,
		"instances.created>=2020-01-01T00:00:00Z": 0,
	} {
		res, err := c.ListMachines(t.Context(), &instancespb.ListRequest{Filter: filter})
		if err != nil || len(res.Instances) != want {
			t.Errorf("%q: %d machines, %v, want %d", filter, len(res.GetInstances()), err, want)
		}
	}
	for _, bad := range []string{
		"x", "instances.drained=perhaps", "instances.created>=yesterday", "instances.zone>=a", "instances.zone=",
		"instances.zone=z and instances.drained=false", "zone=z, drained=false", "zone==z", "zone=y AND zone=z", "drained=true AND instances.drained=false",
	} {
		if _, err := c.ListMachines(t.Context(), &instancespb.ListRequest{Filter: bad}); skep.KindOf(err) != skep.Invalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
	res, err := c.ListMachinePools(t.Context(), &providerpb.ListRequest{PageSize: 1})
	if err != nil || len(res.Configs) != 1 || res.NextPageToken == "" {
		t.Fatalf("%v, %v", res, err)
	}
	res, err = c.ListMachinePools(t.Context(), &providerpb.ListRequest{PageSize: 1, PageToken: res.NextPageToken})
	if err != nil || len(res.Configs) != 1 || res.Configs[0].Prefix != "q" || res.NextPageToken != "" {
		t.Errorf("the last page: %v, %v", res, err)
	}
}

// Who does not own a pool sees that it is there, and its metadata by name alone.
func TestMetadataIsItsOwners(t *testing.T) {
	f, admin, ann, bob := pools(t)
	for _, c := range []struct{ who, token, p, q string }{
		{"admin", admin, "startup-script:key=hunter2", "startup-script:key=hunter2"},
		{"ann", ann, "startup-script:key=hunter2", "startup-script:"},
		{"bob", bob, "startup-script:", "startup-script:"},
	} {
		res, err := f.as(c.token).ListMachinePools(t.Context(), &providerpb.ListRequest{})
		if err != nil || len(res.Configs) != 2 {
			t.Fatalf("%s: %v, %v", c.who, res, err)
		}
		for i, want := range []string{c.p, c.q} {
			if m := res.Configs[i].Attributes.Metadata; len(m) != 1 || m[0].GetFromText() != want {
				t.Errorf("%s sees of %s: %v, want %q", c.who, res.Configs[i].Prefix, m, want)
			}
		}
	}
}

// So it is with what a program of kind exec is handed.
func TestExtraIsItsOwners(t *testing.T) {
	f, admin, ann, bob := pools(t)
	c := provider.Config{
		Prefix: "e", Kind: "exec", Amount: provider.Amount{Max: 1}, Lifetime: time.Hour, Owners: []string{"user:ann"},
		Attributes: provider.Attributes{Command: []string{"/srv/boards"}, Extra: map[string]string{"key": "hunter2"}},
	}
	if err := f.server.o.Machines.Import(t.Context(), []provider.Config{c}, []string{"p", "q"}); err != nil {
		t.Fatal(err)
	}
	for who, token := range map[string]string{"admin": admin, "ann": ann, "bob": bob} {
		res, err := f.as(token).ListMachinePools(t.Context(), &providerpb.ListRequest{})
		if err != nil || len(res.Configs) != 3 {
			t.Fatalf("%s: %v, %v", who, res, err)
		}
		extra := res.Configs[0].GetProvider().GetExec().GetExtra()
		if value, there := extra["key"]; !there || value != map[bool]string{true: "hunter2"}[who != "bob"] {
			t.Errorf("%s sees %v", who, extra)
		}
	}
}

// Two programs of one place have one number: a page with a number twice is none.
func TestLeaksOfOnePlace(t *testing.T) {
	got := leaks([]machine.AuditResult{
		{Kind: "exec", Zone: "z", Leaks: 2}, {Kind: "exec", Zone: "z", Leaks: 3}, {Kind: "exec", Zone: "y"}, {Kind: "gce", Project: "p", Zone: "z", Leaks: 1},
	})
	want := map[[3]string]int{{"exec", "", "z"}: 5, {"exec", "", "y"}: 0, {"gce", "p", "z"}: 1}
	if !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// instant is a cloud that makes machines at once, but in zone full.
type instant struct {
	mu   sync.Mutex
	made map[string]provider.Instance
	full string
}

func (c *instant) Create(_ context.Context, o provider.Order) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if o.Zone == c.full {
		return true, &provider.Error{Class: provider.Exhausted, Code: 200, Reason: "FULL", Text: "no room"}
	}
	c.made[o.Name] = provider.Instance{Ref: provider.Ref{Zone: o.Zone, Name: o.Name}, URL: o.RequestID, Labels: o.Labels}
	return true, nil
}

func (c *instant) Get(_ context.Context, r provider.Ref) (provider.Instance, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	in, ok := c.made[r.Name]
	if !ok {
		return in, &provider.Error{Class: provider.NotFound, Code: 404}
	}
	return in, nil
}

func (c *instant) Delete(_ context.Context, r provider.Ref, _ string) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.made, r.Name)
	return true, nil
}

func (c *instant) List(context.Context, provider.Scope, string) ([]provider.Instance, string, error) {
	return nil, "", nil
}

var replacements = flag.Int("replacements", 20, "replacements of TestMachineMetricsAreBounded; 10000 is the long form")

// promise P25: metrics of a pool in which machines were made, replaced and
// refused are 50 at most, and do not grow with replacements.
func TestMachineMetricsAreBounded(t *testing.T) {
	cloud := &instant{made: map[string]provider.Instance{}}
	f, admin, _, _ := poolsOf(t, cloud)
	r := f.server.o.Machines
	c := provider.Config{
		Prefix: "m", Kind: "fake", Amount: provider.Amount{Min: 3, Max: 3}, Lifetime: time.Hour, Zones: []string{"x", "y", "z"},
		Attributes: provider.Attributes{Project: "lab", Zone: "x", Labels: map[string]string{"resource_group": "blue"}},
	}
	if err := r.Import(t.Context(), []provider.Config{c}, []string{"p", "q"}); err != nil {
		t.Fatal(err)
	}
	step := func(s machine.Step, id string) {
		t.Helper()
		if did, err := r.RunStep(t.Context(), s, id); !did.Done || err != nil {
			t.Fatalf("%s %s: %+v, %v", s, id, did, err)
		}
	}
	save := func(id string, fn func(*skep.Bot)) {
		t.Helper()
		err := f.store.Update(t.Context(), func(tx *store.Tx) error {
			v, err := tx.LockVM(id)
			if err != nil {
				return err
			}
			b := &skep.Bot{ID: skep.BotID(v.Hostname), FirstSeen: tx.Now, LastSeen: tx.Now}
			fn(b)
			return tx.SaveBot(b)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	birth := func(id string) {
		t.Helper()
		step(machine.CreateInstance, id)
		save(id, func(*skep.Bot) {})
		step(machine.ManageBot, id)
	}
	step(machine.ExpandConfigs, "m")
	for i, full := range []string{"", "x", "y"} { // one in each zone
		for range 3 {
			cloud.full = full
			if full != "" && i < 3 {
				_, _ = r.RunStep(t.Context(), machine.CreateInstance, fmt.Sprintf("m-%d", i))
				_, _ = r.RunStep(t.Context(), machine.ExpandConfigs, "m")
			}
		}
		cloud.full = ""
		birth(fmt.Sprintf("m-%d", i))
	}
	lines := func() (all []string) {
		_, body := scrape(t, f.url, admin)
		for line := range strings.Lines(body) {
			if strings.HasPrefix(line, "skep_machine") && strings.Contains(line, `pool="m"`) {
				all = append(all, line)
			}
		}
		return all
	}
	before := lines()
	for range *replacements {
		step(machine.DrainVM, "m-2")
		save("m-2", func(b *skep.Bot) { b.Dead, b.Terminated = true, 1 })
		step(machine.DestroyInstance, "m-2")
		step(machine.DeleteBot, "m-2")
		step(machine.ExpandConfigs, "m")
		birth("m-2")
	}
	after, made := lines(), fmt.Sprint(3+*replacements)
	for _, want := range []string{
		`skep_machine_ready_seconds_count{pool="m",resource_group="blue"} ` + made,
		`skep_machine_creation_seconds_count{pool="m"} ` + made,
		`skep_machine_creation_failures_total{class="exhausted",pool="m",project="lab",zone="x"} 3`,
		`skep_machine_creation_failures_total{class="exhausted",pool="m",project="lab",zone="y"} 3`,
	} {
		if !slices.Contains(after, want+"\n") {
			t.Errorf("the page has no %s", want)
		}
	}
	zones := 0
	for _, line := range after {
		if strings.HasPrefix(line, "skep_machines_created") {
			zones++
		}
	}
	// Failures of all kinds, of which two are there, and that of the pool.
	if most := len(after) + 6 + 1; len(after) != len(before) || zones != 3 || most > 50 {
		t.Errorf("%d lines became %d, %d at most, in %d zones: %s", len(before), len(after), most, zones, after)
	}
}

// promise P17: the page tells what is stored, by the labels of the machines.
func TestMachineMetricsAreWhatIsStored(t *testing.T) {
	f, admin, _, _ := pools(t)
	r := f.server.o.Machines
	c := provider.Config{
		Prefix: "g", Kind: "fake", Amount: provider.Amount{Min: 4, Max: 4}, Lifetime: time.Hour,
		Attributes: provider.Attributes{Project: "lab", Zone: "z", Labels: map[string]string{"resource_group": "blue"}},
	}
	declare := func() {
		t.Helper()
		if err := r.Import(t.Context(), []provider.Config{c}, []string{"p", "q"}); err != nil {
			t.Fatal(err)
		}
		if _, err := r.RunStep(t.Context(), machine.ExpandConfigs, "g"); err != nil {
			t.Fatal(err)
		}
	}
	declare()
	now := time.Now()
	err := f.store.Update(t.Context(), func(tx *store.Tx) error {
		for i := range 3 {
			v, err := tx.LockVM(fmt.Sprintf("g-%d", i))
			if err != nil {
				return err
			}
			v.URL, v.Inserted, v.Created, v.Connected = "u", now.Add(-time.Minute), now.Add(-time.Minute), now
			if i == 2 {
				v.Park, v.Stopping, v.Stopped, v.Connected = now, now, now, time.Time{}
			} else if err := tx.SaveBot(&skep.Bot{ID: skep.BotID(v.Hostname), FirstSeen: now, LastSeen: now}); err != nil {
				return err
			}
			if err := tx.SaveVM(v); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	c.Attributes.Labels = map[string]string{"resource_group": "red"} // the machines stay what they were made as
	if err := r.Import(t.Context(), []provider.Config{c}, []string{"p", "q"}); err != nil {
		t.Fatal(err)
	}
	_, body := scrape(t, f.url, admin)
	for _, want := range []string{
		`skep_machines_configured{kind="fake",pool="g",project="lab",resource_group="red",scaling="fixed"} 4`,
		`skep_machines_created{pool="g",project="lab",scaling="fixed",zone="z"} 3`,
		`skep_machines_connected{pool="g",project="lab",resource_group="blue",scaling="fixed",zone="z"} 2`,
		`skep_machines{pool="g",state="planned"} 1`,
		`skep_machines{pool="g",state="stopped"} 1`,
		`skep_machines{pool="g",state="outdated"} 4`,
		`skep_machines_configured{kind="fake",pool="p",project="",resource_group="",scaling="dynamic"} 2`,
	} {
		if !strings.Contains(body, want+"\n") {
			t.Errorf("the page has no %s", want)
		}
	}
	if t.Failed() {
		for line := range strings.Lines(body) {
			if strings.HasPrefix(line, "skep_machines") {
				t.Log(line)
			}
		}
	}
}
