// Package vmscfg puts pools of machines from the words of vms.cfg, which are
// those of config.Configuration too, into the nouns of provider, and back.
package vmscfg

import (
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	pb "github.com/skepdev/skep/api/providerpb"
	"github.com/skepdev/skep/provider"
)

// Kinds of providers.
const (
	KindGCE     = "gce"
	KindProcess = "process"
	KindDocker  = "docker"
	KindExec    = "exec"
)

// Kind returns which provider makes the machines of m; without a block it is
// Compute Engine, as in files of others.
func Kind(m *pb.Config) string {
	switch m.GetProvider().GetKind().(type) {
	case *pb.Provider_Process:
		return KindProcess
	case *pb.Provider_Docker:
		return KindDocker
	case *pb.Provider_Exec:
		return KindExec
	default:
		return KindGCE
	}
}

var (
	period = regexp.MustCompile(`^([0-9]+)(s|m|h|d|mo)$`)
	units  = map[string]int64{"s": 1, "m": 60, "h": 3600, "d": 86400, "mo": 2592000}
	clock  = regexp.MustCompile(`^([0-9]{1,2}):([0-9]{2})$`)
)

// Seconds returns a period in seconds; none is 0. What is more than an int64
// holds is as much as it holds. spec §2.3.
func Seconds(p *pb.TimePeriod) (int64, error) {
	switch t := p.GetTime().(type) {
	case *pb.TimePeriod_Seconds:
		if t.Seconds < 0 {
			return 0, fmt.Errorf("%d is less than 0 seconds", t.Seconds)
		}
		return t.Seconds, nil
	case *pb.TimePeriod_Duration:
		parts := period.FindStringSubmatch(t.Duration)
		if parts == nil {
			return 0, fmt.Errorf("%.60q is not digits followed by one of s, m, h, d, mo", t.Duration)
		}
		n, err := strconv.ParseInt(parts[1], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%.60q is too large", t.Duration)
		}
		unit := units[parts[2]]
		if n > math.MaxInt64/unit {
			return math.MaxInt64, nil
		}
		return n * unit, nil
	default:
		return 0, nil
	}
}

// duration is Seconds in Go's type, which ends after 292 years.
func duration(p *pb.TimePeriod) (time.Duration, error) {
	n, err := Seconds(p)
	return time.Duration(min(n, math.MaxInt64/int64(time.Second))) * time.Second, err
}

func seconds(d time.Duration) *pb.TimePeriod {
	return &pb.TimePeriod{Time: &pb.TimePeriod_Seconds{Seconds: int64(d / time.Second)}}
}

// Location returns a time zone by its IANA name; "" is UTC.
func Location(name string) (*time.Location, error) {
	if name == "Local" {
		return nil, fmt.Errorf("%q is the zone of whichever machine reads it; name one as Europe/Berlin", name)
	}
	loc, err := time.LoadLocation(name)
	if err != nil {
		return nil, fmt.Errorf("%.60q is not a time zone as Europe/Berlin", name)
	}
	return loc, nil
}

// Clock reads H:MM or HH:MM.
func Clock(s string) (hour, minute int, err error) {
	if parts := clock.FindStringSubmatch(s); parts != nil {
		hour, _ = strconv.Atoi(parts[1]) // two digits
		minute, _ = strconv.Atoi(parts[2])
		if hour < 24 && minute < 60 {
			return hour, minute, nil
		}
	}
	return 0, 0, fmt.Errorf("%.60q is not H:MM or HH:MM, 0:00 to 23:59", s)
}

// Window reads one weekly window.
func Window(s *pb.Schedule) (w provider.Window, err error) {
	w = provider.Window{Day: time.Weekday(s.GetStart().GetDay() % 7), Min: int(s.GetMin()), Max: int(s.GetMax())}
	if w.Length, err = duration(s.GetLength()); err != nil {
		return w, fmt.Errorf("length: %w", err)
	}
	if w.Location, err = Location(s.GetStart().GetLocation()); err != nil {
		return w, fmt.Errorf("location: %w", err)
	}
	if w.Hour, w.Minute, err = Clock(s.GetStart().GetTime()); err != nil {
		return w, fmt.Errorf("time: %w", err)
	}
	return w, nil
}

var (
	channels = map[pb.GCPChannel]string{
		pb.GCPChannel_GCP_CHANNEL_STABLE: "STABLE", pb.GCPChannel_GCP_CHANNEL_BETA: "BETA", pb.GCPChannel_GCP_CHANNEL_ALPHA: "ALPHA",
	}
	monitoring = map[pb.PerformanceMonitoringUnit]string{
		pb.PerformanceMonitoringUnit_PERFORMANCE_MONITORING_UNIT_ARCHITECTURAL: "ARCHITECTURAL",
		pb.PerformanceMonitoringUnit_PERFORMANCE_MONITORING_UNIT_ENHANCED:      "ENHANCED",
		pb.PerformanceMonitoringUnit_PERFORMANCE_MONITORING_UNIT_STANDARD:      "STANDARD",
	}
)

