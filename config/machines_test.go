package config

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/skepdev/skep/api/providerpb"
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/provider/vmscfg"
)

// gcePool is a pool of Compute Engine, each field in a line of its own; fields
// are put behind.
func gcePool(prefix string, fields ...string) string {
	return `vms {
prefix: "` + prefix + `"
swarming: "https://skep.example.com"
lifetime { duration: "1d" }
attributes {
 project: "lab" zone: "us-central1-a" machine_type: "zones/{{.Zone}}/machineTypes/n1-standard-1"
 disk { image: "global/images/bot-1" type: "zones/{{.Zone}}/diskTypes/pd-ssd" }
 network_interface { network: "global/networks/default" access_config {} }
}
` + strings.Join(fields, "\n") + "\n}\n"
}

// local is a pool of processes in one line.
func local(prefix string, fields ...string) string {
	return fmt.Sprintf("vms { prefix: %q lifetime { seconds: 60 } provider { process {} } %s }\n", prefix, strings.Join(fields, " "))
}

func machineFaults(src string, more Files) []string {
	files := Files{"vms.cfg": src}
	maps.Copy(files, more)
	return faultsOf(files)
}

func TestMachines(t *testing.T) {
	s, err := New(Files{
		"settings.cfg": `group { name: "lab" member: "user:ci-*" }`,
		"startup.sh":   "#!/bin/sh\r\necho hi: there\n",
		"vms.cfg": `vms {
			prefix: "linux" swarming: "skep.example.com" lifetime { duration: "1mo" } timeout { duration: "10m" } owner: "lab" owner: "user:ann" swarming_pools: "ci"
			amount { min: 1 max: 10 change { min: 5 max: 20 length { duration: "10h" } start { day: MONDAY location: "Europe/Berlin" time: "8:00" } } }
			attributes {
				project: "lab" zone: "us-central1-a" machine_type: "zones/{{.Zone}}/machineTypes/n1-standard-1" min_cpu_platform: "Intel Skylake" tag: "bots"
				disk { image: "global/images/bot-1" size: 50 type: "zones/{{.Zone}}/diskTypes/pd-ssd" }
				disk { type: "zones/us-central1-a/diskTypes/local-ssd" interface: NVME } disk { type: "zones/{{.Zone}}/diskTypes/hyperdisk-extreme" provisioned_iops: 7 }
				network_interface { network: "global/networks/default" stack_type: "IPV4_IPV6" access_config { type: ONE_TO_ONE_NAT } }
				metadata { from_text: "a:b:c" } metadata { from_file: "startup-script:startup.sh" }
				service_account { email: "default" scope: "https://www.googleapis.com/auth/cloud-platform" }
				scheduling { node_affinity { key: "k" operator: NOT_IN values: "v" } }
				label { key: "a" value: "b" } label { key: "resource_group" value: "rg" }
				enable_secure_boot: true gcp_channel: GCP_CHANNEL_ALPHA performance_monitoring_unit: PERFORMANCE_MONITORING_UNIT_STANDARD
			}
			provider { max_replacing: 2 demand { dimension: "os:Linux" target_wait { duration: "30s" } warm: 1 } }
		}` + local("p", `provider {}`[:0], `swarming_pools: "default"`) +
			`vms { prefix: "d" lifetime { seconds: 9 } provider { docker { image: "sha256:` + strings.Repeat("a", 64) + `" network: "host" } } swarming_pools: "ci" }`,
		"projects.cfg": `project { project: "lab" metric: "CPUS" region: "us-central1" }`,
	})
	if err != nil {
		t.Fatal(err)
	}
	berlin, _ := time.LoadLocation("Europe/Berlin")
	want := provider.Config{
		Prefix: "linux", Kind: "gce", Swarming: "skep.example.com", Lifetime: 30 * 24 * time.Hour, Timeout: 10 * time.Minute,
		Owners: []string{"lab", "user:ann"}, SwarmingPools: []string{"ci"}, MaxReplacing: 2,
		Amount: provider.Amount{Min: 1, Max: 10, Windows: []provider.Window{{Day: time.Monday, Hour: 8, Location: berlin, Length: 10 * time.Hour, Min: 5, Max: 20}}},
		Demand: &provider.Demand{Dimensions: map[string][]string{"os": {"Linux"}, "pool": {"ci"}}, TargetWait: 30 * time.Second, Warm: 1},
		Attributes: provider.Attributes{
			Project: "lab", Zone: "us-central1-a", MachineType: "zones/{{.Zone}}/machineTypes/n1-standard-1", MinCPUPlatform: "Intel Skylake", Tags: []string{"bots"},
			Disks: []provider.Disk{
				{Image: "global/images/bot-1", SizeGB: 50, Type: "zones/{{.Zone}}/diskTypes/pd-ssd", Interface: "SCSI"},
				{Type: "zones/us-central1-a/diskTypes/local-ssd", Interface: "NVME"},
				{Type: "zones/{{.Zone}}/diskTypes/hyperdisk-extreme", Interface: "SCSI", IOPS: 7},
			},
			Networks:        []provider.NetworkInterface{{Network: "global/networks/default", StackType: "IPV4_IPV6", External: 1}},
			Metadata:        []provider.Metadata{{Key: "a", Value: "b:c"}, {Key: "startup-script", Value: "#!/bin/sh\r\necho hi: there\n"}},
			ServiceAccounts: []provider.ServiceAccount{{Email: "default", Scopes: []string{"https://www.googleapis.com/auth/cloud-platform"}}},
			NodeAffinities:  []provider.NodeAffinity{{Key: "k", NotIn: true, Values: []string{"v"}}},
			Labels:          map[string]string{"a": "b", "resource_group": "rg"},
			SecureBoot:      true, Channel: "ALPHA", PerformanceMonitoring: "STANDARD",
		},
	}
	got := s.Machines()
	want.Revision = got[0].Revision
	location := cmp.Comparer(func(a, b *time.Location) bool { return a.String() == b.String() })
	if d := cmp.Diff(want, got[0], location); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if got[1].Kind != "process" || got[1].SwarmingPools[0] != "default" {
		t.Errorf("%+v", got[1])
	}
	if a := got[2].Attributes; a.Network != "host" || !slices.Equal(a.Pools, []string{"ci"}) || got[0].Attributes.Pools != nil {
		t.Errorf("%+v", a)
	}
	if !s.Owns("lab", "user:ci-1") || s.Owns("lab", "user:ann") || !s.Owns("user:ann", "user:ann") || s.Owns("user:ann", "user:ci-1") {
		t.Error("owners")
	}
	if d := cmp.Diff([]Project{{Name: "lab", Metrics: []string{"CPUS"}, Regions: []string{"us-central1"}, Revision: s.Projects()[0].Revision}}, s.Projects()); d != "" {
		t.Error(d)
	}
	// What the API shows of it reads as the same.
	for _, c := range got {
		back, err := vmscfg.Config(vmscfg.Message(c))
		if d := cmp.Diff(c, back, location); d != "" || err != nil {
			t.Errorf("%v (-noun +through its message):\n%s", err, d)
		}
	}
}

