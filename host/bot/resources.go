package bot

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/internal/proc"
)

// limits says what r means to the controllers of cgroup v1 and v2, and refuses
// what neither keeps. The conversions are those of the OCI runtimes.
func limits(r *specs.LinuxResources) ([]proc.Limit, error) {
	if r == nil {
		return nil, nil
	}
	for name, given := range map[string]bool{
		"devices": len(r.Devices) > 0, "network": r.Network != nil, "rdma": len(r.Rdma) > 0,
	} {
		if given {
			return nil, skep.Invalidf("resources."+name, "cannot be limited for a bot; leave it out")
		}
	}
	l := limiter{}
	if m := r.Memory; m != nil {
		if err := l.memory(m); err != nil {
			return nil, err
		}
	}
	if c := r.CPU; c != nil {
		l.cpu(c)
	}
	if p := r.Pids; p != nil {
		n := "max"
		if p.Limit > 0 {
			n = fmt.Sprint(p.Limit)
		}
		l.both("pids", "pids.max", "pids.max", n)
	}
	if b := r.BlockIO; b != nil {
		if err := l.blockIO(b); err != nil {
			return nil, err
		}
	}
	for _, h := range r.HugepageLimits {
		n := fmt.Sprint(h.Limit)
		if h.Pagesize == "" || strings.ContainsAny(h.Pagesize, "/.") {
			return nil, skep.Invalidf("resources.hugepageLimits", "%q is no page size", h.Pagesize)
		}
		l.both("hugetlb", "hugetlb."+h.Pagesize+".limit_in_bytes", "hugetlb."+h.Pagesize+".max", n)
	}
	var files []string
	for file := range r.Unified {
		files = append(files, file)
	}
	slices.Sort(files)
	for _, file := range files {
		controller, rest, ok := strings.Cut(file, ".")
		if !ok || rest == "" || controller == "cgroup" || strings.Contains(file, "/") {
			return nil, skep.Invalidf("resources.unified", "%q is no file of a controller", file)
		}
		if controller == "io" {
			controller = "blkio"
		}
		l.add(controller, nil, []proc.Setting{{File: file, Value: r.Unified[file]}})
	}
	return l, nil
}

type limiter []proc.Limit

// add adds a limit; each is judged for itself, as a host may keep some only.
func (l *limiter) add(controller string, v1, v2 []proc.Setting) {
	*l = append(*l, proc.Limit{Controller: controller, V1: v1, V2: v2})
}

func (l *limiter) both(controller, file1, file2, value string) {
	l.add(controller, []proc.Setting{{File: file1, Value: value}}, []proc.Setting{{File: file2, Value: value}})
}

// amount writes a number of bytes or microseconds; -1 is without limit.
func amount(n int64) (v1, v2 string) {
	if n < 0 {
		return "-1", "max"
	}
	return strconv.FormatInt(n, 10), strconv.FormatInt(n, 10)
}

func (l *limiter) memory(m *specs.LinuxMemory) error {
	if m.Limit != nil {
		v1, v2 := amount(*m.Limit)
		l.add("memory", []proc.Setting{{File: "memory.limit_in_bytes", Value: v1}}, []proc.Setting{{File: "memory.max", Value: v2}})
	}
	if m.Swap != nil { // of memory and swap together; v2 counts swap alone
		v1, v2 := amount(*m.Swap)
		if *m.Swap >= 0 {
			if m.Limit == nil || *m.Limit < 0 || *m.Swap < *m.Limit {
				return skep.Invalidf("resources.memory.swap", "is memory and swap together: it needs a limit that is no larger")
			}
			v2 = strconv.FormatInt(*m.Swap-*m.Limit, 10)
		}
		l.add("memory", []proc.Setting{{File: "memory.memsw.limit_in_bytes", Value: v1}}, []proc.Setting{{File: "memory.swap.max", Value: v2}})
	}
	if m.Reservation != nil {
		v1, v2 := amount(*m.Reservation)
		l.add("memory", []proc.Setting{{File: "memory.soft_limit_in_bytes", Value: v1}}, []proc.Setting{{File: "memory.low", Value: v2}})
	}
	if m.Swappiness != nil {
		l.add("memory", []proc.Setting{{File: "memory.swappiness", Value: fmt.Sprint(*m.Swappiness)}}, nil)
	}
	if m.DisableOOMKiller != nil && *m.DisableOOMKiller {
		l.add("memory", []proc.Setting{{File: "memory.oom_control", Value: "1"}}, nil)
	}
	return nil
}

