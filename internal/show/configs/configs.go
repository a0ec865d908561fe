// Package configs shows that the cloud takes what the validator takes: vms.cfg
// files are made by chance, and of each pool that is accepted a machine is
// asked for at the strict simulator, through the client that production uses.
package configs

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/skepdev/skep/config"
	"github.com/skepdev/skep/internal/show/form"
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/provider/gce"
	"github.com/skepdev/skep/provider/gce/gcesim"
)

// Main runs the show and returns its exit code.
func Main(args []string) int {
	flags := flag.NewFlagSet("configs", flag.ContinueOnError)
	n, seed := flags.Int("n", 100_000, "how many configurations"), flags.Uint64("seed", form.Of(uint64(time.Now().UnixNano()), 1), "of them")
	if flags.Parse(args) != nil {
		return 2
	}
	if form.Short() {
		*n = 5000
	}
	if err := show(*n, *seed); err != nil {
		fmt.Fprintln(os.Stderr, "configs:", err)
		return 1
	}
	return 0
}

type tally struct {
	accepted, refused, machines int
	bad                         []string
	words                       map[string]int // what the simulator and the validator said, by the field
}

func show(n int, seed uint64) error {
	fmt.Printf("configurations: %d, seed %d\n", n, seed)
	began := time.Now()
	all := tally{words: map[string]int{}}
	var mu sync.Mutex
	var wg sync.WaitGroup
	workers := runtime.GOMAXPROCS(0)
	for w := range workers {
		wg.Go(func() {
			t := try(rand.New(rand.NewPCG(seed, uint64(w))), n/workers)
			mu.Lock()
			defer mu.Unlock()
			all.accepted, all.refused, all.machines = all.accepted+t.accepted, all.refused+t.refused, all.machines+t.machines
			all.bad = append(all.bad, t.bad...)
			for word, k := range t.words {
				all.words[word] += k
			}
		})
	}
	wg.Wait()
	for _, b := range all.bad[:min(len(all.bad), 5)] {
		fmt.Println(b)
	}
	fmt.Printf("configurations: %d accepted, %d refused for %d kinds of reasons in %v; %d machines made, %d refused by the simulator (bound 0)\n",
		all.accepted, all.refused, len(all.words), time.Since(began).Round(time.Second), all.machines, len(all.bad))
	switch {
	case len(all.bad) > 0:
		return fmt.Errorf("%d configurations were accepted and are none", len(all.bad))
	case all.accepted < n/10 || all.refused < n/10:
		return errors.New("too few of one kind: this shows nothing")
	}
	return nil
}

// try makes configurations and asks for a machine of each zone of each that is
// accepted.
func try(r *rand.Rand, n int) tally {
	t := tally{words: map[string]int{}}
	for range n {
		text := File(r)
		snap, err := config.New(config.Files{"vms.cfg": text, "md/startup.sh": "#!/bin/sh\n"})
		if err != nil {
			t.refused++
			faults := config.Faults(nil)
			if errors.As(err, &faults) {
				t.words[kind(faults[0].Field)]++
			}
			continue
		}
		t.accepted++
		for _, c := range snap.Machines() {
			zones := c.Zones
			if len(zones) == 0 {
				zones = []string{c.Attributes.Zone}
			}
			for _, zone := range zones {
				t.machines++
				if err := Ask(r, c, zones, zone); err != nil {
					t.bad = append(t.bad, fmt.Sprintf("%v\n%s", err, text))
				}
			}
		}
	}
	return t
}

// kind is a field without the numbers in its path.
func kind(field string) string {
	return strings.Map(func(c rune) rune {
		if c >= '0' && c <= '9' {
			return -1
		}
		return c
	}, field)
}

// Ask has the last machine of a pool made by a simulator, in a cloud that has
// the zones that the pool names.
func Ask(r *rand.Rand, c provider.Config, zones []string, zone string) error {
	sim := gcesim.New(gcesim.Options{Zones: zones, Check: true})
	cloud, err := gce.New(context.Background(), gce.Options{Transport: sim.Transport()})
	if err != nil {
		return err
	}
	most := c.Amount.Max
	for _, w := range c.Amount.Windows {
		most = max(most, w.Max)
	}
	o := provider.Order{
		RequestID: uuid.NewString(), Name: c.Prefix + "-" + strconv.Itoa(max(most-1, 0)) + "-ab12", Zone: zone, Attributes: c.Attributes, Server: c.Swarming,
		Labels: map[string]string{provider.LabelOwner: "0123456789abcdef", provider.LabelVM: c.Prefix + "-0", provider.LabelGeneration: "1"},
	}
	if r.IntN(4) == 0 {
		o.Device = "chromeos8-row12-rack3-host4"
	}
	for range 3 {
		done, err := cloud.Create(context.Background(), o)
		if err != nil {
			return err
		}
		if !done {
			continue
		}
		made, err := cloud.Get(context.Background(), provider.Ref{Project: c.Attributes.Project, Zone: zone, Name: o.Name})
		if err == nil && made.Labels[provider.LabelVM] != o.Labels[provider.LabelVM] {
			err = errors.New("the machine has lost its labels")
		}
		return err
	}
	return errors.New("it is never done")
}

