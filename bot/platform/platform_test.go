package platform

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/bot/hook"
)

func TestMachineType(t *testing.T) {
	tests := []struct {
		cores, ramMB int
		want         string
	}{
		{1, 600, "f1-micro"},
		{1, 2000, "g1-small"},
		{1, 3840, "n1-standard-1"},
		{2, 16384, "n1-highmem-2"},
		{4, 15360, "n1-standard-4"},
		{8, 7372, "n1-highcpu-8"},
		{12, 46080, "n1-standard-8"},
		{96, 368640, "n1-standard-16"},
		{4, 0, ""},
	}
	for _, tt := range tests {
		if got, _ := machineType(tt.cores, tt.ramMB); got != tt.want {
			t.Errorf("machineType(%d, %d) = %q, want %q", tt.cores, tt.ramMB, got, tt.want)
		}
	}
}

// The rule and its examples are in spec bot.md §8.6.
func TestDiskRule(t *testing.T) {
	const gb = 1 << 30
	def := defaultRules()
	tests := []struct {
		rule  hook.Partition
		total uint64
		want  uint64
	}{
		{def.bot, 20 * gb, 3 * gb},                                   // 15 %
		{def.bot, 40 * gb, 4 * gb},                                   // the fixed size
		{def.bot, 100 * gb, 7 * gb},                                  // 7 %
		{def.root, 5 * gb, gb / 2},                                   // 10 %
		{def.root, 100 * gb, 6 * gb},                                 // 6 %
		{hook.Partition{MaxPercent: 10, MinPercent: 5}, gb, gb / 10}, // no fixed size
		{hook.Partition{Size: gb}, 5, gb},                            // nothing else
	}
	for _, tt := range tests {
		if got := minimum(tt.rule, tt.total); got>>20 != tt.want>>20 {
			t.Errorf("%+v of %d MiB: %d MiB must be free, want %d", tt.rule, tt.total>>20, got>>20, tt.want>>20)
		}
	}
}

func TestCPUDimension(t *testing.T) {
	tests := []struct {
		name, machine string
		cpu           cpuInfo
		want          []string
	}{
		{
			"a Xeon with a version", "x86_64",
			cpuInfo{name: "Intel(R) Xeon(R) CPU E5-2690 v4 @ 2.60GHz", vendor: "GenuineIntel", flags: []string{"avx2"}},
			[]string{"x86", "x86-64", "x86-64-E5-2690_v4", "x86-64-avx2"},
		},
		{
			"a Core", "x86_64",
			cpuInfo{name: "Intel(R) Core(TM) i7-4770K CPU @ 3.50GHz", vendor: "GenuineIntel"},
			[]string{"x86", "x86-64", "x86-64-i7-4770K"},
		},
		{
			"an Atom", "x86_64",
			cpuInfo{name: "Intel(R) Celeron(R) CPU  N3450 @ 1.10GHz", vendor: "GenuineIntel"},
			[]string{"x86", "x86-64", "x86-64-N3450"},
		},
		{
			"an AMD", "x86_64",
			cpuInfo{name: "AMD Ryzen 7 5800X", vendor: "AuthenticAMD", flags: []string{"avx2"}},
			[]string{"x86", "x86-64", "x86-64-avx2"},
		},
		{
			"an ARM", "aarch64",
			cpuInfo{extra: map[string]string{"Hardware": "BCM2835"}},
			[]string{"arm", "arm-64", "arm64", "arm64-64", "arm64-64-BCM2835"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if d := cmp.Diff(tt.want, cpuDimension(tt.machine, "64", tt.cpu)); d != "" {
				t.Errorf("cpu (-want +got):\n%s", d)
			}
		})
	}
}

func TestLocale(t *testing.T) {
	tests := []struct {
		env  map[string]string
		want string
	}{
		{map[string]string{"LANG": "en_US.UTF-8"}, "en_US.UTF-8"},
		{map[string]string{"LANG": "en_US.UTF-8", "LC_ALL": "de_DE.utf8"}, "de_DE.UTF-8"},
		{map[string]string{"LANG": "C.UTF-8"}, ""},
		{nil, ""},
	}
	for _, tt := range tests {
		if got := locale(func(k string) string { return tt.env[k] }); got != tt.want {
			t.Errorf("locale(%v) = %q, want %q", tt.env, got, tt.want)
		}
	}
}

