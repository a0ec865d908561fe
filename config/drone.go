package config

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/skepdev/skep/config/configpb"
)

// Drone is what a drone.cfg says, with defaults for what it leaves out.
type Drone struct {
	Bots         []string    // ids without the prefix, sorted; empty where a queen names them
	Queen        *DroneQueen // nil where Bots are declared
	Prefix       string      // of the ids of bots
	Grace        time.Duration
	BotTokenFile string // "" = bots get no token
	BotToken     string // what it held when this was read
	CPUMillis    int64  // limits of a bot; 0 = none
	MemoryBytes  int64
	Pids         int64
	IO           []DroneIO
}

// DroneQueen is how a drone gets devices.
type DroneQueen struct {
	Capacity int
	Hive     string
	Interval time.Duration // between reports
}

// DroneIO are rates of a block device, bytes a second; 0 = without limit.
type DroneIO struct {
	Major, Minor int64
	Read, Write  uint64
}

// ReadDrone reads a drone.cfg and returns what it says, or all Faults in it.
func ReadDrone(path string) (*Drone, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	d, faults := parseDrone(filepath.Base(path), string(text), ReadBotToken)
	if err := faults.err(); err != nil {
		return nil, err
	}
	return d, nil
}

// ReadBotToken returns the API token that a bot_token_file holds.
func ReadBotToken(path string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(text))
	if token == "" || strings.ContainsAny(token, "\x00\r\n") {
		return "", fmt.Errorf("%s holds no token; want one line", path)
	}
	return token, nil
}

var (
	botID  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)
	device = regexp.MustCompile(`^([0-9]{1,9}):([0-9]{1,9})$`)
)

func parseDrone(name, text string, token func(path string) (string, error)) (*Drone, Faults) {
	m := &configpb.DroneCfg{}
	d := &document{file: name}
	d.lines, d.faults = read(name, text, m)
	if len(d.faults) > 0 {
		return nil, d.faults
	}
	bounded := func(at string, n, low, high int64) {
		if d.given(at) && (n < low || n > high) {
			d.faultf(at, "is %d, want %d to %d", n, low, high)
		}
	}
	out := &Drone{
		Prefix: m.BotPrefix, Grace: seconds(int64(cmp.Or(m.GraceSecs, 180))), BotTokenFile: m.BotTokenFile,
		CPUMillis: m.Limits.GetCpuMillis(), MemoryBytes: m.Limits.GetMemoryBytes(), Pids: m.Limits.GetPids(),
	}
	if m.BotPrefix != "" && (len(m.BotPrefix) > 100 || !botID.MatchString(m.BotPrefix)) {
		d.faultf("bot_prefix", "%q does not match %s, with 100 bytes at most", clip(m.BotPrefix), botID)
	}
	for i, id := range m.Bot {
		at := fmt.Sprintf("bot[%d]", i)
		switch {
		case len(id) > 256 || !botID.MatchString(id):
			d.faultf(at, "%q is no bot's id: it matches %s, with 256 bytes at most", clip(id), botID)
		case slices.Contains(out.Bots, id):
			d.faultf(at, "%q is there already", id)
		default:
			out.Bots = append(out.Bots, id)
		}
	}
	slices.Sort(out.Bots)
	switch q := m.Queen; {
	case q == nil && len(m.Bot) == 0:
		d.faultf("", "names neither a bot nor a queen; one of them is needed")
	case q != nil && len(m.Bot) > 0:
		d.faultf("queen", "excludes bot: either the bots are declared here, or the queen assigns them")
	case q != nil:
		bounded("queen.dut_capacity", int64(q.DutCapacity), 1, 10000)
		bounded("queen.report_interval_secs", int64(q.ReportIntervalSecs), 1, 600)
		out.Queen = &DroneQueen{Capacity: int(cmp.Or(q.DutCapacity, 10)), Hive: q.Hive, Interval: seconds(int64(cmp.Or(q.ReportIntervalSecs, 60)))}
	}
	if m.BotTokenFile != "" {
		var err error
		if out.BotToken, err = token(m.BotTokenFile); err != nil {
			d.faultf("bot_token_file", "cannot be used: %v", err)
		}
	}
	bounded("grace_secs", int64(m.GraceSecs), 1, 3600)
	bounded("limits.cpu_millis", out.CPUMillis, 10, 10_000_000)
	bounded("limits.memory_bytes", out.MemoryBytes, 1<<20, 1<<50)
	bounded("limits.pids", out.Pids, 8, 1<<22)
	for i, l := range m.Limits.GetIo() {
		at := fmt.Sprintf("limits.io[%d]", i)
		n := device.FindStringSubmatch(strings.TrimSpace(l.Device))
		if n == nil {
			d.faultf(at+".device", "%q is not the number of a device, such as 8:0", clip(l.Device))
			continue
		}
		major, _ := strconv.ParseInt(n[1], 10, 64) // nine digits at most
		minor, _ := strconv.ParseInt(n[2], 10, 64)
		out.IO = append(out.IO, DroneIO{Major: major, Minor: minor, Read: uint64(max(0, l.ReadBps)), Write: uint64(max(0, l.WriteBps))})
	}
	d.faults.sort()
	return out, d.faults
}
