package provider

import "time"

// Config is one pool of machines as vms.cfg declares it. spec §2.1.
type Config struct {
	Prefix        string // name of the pool and stem of the names of its machines
	Kind          string // which Provider makes them: "process", "docker", "gce", "exec"
	Amount        Amount
	Attributes    Attributes
	Lifetime      time.Duration // > 0
	Timeout       time.Duration // without a live bot; 0 = never
	Swarming      string        // server of its bots; "" = this one
	Owners        []string      // who may see and resize it
	SwarmingPools []string      // that its bots are in, where no bots.cfg says so
	Revision      string        // of the file that it came from
	Zones         []string      // to choose from, in this order of preference; empty = Attributes.Zone alone

	MaxReplacing int     // how many outdated machines may be replaced at once; 0 = they live to their end
	Demand       *Demand // nil = size comes from Amount alone
}

// Amount is how many machines a pool has. spec §2.2.
type Amount struct {
	Min, Max int
	Windows  []Window // in order of the file; the first that is open wins
}

// Window is a time of the week with bounds of its own, half-open.
type Window struct {
	Day          time.Weekday
	Hour, Minute int
	Location     *time.Location // not nil
	Length       time.Duration
	Min, Max     int
}

// Demand makes a pool's size follow the queue. It stays within Amount.
type Demand struct {
	Dimensions map[string][]string // of its bots, to match pending tasks with
	TargetWait time.Duration       // that a task may wait for a machine
	Warm       int                 // machines without a task that are kept
	Stopped    int                 // machines of those that are too many that are stopped and kept; only where the Provider is a Stopper
}

// Attributes are the shape of a machine, in the terms of Compute Engine. Other
// Providers read what they know. spec §2.4.
type Attributes struct {
	Project        string   `json:"project,omitempty"`
	Zone           string   `json:"zone,omitempty"`
	MachineType    string   `json:"machine_type,omitempty"` // may hold {{.Zone}}
	MinCPUPlatform string   `json:"min_cpu_platform,omitempty"`
	Tags           []string `json:"tags,omitempty"`

	Disks           []Disk             `json:"disks,omitempty"` // the first is booted from
	Networks        []NetworkInterface `json:"networks,omitempty"`
	Metadata        []Metadata         `json:"metadata,omitempty"`
	ServiceAccounts []ServiceAccount   `json:"service_accounts,omitempty"`
	NodeAffinities  []NodeAffinity     `json:"node_affinities,omitempty"`
	Labels          map[string]string  `json:"labels,omitempty"`

	NoIntegrityMonitoring  bool   `json:"no_integrity_monitoring,omitempty"`
	SecureBoot             bool   `json:"secure_boot,omitempty"`
	NoVTPM                 bool   `json:"no_vtpm,omitempty"`
	Confidential           bool   `json:"confidential,omitempty"`
	TerminateOnMaintenance bool   `json:"terminate_on_maintenance,omitempty"`
	Channel                string `json:"channel,omitempty"`                     // "", "STABLE", "BETA", "ALPHA"
	PerformanceMonitoring  string `json:"performance_monitoring_unit,omitempty"` // "", "ARCHITECTURAL", "ENHANCED", "STANDARD"

	ForceSendFields []string `json:"force_send_fields,omitempty"`
	NullFields      []string `json:"null_fields,omitempty"`

	Pools   []string          `json:"pools,omitempty"`   // that its bot says it is in, of kinds that can tell it
	Image   string            `json:"image,omitempty"`   // docker: by digest
	Network string            `json:"network,omitempty"` // docker: by the engine's name; "" = its default
	Command []string          `json:"command,omitempty"` // exec: the plug-in program and its arguments
	Extra   map[string]string `json:"extra,omitempty"`   // exec: handed to the program as they are
}

// Disk of a machine.
type Disk struct {
	Image       string `json:"image,omitempty"`
	SizeGB      int64  `json:"size,omitempty"`
	Type        string `json:"type,omitempty"`      // zones/Z/diskTypes/T; may hold {{.Zone}}
	Interface   string `json:"interface,omitempty"` // "SCSI" or "NVME"
	IOPS        int64  `json:"provisioned_iops,omitempty"`
	ThroughputM int64  `json:"provisioned_throughput,omitempty"` // MB/s
}

// NetworkInterface of a machine.
type NetworkInterface struct {
	Network    string `json:"network,omitempty"`
	Subnetwork string `json:"subnetwork,omitempty"`
	StackType  string `json:"stack_type,omitempty"` // "", "IPV4_ONLY", "IPV4_IPV6", "IPV6_ONLY"
	External   int    `json:"external,omitempty"`   // access configs of type ONE_TO_ONE_NAT
}

// Metadata is one item of an instance's metadata.
type Metadata struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// ServiceAccount of a machine.
type ServiceAccount struct {
	Email  string   `json:"email"`
	Scopes []string `json:"scopes,omitempty"`
}

// NodeAffinity of a machine.
type NodeAffinity struct {
	Key    string   `json:"key"`
	NotIn  bool     `json:"not_in,omitempty"`
	Values []string `json:"values,omitempty"`
}