// maker writes fields: good ones mostly, and now and then ones that are not.
type maker struct {
	r   *rand.Rand
	b   strings.Builder
	bad int // one field in so many is bad
}

// File returns a vms.cfg: pools of Compute Engine, mostly good; some are cut
// about as a person's slip of the keyboard does.
func File(r *rand.Rand) string {
	m := &maker{r: r, bad: []int{20, 100, 1000, 1 << 30}[r.IntN(4)]}
	for i := range 1 + r.IntN(2) {
		m.pool(i)
	}
	text := m.b.String()
	if r.IntN(3) == 0 {
		text = slip(r, text)
	}
	return text
}

// slips are what a byte may become.
const slips = "abzAZ019-_./:{}\"\\ \n\t\x00\xff"

// slip changes one byte, or takes away or repeats a line.
func slip(r *rand.Rand, text string) string {
	switch lines := strings.SplitAfter(text, "\n"); r.IntN(4) {
	case 0:
		i := r.IntN(len(lines))
		return strings.Join(slices.Delete(lines, i, i+1), "")
	case 1:
		i := r.IntN(len(lines))
		return strings.Join(slices.Insert(lines, i, lines[i]), "")
	default:
		b := []byte(text)
		b[r.IntN(len(b))] = slips[r.IntN(len(slips))]
		return string(b)
	}
}

// pick returns a good text, or one of those that may be bad.
func (m *maker) pick(good []string, odd ...string) string {
	if len(odd) > 0 && m.r.IntN(m.bad) == 0 {
		return odd[m.r.IntN(len(odd))]
	}
	return good[m.r.IntN(len(good))]
}

func (m *maker) some() bool { return m.r.IntN(3) == 0 }

func (m *maker) line(format string, args ...any) { fmt.Fprintf(&m.b, format+"\n", args...) }

var (
	oddTexts  = []string{"", " ", "A", "a b", "-", "x-", "é", "a/b", strings.Repeat("a", 64), strings.Repeat("a", 5000), "a\"b", "{{.Zone}}", "../x", "\x01"}
	someZones = []string{"us-central1-a", "us-central1-b", "europe-west1-b", "northamerica-northeast1-c"}
)

func (m *maker) text(good []string) string { return m.pick(good, oddTexts...) }

func (m *maker) pool(i int) {
	m.line("vms {")
	m.line("prefix: %q", m.text([]string{"bots" + strconv.Itoa(i), "x" + strconv.Itoa(i), "linux-vm" + strconv.Itoa(i), string(rune('p'+i)) + strings.Repeat("p", 46+m.r.IntN(9))}))
	m.line("swarming: %q", m.text([]string{"https://skep.example.com", "skep.example.com", "http://127.0.0.1:8900"}))
	m.line("lifetime { duration: %q }", m.pick([]string{"1d", "2h", "1mo", "9223372036854775807mo"}, "", "0s", "1h30m", "1.5h", "-1s"))
	if m.some() {
		m.line("timeout { seconds: %d }", []int{0, 600, 3600, 1 + m.r.IntN(700)}[m.r.IntN(4)])
	}
	m.line("amount {")
	low := m.r.IntN(20)
	m.line("min: %d max: %d", low, low+[]int{0, 1, 5, 1000, 9_900, 99_000, 200_000, -1}[m.r.IntN(6+m.r.IntN(20)/18)])
	for range m.r.IntN(5) / 2 {
		m.line("change { min: %d max: %d length { duration: %q } start { day: %s time: %q location: %q } }", m.r.IntN(3), 2+m.r.IntN(5000),
			m.pick([]string{"1h", "30m", "2d"}, "0m", "8d", ""), []string{"MONDAY", "FRIDAY", "SUNDAY"}[m.r.IntN(3)],
			m.pick([]string{"8:00", "00:30", "23:59"}, "24:00", "8", ""), m.pick([]string{"", "Europe/Berlin", "Pacific/Apia"}, "Local", "Mars", "../etc/passwd"))
	}
	m.line("}")
	zone := m.text(someZones)
	m.shape(zone)
	if m.some() {
		m.line("provider {")
		if m.r.IntN(2) == 0 {
			m.line("zone: %q", m.text(someZones))
		}
		m.line("max_replacing: %d", m.r.IntN(5))
		m.line("}")
	}
	m.line("}")
}