// Config reads a pool whose metadata is resolved. An error is about what cannot
// be put into Go's types; package config has the rules.
func Config(m *pb.Config) (c provider.Config, err error) {
	c = provider.Config{
		Prefix: m.GetPrefix(), Kind: Kind(m), Swarming: m.GetSwarming(), Owners: m.GetOwner(), SwarmingPools: m.GetSwarmingPools(),
		Revision: m.GetRevision(), MaxReplacing: int(m.GetProvider().GetMaxReplacing()),
		Amount: provider.Amount{Min: int(m.GetAmount().GetMin()), Max: int(m.GetAmount().GetMax())},
	}
	for i, s := range m.GetAmount().GetChange() {
		w, err := Window(s)
		if err != nil {
			return c, fmt.Errorf("amount.change[%d]: %w", i, err)
		}
		c.Amount.Windows = append(c.Amount.Windows, w)
	}
	if c.Lifetime, err = duration(m.GetLifetime()); err != nil {
		return c, fmt.Errorf("lifetime: %w", err)
	}
	if c.Timeout, err = duration(m.GetTimeout()); err != nil {
		return c, fmt.Errorf("timeout: %w", err)
	}
	if c.Attributes, err = attributes(m.GetAttributes()); err != nil {
		return c, fmt.Errorf("attributes: %w", err)
	}
	p := m.GetProvider()
	if c.Kind != KindGCE { // whose bots are let in by bots.cfg, which names pools
		c.Attributes.Pools = c.SwarmingPools
	}
	c.Attributes.Image, c.Attributes.Network = p.GetDocker().GetImage(), p.GetDocker().GetNetwork()
	c.Attributes.Command = p.GetExec().GetCommand()
	c.Attributes.Extra = p.GetExec().GetExtra()
	if len(p.GetZone()) > 0 {
		c.Zones = append([]string{c.Attributes.Zone}, p.Zone...)
	}
	if d := p.GetDemand(); d != nil {
		c.Demand = &provider.Demand{Warm: int(d.Warm), Stopped: int(d.Stopped), TargetWait: time.Minute}
		if d.TargetWait != nil {
			if c.Demand.TargetWait, err = duration(d.TargetWait); err != nil {
				return c, fmt.Errorf("provider.demand.target_wait: %w", err)
			}
		}
		c.Demand.Dimensions = map[string][]string{}
		for _, kv := range d.Dimension {
			key, value, _ := strings.Cut(kv, ":")
			c.Demand.Dimensions[key] = append(c.Demand.Dimensions[key], value)
		}
		for _, pool := range c.SwarmingPools {
			if !slices.Contains(c.Demand.Dimensions["pool"], pool) {
				c.Demand.Dimensions["pool"] = append(c.Demand.Dimensions["pool"], pool)
			}
		}
	}
	return c, nil
}

func attributes(m *pb.VM) (provider.Attributes, error) {
	a := provider.Attributes{
		Project: m.GetProject(), Zone: m.GetZone(), MachineType: m.GetMachineType(), MinCPUPlatform: m.GetMinCpuPlatform(), Tags: m.GetTag(),
		Labels: m.GetLabel(), NoIntegrityMonitoring: m.GetDisableIntegrityMonitoring(), SecureBoot: m.GetEnableSecureBoot(), NoVTPM: m.GetDisableVtpm(),
		Confidential: m.GetEnableConfidentialCompute(), TerminateOnMaintenance: m.GetTerminateOnMaintenance(),
		Channel: channels[m.GetGcpChannel()], PerformanceMonitoring: monitoring[m.GetPerformanceMonitoringUnit()],
		ForceSendFields: m.GetForceSendFields(), NullFields: m.GetNullFields(),
	}
	for _, d := range m.GetDisk() {
		a.Disks = append(a.Disks, provider.Disk{
			Image: d.Image, SizeGB: d.Size, Type: d.Type, Interface: d.Interface.String(), IOPS: d.ProvisionedIops, ThroughputM: d.ProvisionedThroughput,
		})
	}
	for _, n := range m.GetNetworkInterface() {
		a.Networks = append(a.Networks, provider.NetworkInterface{Network: n.Network, Subnetwork: n.Subnetwork, StackType: n.StackType, External: len(n.AccessConfig)})
	}
	for i, item := range m.GetMetadata() {
		key, value, ok := strings.Cut(item.GetFromText(), ":")
		if !ok {
			return a, fmt.Errorf("metadata[%d]: is not key:value", i)
		}
		a.Metadata = append(a.Metadata, provider.Metadata{Key: key, Value: value})
	}
	for _, s := range m.GetServiceAccount() {
		a.ServiceAccounts = append(a.ServiceAccounts, provider.ServiceAccount{Email: s.Email, Scopes: s.Scope})
	}
	for _, n := range m.GetScheduling().GetNodeAffinity() {
		a.NodeAffinities = append(a.NodeAffinities, provider.NodeAffinity{Key: n.Key, NotIn: n.Operator == pb.NodeAffinityOperator_NOT_IN, Values: n.Values})
	}
	return a, nil
}

