package config

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"github.com/skepdev/skep"
	pb "github.com/skepdev/skep/api/providerpb"
	"github.com/skepdev/skep/api/providerpb/projectspb"
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/provider/vmscfg"
	"github.com/skepdev/skep/provider/window"
)

// Limits of vms.cfg.
const (
	maxMachinePools  = 10000
	maxMachines      = 100000    // of a pool
	maxMetadata      = 256 << 10 // bytes of one value
	maxMetadataAll   = 500_000   // bytes of all of a machine; the cloud takes a little more, the name of a device is added
	maxMetadataFiles = 1000
	maxHostName      = 63
	maxPeriod        = 10 * 365 * 24 * time.Hour // far from where sums of times end
)

// Project is a project of the cloud whose quota is reported. spec/provider.md §2.5.
type Project struct {
	Name     string
	Metrics  []string
	Regions  []string
	Revision string
}

// Machines returns the pools of machines of vms.cfg, in its order. What is
// broken is as it was when it was last good. The Revision of a pool is a digest
// of its entry, so that it changes when the entry does.
func (s *Snapshot) Machines() []provider.Config { return slices.Clone(s.machines) }

// Projects returns what projects.cfg names.
func (s *Snapshot) Projects() []Project { return slices.Clone(s.projects) }

// Owns reports whether an owner of a pool of machines, as its entry names it,
// is identity, which is kind:name, or a group that has it.
func (s *Snapshot) Owns(owner, identity string) bool {
	if covers(owner, identity) {
		return true
	}
	members := s.members[strings.TrimPrefix(owner, "group:")]
	return slices.ContainsFunc(members, func(to string) bool { return covers(to, identity) })
}