// inZone names a zone as it is, or as a placeholder.
func (m *maker) inZone(zone string) string {
	return m.pick([]string{zone, "{{.Zone}}", "{{.Zone}}", "{{.Zone}}"}, "us-east1-b", "{{ .Zone }}", "")
}

func (m *maker) shape(zone string) {
	m.line("attributes {")
	m.line("project: %q", m.text([]string{"lab", "my-project-1", "example.com:lab", "1234567890"}))
	m.line("zone: %q", zone)
	m.line("machine_type: %q", m.pick([]string{"zones/%s/machineTypes/n1-standard-1", "zones/%s/machineTypes/n2-custom-8-16384-ext", "projects/p1/zones/%s/machineTypes/e2-small"},
		"n1-standard-1%.0s", "zones/%s/machineTypes/", "zones/%s/machineTypes/A", "%s"))
	text := m.b.String() // the zone's place in the line above
	m.b.Reset()
	m.b.WriteString(strings.Replace(text, "%s", m.inZone(zone), 1))
	for i := range 1 + m.r.IntN(3) {
		m.disk(i, zone)
	}
	for range 1 + m.r.IntN(2) {
		m.line("network_interface {")
		if m.some() {
			m.line("network: %q", m.text([]string{"global/networks/default", "projects/p1/global/networks/n1", "https://www.googleapis.com/compute/v1/projects/p1/global/networks/n1"}))
		}
		if m.some() && (zone == someZones[0] || m.r.IntN(m.bad/4+1) == 0) {
			m.line("subnetwork: %q", m.text([]string{"regions/" + zone[:max(0, strings.LastIndexByte(zone, '-'))] + "/subnetworks/s1", "regions/us-central1/subnetworks/s1"}))
		}
		if m.some() {
			m.line("stack_type: %q", m.pick([]string{"", "IPV4_ONLY", "IPV4_IPV6", "IPV6_ONLY"}, "ipv4", "IPV4", " "))
		}
		for range m.r.IntN(2 + m.r.IntN(30)/29) {
			m.line("access_config { type: ONE_TO_ONE_NAT }")
		}
		m.line("}")
	}
	m.labels()
	m.rest()
	m.line("}")
}

func (m *maker) disk(i int, zone string) {
	kinds := []string{"pd-ssd", "pd-standard", "pd-balanced", "hyperdisk-balanced", "pd-extreme"}
	if i > 0 {
		kinds = append(kinds, "local-ssd", "local-ssd")
	}
	kind := m.pick(kinds, "local-ssd", "", "A", "x/local-ssd")
	m.line("disk {")
	if kind != "local-ssd" || m.r.IntN(m.bad) == 0 {
		m.line("image: %q", m.text([]string{"global/images/bot-1", "projects/images/global/images/bot-1", "global/images/family/bots"}))
	}
	if m.r.IntN(8) > 0 {
		m.line("type: %q", "zones/"+m.inZone(zone)+"/diskTypes/"+kind)
	}
	if m.some() {
		m.line("size: %s", m.pick([]string{"0", "10", "50", "375", "65536"}, "1", "-1", "100000000", "376"))
	}
	if m.some() && (!strings.HasPrefix(kind, "pd-s") || m.r.IntN(m.bad) == 0) {
		m.line("interface: NVME")
	}
	if m.some() && (strings.HasPrefix(kind, "hyper") || m.r.IntN(m.bad) == 0) {
		m.line("provisioned_iops: %s provisioned_throughput: %s", m.pick([]string{"0", "3000"}, "-1", "99999999999"), m.pick([]string{"0", "140"}, "-1"))
	}
	m.line("}")
}

