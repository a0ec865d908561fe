package cli

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep/api/skeppb"
	pb "github.com/skepdev/skep/api/swarmingpb"
)

// alarms waits until there are as many of a kind.
func (c *configured) alarms(kind string, n int) []*skeppb.Alarm {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 2*time.Minute)
	defer cancel()
	for {
		as, err := c.client("").ListAlarms(ctx)
		if err != nil {
			c.t.Fatal(err)
		}
		var out []*skeppb.Alarm
		for _, a := range as.Alarms {
			if a.Kind == kind {
				out = append(out, a)
			}
		}
		if len(out) == n {
			return out
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// member is a skep-bot of pool p.
func member(id string, state map[string]any) map[string]any {
	if state == nil {
		state = map[string]any{}
	}
	state["skep"] = map[string]any{"isolation": "user"}
	b := about(id, map[string][]string{"pool": {"p"}})
	b["state"] = state
	b["version"] = "v1"
	return b
}

func (c *configured) poll(b map[string]any) map[string]any {
	c.t.Helper()
	status, ans := c.call(botCall{path: "/swarming/api/v1/bot/poll", body: b})
	if status != http.StatusOK {
		c.t.Fatalf("poll: %d %v", status, ans)
	}
	return ans
}

// seen waits until the server counts the fleet so: it does now and then.
func (c *configured) seen(metric string) {
	c.t.Helper()
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: c.roots}}
	defer tr.CloseIdleConnections()
	waitUntil(c.t, func() bool {
		req, err := http.NewRequestWithContext(c.t.Context(), http.MethodGet, c.url+"/metrics", nil)
		if err != nil {
			c.t.Fatal(err)
		}
		res, err := (&http.Client{Transport: tr}).Do(req)
		if err != nil {
			c.t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		return err == nil && strings.Contains(string(b), "\n"+metric+"\n")
	})
}

func TestCircuitBreaker(t *testing.T) {
	c := serveConfig(t, map[string]string{"pools.cfg": `pool { name: "p" realm: "a:b" circuit_breaker { percent: 20 min_bots: 5 } }`}, nil, nil)
	const n = 10
	for i := range n {
		c.poll(member(fmt.Sprintf("b%d", i), nil))
	}
	c.seen(`skep_bots{pool="p",status="idle"} 10`) // a share of these is what the breaker lets
	ill := func() (n int) {
		res, err := c.client("").CountBots(t.Context(), &pb.BotsCountRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return int(res.Quarantined)
	}
	believed := 0
	for i := range n { // a hook that finds fault with everybody
		if c.poll(member(fmt.Sprintf("b%d", i), map[string]any{"quarantined": "the new check says no"}))["quarantined"] == true {
			believed++
		}
	}
	if believed != 2 { // the others climb no recovery ladder
		t.Errorf("%d of %d bots are told that they are in quarantine, want 20 %%", believed, n)
	}
	if got := ill(); got != 2 {
		t.Errorf("%d of %d bots are quarantined, want 20 %%", got, n)
	}
	var a *skeppb.Alarm
	waitUntil(t, func() bool {
		a = c.alarms("circuit_breaker", 1)[0]
		return strings.HasPrefix(a.Text, "8 ")
	})
	if a.Pool != "p" || !strings.Contains(a.Text, "8 more bots of pool p") || !strings.Contains(a.Text, "the new check says no") {
		t.Errorf("alarm %v", a)
	}
	for i := range n {
		c.poll(member(fmt.Sprintf("b%d", i), nil))
	}
	c.alarms("circuit_breaker", 0)
	if got := ill(); got != 0 {
		t.Errorf("%d bots are quarantined that are well", got)
	}
	// What the server itself has against a bot is nobody's to hold.
	for i := range n {
		b := member(fmt.Sprintf("b%d", i), nil)
		delete(b, "version")
		c.poll(b)
	}
	if got := ill(); got != n {
		t.Errorf("%d bots without a version are quarantined, want all", got)
	}
}

func TestExpectedBots(t *testing.T) {
	c := serveConfig(t, map[string]string{"pools.cfg": `pool { name: "p" realm: "a:b" }`}, nil, nil)
	c.poll(member("b0", nil))
	c.alarms("bot_never_appeared", 0)
	// The shortest grace is a minute, so that its end is only planned here; health's tests have the rest.
	c.change(map[string]string{"pools.cfg": `pool { name: "p" realm: "a:b" expected_bot: "b{0..2}" expected_bot_grace_secs: 60 }`})
	if got := len(c.fleet.current().Expected); got != 3 {
		t.Errorf("%d bots are expected, want 3", got)
	}
	c.alarms("bot_never_appeared", 0)
}

func TestMaxUptime(t *testing.T) {
	c := serveConfig(t, map[string]string{"pools.cfg": `pool { name: "p" realm: "a:b" max_bot_uptime_secs: 7200 max_host_uptime_secs: 86400 uptime_spread_percent: 50 }`}, nil, nil)
	for _, tc := range []struct {
		name    string
		bot     string
		running any
		host    any
		want    string
	}{
		{"young", "b1", 10, 10, "sleep"},
		{"old bot", "b2", 7300, 10, "bot_restart"},
		{"old host", "b3", 7300, 86500, "host_reboot"},
		{"says nonsense", "b4", "old", []int{1}, "sleep"},
		{"asked a moment ago", "b2", 7300, 10, "sleep"},
	} {
		ans := c.poll(member(tc.bot, map[string]any{"running_time": tc.running, "uptime": tc.host}))
		if ans["cmd"] != tc.want {
			t.Errorf("%s: %v, want %s", tc.name, ans, tc.want)
		}
	}
	early := 0
	for i := range 100 {
		if c.poll(member(fmt.Sprintf("s%d", i), map[string]any{"running_time": 5400}))["cmd"] == "bot_restart" {
			early++
		}
	}
	if early < 25 || early > 75 {
		t.Errorf("%d of 100 bots are due at three quarters of their uptime, want about half", early)
	}
}

func TestRecoveryLadderTravels(t *testing.T) {
	pool := func(timeout int) map[string]string {
		return map[string]string{"pools.cfg": fmt.Sprintf(`pool { name: "p" realm: "a:b" trusted: true
			recovery { action: ACTION_RUN command: "/bin/fix" timeout_secs: %d budget: 2 }
			recovery { action: ACTION_RESTART_BOT } }`, timeout)}
	}
	c := serveConfig(t, pool(30), nil, nil)
	shake := func(b map[string]any) map[string]any {
		t.Helper()
		b["session_id"] = "s1"
		status, ans := c.call(botCall{path: "/swarming/api/v1/bot/handshake", body: b})
		if status != http.StatusOK {
			t.Fatalf("handshake: %d %v", status, ans)
		}
		return ans
	}
	ans := shake(member("b1", nil))
	want := map[string]any{"recovery": []any{
		map[string]any{"do": "run", "command": []any{"/bin/fix"}, "timeout_secs": 30.0, "times": 2.0, "per_secs": 86400.0, "wait_secs": 0.0},
		map[string]any{"do": "bot_restart", "timeout_secs": 60.0, "times": 1.0, "per_secs": 86400.0, "wait_secs": 0.0},
	}}
	if diff := cmp.Diff(want, ans["skep"]); diff != "" {
		t.Error(diff)
	}
	foreign := about("b2", map[string][]string{"pool": {"p"}})
	foreign["state"] = map[string]any{}
	if got := shake(foreign)["skep"]; got != nil {
		t.Errorf("a foreign bot is told %v", got)
	}
	b := member("b1", nil)
	b["session"] = ans["session"]
	if cmd := c.poll(b)["cmd"]; cmd != "sleep" {
		t.Errorf("a bot that knows the ladder is told to %v", cmd)
	}
	c.change(pool(31))
	if cmd := c.poll(b)["cmd"]; cmd != "bot_restart" {
		t.Errorf("after a change: %v, want bot_restart", cmd)
	}
}

// A pool of pools.cfg names the warm pool that its tasks run in, and no other's.
func TestWarmPoolTravels(t *testing.T) {
	c := serveConfig(t, map[string]string{"pools.cfg": `pool { name: "p" realm: "a:b" default_task_realm: "a:b" warm_pool: "/run/skep/pool" } pool { name: "q" realm: "a:b" default_task_realm: "a:b" }`}, nil, nil)
	cl := c.client("")
	for pool, want := range map[string]any{"p": map[string]any{"pool": "/run/skep/pool"}, "q": nil} {
		if _, err := cl.NewTask(t.Context(), newTaskIn(pool)); err != nil {
			t.Fatal(err)
		}
		b := member("b"+pool, nil)
		b["dimensions"] = map[string][]string{"id": {"b" + pool}, "pool": {pool}}
		ans := c.poll(b)
		m, _ := ans["manifest"].(map[string]any)
		if m == nil {
			t.Fatalf("no task of pool %s: %v", pool, ans)
		}
		if diff := cmp.Diff(want, m["skep"]); diff != "" {
			t.Errorf("pool %s: %s", pool, diff)
		}
	}
}

func TestSteeringOverTheWire(t *testing.T) {
	c := serveConfig(t, map[string]string{"pools.cfg": `pool { name: "p" realm: "a:b" }`}, nil, nil)
	cl := c.client("")
	c.poll(member("b1", nil))
	if _, err := cl.DrainBot(t.Context(), "b1", "new disk", time.Hour); err != nil {
		t.Fatal(err)
	}
	info := func() string {
		b, err := cl.GetBot(t.Context(), &pb.BotRequest{BotId: "b1"})
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%v %q", b.Quarantined, b.MaintenanceMsg)
	}
	if got := info(); !strings.Contains(got, "drained by anonymous:anonymous: new disk") {
		t.Errorf("the bot is shown as %s", got)
	}
	if ans := c.poll(member("b1", nil)); ans["cmd"] != "sleep" || ans["duration"].(float64) > 5 {
		t.Errorf("a drained bot is told %v", ans)
	}
	if _, err := cl.UndrainBot(t.Context(), "b1", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := cl.QuarantineBot(t.Context(), "b1", "smells"); err != nil {
		t.Fatal(err)
	}
	if ans := c.poll(member("b1", nil)); ans["quarantined"] != true {
		t.Errorf("a quarantined bot is told %v", ans)
	}
	o, err := cl.GetOrders(t.Context(), "b1")
	if err != nil || o.Drain != nil || o.Quarantine.GetReason() != "smells" {
		t.Errorf("orders %v %v", o, err)
	}
	events, err := cl.ListBotEvents(t.Context(), &pb.BotEventsRequest{BotId: "b1"})
	if err != nil {
		t.Fatal(err)
	}
	var notes []string
	for _, e := range events.Items {
		if e.EventType == "bot_log" {
			notes = append(notes, e.Message)
		}
	}
	if diff := cmp.Diff([]string{"quarantined by anonymous:anonymous: smells", "not drained any more by anonymous:anonymous", "drained by anonymous:anonymous: new disk"}, notes); diff != "" {
		t.Error(diff)
	}
	if _, err := cl.UnquarantineBot(t.Context(), "b1", ""); err != nil {
		t.Fatal(err)
	}
	if ans := c.poll(member("b1", nil)); ans["quarantined"] != false {
		t.Errorf("a bot without orders is told %v", ans)
	}
	if _, err := cl.DrainBot(t.Context(), "nobody", "", -1); err == nil {
		t.Error("a bot that nobody knows is drained")
	}
}

// waitUntil waits for what another goroutine does.
func waitUntil(t *testing.T, ok func() bool) {
	t.Helper()
	for late := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(late) {
			t.Fatal("it does not happen")
		}
	}
}
