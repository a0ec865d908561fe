package bot

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestLimits(t *testing.T) {
	n := func(i int64) *int64 { return &i }
	u := func(i uint64) *uint64 { return &i }
	dev := []specs.LinuxThrottleDevice{{LinuxBlockIODevice: specs.LinuxBlockIODevice{Major: 8, Minor: 16}, Rate: 1000}}
	for _, tt := range []struct {
		name   string
		in     *specs.LinuxResources
		v1, v2 string
	}{
		{"nothing", nil, "", ""},
		{
			"memory", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: n(100), Swap: n(150), Reservation: n(50)}},
			"memory.limit_in_bytes=100 memory.memsw.limit_in_bytes=150 memory.soft_limit_in_bytes=50", "memory.max=100 memory.swap.max=50 memory.low=50",
		},
		{
			"unlimited", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: n(-1), Swap: n(-1)}, Pids: &specs.LinuxPids{Limit: -1}},
			"memory.limit_in_bytes=-1 memory.memsw.limit_in_bytes=-1 pids.max=max", "memory.max=max memory.swap.max=max pids.max=max",
		},
		{
			"processors", &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: n(50000), Period: u(200000), Shares: u(1024), Cpus: "0-1"}},
			"cpu.shares=1024 cpu.cfs_period_us=200000 cpu.cfs_quota_us=50000 cpuset.cpus=0-1", "cpu.weight=39 cpu.max=50000_200000 cpuset.cpus=0-1",
		},
		{"no quota", &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: n(-1)}}, "cpu.cfs_period_us=100000 cpu.cfs_quota_us=-1", "cpu.max=max_100000"},
		{
			"block I/O", &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{ThrottleReadBpsDevice: dev, ThrottleWriteIOPSDevice: dev}},
			"blkio.throttle.read_bps_device=8:16_1000 blkio.throttle.write_iops_device=8:16_1000", "io.max=8:16_rbps=1000 io.max=8:16_wiops=1000",
		},
		{"files of v2", &specs.LinuxResources{Unified: map[string]string{"memory.high": "5", "io.max": "x"}}, "", "io.max=x memory.high=5"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := limits(tt.in)
			if err != nil {
				t.Fatal(err)
			}
			var v1, v2 []string
			for _, l := range got {
				for _, s := range l.V1 {
					v1 = append(v1, fmt.Sprintf("%s=%s", s.File, strings.ReplaceAll(s.Value, " ", "_")))
				}
				for _, s := range l.V2 {
					v2 = append(v2, fmt.Sprintf("%s=%s", s.File, strings.ReplaceAll(s.Value, " ", "_")))
				}
			}
			if d := cmp.Diff(tt.v1, strings.Join(v1, " ")); d != "" {
				t.Errorf("cgroup v1 (-want +got):\n%s", d)
			}
			if d := cmp.Diff(tt.v2, strings.Join(v2, " ")); d != "" {
				t.Errorf("cgroup v2 (-want +got):\n%s", d)
			}
		})
	}
}
