package server

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/dronepb"
	"github.com/skepdev/skep/api/prpc"
	"github.com/skepdev/skep/client"
	"github.com/skepdev/skep/queen"
)

// as is a client with a token, "" for none.
func (f *fleet) as(token string) *client.Client {
	f.t.Helper()
	c, err := client.New(client.Options{Server: f.url, Token: token, Retry: prpc.Retry{Times: -1}})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(c.Close)
	return c
}

func reportOf(capacity uint32) *dronepb.ReportDroneRequest {
	return &dronepb.ReportDroneRequest{RegistrationKey: "k", Hive: "h", LoadIndicators: &dronepb.ReportDroneRequest_LoadIndicators{DutCapacity: capacity}}
}

// Who may be a drone, who may say which devices there are, and who may look:
// every scope and nobody, on every method.
func TestWhoMayAssign(t *testing.T) {
	f, admin := guarded(t)
	tokens := map[string]string{
		"nobody": "", "admin": admin,
		"user": f.token(NewToken{Name: "u", Scope: ScopeUser}), "bot": f.token(NewToken{Name: "b", Scope: ScopeBot, Bots: []string{"*"}}),
		"drone": f.token(NewToken{Name: "d", Scope: ScopeDrone}), "inventory": f.token(NewToken{Name: "i", Scope: ScopeInventory}),
	}
	if err := f.server.tokens.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, m := range []struct {
		name string
		may  []string
		call func(context.Context, *client.Client) error
	}{
		{"ReportDrone", []string{"admin", "drone"}, func(ctx context.Context, c *client.Client) error {
			_, err := c.ReportDrone(ctx, "1", reportOf(1))
			return err
		}},
		{"ReleaseDuts", []string{"admin", "drone"}, func(ctx context.Context, c *client.Client) error {
			return c.ReleaseDuts(ctx, &dronepb.ReleaseDutsRequest{DroneUuid: "x", Duts: []string{"d1"}})
		}},
		{"DeclareDuts", []string{"admin", "inventory"}, func(ctx context.Context, c *client.Client) error {
			_, err := c.DeclareDuts(ctx, &dronepb.DeclareDutsRequest{AvailableDuts: []*dronepb.DeclareDutsRequest_Dut{{Name: "d1", Hive: "h"}}})
			return err
		}},
		{"ListDrones", []string{"admin", "inventory", "user"}, func(ctx context.Context, c *client.Client) error {
			_, err := c.ListDrones(ctx)
			return err
		}},
		{"ListDuts", []string{"admin", "inventory", "user"}, func(ctx context.Context, c *client.Client) error {
			_, err := c.ListDuts(ctx)
			return err
		}},
	} {
		for who, token := range tokens {
			err := m.call(t.Context(), f.as(token))
			want := skep.Denied
			if who == "nobody" {
				want = skep.Unauthenticated
			}
			switch {
			case slices.Contains(m.may, who) && err != nil:
				t.Errorf("%s by %s: %v", m.name, who, err)
			case !slices.Contains(m.may, who) && (err == nil || skep.KindOf(err) != want):
				t.Errorf("%s by %s: %v (%v), want %v", m.name, who, err, skep.KindOf(err), want)
			case err != nil && who != "nobody" && !strings.Contains(err.Error(), "permission skep.drones."):
				t.Errorf("%s by %s does not say what is missing: %v", m.name, who, err)
			}
		}
	}
	// And they may nothing else.
	for _, who := range []string{"drone", "inventory"} {
		if _, err := f.as(tokens[who]).CountBots(t.Context(), nil); skep.KindOf(err) != skep.Denied {
			t.Errorf("%s counts bots: %v", who, err)
		}
	}
}

