package cli

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/skeppb"
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/provider/machine"
	"github.com/skepdev/skep/store"
)

// A server that has no copy of the last good configuration does not know what
// a broken entry was: no pool is taken away for it. promise P24.
func TestBrokenEntryTakesNoPoolAway(t *testing.T) {
	const a, b, bad = "vms { prefix: \"a\" amount { min: 1 max: 1 } lifetime { duration: \"1d\" } provider { process {} } }\n",
		"vms { prefix: \"b\" amount { min: 1 max: 1 } lifetime { duration: \"1d\" } provider { process {} } }\n",
		"vms { prefix: \"b\" amount { min: 2 max: 1 } lifetime { duration: \"1d\" } provider { process {} } }\n"
	dir := t.TempDir()
	write := func(text string) {
		if err := os.WriteFile(filepath.Join(dir, "vms.cfg"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	st, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "skep.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	start := func() map[string]bool { // a server with a state directory of its own
		c, err := openConfig(dir, t.TempDir(), nil, log)
		if err != nil {
			t.Fatal(err)
		}
		r, err := machine.New(t.Context(), st, nil, nil, machine.Options{Log: log})
		if err != nil {
			t.Fatal(err)
		}
		m := &machines{Reconciler: r, store: st, config: c, log: log, seen: map[string]bool{}}
		if err := m.follow(t.Context()); err != nil {
			t.Fatal(err)
		}
		pools, err := st.MachinePools(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		declared := map[string]bool{}
		for _, p := range pools {
			declared[p.Prefix] = p.Removed.IsZero()
		}
		return declared
	}
	write(a + b)
	if got := start(); !got["a"] || !got["b"] {
		t.Fatalf("declared: %v", got)
	}
	write(a + bad)
	if got := start(); !got["a"] || !got["b"] {
		t.Errorf("with a broken entry: %v", got)
	}
	write(a)
	if got := start(); !got["a"] || got["b"] {
		t.Errorf("without the entry: %v", got)
	}
}

// A state directory keeps its name, and no two have the same.
func TestMachineHome(t *testing.T) {
	home := func(dir string) string {
		if err := os.MkdirAll(filepath.Join(dir, machineDir), 0o700); err != nil {
			t.Fatal(err)
		}
		h, err := machineHome(dir)
		if err != nil || h == "" {
			t.Fatal(h, err)
		}
		return h
	}
	one, two := t.TempDir(), t.TempDir()
	if first := home(one); first != home(one) || first == home(two) {
		t.Errorf("%q, %q, %q", first, home(one), home(two))
	}
}

func TestOnlyHere(t *testing.T) {
	for _, c := range []struct {
		kind, engine string
		want         bool
	}{
		{"process", "tcp://engines.example.com:2376", true},
		{"docker", "unix:///var/run/docker.sock", true},
		{"docker", "tcp://127.0.0.1:2375", true},
		{"docker", "tcp://engines.example.com:2376", false},
		{"gce", "unix:///var/run/docker.sock", false},
	} {
		if got := (&clouds{engine: c.engine}).onlyHere(c.kind); got != c.want {
			t.Errorf("%s at %s: %t", c.kind, c.engine, got)
		}
	}
}

// A task waits for a machine where a pool that follows the queue may make one.
func TestMayCome(t *testing.T) {
	demands := skep.Constraints{{Key: "os", Values: []string{"Linux", "Windows"}}}
	linux := &provider.Demand{Dimensions: map[string][]string{"os": {"Linux"}}}
	for name, tc := range map[string]struct {
		pool provider.Config
		want bool
	}{
		"it does":                     {provider.Config{Demand: linux, Amount: provider.Amount{Max: 1}}, true},
		"its bots are this server's":  {provider.Config{Demand: linux, Amount: provider.Amount{Max: 1}, Swarming: "skep.example.com"}, true},
		"its bots are another's":      {provider.Config{Demand: linux, Amount: provider.Amount{Max: 1}, Swarming: "other.example.com"}, false},
		"in a window":                 {provider.Config{Demand: linux, Amount: provider.Amount{Windows: []provider.Window{{Max: 1}}}}, true},
		"it may have no machine":      {provider.Config{Demand: linux}, false},
		"it does not follow":          {provider.Config{Amount: provider.Amount{Max: 1}}, false},
		"its machines are other ones": {provider.Config{Demand: &provider.Demand{Dimensions: map[string][]string{"os": {"Mac"}}}, Amount: provider.Amount{Max: 1}}, false},
	} {
		if got := mayCome([]provider.Config{tc.pool}, []string{"http://127.0.0.1:8900", "https://skep.example.com"}, demands); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// How long a bot may be silent is the operator's to say, within bounds.
// promise P14.
func TestMachineSilence(t *testing.T) {
	for _, tc := range []struct {
		args string
		want time.Duration // 0 = it is refused
	}{
		{"", 10 * time.Minute},
		{"--machine-silence=25m", 25 * time.Minute},
		{"--machine-silence=60s", time.Minute},
		{"--machine-silence=59s", 0},
		{"--machine-silence=0", 0},
		{"--machine-silence=169h", 0},
	} {
		for name, register := range map[string]func(*cobra.Command) *machineFlags{
			"server":       func(cmd *cobra.Command) *machineFlags { var f serverFlags; f.register(cmd); return &f.machines },
			"provider run": func(cmd *cobra.Command) *machineFlags { var f providerFlags; f.register(cmd); return &f.machines },
		} {
			cmd := &cobra.Command{}
			f := register(cmd)
			if err := cmd.ParseFlags(strings.Fields(tc.args)); err != nil {
				t.Fatal(err)
			}
			if got, err := f.patience(); got.Silence != tc.want || (err == nil) != (tc.want != 0) {
				t.Errorf("%s %s: %v, %v", name, tc.args, got.Silence, err)
			}
		}
	}
}

func TestPoolState(t *testing.T) {
	for want, p := range map[string]*skeppb.MachinePool{
		"ok":                                        {},
		"drained, as many as wanted in about 1s":    {Held: true, ExpectedWait: durationpb.New(0)},
		"as many as wanted in about 1m30s":          {ExpectedWait: durationpb.New(90 * time.Second)},
		"removed, quota: none; left":                {Removed: true, Failure: &skeppb.MachineFailure{Class: "quota", Reason: "no", Text: "none\nleft"}},
		"the server on lab1 is away":                {Away: true, Host: "lab1"},
		"outdated ones are replaced, transient: no": {Replacing: true, Failure: &skeppb.MachineFailure{Class: "transient", Reason: "no"}},
	} {
		if got := poolState(p); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
