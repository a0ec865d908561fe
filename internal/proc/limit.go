package proc

import "strconv"

// Limit is one thing that a place's processes may not exceed, told to the
// controller that watches over it. Its files differ between the versions of
// cgroups; on a hybrid host each controller is of one or the other.
type Limit struct {
	Controller string    // as cgroup v1 calls it, "blkio" and not "io"
	V1, V2     []Setting // written in this order; nothing = that version cannot do it
}

// Setting is what is written into a file of a cgroup.
type Setting struct {
	File, Value string
	Optional    bool // a host without this file does without
}

// Limits of processes together; 0 = none.
type Limits struct {
	Memory    int64 // bytes
	Processes int64 // threads count
	MilliCPU  int64 // thousandths of a processor's time
}

// cpuPeriod is what a share of a processor's time is counted over, in µs: the
// kernel's default.
const cpuPeriod = 100000

// list returns the limits one by one. Where memory is limited there is no swap.
func (l Limits) list() (all []Limit) {
	n := func(v int64) string { return strconv.FormatInt(v, 10) }
	if l.Processes > 0 {
		set := []Setting{{File: "pids.max", Value: n(l.Processes)}}
		all = append(all, Limit{Controller: "pids", V1: set, V2: set})
	}
	if l.Memory > 0 {
		all = append(all, Limit{
			Controller: "memory",
			V1:         []Setting{{File: "memory.limit_in_bytes", Value: n(l.Memory)}, {File: "memory.memsw.limit_in_bytes", Value: n(l.Memory), Optional: true}},
			V2:         []Setting{{File: "memory.max", Value: n(l.Memory)}, {File: "memory.swap.max", Value: "0", Optional: true}},
		})
	}
	if l.MilliCPU > 0 {
		quota := n(max(1000, l.MilliCPU*cpuPeriod/1000))
		all = append(all, Limit{
			Controller: "cpu",
			V1:         []Setting{{File: "cpu.cfs_period_us", Value: n(cpuPeriod)}, {File: "cpu.cfs_quota_us", Value: quota}},
			V2:         []Setting{{File: "cpu.max", Value: quota + " " + n(cpuPeriod)}},
		})
	}
	return all
}
