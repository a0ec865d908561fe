package config

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func aToken(path string) (string, error) { return "of " + path, nil }

func TestParseDrone(t *testing.T) {
	got, faults := parseDrone("drone.cfg", `bot: "b" bot: "a" bot_prefix: "lab1-"
		limits { cpu_millis: 500 memory_bytes: 1073741824 pids: 100 io { device: "8:16" read_bps: 7 } } bot_token_file: "t"`, aToken)
	want := &Drone{
		Bots: []string{"a", "b"}, Prefix: "lab1-", Grace: 3 * time.Minute, CPUMillis: 500, MemoryBytes: 1 << 30, Pids: 100,
		IO: []DroneIO{{Major: 8, Minor: 16, Read: 7}}, BotTokenFile: "t", BotToken: "of t",
	}
	if d := cmp.Diff(want, got); d != "" || faults != nil {
		t.Errorf("%v (-want +got):\n%s", faults, d)
	}
	got, _ = parseDrone("drone.cfg", `queen { hive: "x" }`, aToken)
	if d := cmp.Diff(&DroneQueen{Capacity: 10, Hive: "x", Interval: time.Minute}, got.Queen); d != "" {
		t.Errorf("queen (-want +got):\n%s", d)
	}
	for text, fault := range map[string]string{
		"":                             "neither a bot nor a queen",
		"bot: \"a\"\nbot: \"a\"":       `drone.cfg:2: bot[1]: "a" is there already`,
		"bot: \"a\"\nqueen {}":         "drone.cfg:2: queen: excludes bot",
		"bot: \"../a\"":                "drone.cfg:1: bot[0]",
		"queen {\n dut_capacity: 0\n}": "drone.cfg:2: queen.dut_capacity: is 0, want 1 to 10000",
		"queen {}\nwhat: 1":            "drone.cfg:2: what",
		"queen {}\ngrace_secs: -1":     "drone.cfg:2: grace_secs",
		"queen {} limits { io { device: \"sda\" } }": "is not the number of a device",
		"queen {}\nbot_token_file: \"nowhere\"":      "drone.cfg:2: bot_token_file: cannot be used: open nowhere: ",
		"queen {}\nbot_token_file: \"/dev/null\"":    "drone.cfg:2: bot_token_file: cannot be used: /dev/null holds no token",
	} {
		if _, faults := parseDrone("drone.cfg", text, ReadBotToken); faults == nil || !strings.Contains(faults.Error(), fault) {
			t.Errorf("%q: %v, want %q", text, faults, fault)
		}
	}
}

func FuzzParseDrone(f *testing.F) {
	f.Add(`queen { hive: "x" } limits { io { device: "8:0" } }`)
	f.Fuzz(func(t *testing.T, text string) {
		if d, faults := parseDrone("drone.cfg", text, aToken); faults == nil && (d.Queen == nil) == (len(d.Bots) == 0) {
			t.Errorf("%+v", d)
		}
	})
}