// revision names what an entry says.
func revision(m proto.Message) string {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic("config: a message that was read does not encode: " + err.Error())
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// entry is one pool of vms.cfg.
type entry struct {
	message *pb.Config // with its metadata resolved
	config  provider.Config
	faults  Faults
	unread  bool // its text is broken: what stands where is a guess
	prefix  string
	at      string
	line    int
}

var entryAt = regexp.MustCompile(`^vms\[([0-9]+)\]`)

// readEntries reads vms.cfg. outside are faults in no entry: where one ends and
// the next begins is then not sure.
func readEntries(files Files, groups map[string][]string) (entries []*entry, outside Faults) {
	m := &pb.Configs{}
	where, unread := read(fileMachines, files[fileMachines], m)
	byEntry := map[int]Faults{}
	for _, f := range unread {
		if parts := entryAt.FindStringSubmatch(f.Field); parts != nil {
			i, _ := strconv.Atoi(parts[1])
			byEntry[i] = append(byEntry[i], f)
			continue
		}
		outside = append(outside, f)
	}
	top := &document{file: fileMachines, lines: where}
	if len(m.Vms) > maxMachinePools {
		top.faultf("vms", "has %d values, at most %d are allowed", len(m.Vms), maxMachinePools)
		return nil, append(outside, top.faults...)
	}
	for i, vm := range m.Vms {
		at := fmt.Sprintf("vms[%d]", i)
		d := &document{file: fileMachines, lines: where, faults: byEntry[i], bad: map[string]bool{}}
		for _, f := range d.faults {
			d.bad[f.Field] = true
		}
		e := &entry{at: at, prefix: vm.Prefix, line: d.line(at), unread: len(d.faults) > 0}
		e.message, e.config = d.machinePool(at, vm, files, groups)
		e.faults = d.faults
		entries = append(entries, e)
	}
	for a, others := range conflicts(entries) {
		d := &document{file: fileMachines, lines: where, faults: a.faults}
		d.faultf(a.at+".prefix", "%q and %s in line %d: no prefix may begin with another", clip(a.prefix), strconv.Quote(clip(others.prefix)), others.line)
		a.faults = d.faults
	}
	return entries, outside
}

// conflicts returns for each entry whose prefix begins with that of another, or
// the other way round, one such other.
func conflicts(entries []*entry) map[*entry]*entry {
	sorted := slices.DeleteFunc(slices.Clone(entries), func(e *entry) bool { return e.prefix == "" })
	slices.SortStableFunc(sorted, func(a, b *entry) int { return strings.Compare(a.prefix, b.prefix) })
	out := map[*entry]*entry{}
	var above []*entry // each begins with the one before
	for _, e := range sorted {
		for len(above) > 0 && !strings.HasPrefix(e.prefix, above[len(above)-1].prefix) {
			above = above[:len(above)-1]
		}
		if n := len(above); n > 0 {
			out[e] = above[n-1]
			if out[above[n-1]] == nil {
				out[above[n-1]] = e
			}
		}
		above = append(above, e)
	}
	return out
}

// machines reads vms.cfg for a Snapshot: every fault in it counts.
func (s *Snapshot) readMachines(files Files) (faults Faults) {
	if _, ok := files[fileMachines]; !ok {
		return nil
	}
	entries, faults := readEntries(files, s.members)
	s.entries = map[string]*entry{}
	whole := &pb.Configs{}
	for _, e := range entries {
		faults = append(faults, e.faults...)
		s.machines = append(s.machines, e.config)
		s.entries[e.prefix] = e
		whole.Vms = append(whole.Vms, e.message)
	}
	s.messages[fileMachines] = whole
	if len(faults) > maxFaults {
		faults = append(faults[:maxFaults], Fault{File: fileMachines, Text: "more faults are not shown"})
	}
	return faults
}

// forceDemand gives pools that follow the queue the dimensions that bots.cfg
// forces on the bots of their machines, in the place of what they say: tasks
// are matched with those.
func (s *Snapshot) forceDemand() {
	for i := range s.machines {
		d := s.machines[i].Demand
		if d == nil || d.Dimensions == nil { // it could not be read
			continue
		}
		if g := s.groups.find(s.machines[i].Prefix + "-0"); g != nil {
			for key, values := range g.Dimensions {
				d.Dimensions[key] = slices.Clone(values)
			}
		}
	}
}

// readProjects reads projects.cfg.
func (s *Snapshot) readProjects(files Files) Faults {
	src, ok := files[fileProjects]
	if !ok {
		return nil
	}
	m := &projectspb.Configs{}
	d := &document{file: fileProjects, bad: map[string]bool{}}
	d.lines, d.faults = read(fileProjects, src, m)
	for _, f := range d.faults {
		d.bad[f.Field] = f.Field != ""
	}
	d.check(m.ProtoReflect(), "")
	first := map[string]int{}
	for i, p := range m.Project {
		at := fmt.Sprintf("project[%d].project", i)
		if line, ok := first[p.Project]; ok && p.Project != "" {
			d.faultf(at, "%q is there already, in line %d", clip(p.Project), line)
		}
		first[p.Project] = d.line(at)
		if p.Project != "" {
			d.matches(at, p.Project, projectName, "a project's name")
		}
		s.projects = append(s.projects, Project{Name: p.Project, Metrics: p.Metric, Regions: p.Region, Revision: revision(p)})
	}
	s.messages[fileProjects] = m
	return d.faults
}

// keepEntries makes of a vms.cfg with broken entries one that is good: each of
// them is as it was in old, if it was there, and the others are taken. While
// the text of an entry is broken, or its prefix, no pool is taken away: it may
// be what that entry was. It changes files and returns why; nil means that the
// file stays as it is, because nothing is wrong or because all of it is.
func keepEntries(old *Snapshot, files Files) Faults {
	if _, ok := files[fileMachines]; !ok {
		return nil
	}
	entries, outside := readEntries(files, groupsOf(files, old))
	if len(outside) > 0 {
		return nil
	}
	var faults Faults
	var keep []*entry
	here, broken, all := map[string]bool{}, map[string]bool{}, false
	for _, e := range entries {
		here[e.prefix] = true
		was := old.entries[e.prefix]
		switch {
		case len(e.faults) == 0 || was != nil && !e.unread && proto.Equal(was.message, e.message) && !broken[e.prefix] && !conflicting(e):
			keep = append(keep, e)
		default:
			faults = append(faults, e.faults...)
			all = all || e.unread || e.prefix == "" || !hostPrefix.MatchString(e.prefix)
			if was != nil && !broken[e.prefix] {
				keep = append(keep, was)
			}
			broken[e.prefix] = true
		}
	}
	if len(faults) == 0 {
		return nil
	}
	if all {
		for _, prefix := range slices.Sorted(maps.Keys(old.entries)) {
			if !here[prefix] {
				keep = append(keep, old.entries[prefix])
			}
		}
		// Those that are new give way to those that stay.
		for e, other := range conflicts(keep) {
			if old.entries[e.prefix] != e {
				faults = append(faults, Fault{
					File: fileMachines, Line: e.line, Field: e.at + ".prefix",
					Text: fmt.Sprintf("%q and %q: no prefix may begin with another, and that one stays until every entry can be read", clip(e.prefix), clip(other.prefix)),
				})
				keep = slices.DeleteFunc(keep, func(k *entry) bool { return k == e })
			}
		}
	}
	whole := &pb.Configs{}
	for _, e := range keep {
		whole.Vms = append(whole.Vms, e.message)
	}
	text, err := prototext.MarshalOptions{Multiline: true}.Marshal(whole)
	if err != nil {
		panic("config: entries that were read do not print: " + err.Error())
	}
	files[fileMachines] = "# Made of the entries that are good, and of the last good ones in the place of the others.\n" + string(text)
	faults.sort()
	if len(faults) > maxFaults {
		faults = append(faults[:maxFaults], Fault{File: fileMachines, Text: "more faults are not shown"})
	}
	return faults
}

// conflicting reports whether it is a matter of another entry too.
func conflicting(e *entry) bool {
	return slices.ContainsFunc(e.faults, func(f Fault) bool { return f.Field == e.at+".prefix" })
}

// groupsOf are the groups of settings.cfg, those of old while it is broken.
func groupsOf(files Files, old *Snapshot) map[string][]string {
	only := Files{}
	if src, ok := files[fileSettings]; ok {
		only[fileSettings] = src
	}
	if s, err := New(only); err == nil {
		return s.members
	}
	return old.members
}

// metadataFiles returns the files that a vms.cfg takes metadata from, without
// those that cannot be names of files below the directory.
func metadataFiles(src string) []string {
	m := &pb.Configs{}
	_, _ = read(fileMachines, src, m) // faults are told later
	names := map[string]bool{}
	for _, vm := range m.Vms {
		for _, item := range vm.GetAttributes().GetMetadata() {
			if _, name, ok := strings.Cut(item.GetFromFile(), ":"); ok && isMetadataFile(name) && len(names) < maxMetadataFiles {
				names[name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// isMetadataFile reports whether a name is that of a file below the directory,
// which none of our own is and nothing hidden.
func isMetadataFile(name string) bool {
	return fs.ValidPath(name) && filepath.IsLocal(filepath.FromSlash(name)) && name != "." && len(name) <= 1000 &&
		!strings.HasSuffix(name, ".cfg") && !strings.HasPrefix(name, ".") && !strings.HasPrefix(name, scriptDir+"/") && !strings.Contains(name, `\`)
}

// Forms of names in the cloud, as its discovery document has them.
const (
	formName    = `[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?`
	formProject = `(?:(?:[-a-z0-9]{1,63}\.)*(?:[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?):)?(?:[0-9]{1,19}|(?:[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?))`
	formZone    = `(` + formName + `|\{\{\.Zone\}\})`
	formURL     = `(?:https://(?:www|compute)\.googleapis\.com/compute/(?:v1|beta|alpha)/)?`
)

var (
	hostPrefix  = regexp.MustCompile(`^[a-z](?:-?[a-z0-9])*$`)
	zoneName    = regexp.MustCompile(`^[a-z][a-z0-9]*(?:-[a-z0-9]+)+$`) // region and letter
	tagName     = regexp.MustCompile(`^` + formName + `$`)
	projectName = regexp.MustCompile(`^` + formProject + `$`)
	machineType = regexp.MustCompile(`^(?:projects/` + formProject + `/)?zones/` + formZone + `/machineTypes/[a-z][a-z0-9-]{0,62}$`)
	diskType    = regexp.MustCompile(`^zones/` + formZone + `/diskTypes/([a-z][a-z0-9-]{0,62})$`)
	imageName   = regexp.MustCompile(`^(?:projects/` + formProject + `/)?global/images/(?:family/)?` + formName + `$`)
	network     = regexp.MustCompile(`^` + formURL + `(?:projects/` + formProject + `/)?global/networks/` + formName + `$`)
	subnetwork  = regexp.MustCompile(`^` + formURL + `(?:projects/` + formProject + `/)?regions/` + formName + `/subnetworks/` + formName + `$`)
	labelKey    = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,62}$`)
	labelValue  = regexp.MustCompile(`^[a-z0-9_-]{0,63}$`)
	metadataKey = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,128}$`)
	account     = regexp.MustCompile(`^(?:default|[^@\s]{1,200}@[^@\s]{1,200})$`)
	dockerImage = regexp.MustCompile(`^(?:[a-zA-Z0-9][a-zA-Z0-9._/:-]*@)?sha256:[0-9a-f]{64}$`)
	dockerNet   = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)
	serverHost  = regexp.MustCompile(`^(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?\.)*[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?::[0-9]{1,5})?$`)
)

// boots is the least that a machine may have before it must have a live bot.
var boots = map[string]time.Duration{
	vmscfg.KindGCE: 2 * time.Minute, vmscfg.KindDocker: 10 * time.Second, vmscfg.KindExec: 10 * time.Second, vmscfg.KindProcess: 5 * time.Second,
}

// matches checks the form of a text.
func (d *document) matches(at, s string, form *regexp.Regexp, what string) bool {
	if !form.MatchString(s) {
		d.faultf(at, "%q is not %s", clip(s), what)
		return false
	}
	return true
}

// machinePool checks one pool and returns it, with its metadata resolved.
// groups are those of settings.cfg.
func (d *document) machinePool(at string, m *pb.Config, files Files, groups map[string][]string) (*pb.Config, provider.Config) {
	d.check(m.ProtoReflect(), at)
	kind := vmscfg.Kind(m)
	most := d.amount(at+".amount", m.Amount)
	d.hostName(at+".prefix", m.Prefix, most)
	d.period(at+".lifetime", m.Lifetime, time.Second)
	if n, ok := d.period(at+".timeout", m.Timeout, 0); ok && n > 0 && n < boots[kind] {
		d.faultf(at+".timeout", "is %v, which is shorter than a boot; want 0 or at least %v", n, boots[kind])
	}
	d.swarming(at+".swarming", m.Swarming, kind)
	for i, owner := range m.Owner {
		d.owner(fmt.Sprintf("%s.owner[%d]", at, i), owner, groups)
	}
	for i, pool := range m.SwarmingPools {
		if strings.Contains(pool, ",") {
			d.faultf(fmt.Sprintf("%s.swarming_pools[%d]", at, i), "%q has a comma", clip(pool))
		}
		if err := skep.CheckDimensionValue("pool", "pool", pool); err != nil && pool != "" {
			d.faultf(fmt.Sprintf("%s.swarming_pools[%d]", at, i), "%s", strings.TrimPrefix(err.Error(), "pool: "))
		}
	}
	d.provider(at+".provider", m)
	resolved := proto.Clone(m).(*pb.Config)
	d.metadata(at+".attributes.metadata", resolved.Attributes.GetMetadata(), files)
	d.shape(at+".attributes", m)
	c, err := vmscfg.Config(resolved)
	if err != nil && len(d.faults) == 0 {
		d.faultf(at, "%v", err)
	}
	c.Revision = revision(resolved)
	return resolved, c
}

// amount checks how many machines, and returns the most that there may be.
func (d *document) amount(at string, m *pb.Amount) (most int32) {
	bounds := func(at string, low, high int32) {
		if low > high && high >= 0 {
			d.faultf(at+".min", "is %d, which is more than max, %d", low, high)
		}
		most = max(most, high)
	}
	bounds(at, m.GetMin(), m.GetMax())
	var windows []provider.Window
	var places []string
	for i, s := range m.GetChange() {
		at := fmt.Sprintf("%s.change[%d]", at, i)
		bounds(at, s.Min, s.Max)
		_, good := d.period(at+".length", s.Length, time.Second)
		if _, err := vmscfg.Location(s.Start.GetLocation()); err != nil {
			d.faultf(at+".start.location", "%v", err)
			good = false
		}
		if t := s.Start.GetTime(); t != "" {
			if _, _, err := vmscfg.Clock(t); err != nil {
				d.faultf(at+".start.time", "%v", err)
				good = false
			}
		}
		w, err := vmscfg.Window(s)
		if !good || err != nil || s.Start.GetDay() == 0 {
			continue
		}
		for j, other := range windows {
			if window.Overlap(other, w) {
				d.faultf(at, "overlaps with that in line %d", d.line(places[j]))
				break
			}
		}
		windows, places = append(windows, w), append(places, at)
	}
	return most
}

// period checks a length of time and returns it. A fault is told once.
func (d *document) period(at string, p *pb.TimePeriod, least time.Duration) (time.Duration, bool) {
	if p == nil {
		return 0, least == 0 // told by check
	}
	n, err := vmscfg.Seconds(p)
	if err != nil {
		d.faultf(at, "%v", err)
		return 0, false
	}
	if n > int64(maxPeriod/time.Second) {
		d.faultf(at, "is longer than 3650d, ten years; nothing here may be")
		return 0, false
	}
	length := time.Duration(n) * time.Second
	if length < least {
		d.faultf(at, "is %v, want more", length)
		return 0, false
	}
	return length, true
}

// hostName checks that the names of a pool's machines are legal: for hosts, for
// bots (whose ids have -- as a mark), and in length.
func (d *document) hostName(at, prefix string, most int32) {
	if prefix == "" {
		return // told by check
	}
	if !hostPrefix.MatchString(prefix) {
		d.faultf(at, "%q cannot begin the name of a host: want lower-case letters, digits and single dashes between them, a letter first", clip(prefix))
		return
	}
	digits := len(strconv.Itoa(int(max(0, most-1))))
	if long := len(prefix) + len("-") + digits + len("-ab12"); long > maxHostName {
		d.faultf(at, "%q makes names of %d characters, with a number of %d digits and a suffix; at most %d are allowed", clip(prefix), long, digits, maxHostName)
	}
}

// swarming checks the server of the bots.
func (d *document) swarming(at, server, kind string) {
	switch {
	case server == "" && kind == vmscfg.KindGCE:
		d.faultf(at, "is required: these machines are elsewhere, and their bots must know the server")
	case server == "":
	case strings.Contains(server, "/"):
		d.httpsURL(at, server)
	default:
		d.matches(at, server, serverHost, "a host name or an https URL")
	}
}

// owner checks who may see a pool.
func (d *document) owner(at, owner string, groups map[string][]string) {
	if owner == "" {
		return // told by check
	}
	if kind, _, ok := strings.Cut(owner, ":"); ok && kind != "group" {
		if fault := identityFault(owner); fault != "" {
			d.faultf(at, "%s, or the name of a group of settings.cfg", fault)
		}
		return
	}
	name := strings.TrimPrefix(owner, "group:")
	if !groupName.MatchString(name) {
		d.faultf(at, "%q is neither user:NAME, bot:NAME nor the name of a group, which matches %s", clip(owner), groupName)
	} else if _, ok := groups[name]; !ok {
		d.faultOther(fileSettings, at, "settings.cfg has no group %q; add group { name: %[1]q member: \"user:NAME\" }", clip(name))
	}
}

// provider checks our own block.
func (d *document) provider(at string, m *pb.Config) {
	p := m.GetProvider()
	if image := p.GetDocker().GetImage(); image != "" {
		d.matches(at+".docker.image", image, dockerImage, "an image with its digest, as registry/name@sha256:…")
	}
	if name := p.GetDocker().GetNetwork(); name != "" {
		d.matches(at+".docker.network", name, dockerNet, "the name of a network")
	}
	if command := p.GetExec().GetCommand(); len(command) > 0 && command[0] != "" && !filepath.IsAbs(command[0]) {
		d.faultf(at+".exec.command[0]", "%q is not the absolute path of a program", clip(command[0]))
	}
	seen := map[string]bool{m.GetAttributes().GetZone(): true}
	for i, zone := range p.GetZone() {
		at := fmt.Sprintf("%s.zone[%d]", at, i)
		if zone != "" && d.zone(at, zone) && seen[zone] {
			d.faultf(at, "%q is there already", clip(zone))
		}
		seen[zone] = true
	}
	if len(p.GetZone()) > 0 && m.GetAttributes().GetZone() == "" {
		d.faultf(at+".zone", "are zones besides the one of the attributes, which has none; set attributes.zone to the first")
	}
	q := p.GetDemand()
	if q == nil {
		return
	}
	if q.TargetWait != nil {
		if n, ok := d.period(at+".demand.target_wait", q.TargetWait, time.Second); ok && n > 24*time.Hour {
			d.faultf(at+".demand.target_wait", "is %v, want 1s to 24h", n)
		}
	}
	if q.Stopped > 0 {
		d.stoppable(at+".demand.stopped", m)
	}
	pools := len(m.SwarmingPools)
	for i, kv := range q.Dimension {
		at := fmt.Sprintf("%s.demand.dimension[%d]", at, i)
		key, value, ok := strings.Cut(kv, ":")
		fault := skep.CheckDimensionKey("dimension", key)
		if fault == nil {
			fault = skep.CheckDimensionValue("dimension", key, value)
		}
		switch {
		case kv == "": // told by check
		case !ok:
			d.faultf(at, "%q is not key:value", clip(kv))
		case fault != nil:
			d.faultf(at, "%s", strings.TrimPrefix(fault.Error(), "dimension: "))
		case slices.Index(q.Dimension, kv) < i:
			d.faultf(at, "%q is there already", clip(kv))
		case key == "pool":
			pools++
		}
	}
	if pools == 0 {
		d.faultf(at+".demand", "needs a pool to look for tasks in: name it in swarming_pools")
	}
}

// stoppable checks that machines can be stopped and kept.
func (d *document) stoppable(at string, m *pb.Config) {
	switch vmscfg.Kind(m) {
	case vmscfg.KindExec:
		d.faultf(at, "is %d, and machines of exec cannot be stopped, only those of gce, process and docker; set it to 0", m.GetProvider().GetDemand().GetStopped())
	case vmscfg.KindGCE:
		for i, disk := range m.GetAttributes().GetDisk() {
			if strings.HasSuffix(disk.GetType(), "/local-ssd") {
				d.faultf(at, "is %d, and attributes.disk[%d] is a local SSD, which a stopped machine loses; set it to 0, or take another disk", m.GetProvider().GetDemand().GetStopped(), i)
				return
			}
		}
	}
}

func (d *document) zone(at, zone string) bool {
	return d.matches(at, zone, zoneName, "the name of a zone, as us-central1-a")
}

// metadata checks items and puts the content of files in their place.
func (d *document) metadata(at string, items []*pb.Metadata, files Files) {
	seen, total := map[string]bool{}, 0
	for i, item := range items {
		text, from := item.GetFromText(), fmt.Sprintf("%s[%d].from_text", at, i)
		if file, ok := item.Metadata.(*pb.Metadata_FromFile); ok {
			from = fmt.Sprintf("%s[%d].from_file", at, i)
			key, name, ok := strings.Cut(file.FromFile, ":")
			content, there := files[name]
			switch {
			case !ok:
				d.faultf(from, "%q is not key:path", clip(file.FromFile))
				continue
			case !isMetadataFile(name):
				d.faultf(from, "%q is not the path of a file below the configuration directory, with / between its parts; .cfg files, scripts/ and hidden ones are not for this", clip(name))
				continue
			case !there:
				d.faultf(from, "there is no file %q of at most %d bytes below the configuration directory", clip(name), maxMetadata)
				continue
			case !utf8.ValidString(content):
				d.faultf(from, "the file %q is not valid UTF-8", clip(name))
				continue
			}
			text = key + ":" + content
			item.Metadata = &pb.Metadata_FromText{FromText: text}
		} else if item.Metadata == nil {
			d.faultf(fmt.Sprintf("%s[%d]", at, i), "is empty; give it from_text or from_file")
			continue
		}
		key, value, ok := strings.Cut(text, ":")
		switch {
		case !ok:
			d.faultf(from, "%q is not key:value", clip(text))
		case !metadataKey.MatchString(key):
			d.faultf(from, "%q is not the key of a metadata item: want 1 to 128 letters, digits, _ and -", clip(key))
		case seen[key]:
			d.faultf(from, "%q is there already", clip(key))
		case key == "dut":
			d.faultf(from, "dut is for the name of a lab device; take another key")
		case len(value) > maxMetadata:
			d.faultf(from, "has %d bytes, at most %d are allowed", len(value), maxMetadata)
		}
		seen[key] = true
		total += len(text)
	}
	if total > maxMetadataAll {
		d.faultf(at, "has %d bytes together, at most %d are allowed", total, maxMetadataAll)
	}
}

// shape checks what a machine is: always that what is given is legal, and for
// Compute Engine that nothing lacks.
func (d *document) shape(at string, m *pb.Config) {
	a := m.GetAttributes()
	gce := vmscfg.Kind(m) == vmscfg.KindGCE
	if gce {
		d.needs(at, a)
	}
	if a == nil {
		return
	}
	if a.Project != "" {
		d.matches(at+".project", a.Project, projectName, "a project's name")
	}
	if a.Zone != "" {
		d.zone(at+".zone", a.Zone)
	}
	zones := append([]string{a.Zone}, m.GetProvider().GetZone()...)
	if a.MachineType != "" && gce && d.matches(at+".machine_type", a.MachineType, machineType, "zones/<zone>/machineTypes/<type>") {
		d.inZone(at+".machine_type", a.MachineType, zones)
	}
	for i, disk := range a.Disk {
		d.disk(fmt.Sprintf("%s.disk[%d]", at, i), disk, i == 0, gce, zones)
	}
	for i, n := range a.NetworkInterface {
		at := fmt.Sprintf("%s.network_interface[%d]", at, i)
		if n.Network != "" && gce {
			d.matches(at+".network", n.Network, network, "a network, as global/networks/default")
		}
		if n.Subnetwork != "" && gce && d.matches(at+".subnetwork", n.Subnetwork, subnetwork, "a subnetwork, as regions/<region>/subnetworks/<name>") {
			d.inRegion(at+".subnetwork", n.Subnetwork, zones)
		}
		if !slices.Contains([]string{"", "IPV4_ONLY", "IPV4_IPV6", "IPV6_ONLY"}, n.StackType) {
			d.faultf(at+".stack_type", "%q is none of IPV4_ONLY, IPV4_IPV6, IPV6_ONLY", clip(n.StackType))
		}
	}
	for i, s := range a.ServiceAccount {
		at := fmt.Sprintf("%s.service_account[%d]", at, i)
		if s.Email != "" {
			d.matches(at+".email", s.Email, account, "the address of a service account")
		}
		for j, scope := range s.Scope {
			if scope != "" {
				d.httpsURL(fmt.Sprintf("%s.scope[%d]", at, j), scope)
			}
		}
	}
	d.fields(at, a)
	for i, tag := range a.Tag {
		at := fmt.Sprintf("%s.tag[%d]", at, i)
		if tag != "" && d.matches(at, tag, tagName, "a network tag: lower-case letters, digits and dashes, 63 at most") && slices.Index(a.Tag, tag) < i {
			d.faultf(at, "%q is there already", clip(tag))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(a.Label)) {
		at := fmt.Sprintf("%s.label[%s]", at, clip(key))
		switch {
		case key == "":
		case !labelKey.MatchString(key):
			d.faultf(at, "%q is not the key of a label: want lower-case letters, digits, _ and -, a letter first, 63 at most", clip(key))
		case strings.HasPrefix(key, "skep-"):
			d.faultf(at, "skep- is for labels that say whose a machine is; take another key")
		case !labelValue.MatchString(a.Label[key]):
			d.faultf(at, "%q is not the value of a label: want lower-case letters, digits, _ and -, 63 at most", clip(a.Label[key]))
		}
	}
}

// Fields of the request that may be sent although they are zero, or as null. The
// true ones are set by attributes of their own, and then cannot be null.
var (
	zeroFields = []string{"CanIpForward", "DeletionProtection", "Description", "GuestAccelerators", "MinCpuPlatform", "ResourcePolicies", "ServiceAccounts"}
	nullFields = map[string]func(*pb.VM) bool{
		"AdvancedMachineFeatures": func(a *pb.VM) bool { return a.PerformanceMonitoringUnit != 0 }, "CanIpForward": nil, "DeletionProtection": nil,
		"ConfidentialInstanceConfig": func(a *pb.VM) bool { return a.EnableConfidentialCompute }, "Description": nil, "DisplayDevice": nil, "GuestAccelerators": nil,
		"Hostname": nil, "KeyRevocationActionType": nil, "MinCpuPlatform": func(a *pb.VM) bool { return a.MinCpuPlatform != "" }, "NetworkPerformanceConfig": nil,
		"Params": nil, "PrivateIpv6GoogleAccess": nil, "ReservationAffinity": nil, "ResourcePolicies": nil,
		"Scheduling": func(a *pb.VM) bool {
			return a.Scheduling != nil || a.TerminateOnMaintenance || a.EnableConfidentialCompute
		},
		"ServiceAccounts": func(a *pb.VM) bool { return len(a.ServiceAccount) > 0 },
		"ShieldedInstanceConfig": func(a *pb.VM) bool {
			return a.DisableIntegrityMonitoring || a.EnableSecureBoot || a.DisableVtpm
		},
		"Tags": func(a *pb.VM) bool { return len(a.Tag) > 0 },
	}
)

// fields checks those that are to be sent as zero or null.
func (d *document) fields(at string, a *pb.VM) {
	for i, name := range a.ForceSendFields {
		at := fmt.Sprintf("%s.force_send_fields[%d]", at, i)
		switch {
		case name == "": // told by check
		case !slices.Contains(zeroFields, name):
			d.faultf(at, "%q is none of %s", clip(name), strings.Join(zeroFields, ", "))
		case slices.Index(a.ForceSendFields, name) < i:
			d.faultf(at, "%q is there already", clip(name))
		}
	}
	for i, name := range a.NullFields {
		at := fmt.Sprintf("%s.null_fields[%d]", at, i)
		set, known := nullFields[name]
		switch {
		case name == "":
		case !known:
			d.faultf(at, "%q is none of %s", clip(name), strings.Join(slices.Sorted(maps.Keys(nullFields)), ", "))
		case slices.Index(a.NullFields, name) < i || slices.Contains(a.ForceSendFields, name):
			d.faultf(at, "%q is there already", clip(name))
		case set != nil && set(a):
			d.faultf(at, "%q is set by another attribute, and cannot be null", clip(name))
		}
	}
}

// needs is what Compute Engine cannot do without.
func (d *document) needs(at string, a *pb.VM) {
	if a == nil {
		d.faultf(at, "is required for machines of Compute Engine; provider { process {} } has its bots on this host")
		return
	}
	for _, f := range []struct {
		name  string
		given bool
	}{
		{"disk", len(a.Disk) > 0},
		{"machine_type", a.MachineType != ""},
		{"network_interface", len(a.NetworkInterface) > 0},
		{"project", a.Project != ""},
		{"zone", a.Zone != ""},
	} {
		if !f.given {
			d.faultf(at+"."+f.name, "is required for machines of Compute Engine")
		}
	}
}

// inZone checks that what names a zone names that of the machine.
func (d *document) inZone(at, text string, zones []string) {
	_, rest, _ := strings.Cut(text, "zones/")
	zone, _, _ := strings.Cut(rest, "/")
	switch {
	case zone == "{{.Zone}}":
	case len(zones) > 1:
		d.faultf(at, "%q is of one zone, and there are several; write zones/{{.Zone}}/", clip(text))
	case zone != zones[0]:
		d.faultf(at, "%q is of another zone than the machine, %q; write zones/{{.Zone}}/", clip(text), clip(zones[0]))
	}
}

// inRegion checks that a subnetwork is in the region of all zones.
func (d *document) inRegion(at, text string, zones []string) {
	_, rest, _ := strings.Cut(text, "regions/")
	region, _, _ := strings.Cut(rest, "/")
	for _, zone := range zones {
		if i := strings.LastIndexByte(zone, '-'); i > 0 && zone[:i] != region {
			d.faultf(at, "%q is of another region than zone %s", clip(text), clip(zone))
			return
		}
	}
}

// disk checks one disk. first is that the machine boots from it.
func (d *document) disk(at string, m *pb.Disk, first, gce bool, zones []string) {
	kind := ""
	if parts := diskType.FindStringSubmatch(m.Type); parts != nil {
		kind = parts[2]
		d.inZone(at+".type", m.Type, zones)
	} else if m.Type != "" {
		d.faultf(at+".type", "%q is not zones/<zone>/diskTypes/<type>", clip(m.Type))
	}
	persistent := kind == "pd-standard" || kind == "pd-ssd"
	switch {
	case kind == "local-ssd" && first:
		d.faultf(at+".type", "is a local SSD, which cannot be booted from; the first disk is")
	case kind == "local-ssd" && m.Image != "":
		d.faultf(at+".image", "is not for a local SSD")
	case m.Image == "" && (first && gce || persistent):
		d.faultf(at+".image", "is required, as global/images/<image>")
	}
	if m.Image != "" && gce {
		d.matches(at+".image", m.Image, imageName, "global/images/<image> or projects/<project>/global/images/<image>")
	}
	if m.Size > 0 && m.Size < 10 && gce {
		d.faultf(at+".size", "is %d, want 0 or at least 10", m.Size)
	} else if kind == "local-ssd" && m.Size%375 != 0 {
		d.faultf(at+".size", "is %d; a local SSD has 375", m.Size)
	}
	if persistent && m.Interface != pb.DiskInterface_SCSI {
		d.faultf(at+".interface", "is %s, want SCSI for %s", m.Interface, kind)
	}
	if !strings.Contains(kind, "hyperdisk") {
		for _, field := range []string{"provisioned_iops", "provisioned_throughput"} {
			if d.given(at + "." + field) {
				d.faultf(at+"."+field, "is for hyperdisks only")
			}
		}
	}
}