func TestGCEDimensions(t *testing.T) {
	said := map[string]string{
		"instance/image":     "projects/debian-cloud/global/images/debian-12",
		"instance/zone":      "projects/1/zones/us-central1-a",
		"project/project-id": "my-project",
	}
	got := map[string][]string{}
	gceDimensions(func(k string) string { return said[k] }, got)
	want := map[string][]string{
		"image": {"debian-12"}, "gcp": {"my-project"}, "zone": {"us", "us-central", "us-central1", "us-central1-a"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("dimensions (-want +got):\n%s", d)
	}
}

func TestNamedCaches(t *testing.T) {
	dir := t.TempDir()
	p := New(t.Context(), Options{BotID: "b1", Dir: dir})
	if got := p.Dimensions()["caches"]; got != nil {
		t.Errorf("caches = %v without a cache", got)
	}
	file := filepath.Join(dir, "c", "state.json")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	text := `{"version":3,"items":[["go",[["ab",100],1.5]],["ccache",[["cd",7],2]]]}`
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"ccache", "go"}, p.Dimensions()["caches"]); d != "" {
		t.Errorf("caches (-want +got):\n%s", d)
	}
	state, err := json.Marshal(p.State()["named_caches"])
	if want := `{"ccache":[["cd",7],2],"go":[["ab",100],1.5]}`; err != nil || string(state) != want {
		t.Errorf("named_caches = %s, %v, want %s", state, err, want)
	}
	if err := os.WriteFile(file, []byte("broken"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := p.Dimensions()["caches"]; got != nil {
		t.Errorf("caches = %v of a broken file", got)
	}
}

func TestPython(t *testing.T) {
	ask := func(out string, err error) slowFacts {
		p := New(t.Context(), Options{Dir: t.TempDir(), Output: func(context.Context, string, ...string) ([]byte, error) {
			return []byte(out), err
		}})
		<-p.Ready()
		return p.slow
	}
	got := ask(`["/usr/bin/python3", "3.11.2 (main)", "3.11.2"]`+"\n", nil)
	if d := cmp.Diff([]string{"3", "3.11", "3.11.2"}, got.dimensions["python"]); d != "" {
		t.Errorf("dimension (-want +got):\n%s", d)
	}
	want := map[string]any{"executable": "/usr/bin/python3", "version": "3.11.2 (main)", "packages": nil}
	if d := cmp.Diff(want, got.state["python"]); d != "" {
		t.Errorf("state (-want +got):\n%s", d)
	}
	for _, out := range []string{"", "[]", "{}", "Python 2"} {
		if got := ask(out, nil); got.dimensions["python"] != nil || got.state["python"] != nil {
			t.Errorf("answer %q gave %v", out, got)
		}
	}
	if got := ask("", errors.New("not found")); got.dimensions["python"] != nil {
		t.Errorf("no interpreter gave %v", got)
	}
}

func TestTempFilesQuarantine(t *testing.T) {
	temp := t.TempDir()
	now := time.Now()
	p := New(t.Context(), Options{Dir: t.TempDir(), TempDir: temp, Now: func() time.Time { return now }})
	for i := range MaxTempFiles + 1 {
		if err := os.WriteFile(filepath.Join(temp, string(rune('a'+i%26))+time.Duration(i).String()), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := p.State()["nb_files_in_temp"]; got != MaxTempFiles+1 {
		t.Errorf("nb_files_in_temp = %v, want %d", got, MaxTempFiles+1)
	}
	if p.Quarantine() == "" {
		t.Error("not quarantined")
	}
	if err := os.RemoveAll(temp); err != nil {
		t.Fatal(err)
	}
	now = now.Add(refreshAfter)
	if got := p.State()["nb_files_in_temp"]; got != "N/A" || p.Quarantine() == "" {
		t.Errorf("unreadable: nb_files_in_temp = %v, quarantine %q", got, p.Quarantine())
	}
}

// What this very machine says must be fit for a server.
func TestThisMachine(t *testing.T) {
	p := New(t.Context(), Options{BotID: "b1", Dir: t.TempDir()})
	<-p.Ready()
	d := skep.Dimensions(p.Dimensions())
	if err := d.Validate(); err != nil {
		t.Error(err)
	}
	for _, k := range []string{"id", "pool", "os", "cpu", "cores", "cipd_platform"} {
		if len(d[k]) == 0 {
			t.Errorf("dimension %s is missing", k)
		}
	}
	s := p.State()
	for _, k := range []string{"running_time", "cost_usd_hour", "cwd", "pid", "ip", "nb_files_in_temp", "env", "hostname", "rbe_instance"} {
		if _, ok := s[k]; !ok {
			t.Errorf("state %s is missing", k)
		}
	}
	if _, err := json.Marshal(s); err != nil {
		t.Error(err)
	}
}

func BenchmarkPollFacts(b *testing.B) {
	p := New(b.Context(), Options{BotID: "b1", Dir: b.TempDir()})
	<-p.Ready()
	for b.Loop() {
		p.Dimensions()
		p.State()
	}
}

func BenchmarkNew(b *testing.B) {
	dir := b.TempDir()
	for b.Loop() {
		<-New(b.Context(), Options{BotID: "b1", Dir: dir}).Ready()
	}
}