func (m *maker) labels() {
	for i := range m.r.IntN(3) {
		m.line("label { key: %q value: %q }", m.text([]string{"resource_group", "a" + strconv.Itoa(i), "team-1"}), m.text([]string{"", "v", "a_b-1", strings.Repeat("v", 63)}))
	}
	if m.r.IntN(40) == 0 {
		for i := range 55 + m.r.IntN(12) {
			m.line("label { key: \"many%d\" }", i)
		}
	}
	for i := range m.r.IntN(3) + 70*(m.r.IntN(60)/59) {
		m.line("tag: %q", m.text([]string{"bots" + strconv.Itoa(i), "t" + strconv.Itoa(i)}))
	}
	for i := range m.r.IntN(3) {
		m.line("metadata { from_text: %q }", m.pick([]string{"k" + strconv.Itoa(i) + ":v", "startup-script:#!/bin/sh\necho", "user_data" + strconv.Itoa(i) + ":" + strings.Repeat("x", 1000)},
			"novalue", ":v", "a b:c", "dut:x", "key:"+strings.Repeat("x", 262145), "k:"+strings.Repeat("x", 262144), strings.Repeat("k", 129)+":v", "k0:v"))
	}
	if m.r.IntN(20) == 0 {
		m.line("metadata { from_file: %q }", m.pick([]string{"run:md/startup.sh"}, "run:none", "run:/etc/passwd", "run", "run:../x"))
	}
	if m.r.IntN(50) == 0 { // all of them together at the limit
		for i := range 2 {
			m.line("metadata { from_text: %q }", "big"+strconv.Itoa(i)+":"+strings.Repeat("y", 240_000+m.r.IntN(20_000)))
		}
	}
}

func (m *maker) rest() {
	if m.some() {
		m.line("min_cpu_platform: %q", m.pick([]string{"Intel Skylake", ""}, strings.Repeat("x", 5000), "\x01"))
	}
	for range m.r.IntN(2) + m.r.IntN(40)/39 {
		m.line("service_account { email: %q scope: %q }", m.pick([]string{"default", "bot@lab.iam.gserviceaccount.com"}, "", "bot", "a@", "a b@c"),
			m.pick([]string{"https://www.googleapis.com/auth/cloud-platform"}, "", "cloud-platform"))
	}
	if m.r.IntN(6) == 0 {
		m.line("scheduling { node_affinity { key: %q operator: %s values: %q } }", m.pick([]string{"compute.googleapis.com/node-group-name"}, ""), m.pick([]string{"IN", "NOT_IN"}, "OPERATOR_UNSPECIFIED"), m.pick([]string{"g1"}, ""))
	}
	for _, field := range []string{"disable_integrity_monitoring", "enable_secure_boot", "disable_vtpm", "enable_confidential_compute", "terminate_on_maintenance"} {
		if m.r.IntN(6) == 0 {
			m.line("%s: true", field)
		}
	}
	if m.some() {
		m.line("gcp_channel: %s", []string{"GCP_CHANNEL_STABLE", "GCP_CHANNEL_BETA", "GCP_CHANNEL_ALPHA", "GCP_CHANNEL_UNSPECIFIED"}[m.r.IntN(4)])
	}
	if m.r.IntN(6) == 0 {
		m.line("performance_monitoring_unit: %s", []string{"PERFORMANCE_MONITORING_UNIT_ARCHITECTURAL", "PERFORMANCE_MONITORING_UNIT_ENHANCED", "PERFORMANCE_MONITORING_UNIT_STANDARD"}[m.r.IntN(3)])
	}
	known := []string{
		"AdvancedMachineFeatures", "CanIpForward", "ConfidentialInstanceConfig", "DeletionProtection", "Description", "DisplayDevice", "GuestAccelerators", "Hostname",
		"KeyRevocationActionType", "MinCpuPlatform", "NetworkPerformanceConfig", "Params", "PrivateIpv6GoogleAccess", "ReservationAffinity", "ResourcePolicies",
		"Scheduling", "ServiceAccounts", "ShieldedInstanceConfig", "Tags",
	}
	foreign := []string{"Name", "Disks", "Id", "Status", "Labels", "Metadata", "Zone", "nothing", "", "Fingerprint", "MachineType"}
	for range m.r.IntN(6) / 4 {
		m.line("force_send_fields: %q", m.pick([]string{"CanIpForward", "DeletionProtection", "Description", "GuestAccelerators", "MinCpuPlatform", "ResourcePolicies", "ServiceAccounts"}, foreign...))
	}
	for range m.r.IntN(6) / 4 {
		m.line("null_fields: %q", m.pick(known, foreign...))
	}
}