func TestMachineFaults(t *testing.T) {
	for _, c := range []struct {
		name, src string
		want      []string
	}{
		{"a pool of Compute Engine", gcePool("a"), nil},
		{"a pool of processes", local("a"), nil},
		{"nothing in it", "vms {\n}", []string{
			"vms.cfg:1: vms[0].attributes: is required for machines of Compute Engine; provider { process {} } has its bots on this host",
			"vms.cfg:1: vms[0].lifetime: is required", "vms.cfg:1: vms[0].prefix: is required",
			"vms.cfg:1: vms[0].swarming: is required: these machines are elsewhere, and their bots must know the server",
		}},
		{"attributes with nothing in them", `vms { prefix: "a" swarming: "s" lifetime { seconds: 1 } attributes {} }`, []string{
			"vms.cfg:1: vms[0].attributes.disk: is required for machines of Compute Engine", "vms.cfg:1: vms[0].attributes.machine_type: is required for machines of Compute Engine",
			"vms.cfg:1: vms[0].attributes.network_interface: is required for machines of Compute Engine", "vms.cfg:1: vms[0].attributes.project: is required for machines of Compute Engine",
			"vms.cfg:1: vms[0].attributes.zone: is required for machines of Compute Engine",
		}},
		{"what the server sets", local("a", `revision: "1" current_amount: 3 duts { key: "d" value {} }`), []string{
			"vms.cfg:1: vms[0].current_amount: is not supported: the server sets it; take it out",
			"vms.cfg:1: vms[0].duts: is not supported: devices are set while it runs; take it out",
			"vms.cfg:1: vms[0].revision: is not supported: the server sets it; take it out",
		}},
		{"prefixes within one another", local("ab") + local("b") + local("a") + local("b"), []string{
			`vms.cfg:1: vms[0].prefix: "ab" and "a" in line 3: no prefix may begin with another`,
			`vms.cfg:2: vms[1].prefix: "b" and "b" in line 4: no prefix may begin with another`,
			`vms.cfg:3: vms[2].prefix: "a" and "ab" in line 1: no prefix may begin with another`,
			`vms.cfg:4: vms[3].prefix: "b" and "b" in line 2: no prefix may begin with another`,
		}},
		{"names of hosts", local("A") + local("x--y") + local("y-") + local("1a") + local(strings.Repeat("c", 56)) + local(strings.Repeat("d", 55), "amount { max: 11 }") + local(strings.Repeat("e", 55), "amount { max: 10 change { max: 9 length { seconds: 1 } start { day: MONDAY time: \"0:00\" } } }"), []string{
			`vms.cfg:1: vms[0].prefix: "A" cannot begin the name of a host: want lower-case letters, digits and single dashes between them, a letter first`,
			`vms.cfg:2: vms[1].prefix: "x--y" cannot begin the name of a host: want lower-case letters, digits and single dashes between them, a letter first`,
			`vms.cfg:3: vms[2].prefix: "y-" cannot begin the name of a host: want lower-case letters, digits and single dashes between them, a letter first`,
			`vms.cfg:4: vms[3].prefix: "1a" cannot begin the name of a host: want lower-case letters, digits and single dashes between them, a letter first`,
			`vms.cfg:6: vms[5].prefix: "` + strings.Repeat("d", 55) + `" makes names of 63 characters, with a number of 2 digits and a suffix; at most 63 are allowed`,
		}[:4]},
		{"names that are too long", local(strings.Repeat("c", 57)) + local(strings.Repeat("d", 56), "amount { max: 11 }") + local(strings.Repeat("e", 56), "amount { max: 10 }"), []string{
			`vms.cfg:1: vms[0].prefix: "` + strings.Repeat("c", 57) + `" makes names of 64 characters, with a number of 1 digits and a suffix; at most 63 are allowed`,
			`vms.cfg:2: vms[1].prefix: "` + strings.Repeat("d", 56) + `" makes names of 64 characters, with a number of 2 digits and a suffix; at most 63 are allowed`,
		}},
		{"periods", `vms { prefix: "a" provider { process {} } lifetime { duration: "1h30m" } timeout { seconds: -1 } }
			vms { prefix: "b" provider { process {} } lifetime { duration: "0d" } timeout { duration: "4s" } }
			vms { prefix: "c" provider { process {} } lifetime { duration: "99999999999999999999s" } }
			vms { prefix: "d" provider { process {} } lifetime { duration: "9223372036854775807mo" } timeout {} }
			vms { prefix: "e" provider { process {} } lifetime {} }
			vms { prefix: "f" provider { process {} } lifetime { seconds: 1 duration: "1s" } }` + "\n" + gcePool("g", `timeout { duration: "1m" }`) + `
			vms { prefix: "h" provider { process {} } lifetime { duration: "3650d" } timeout { seconds: 315360001 } }
			vms { prefix: "i" provider { process {} } lifetime { duration: "4000mo" } }`, []string{
			`vms.cfg:1: vms[0].lifetime: "1h30m" is not digits followed by one of s, m, h, d, mo`,
			`vms.cfg:1: vms[0].timeout: -1 is less than 0 seconds`,
			`vms.cfg:2: vms[1].lifetime: is 0s, want more`,
			`vms.cfg:2: vms[1].timeout: is 4s, which is shorter than a boot; want 0 or at least 5s`,
			`vms.cfg:3: vms[2].lifetime: "99999999999999999999s" is too large`,
			`vms.cfg:4: vms[3].lifetime: is longer than 3650d, ten years; nothing here may be`,
			`vms.cfg:5: vms[4].lifetime: is 0s, want more`,
			`vms.cfg:6: vms[5].lifetime.duration: excludes seconds, which is given too`,
			`vms.cfg:16: vms[6].timeout: is 1m0s, which is shorter than a boot; want 0 or at least 2m0s`,
			`vms.cfg:19: vms[7].timeout: is longer than 3650d, ten years; nothing here may be`,
			`vms.cfg:20: vms[8].lifetime: is longer than 3650d, ten years; nothing here may be`,
		}},
		{"amounts", local("a", "amount { min: 2 max: 1\n change { length { seconds: 0 } start { } min: 3 }\n change { }\n change { start { day: 8 location: \"Mars\" time: \"24:00\" } length { duration: \"1h\" } max: -1 } }"), []string{
			"vms.cfg:1: vms[0].amount.min: is 2, which is more than max, 1",
			"vms.cfg:2: vms[0].amount.change[0].length: is 0s, want more",
			"vms.cfg:2: vms[0].amount.change[0].min: is 3, which is more than max, 0",
			"vms.cfg:2: vms[0].amount.change[0].start.day: is required",
			"vms.cfg:2: vms[0].amount.change[0].start.time: is required",
			"vms.cfg:3: vms[0].amount.change[1].length: is required",
			"vms.cfg:3: vms[0].amount.change[1].start: is required",
			"vms.cfg:4: vms[0].amount.change[2].max: is -1, want 0 to 100000",
			"vms.cfg:4: vms[0].amount.change[2].start.day: is 8, want one of MONDAY, TUESDAY, WEDNESDAY, THURSDAY, FRIDAY, SATURDAY, SUNDAY",
			`vms.cfg:4: vms[0].amount.change[2].start.location: "Mars" is not a time zone as Europe/Berlin`,
			`vms.cfg:4: vms[0].amount.change[2].start.time: "24:00" is not H:MM or HH:MM, 0:00 to 23:59`,
		}},
		{"windows", local("a", "amount {\n"+
			`change { start { day: SUNDAY time: "20:00" } length { duration: "8h" } }`+"\n"+
			`change { start { day: MONDAY time: "03:00" } length { duration: "1h" } }`+"\n"+ // over the end of the week
			`change { start { day: MONDAY time: "04:00" } length { duration: "1h" } }`+"\n"+
			`change { start { day: SUNDAY time: "23:00" location: "America/New_York" } length { duration: "1h" } }`+"\n"+ // 03:00 or 04:00 UTC
			`change { start { day: TUESDAY time: "4:00" location: "Local" } length { duration: "1h" } }`+"\n}"), []string{
			"vms.cfg:3: vms[0].amount.change[1]: overlaps with that in line 2",
			"vms.cfg:5: vms[0].amount.change[3]: overlaps with that in line 2",
			`vms.cfg:6: vms[0].amount.change[4].start.location: "Local" is the zone of whichever machine reads it; name one as Europe/Berlin`,
		}},
		{"owners", local("a", `owner: "lab"`, `owner: "user:ann"`, `owner: "user:"`, `owner: "group:known"`, `owner: "a b"`), []string{
			`vms.cfg:1: vms[0].owner[0]: settings.cfg has no group "lab"; add group { name: "lab" member: "user:NAME" }`,
			`vms.cfg:1: vms[0].owner[2]: "user:" has no name; user:* is every one, or the name of a group of settings.cfg`,
			`vms.cfg:1: vms[0].owner[4]: "a b" is neither user:NAME, bot:NAME nor the name of a group, which matches ^[a-zA-Z0-9_-]{1,100}$`,
		}},
		{"servers", local("a", `swarming: "http://10.0.0.1/"`) + local("b", `swarming: "a b"`) + local("c", `swarming: "http://127.0.0.1:8900"`) + local("d", `swarming: "skep.example.com:443"`), []string{
			`vms.cfg:1: vms[0].swarming: "http://10.0.0.1/" is not an https URL`, `vms.cfg:2: vms[1].swarming: "a b" is not a host name or an https URL`,
		}},
		{"the block of a provider", strings.Join([]string{
			`vms { prefix: "a" lifetime { seconds: 9 } provider { docker {} } }`,
			`vms { prefix: "b" lifetime { seconds: 9 } provider { docker { image: "debian:12" } } }`,
			`vms { prefix: "c" lifetime { seconds: 9 } provider { exec { command: "x" } } swarming: "s" }`,
			`vms { prefix: "d" lifetime { seconds: 9 } provider { process {} docker {} } }`,
			`vms { prefix: "e" lifetime { seconds: 9 } provider { process {} zone: "us-b" } }`,
			`vms { prefix: "f" lifetime { seconds: 9 } provider { process {} max_replacing: -1 demand { dimension: "os" dimension: "x:y" dimension: "x:y" target_wait { duration: "2d" } warm: -1 } } }`,
			`vms { prefix: "g" lifetime { seconds: 9 } provider { docker { image: "reg.example.com:5000/bot@sha256:` + strings.Repeat("a", 64) + `" } } }`,
			`vms { prefix: "h" lifetime { seconds: 9 } provider { docker { image: "sha256:` + strings.Repeat("a", 64) + `" network: "host" } } }`,
			`vms { prefix: "i" lifetime { seconds: 9 } provider { docker { image: "@sha256:abc" network: "a b" } } swarming_pools: "a,b" }`,
			`vms { prefix: "j" lifetime { seconds: 9 } provider { exec { command: "/x" } } }`,
		}, "\n"), []string{
			"vms.cfg:1: vms[0].provider.docker.image: is required",
			`vms.cfg:2: vms[1].provider.docker.image: "debian:12" is not an image with its digest, as registry/name@sha256:…`,
			`vms.cfg:3: vms[2].provider.exec.command[0]: "x" is not the absolute path of a program`,
			"vms.cfg:4: vms[3].provider.docker.image: is required",
			"vms.cfg:4: vms[3].provider.docker: excludes process, which is given too",
			"vms.cfg:5: vms[4].provider.zone: are zones besides the one of the attributes, which has none; set attributes.zone to the first",
			"vms.cfg:6: vms[5].provider.demand.dimension[0]: \"os\" is not key:value",
			`vms.cfg:6: vms[5].provider.demand.dimension[2]: "x:y" is there already`,
			"vms.cfg:6: vms[5].provider.demand.target_wait: is 48h0m0s, want 1s to 24h",
			"vms.cfg:6: vms[5].provider.demand.warm: is -1, want 0 to 100000",
			"vms.cfg:6: vms[5].provider.demand: needs a pool to look for tasks in: name it in swarming_pools",
			"vms.cfg:6: vms[5].provider.max_replacing: is -1, want 0 to 100000",
			`vms.cfg:9: vms[8].provider.docker.image: "@sha256:abc" is not an image with its digest, as registry/name@sha256:…`,
			`vms.cfg:9: vms[8].provider.docker.network: "a b" is not the name of a network`,
			`vms.cfg:9: vms[8].swarming_pools[0]: "a,b" has a comma`,
		}},
		{"disks", `vms { prefix: "a" swarming: "s" lifetime { seconds: 1 } attributes { project: "p" zone: "us-z" machine_type: "n1" network_interface { stack_type: "IPV5" }
			disk { type: "zones/us-z/diskTypes/local-ssd" }
			disk { type: "zones/us-z/diskTypes/local-ssd" image: "global/images/i" }
			disk { type: "pd-ssd" }
			disk { type: "zones/us-y/diskTypes/pd-standard" interface: NVME }
			disk { type: "zones/us-z/diskTypes/pd-ssd" image: "images/i" provisioned_iops: 0 }
			disk { type: "zones/us-z/diskTypes/pd-balanced" provisioned_throughput: 1 }
			disk { type: "zones/us-z/diskTypes/hyperdisk-balanced" provisioned_throughput: -1 }
		} }`, []string{
			`vms.cfg:1: vms[0].attributes.machine_type: "n1" is not zones/<zone>/machineTypes/<type>`,
			`vms.cfg:1: vms[0].attributes.network_interface[0].stack_type: "IPV5" is none of IPV4_ONLY, IPV4_IPV6, IPV6_ONLY`,
			"vms.cfg:2: vms[0].attributes.disk[0].type: is a local SSD, which cannot be booted from; the first disk is",
			"vms.cfg:3: vms[0].attributes.disk[1].image: is not for a local SSD",
			`vms.cfg:4: vms[0].attributes.disk[2].type: "pd-ssd" is not zones/<zone>/diskTypes/<type>`,
			"vms.cfg:5: vms[0].attributes.disk[3].image: is required, as global/images/<image>",
			"vms.cfg:5: vms[0].attributes.disk[3].interface: is NVME, want SCSI for pd-standard",
			`vms.cfg:5: vms[0].attributes.disk[3].type: "zones/us-y/diskTypes/pd-standard" is of another zone than the machine, "us-z"; write zones/{{.Zone}}/`,
			`vms.cfg:6: vms[0].attributes.disk[4].image: "images/i" is not global/images/<image> or projects/<project>/global/images/<image>`,
			"vms.cfg:6: vms[0].attributes.disk[4].provisioned_iops: is for hyperdisks only",
			"vms.cfg:7: vms[0].attributes.disk[5].provisioned_throughput: is for hyperdisks only",
			"vms.cfg:8: vms[0].attributes.disk[6].provisioned_throughput: is -1, want 0 to 1000000",
		}},
		{"a disk to boot from without an image", `vms { prefix: "a" swarming: "s" lifetime { seconds: 1 } attributes { project: "p" zone: "us-z" machine_type: "zones/us-z/machineTypes/n1" network_interface {} disk { type: "zones/us-z/diskTypes/pd-balanced" } } provider { zone: "us-y" } }`, []string{
			"vms.cfg:1: vms[0].attributes.disk[0].image: is required, as global/images/<image>",
			`vms.cfg:1: vms[0].attributes.disk[0].type: "zones/us-z/diskTypes/pd-balanced" is of one zone, and there are several; write zones/{{.Zone}}/`,
			`vms.cfg:1: vms[0].attributes.machine_type: "zones/us-z/machineTypes/n1" is of one zone, and there are several; write zones/{{.Zone}}/`,
		}},
		{"metadata, labels and tags", gcePool("a", "}", `vms { prefix: "b" lifetime { seconds: 1 } provider { process {} } attributes {`,
			`metadata { from_text: "x" }`, `metadata { from_text: "k:v" } metadata { from_text: "k:w" }`, `metadata { from_file: "f" }`, `metadata { from_file: "f:../x" }`, `metadata { from_file: "f:bots.cfg" }`,
			`metadata { from_file: "f:none" } metadata {}`, `metadata { from_text: "dut:x" } metadata { from_text: "a b:c" }`, `label { key: "A" value: "b" } label { key: "a" value: "B" } label { key: "a" } label { value: "x" }`,
			`label { key: "skep-vm" value: "x" }`, `tag: "A" tag: "b" tag: "b"`, `}`), []string{
			`vms.cfg:12: vms[1].attributes.metadata[0].from_text: "x" is not key:value`,
			`vms.cfg:13: vms[1].attributes.metadata[2].from_text: "k" is there already`,
			`vms.cfg:14: vms[1].attributes.metadata[3].from_file: "f" is not key:path`,
			`vms.cfg:15: vms[1].attributes.metadata[4].from_file: "../x" is not the path of a file below the configuration directory, with / between its parts; .cfg files, scripts/ and hidden ones are not for this`,
			`vms.cfg:16: vms[1].attributes.metadata[5].from_file: "bots.cfg" is not the path of a file below the configuration directory, with / between its parts; .cfg files, scripts/ and hidden ones are not for this`,
			`vms.cfg:17: vms[1].attributes.metadata[6].from_file: there is no file "none" of at most 262144 bytes below the configuration directory`,
			"vms.cfg:17: vms[1].attributes.metadata[7]: is empty; give it from_text or from_file",
			"vms.cfg:18: vms[1].attributes.metadata[8].from_text: dut is for the name of a lab device; take another key",
			`vms.cfg:18: vms[1].attributes.metadata[9].from_text: "a b" is not the key of a metadata item: want 1 to 128 letters, digits, _ and -`,
			`vms.cfg:19: vms[1].attributes.label[2]: has the key "a", which is there already`,
			`vms.cfg:19: vms[1].attributes.label[A]: "A" is not the key of a label: want lower-case letters, digits, _ and -, a letter first, 63 at most`,
			`vms.cfg:19: vms[1].attributes.label[a]: "B" is not the value of a label: want lower-case letters, digits, _ and -, 63 at most`,
			"vms.cfg:19: vms[1].attributes.label[]: has no key",
			"vms.cfg:20: vms[1].attributes.label[skep-vm]: skep- is for labels that say whose a machine is; take another key",
			`vms.cfg:21: vms[1].attributes.tag[0]: "A" is not a network tag: lower-case letters, digits and dashes, 63 at most`,
			`vms.cfg:21: vms[1].attributes.tag[2]: "b" is there already`,
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := machineFaults(c.src, Files{"settings.cfg": `group { name: "known" }`})
			slices.Sort(got)
			slices.Sort(c.want)
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
		})
	}
}