// defaultPeriod is the kernel's, in microseconds.
const defaultPeriod = 100000

func (l *limiter) cpu(c *specs.LinuxCPU) {
	if c.Shares != nil && *c.Shares > 0 {
		// 2 to 262144 shares are weights of 1 to 10000.
		shares := min(max(*c.Shares, 2), 262144)
		l.add("cpu", []proc.Setting{{File: "cpu.shares", Value: fmt.Sprint(shares)}},
			[]proc.Setting{{File: "cpu.weight", Value: fmt.Sprint(1 + (shares-2)*9999/262142)}})
	}
	if c.Quota != nil || c.Period != nil {
		period, quota1, quota2 := uint64(defaultPeriod), "-1", "max"
		if c.Period != nil && *c.Period > 0 {
			period = *c.Period
		}
		if c.Quota != nil && *c.Quota > 0 {
			quota1, quota2 = amount(*c.Quota)
		}
		l.add("cpu", []proc.Setting{{File: "cpu.cfs_period_us", Value: fmt.Sprint(period)}, {File: "cpu.cfs_quota_us", Value: quota1}},
			[]proc.Setting{{File: "cpu.max", Value: fmt.Sprintf("%s %d", quota2, period)}})
	}
	if c.Burst != nil {
		l.both("cpu", "cpu.cfs_burst_us", "cpu.max.burst", fmt.Sprint(*c.Burst))
	}
	if c.RealtimePeriod != nil {
		l.add("cpu", []proc.Setting{{File: "cpu.rt_period_us", Value: fmt.Sprint(*c.RealtimePeriod)}}, nil)
	}
	if c.RealtimeRuntime != nil {
		l.add("cpu", []proc.Setting{{File: "cpu.rt_runtime_us", Value: fmt.Sprint(*c.RealtimeRuntime)}}, nil)
	}
	if c.Idle != nil {
		l.both("cpu", "cpu.idle", "cpu.idle", fmt.Sprint(*c.Idle))
	}
	var sets []proc.Setting
	if c.Cpus != "" {
		sets = append(sets, proc.Setting{File: "cpuset.cpus", Value: c.Cpus})
	}
	if c.Mems != "" {
		sets = append(sets, proc.Setting{File: "cpuset.mems", Value: c.Mems})
	}
	if len(sets) > 0 {
		l.add("cpuset", sets, sets)
	}
}

func (l *limiter) blockIO(b *specs.LinuxBlockIO) error {
	if b.LeafWeight != nil {
		return skep.Invalidf("resources.blockIO.leafWeight", "is not known to today's kernels; leave it out")
	}
	if b.Weight != nil && *b.Weight > 0 {
		w := fmt.Sprint(*b.Weight)
		l.both("blkio", "blkio.bfq.weight", "io.bfq.weight", w)
	}
	for _, d := range b.WeightDevice {
		if d.LeafWeight != nil || d.Weight == nil {
			return skep.Invalidf("resources.blockIO.weightDevice", "needs a weight, and no leaf weight")
		}
		l.both("blkio", "blkio.bfq.weight_device", "io.bfq.weight", fmt.Sprintf("%d:%d %d", d.Major, d.Minor, *d.Weight))
	}
	for _, t := range []struct {
		devices      []specs.LinuxThrottleDevice
		file1, word2 string
	}{
		{b.ThrottleReadBpsDevice, "read_bps", "rbps"},
		{b.ThrottleWriteBpsDevice, "write_bps", "wbps"},
		{b.ThrottleReadIOPSDevice, "read_iops", "riops"},
		{b.ThrottleWriteIOPSDevice, "write_iops", "wiops"},
	} {
		for _, d := range t.devices {
			rate2 := fmt.Sprint(d.Rate)
			if d.Rate == 0 { // both mean: without limit
				rate2 = "max"
			}
			l.add("blkio", []proc.Setting{{File: "blkio.throttle." + t.file1 + "_device", Value: fmt.Sprintf("%d:%d %d", d.Major, d.Minor, d.Rate)}},
				[]proc.Setting{{File: "io.max", Value: fmt.Sprintf("%d:%d %s=%s", d.Major, d.Minor, t.word2, rate2)}})
		}
	}
	return nil
}