// Message writes a pool as config.Configuration shows it: periods in seconds,
// metadata resolved.
func Message(c provider.Config) *pb.Config {
	m := &pb.Config{
		Prefix: c.Prefix, Swarming: c.Swarming, Owner: c.Owners, SwarmingPools: c.SwarmingPools, Revision: c.Revision,
		Lifetime: seconds(c.Lifetime), Timeout: seconds(c.Timeout), Attributes: vm(c.Attributes),
		Amount:   &pb.Amount{Min: int32(c.Amount.Min), Max: int32(c.Amount.Max)},
		Provider: &pb.Provider{MaxReplacing: int32(c.MaxReplacing)},
	}
	for _, w := range c.Amount.Windows {
		day := pb.DayOfWeek(w.Day)
		if w.Day == time.Sunday {
			day = pb.DayOfWeek_SUNDAY
		}
		m.Amount.Change = append(m.Amount.Change, &pb.Schedule{
			Length: seconds(w.Length), Min: int32(w.Min), Max: int32(w.Max),
			Start: &pb.TimeOfDay{Day: day, Location: w.Location.String(), Time: fmt.Sprintf("%d:%02d", w.Hour, w.Minute)},
		})
	}
	switch c.Kind {
	case KindProcess:
		m.Provider.Kind = &pb.Provider_Process{Process: &pb.Process{}}
	case KindDocker:
		m.Provider.Kind = &pb.Provider_Docker{Docker: &pb.Docker{Image: c.Attributes.Image, Network: c.Attributes.Network}}
	case KindExec:
		m.Provider.Kind = &pb.Provider_Exec{Exec: &pb.Exec{Command: c.Attributes.Command, Extra: c.Attributes.Extra}}
	default:
		m.Provider.Kind = &pb.Provider_Gce{Gce: &pb.ComputeEngine{}}
	}
	if len(c.Zones) > 1 {
		m.Provider.Zone = c.Zones[1:]
	}
	if d := c.Demand; d != nil {
		m.Provider.Demand = &pb.Demand{TargetWait: seconds(d.TargetWait), Warm: int32(d.Warm), Stopped: int32(d.Stopped)}
		for _, key := range slices.Sorted(maps.Keys(d.Dimensions)) {
			for _, value := range d.Dimensions[key] {
				m.Provider.Demand.Dimension = append(m.Provider.Demand.Dimension, key+":"+value)
			}
		}
	}
	return m
}

func vm(a provider.Attributes) *pb.VM {
	m := &pb.VM{
		Project: a.Project, Zone: a.Zone, MachineType: a.MachineType, MinCpuPlatform: a.MinCPUPlatform, Tag: a.Tags, Label: a.Labels,
		DisableIntegrityMonitoring: a.NoIntegrityMonitoring, EnableSecureBoot: a.SecureBoot, DisableVtpm: a.NoVTPM,
		EnableConfidentialCompute: a.Confidential, TerminateOnMaintenance: a.TerminateOnMaintenance,
		ForceSendFields: a.ForceSendFields, NullFields: a.NullFields,
	}
	for channel, name := range channels {
		if name == a.Channel {
			m.GcpChannel = channel
		}
	}
	for unit, name := range monitoring {
		if name == a.PerformanceMonitoring {
			m.PerformanceMonitoringUnit = unit
		}
	}
	for _, d := range a.Disks {
		m.Disk = append(m.Disk, &pb.Disk{
			Image: d.Image, Size: d.SizeGB, Type: d.Type, Interface: pb.DiskInterface(pb.DiskInterface_value[d.Interface]),
			ProvisionedIops: d.IOPS, ProvisionedThroughput: d.ThroughputM,
		})
	}
	for _, n := range a.Networks {
		one := &pb.NetworkInterface{Network: n.Network, Subnetwork: n.Subnetwork, StackType: n.StackType}
		for range n.External {
			one.AccessConfig = append(one.AccessConfig, &pb.AccessConfig{})
		}
		m.NetworkInterface = append(m.NetworkInterface, one)
	}
	for _, item := range a.Metadata {
		m.Metadata = append(m.Metadata, &pb.Metadata{Metadata: &pb.Metadata_FromText{FromText: item.Key + ":" + item.Value}})
	}
	for _, s := range a.ServiceAccounts {
		m.ServiceAccount = append(m.ServiceAccount, &pb.ServiceAccount{Email: s.Email, Scope: s.Scopes})
	}
	if len(a.NodeAffinities) > 0 {
		m.Scheduling = &pb.Scheduling{}
	}
	for _, n := range a.NodeAffinities {
		op := pb.NodeAffinityOperator_IN
		if n.NotIn {
			op = pb.NodeAffinityOperator_NOT_IN
		}
		m.Scheduling.NodeAffinity = append(m.Scheduling.NodeAffinity, &pb.NodeAffinity{Key: n.Key, Operator: op, Values: n.Values})
	}
	return m
}