func TestProjectFaults(t *testing.T) {
	got := faultsOf(Files{"projects.cfg": "project {}\nproject { project: \"a\" revision: \"x\" }\nproject { project: \"a\" metric: \"\" }\nproject { project: \"A B\" }"})
	want := []string{
		"projects.cfg:1: project[0].project: is required",
		"projects.cfg:2: project[1].revision: is not supported: the server sets it; take it out",
		"projects.cfg:3: project[2].metric[0]: is empty",
		`projects.cfg:3: project[2].project: "a" is there already, in line 2`,
		`projects.cfg:4: project[3].project: "A B" is not a project's name`,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

// sizes are the pools of a snapshot with their max, which says which version
// of an entry it is.
func sizes(s *Snapshot) map[string]int {
	out := map[string]int{}
	for _, c := range s.Machines() {
		out[c.Prefix] = c.Amount.Max
	}
	return out
}

func sized(prefix string, n int) string { return local(prefix, fmt.Sprintf("amount { max: %d }", n)) }

func TestEntriesStandForThemselves(t *testing.T) {
	old := sized("a", 1) + sized("b", 1) + sized("c", 1)
	for _, c := range []struct {
		name, src string
		want      map[string]int
		faults    []string // parts of what is told
	}{
		{"all are good", sized("a", 2) + sized("d", 2), map[string]int{"a": 2, "d": 2}, nil},
		{"a broken rule", sized("a", 2) + sized("b", -1) + sized("d", 2), map[string]int{"a": 2, "b": 1, "d": 2}, []string{"vms.cfg:2: vms[1].amount.max: is -1"}},
		{"a broken rule in a new one", sized("a", 2) + sized("e", -1), map[string]int{"a": 2}, []string{"vms[1].amount.max"}},
		{"prefixes in conflict with a new one", sized("a", 2) + sized("ax", 2) + sized("b", 2), map[string]int{"a": 1, "b": 2}, []string{"vms[0].prefix", "vms[1].prefix"}},
		{"prefixes in conflict with one that is as it was", sized("a", 1) + sized("ax", 2) + sized("b", 2), map[string]int{"a": 1, "b": 2}, []string{"vms[0].prefix", "vms[1].prefix"}},
		{"twice the same", sized("a", 2) + sized("a", 3), map[string]int{"a": 1}, []string{"vms[0].prefix", "vms[1].prefix"}},
		{"an unknown field keeps what is not there", sized("a", 2) + local("b", "what: 1"), map[string]int{"a": 2, "b": 1, "c": 1}, []string{"vms[1].what: is not a field of Config"}},
		{"a prefix that is none keeps what is not there", sized("a", 2) + sized("B", 2), map[string]int{"a": 2, "b": 1, "c": 1}, []string{`"B" cannot begin`}},
		{"a new one gives way to one that may be meant", sized("a", 2) + sized("cx", 2) + sized("B", 2), map[string]int{"a": 2, "b": 1, "c": 1}, []string{`vms.cfg:2: vms[1].prefix: "cx" and "c": no prefix`, `"B" cannot begin`}},
		{"a brace that is not closed swallows the rest", "vms { prefix: \"a\" lifetime { seconds: 60 provider { process {} } }\n" + sized("b", 2) + sized("d", 2), map[string]int{"a": 1, "b": 1, "c": 1}, []string{
			"vms[0].lifetime.provider: is not a field", `vms[0]: is opened here`, "vms[0].swarming", "vms[0].attributes", "vms[0].vms: is not a field", "vms[0].vms: is not a field",
		}},
		{"a brace too many", sized("a", 2) + "}\n" + sized("b", 2), map[string]int{"a": 1, "b": 1, "c": 1}, []string{`"}" closes nothing`}},
		{"not a file of this kind", "pool {}", map[string]int{"a": 1, "b": 1, "c": 1}, []string{"pool: is not a field of Configs"}},
		{"empty", "", map[string]int{}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			was, err := New(Files{"vms.cfg": old})
			if err != nil {
				t.Fatal(err)
			}
			next, refused := merge(was, Files{"vms.cfg": c.src}, nil)
			if d := cmp.Diff(c.want, sizes(next)); d != "" {
				t.Errorf("(-want +got)\n%s\n%v", d, refused)
			}
			if len(refused["vms.cfg"]) != len(c.faults) {
				t.Errorf("told: %v", refused)
			}
			for i, f := range refused["vms.cfg"] {
				if i < len(c.faults) && !strings.Contains(f.Error(), c.faults[i]) {
					t.Errorf("told: %v, want %q", f, c.faults[i])
				}
			}
			// The same again changes nothing, and a copy reads as the same.
			again, _ := merge(next, Files{"vms.cfg": c.src}, nil)
			if again.Digest() != next.Digest() {
				t.Error("the second look finds something else")
			}
			if d := cmp.Diff(next.Machines(), again.Machines(), cmp.Comparer(func(a, b *time.Location) bool { return a.String() == b.String() })); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestMachineStore(t *testing.T) {
	dir, keep := t.TempDir(), filepath.Join(t.TempDir(), "keep")
	put(t, dir, Files{"vms.cfg": local("a", `attributes { metadata { from_file: "k:md/k.txt" } }`) + sized("b", 1) + sized("c", -1), "md/k.txt": "one"})
	s := open(t, dir, Options{Settle: time.Millisecond, Resync: time.Hour, Keep: keep}) // a broken entry keeps nobody from starting
	value := func() string {
		for _, c := range s.Snapshot().Machines() {
			if c.Prefix == "a" {
				return c.Attributes.Metadata[0].Value
			}
		}
		return ""
	}
	if d := cmp.Diff([]string{"vms.cfg"}, refusedFiles(s)); d != "" || value() != "one" || len(s.Snapshot().Machines()) != 2 {
		t.Errorf("%s %q %v", d, value(), s.Snapshot().Machines())
	}
	first := s.Snapshot().Machines()[0]
	await := follow(t, s)
	put(t, dir, Files{"md/k.txt": "two"})
	await("a file of metadata is followed", func() bool { return value() == "two" })
	if c := s.Snapshot().Machines()[0]; c.Revision == first.Revision || c.Shape() == first.Shape() {
		t.Error("revision or shape is as before")
	}
	if b := s.Snapshot().Machines()[1]; b.Prefix != "b" || b.Revision == first.Revision {
		t.Errorf("%+v", b)
	}
	if err := os.Remove(filepath.Join(dir, "md/k.txt")); err != nil {
		t.Fatal(err)
	}
	await("it is told that one is gone", func() bool { return strings.Contains(fmt.Sprint(s.Refusals()), "there is no file") })
	if value() != "two" {
		t.Errorf("metadata is %q", value())
	}
	again := open(t, dir, Options{Keep: keep})
	if again.Snapshot().Digest() != s.Snapshot().Digest() || value() != "two" {
		t.Error("the copy is something else")
	}
}

// TestMergeOfMachines: whatever the file becomes, every pool is in its newest
// good version or was left out by a file without a broken text.
func TestMergeOfMachines(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		current := Empty()
		for range rapid.IntRange(1, 8).Draw(t, "changes") {
			var src strings.Builder
			unread := false
			type line struct {
				prefix string
				n      int
			}
			var lines []line
			for range rapid.IntRange(0, 5).Draw(t, "entries") {
				l := line{rapid.SampledFrom([]string{"a", "ab", "b", "bc", "c", "d"}).Draw(t, "prefix"), rapid.IntRange(-1, 3).Draw(t, "n")}
				more := rapid.SampledFrom([]string{"", "", "", "oops: 1"}).Draw(t, "more")
				unread = unread || more != ""
				if more != "" {
					l.n = -1
				}
				lines = append(lines, l)
				src.WriteString(local(l.prefix, fmt.Sprintf("amount { max: %d }", l.n), more))
			}
			was := sizes(current)
			next, refused := merge(current, Files{"vms.cfg": src.String()}, nil)
			if _, err := New(next.files); err != nil {
				t.Fatalf("not valid: %v", err)
			}
			got := sizes(next)
			for i, l := range lines {
				clash := false
				for j, other := range lines {
					clash = clash || i != j && (strings.HasPrefix(l.prefix, other.prefix) || strings.HasPrefix(other.prefix, l.prefix))
				}
				n, ok := got[l.prefix]
				old, had := was[l.prefix]
				switch {
				case l.n < 0 || clash:
					if n != old || ok != had {
						t.Fatalf("%s is %d (%v), was %d (%v), and is broken now\n%s", l.prefix, n, ok, old, had, src.String())
					}
				case (!ok || n != l.n) && !unread:
					t.Fatalf("%s is %d (%v), want %d\n%s%v", l.prefix, n, ok, l.n, src.String(), refused)
				}
			}
			for prefix := range was {
				if _, ok := got[prefix]; !ok && (unread || slices.ContainsFunc(lines, func(l line) bool { return l.prefix == prefix })) {
					t.Fatalf("%s is gone\n%s", prefix, src.String())
				}
			}
			current = next
		}
	})
}

func FuzzMachines(f *testing.F) {
	f.Add(gcePool("a"), "one")
	f.Add(local("a", `attributes { metadata { from_file: "k:f" } label { key: "a" value: "b" } }`)+sized("b", 1), "")
	f.Add("vms {", "x")
	f.Fuzz(func(t *testing.T, src, content string) {
		agree(t, src, &providerpb.Configs{}, &providerpb.Configs{})
		was, err := New(Files{"vms.cfg": sized("a", 1) + sized("b", 1)})
		if err != nil {
			t.Fatal(err)
		}
		next, refused := merge(was, Files{"vms.cfg": src, "f": content}, nil)
		for _, c := range next.Machines() {
			m := vmscfg.Message(c)
			back, err := vmscfg.Config(m)
			if err != nil || !proto.Equal(m, vmscfg.Message(back)) || c.Shape() != back.Shape() {
				t.Errorf("%v: %v is not %v", err, c, back)
			}
		}
		for file, why := range refused {
			if len(why) == 0 {
				t.Errorf("%s is refused without a reason", file)
			}
		}
	})
}

// A pool may keep machines stopped where its cloud can stop them.
func TestStoppedTier(t *testing.T) {
	const exec, gce = `exec { command: "/bin/x" }`, `gce {}`
	pool := func(kind, disk string) string {
		attributes := `attributes { project: "lab" zone: "us-central1-a" machine_type: "zones/us-central1-a/machineTypes/n1-standard-1"
			disk { image: "global/images/bot-1" type: "zones/us-central1-a/diskTypes/pd-ssd" } ` + disk + ` network_interface { network: "global/networks/default" } }`
		if kind != gce {
			attributes = ""
		}
		return `vms { prefix: "a" lifetime { seconds: 60 } swarming: "x.example.com" swarming_pools: "ci" ` + attributes + ` provider { ` + kind + ` demand { stopped: 2 } } }`
	}
	for name, tc := range map[string]struct {
		src  string
		want string // part of the fault
	}{
		"process":               {pool(`process {}`, ""), ""},
		"docker":                {pool(`docker { image: "x@sha256:`+strings.Repeat("0", 64)+`" }`, ""), ""},
		"gce":                   {pool(gce, ""), ""},
		"gce with a local disk": {pool(gce, `disk { type: "zones/us-central1-a/diskTypes/local-ssd" }`), "vms[0].provider.demand.stopped: is 2, and attributes.disk[1] is a local SSD"},
		"exec":                  {pool(exec, ""), "vms[0].provider.demand.stopped: is 2, and machines of exec cannot be stopped"},
	} {
		got := machineFaults(tc.src, nil)
		if tc.want == "" && len(got) > 0 || tc.want != "" && (len(got) != 1 || !strings.Contains(got[0], tc.want)) {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

// What bots.cfg forces on bots holds for the tasks that their machines are made
// for, whatever vms.cfg says of them.
func TestDemandHasForcedDimensions(t *testing.T) {
	s, err := New(Files{
		"bots.cfg": `bot_group { bot_id_prefix: "linux-" auth { require_token {} } dimensions: "pool:lab" dimensions: "gpu:none" }
			bot_group { auth { require_token {} } dimensions: "pool:ci" }`,
		"vms.cfg": `vms { prefix: "linux" lifetime { seconds: 60 } swarming_pools: "ci" provider { process {} demand { dimension: "os:Linux" dimension: "gpu:8086" } } }
			vms { prefix: "other" lifetime { seconds: 60 } swarming_pools: "ci" provider { process {} demand { dimension: "os:Linux" } } }`,
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []map[string][]string{
		{"pool": {"lab"}, "gpu": {"none"}, "os": {"Linux"}},
		{"pool": {"ci"}, "os": {"Linux"}},
	} {
		if d := cmp.Diff(want, s.Machines()[i].Demand.Dimensions); d != "" {
			t.Errorf("%s (-want +got):\n%s", s.Machines()[i].Prefix, d)
		}
	}
}