// What the configuration says of the assignment holds, and changes at once.
func TestQueenPolicy(t *testing.T) {
	rules := &Rules{}
	f := serve(t, func(o *Options) { o.Rules = func() *Rules { return rules } })
	report := func(version string) *dronepb.ReportDroneResponse {
		t.Helper()
		res, err := f.client.ReportDrone(t.Context(), version, reportOf(1))
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	if res := report(""); res.Status != dronepb.ReportDroneResponse_OK || res.Lease.AsDuration() != queen.DefaultLease {
		t.Errorf("without configuration: %v", res)
	}
	rules = &Rules{Queen: queen.Policy{Lease: 20 * time.Minute, MinVersion: 202611270000, RefuseUnknown: true, MaxRemovedPercent: 50}}
	for version, want := range map[string]dronepb.ReportDroneResponse_Status{
		"202611270910": dronepb.ReportDroneResponse_OK, "202611260910": dronepb.ReportDroneResponse_VERSION_REFUSED,
		"unknown": dronepb.ReportDroneResponse_VERSION_REFUSED, "": dronepb.ReportDroneResponse_VERSION_REFUSED,
	} {
		res := report(version)
		if res.Status != want || res.Lease.AsDuration() != 20*time.Minute || want != dronepb.ReportDroneResponse_OK && res.Message == "" {
			t.Errorf("version %q: %v", version, res)
		}
	}
	if res, err := f.client.ReportDrone(t.Context(), "1", &dronepb.ReportDroneRequest{RegistrationKey: "another"}); err != nil || res.Status != dronepb.ReportDroneResponse_VERSION_REFUSED || res.Lease != nil {
		t.Errorf("a drone that is not known yet: %v, %v", res, err)
	}
	report("202611270910")
	drones, err := f.client.ListDrones(t.Context())
	if err != nil || len(drones.Drones) != 1 || drones.Drones[0].Version != "202611270910" {
		t.Errorf("%v, %v", drones, err)
	}
}

// Metrics of drones and devices say what is, and what happened.
func TestQueenMetrics(t *testing.T) {
	rules := &Rules{}
	f := serve(t, func(o *Options) { o.Rules = func() *Rules { return rules } })
	duts := func(names ...string) {
		t.Helper()
		req := &dronepb.DeclareDutsRequest{ConfirmRemoval: true}
		for _, n := range names {
			req.AvailableDuts = append(req.AvailableDuts, &dronepb.DeclareDutsRequest_Dut{Name: n, Hive: "h"})
		}
		if _, err := f.client.DeclareDuts(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	want := func(lines ...string) {
		t.Helper()
		f.server.metrics.mu.Lock()
		f.server.metrics.looked = time.Time{} // else it is 2 s old
		f.server.metrics.mu.Unlock()
		_, body := scrape(t, f.url, "")
		for _, line := range lines {
			if !strings.Contains(body, "\nskep_"+line+"\n") {
				t.Errorf("no %s", line)
			}
		}
		if t.Failed() {
			for line := range strings.Lines(body) {
				if strings.HasPrefix(line, "skep_d") {
					t.Log(line)
				}
			}
			t.FailNow()
		}
	}
	duts("a", "b", "c")
	want(`duts{hive="h",state="free"} 3`, `drone_reports_total{status="ok"} 0`)
	first, err := f.client.ReportDrone(t.Context(), "", reportOf(2))
	if err != nil || len(first.AssignedDuts) != 2 {
		t.Fatal(first, err)
	}
	want(`drones{hive="h"} 1`, `drone_places{hive="h",kind="used"} 2`, `drone_places{hive="h",kind="free"} 0`, `duts{hive="h",state="free"} 1`, `duts{hive="h",state="assigned"} 2`, `drone_reports_total{status="ok"} 1`)
	var left []string
	for _, d := range []string{"a", "b", "c"} {
		if d != first.AssignedDuts[0] {
			left = append(left, d)
		}
	}
	duts(left...)
	want(`duts{hive="h",state="draining"} 1`, `duts{hive="h",state="assigned"} 1`, `drone_places{hive="h",kind="used"} 2`)
	if err := f.client.ReleaseDuts(t.Context(), &dronepb.ReleaseDutsRequest{DroneUuid: first.DroneUuid, Duts: first.AssignedDuts}); err != nil {
		t.Fatal(err)
	}
	if res, err := f.client.ReportDrone(t.Context(), "", &dronepb.ReportDroneRequest{DroneUuid: "nobody"}); err != nil || res.Status != dronepb.ReportDroneResponse_UNKNOWN_UUID {
		t.Fatal(res, err)
	}
	want(`duts{hive="h",state="draining"} 0`, `duts{hive="h",state="assigned"} 0`, `drone_places{hive="h",kind="free"} 2`, `drone_reports_total{status="unknown_uuid"} 1`, `drone_leases_ended_total 0`)

	// A lease that is over at once.
	rules = &Rules{Queen: queen.Policy{Lease: time.Nanosecond}}
	if _, err := f.client.ReportDrone(t.Context(), "", reportOf(2)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.server.RunQueen(ctx) }()
	for f.server.queen.LeasesEnded() == 0 {
		if t.Context().Err() != nil {
			t.Fatal("the lease does not end")
		}
		drones, err := f.client.ListDrones(t.Context())
		if err != nil {
			t.Fatal(drones, err)
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	want(`drone_leases_ended_total 1`, `duts{hive="h",state="free"} 2`)
}
