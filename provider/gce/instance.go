package gce

import (
	"maps"
	"strings"

	compute "google.golang.org/api/compute/v1"

	"github.com/skepdev/skep/provider"
)

// instance is what Compute Engine is asked to make. spec §2.4.
func instance(o provider.Order) *compute.Instance {
	a := &o.Attributes
	inst := &compute.Instance{
		Name:              o.Name,
		MachineType:       inZone(a.MachineType, o.Zone),
		MinCpuPlatform:    a.MinCPUPlatform,
		Disks:             disks(a.Disks, o.Zone),
		NetworkInterfaces: networks(a.Networks),
		Metadata:          metadata(a.Metadata, o.Device),
		Scheduling:        scheduling(a),
		Labels:            map[string]string{},
		ForceSendFields:   a.ForceSendFields,
		NullFields:        a.NullFields,
	}
	maps.Copy(inst.Labels, a.Labels)
	maps.Copy(inst.Labels, o.Labels) // whose it is cannot be declared away
	for _, s := range a.ServiceAccounts {
		inst.ServiceAccounts = append(inst.ServiceAccounts, &compute.ServiceAccount{Email: s.Email, Scopes: s.Scopes})
	}
	if len(a.Tags) > 0 {
		inst.Tags = &compute.Tags{Items: a.Tags}
	}
	if a.NoIntegrityMonitoring || a.SecureBoot || a.NoVTPM {
		inst.ShieldedInstanceConfig = &compute.ShieldedInstanceConfig{
			EnableIntegrityMonitoring: !a.NoIntegrityMonitoring,
			EnableSecureBoot:          a.SecureBoot,
			EnableVtpm:                !a.NoVTPM,
			ForceSendFields:           []string{"EnableIntegrityMonitoring", "EnableSecureBoot", "EnableVtpm"}, // false is not their default
		}
	}
	if a.Confidential {
		inst.ConfidentialInstanceConfig = &compute.ConfidentialInstanceConfig{EnableConfidentialCompute: true}
	}
	if a.Channel == "ALPHA" && a.PerformanceMonitoring != "" {
		inst.AdvancedMachineFeatures = &compute.AdvancedMachineFeatures{PerformanceMonitoringUnit: a.PerformanceMonitoring}
	}
	return inst
}

// inZone puts the zone where its placeholder is.
func inZone(text, zone string) string { return strings.ReplaceAll(text, "{{.Zone}}", zone) }

func disks(list []provider.Disk, zone string) []*compute.AttachedDisk {
	var out []*compute.AttachedDisk
	for i, d := range list {
		at := &compute.AttachedDisk{
			AutoDelete: true,
			Boot:       i == 0,
			Interface:  d.Interface,
			InitializeParams: &compute.AttachedDiskInitializeParams{
				DiskSizeGb:            d.SizeGB,
				DiskType:              inZone(d.Type, zone),
				SourceImage:           d.Image,
				ProvisionedIops:       max(d.IOPS, 0),
				ProvisionedThroughput: max(d.ThroughputM, 0),
			},
		}
		if strings.HasSuffix(d.Type, "/local-ssd") {
			at.Type = "SCRATCH"
		}
		out = append(out, at)
	}
	return out
}

func networks(list []provider.NetworkInterface) []*compute.NetworkInterface {
	var out []*compute.NetworkInterface
	for _, n := range list {
		to := &compute.NetworkInterface{Network: n.Network, Subnetwork: n.Subnetwork, StackType: n.StackType}
		for range n.External {
			to.AccessConfigs = append(to.AccessConfigs, &compute.AccessConfig{Type: "ONE_TO_ONE_NAT"})
		}
		out = append(out, to)
	}
	return out
}

func metadata(list []provider.Metadata, device string) *compute.Metadata {
	m := &compute.Metadata{}
	for _, item := range list {
		m.Items = append(m.Items, &compute.MetadataItems{Key: item.Key, Value: &item.Value})
	}
	if device != "" {
		m.Items = append(m.Items, &compute.MetadataItems{Key: "dut", Value: &device})
	}
	if m.Items == nil {
		return nil
	}
	return m
}

// scheduling is nil when nothing is said about it.
func scheduling(a *provider.Attributes) *compute.Scheduling {
	s := &compute.Scheduling{}
	if a.TerminateOnMaintenance || a.Confidential {
		s.OnHostMaintenance = "TERMINATE"
	}
	for _, n := range a.NodeAffinities {
		op := "IN"
		if n.NotIn {
			op = "NOT_IN"
		}
		s.NodeAffinities = append(s.NodeAffinities, &compute.SchedulingNodeAffinity{Key: n.Key, Operator: op, Values: n.Values})
	}
	if s.OnHostMaintenance == "" && s.NodeAffinities == nil {
		return nil
	}
	return s
}
