package gcesim

import (
	"container/heap"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxProjects bounds what requests alone can make the simulator remember.
const maxProjects = 1000

// project is a project that was asked for.
type project struct {
	name     string
	requests map[[16]byte]*operation       // by request id
	recent   []*operation                  // those of requests, oldest first
	zones    map[string]*zone              // by name
	usage    map[string]map[string]float64 // region → metric
	minute   time.Time                     // that calls are of
	calls    int
}

type zone struct {
	project      *project
	name, region string
	instances    []*instance // by name
}

// instance is as small as it can be: a simulator holds 100,000.
type instance struct {
	zone     *zone
	shape    *shape
	name     string
	labels   string // JSON
	id       uint64
	created  int64 // µs
	running  int64 // µs; 0 = not yet
	turns    int64 // µs; when what changes it is half done
	deleting bool
	rests    bool // it was stopped; it has given back what it gives back
	turning  bool // it is being stopped or started
	stopping bool // which of them it was last
	made     *Made
}

// shape is what many instances have in common.
type shape struct {
	key       string
	fields    map[string]any // of the answer
	cpus      float64
	external  int // addresses
	users     int
	networks  []map[string]any
	protected bool
	scratch   bool // it has a local SSD
}

// operation is what an insert, a delete, a stop or a start began.
type operation struct {
	id          uint64
	zone        *zone
	kind        string // "insert"
	target      string
	targetID    uint64
	request     [16]byte
	start, done int64 // µs
	finished    bool
	failed      *failure // told when it is done
}

type failure struct{ code, text string }

// Made is an instance that was made at some time.
type Made struct {
	Project string            `json:"project"`
	Zone    string            `json:"zone"`
	Name    string            `json:"name"`
	ID      uint64            `json:"id"`
	Labels  map[string]string `json:"labels,omitempty"`
	Created time.Time         `json:"created"`          // asked for
	Running time.Time         `json:"running,omitzero"` // zero = not yet, or it failed
	Gone    time.Time         `json:"gone,omitzero"`    // zero = it is there
	Failed  string            `json:"failed,omitempty"` // why it never ran
	Stopped bool              `json:"stopped,omitempty"`
}

func regionOf(zone string) string { return zone[:strings.LastIndex(zone, "-")] }

// place returns the zone of a call.
func (s *Sim) place(c *call) (*zone, *refusal) {
	name := c.r.PathValue("zone")
	if _, ok := slices.BinarySearch(s.o.Zones, name); !ok {
		return nil, invalid("Invalid value for field 'zone': '%s'. Unknown zone.", clip(name)) // assumed
	}
	z := c.project.zones[name]
	if z == nil {
		z = &zone{project: c.project, name: name, region: regionOf(name)}
		c.project.zones[name] = z
	}
	return z, nil
}

func (z *zone) find(name string) (int, bool) {
	return slices.BinarySearchFunc(z.instances, name, func(i *instance, name string) int { return strings.Compare(i.name, name) })
}

// lookup finds an instance by name or number.
func (s *Sim) lookup(z *zone, name string) *instance {
	if n, err := strconv.ParseUint(name, 10, 64); err == nil {
		if i := s.byID[n]; i != nil && i.zone == z {
			return i
		}
		return nil
	}
	if at, ok := z.find(name); ok {
		return z.instances[at]
	}
	return nil
}

func (z *zone) missing(name string) *refusal {
	return notFound("The resource 'projects/%s/zones/%s/instances/%s' was not found", z.project.name, z.name, name)
}

// repeated returns the operation that a request id began before.
// discovery: requestId of instances.insert, delete, stop and start; spec §6 for 24 h.
func (s *Sim) repeated(c *call) ([16]byte, *operation, *refusal) {
	var id [16]byte
	p := c.project
	for len(p.recent) > 0 && time.UnixMicro(p.recent[0].start).Add(requestMemory).Before(c.now) {
		old := p.recent[0]
		p.recent[0] = nil
		p.recent = p.recent[1:]
		if p.requests[old.request] == old {
			delete(p.requests, old.request)
		}
		delete(s.ops, old.id)
	}
	text := c.r.URL.Query().Get("requestId")
	if text == "" {
		return id, nil, nil
	}
	if !uuidForm.MatchString(text) {
		return id, nil, invalid("Invalid value for field 'requestId': '%s'. Must be a valid UUID", clip(text))
	}
	if _, err := hex.Decode(id[:], []byte(strings.ReplaceAll(text, "-", ""))); err != nil || id == [16]byte{} {
		return id, nil, invalid("Invalid value for field 'requestId': '%s'. The zero UUID is not supported", clip(text))
	}
	return id, c.project.requests[id], nil
}

// begin makes an operation.
func (s *Sim) begin(c *call, z *zone, request [16]byte, i *instance, kind string, takes time.Duration) *operation {
	if s.set.Spread > 0 {
		takes += time.Duration(s.rng.Int64N(int64(s.set.Spread)))
	}
	s.lastID++
	op := &operation{
		id: s.lastID, zone: z, kind: kind, target: i.name, targetID: i.id, request: request,
		start: c.now.UnixMicro(), done: c.now.Add(takes).UnixMicro(),
	}
	s.ops[op.id] = op
	z.project.recent = append(z.project.recent, op)
	if request != ([16]byte{}) {
		z.project.requests[request] = op
	}
	heap.Push(&s.due, op)
	return op
}

// started is the answer to the call that began an operation.
func (s *Sim) started(c *call, op *operation) (any, *refusal) {
	s.settle(c.now) // one that takes no time
	return op.answer(c), nil
}

func (s *Sim) insert(c *call) (any, *refusal) {
	z, r := s.place(c)
	if r != nil {
		return nil, r
	}
	request, op, r := s.repeated(c)
	if r != nil {
		return nil, r
	}
	if op != nil {
		return op.answer(c), nil
	}
	if r := checkInstance(c.body, z.name); r != nil {
		return nil, r
	}
	if c.r.URL.Query().Has("sourceInstanceTemplate") || c.r.URL.Query().Has("sourceMachineImage") {
		return nil, refuse(http.StatusNotImplemented, "notSimulated", "the simulator has no templates and no machine images")
	}
	name := c.body["name"].(string)
	if c.fault == Conflict {
		if _, taken := z.find(name); !taken {
			other := maps.Clone(c.body)
			delete(other, "labels")
			i := s.add(c, z, other, name)
			i.running = i.created
		}
	}
	if _, taken := z.find(name); taken {
		return nil, refuse(http.StatusConflict, "alreadyExists", "The resource 'projects/%s/zones/%s/instances/%s' already exists", z.project.name, z.name, name)
	}
	i := s.add(c, z, c.body, name)
	op = s.begin(c, z, request, i, "insert", s.set.Insert)
	op.failed = s.refuseLater(c, z, i)
	return s.started(c, op)
}

// refuseLater says why an insert's operation will fail.
func (s *Sim) refuseLater(c *call, z *zone, i *instance) *failure {
	for _, d := range list(c.body["disks"]) { // a start has none
		if image := text(object(object(d)["initializeParams"])["sourceImage"]); image != "" && slices.Contains(s.set.NoImages, image) {
			return &failure{"RESOURCE_NOT_FOUND", fmt.Sprintf("The resource '%s' was not found", clip(image))}
		}
	}
	// Its own use is counted already.
	for metric, used := range z.project.usage[z.region] {
		if limit, ok := s.set.Quota[metric]; ok && used > limit && i.shape.uses(metric) > 0 {
			return &failure{"QUOTA_EXCEEDED", fmt.Sprintf("Quota '%s' exceeded.  Limit: %.1f in region %s.", metric, limit, z.region)}
		}
	}
	switch {
	case c.fault == Exhausted || slices.Contains(s.set.Exhausted, z.name):
		return &failure{"ZONE_RESOURCE_POOL_EXHAUSTED", fmt.Sprintf("The zone 'projects/%s/zones/%s' does not have enough resources available to fulfill the request.  Try a different zone, or try again later.", z.project.name, z.name)}
	case c.fault == OpQuota:
		return &failure{"QUOTA_EXCEEDED", "Quota 'CPUS' exceeded.  Limit: 0.0 in region " + z.region + "."}
	case c.fault == OpInternal:
		return &failure{"INTERNAL_ERROR", "Internal error. Please try again or contact Google Support. (Code: '0')"}
	}
	return nil
}

// add makes an instance, which is not running yet.
func (s *Sim) add(c *call, z *zone, body map[string]any, name string) *instance {
	s.lastID++
	i := &instance{zone: z, name: name, id: s.lastID, created: c.now.UnixMicro()}
	if labels := object(body["labels"]); len(labels) > 0 {
		text, err := json.Marshal(labels)
		if err != nil {
			panic(err)
		}
		i.labels = string(text)
	}
	i.shape = s.shapeOf(body)
	at, _ := z.find(name)
	z.instances = slices.Insert(z.instances, at, i)
	s.byID[i.id] = i
	z.use(i, 1, metrics...)
	if s.o.History {
		i.made = &Made{Project: z.project.name, Zone: z.name, Name: name, ID: i.id, Created: c.now, Labels: map[string]string{}}
		for k, v := range object(body["labels"]) {
			i.made.Labels[k] = text(v)
		}
		s.made = append(s.made, i.made)
	}
	return i
}

// Metrics of quota that are counted. discovery: enum of Quota.metric.
var metrics = []string{"CPUS", "INSTANCES", "IN_USE_ADDRESSES"}

func (sh *shape) uses(metric string) float64 {
	switch metric {
	case "CPUS":
		return sh.cpus
	case "INSTANCES":
		return 1
	case "IN_USE_ADDRESSES":
		return float64(sh.external)
	}
	return 0
}

// use counts what an instance uses, or no longer does. When it rests that is
// less: assumed, a stopped instance has no processors and no address that was
// not reserved for it.
func (z *zone) use(i *instance, sign float64, list ...string) {
	of := z.project.usage[z.region]
	if of == nil {
		of = map[string]float64{}
		z.project.usage[z.region] = of
	}
	for _, m := range list {
		of[m] += sign * i.shape.uses(m)
	}
}

// running are the metrics of what an instance uses when it runs.
var running = []string{"CPUS", "IN_USE_ADDRESSES"}

func (s *Sim) remove(i *instance, at int64, why string) {
	n, ok := i.zone.find(i.name)
	if !ok || i.zone.instances[n] != i {
		return
	}
	i.zone.instances = slices.Delete(i.zone.instances, n, n+1)
	delete(s.byID, i.id)
	i.zone.use(i, -1, "INSTANCES")
	if !i.rests {
		i.zone.use(i, -1, running...)
	}
	if i.shape.users--; i.shape.users == 0 {
		delete(s.shapes, i.shape.key)
	}
	if i.made != nil {
		i.made.Gone, i.made.Failed = time.UnixMicro(at), why
	}
}

// finish lets an operation's end happen.
func (s *Sim) finish(op *operation) {
	op.finished = true
	i := s.byID[op.targetID]
	if i == nil {
		return
	}
	switch op.kind {
	case "insert":
		if op.failed != nil {
			s.remove(i, op.done, op.failed.code)
			return
		}
		i.running = op.done
		if i.made != nil {
			i.made.Running = time.UnixMicro(op.done)
		}
	case "delete":
		if op.failed != nil {
			i.deleting = false
			return
		}
		s.remove(i, op.done, "")
	case "stop", "start":
		i.turning = false
		if (op.kind == "stop") == (op.failed == nil) && !i.rests { // it stopped, or did not start
			i.rests = true
			i.zone.use(i, -1, running...)
		}
		if i.made != nil {
			i.made.Stopped = i.rests
		}
	}
}

func (s *Sim) delete(c *call) (any, *refusal) {
	z, r := s.place(c)
	if r != nil {
		return nil, r
	}
	request, op, r := s.repeated(c)
	if r != nil {
		return nil, r
	}
	if op != nil {
		return op.answer(c), nil
	}
	name := c.r.PathValue("instance")
	i := s.lookup(z, name)
	switch {
	case i == nil:
		return nil, z.missing(name)
	case i.running == 0 || i.deleting || i.turning:
		return nil, z.notReady(name)
	case i.shape.protected: // discovery: Instance.deletionProtection
		return nil, invalid("Invalid resource usage: 'Resource cannot be deleted if it's protected against deletion.'")
	}
	i.deleting = true
	op = s.begin(c, z, request, i, "delete", s.set.Delete)
	if c.fault == OpInternal {
		op.failed = &failure{"INTERNAL_ERROR", "Internal error. Please try again or contact Google Support. (Code: '0')"}
	}
	return s.started(c, op)
}

func (z *zone) notReady(name string) *refusal {
	return refuse(http.StatusBadRequest, "resourceNotReady", "The resource 'projects/%s/zones/%s/instances/%s' is not ready", z.project.name, z.name, name)
}

// stop and start answer alike: one that is so already succeeds, which is
// assumed. discovery: methods instances.stop and instances.start.
func (s *Sim) stop(c *call) (any, *refusal) { return s.turn(c, "stop", s.set.Stop) }

func (s *Sim) start(c *call) (any, *refusal) { return s.turn(c, "start", s.set.Start) }

func (s *Sim) turn(c *call, kind string, takes time.Duration) (any, *refusal) {
	z, r := s.place(c)
	if r != nil {
		return nil, r
	}
	request, op, r := s.repeated(c)
	if r != nil {
		return nil, r
	}
	if op != nil {
		return op.answer(c), nil
	}
	name := c.r.PathValue("instance")
	i := s.lookup(z, name)
	switch {
	case i == nil:
		return nil, z.missing(name)
	case i.running == 0 || i.deleting || i.turning: // assumed
		return nil, z.notReady(name)
	case kind == "stop" && i.shape.scratch && !c.r.URL.Query().Has("discardLocalSsd"): // discovery: "required if the instance has any attached Local SSD disks"
		return nil, invalid("VM has a Local SSD attached but an undefined value for `discard-local-ssd`.")
	}
	if i.rests == (kind == "stop") { // nothing is to be done
		op = s.begin(c, z, request, i, kind, 0)
		return s.started(c, op)
	}
	op = s.begin(c, z, request, i, kind, takes)
	i.turning, i.stopping, i.turns = true, kind == "stop", (op.start+op.done)/2
	if kind == "start" {
		i.rests = false // what it needs is taken from now on
		z.use(i, 1, running...)
		op.failed = s.refuseLater(c, z, i)
	} else if c.fault == OpInternal {
		op.failed = &failure{"INTERNAL_ERROR", "Internal error. Please try again or contact Google Support. (Code: '0')"}
	}
	return s.started(c, op)
}

func (s *Sim) operation(c *call) (any, *refusal) {
	z, r := s.place(c)
	if r != nil {
		return nil, r
	}
	name := c.r.PathValue("operation")
	n, err := strconv.ParseUint(strings.TrimPrefix(name, "operation-"), 10, 64)
	if op := s.ops[n]; err == nil && op != nil && op.zone == z {
		return op.answer(c), nil
	}
	return nil, notFound("The resource 'projects/%s/zones/%s/operations/%s' was not found", z.project.name, z.name, name)
}

// link is a self link.
func (c *call) link(parts ...string) string {
	return "https://www.googleapis.com/compute/" + c.version + "/projects/" + c.project.name + "/" + strings.Join(parts, "/")
}

func stamp(us int64) string { return time.UnixMicro(us).UTC().Format("2006-01-02T15:04:05.000-07:00") }

func (op *operation) answer(c *call) any {
	status, progress := "RUNNING", 0
	if op.finished {
		status, progress = "DONE", 100
	}
	name := "operation-" + strconv.FormatUint(op.id, 10)
	m := map[string]any{
		"kind": "compute#operation", "id": strconv.FormatUint(op.id, 10), "name": name,
		"operationType": op.kind, "status": status, "progress": progress,
		"zone": c.link("zones", op.zone.name), "selfLink": c.link("zones", op.zone.name, "operations", name),
		"targetLink": c.link("zones", op.zone.name, "instances", op.target), "targetId": strconv.FormatUint(op.targetID, 10),
		"insertTime": stamp(op.start), "startTime": stamp(op.start), "user": "skep@simulated.iam.gserviceaccount.com",
	}
	if op.finished {
		m["endTime"] = stamp(op.done)
		if op.failed != nil {
			m["error"] = map[string]any{"errors": []any{map[string]any{"code": op.failed.code, "message": op.failed.text}}}
			m["httpErrorStatusCode"], m["httpErrorMessage"] = http.StatusBadRequest, "BAD REQUEST"
		}
	}
	return m
}

func (s *Sim) get(c *call) (any, *refusal) {
	z, r := s.place(c)
	if r != nil {
		return nil, r
	}
	name := c.r.PathValue("instance")
	i := s.lookup(z, name)
	if i == nil {
		return nil, z.missing(name)
	}
	return i.answer(c, c.fields), nil
}

func (s *Sim) list(c *call) (any, *refusal) {
	z, r := s.place(c)
	if r != nil {
		return nil, r
	}
	from, size, r := c.page()
	if r != nil {
		return nil, r
	}
	start, ok := z.find(from)
	if ok {
		start++ // from is the last of the page before
	}
	end := min(start+size, len(z.instances))
	below, wanted := c.fields.wants("items")
	items := []any{}
	if wanted {
		for _, i := range z.instances[start:end] {
			items = append(items, i.answer(c, below))
		}
	}
	m := map[string]any{
		"kind": "compute#instanceList", "id": "projects/" + c.project.name + "/zones/" + z.name + "/instances",
		"selfLink": c.link("zones", z.name, "instances"),
	}
	if len(items) > 0 {
		m["items"] = items
	}
	if end < len(z.instances) && end > start {
		m["nextPageToken"] = pageToken(z.instances[end-1].name)
	}
	return m, nil
}

// page reads which part of a list is wanted: what follows a name, and how many.
func (c *call) page() (from string, size int, r *refusal) {
	q := c.r.URL.Query()
	for _, name := range []string{"filter", "orderBy", "returnPartialSuccess"} {
		if q.Has(name) {
			return "", 0, refuse(http.StatusNotImplemented, "notSimulated", "the simulator has no %s", name)
		}
	}
	size = maxPage
	if n, _ := strconv.Atoi(q.Get("maxResults")); n > maxPage { // discovery: 0 to 500, inclusive
		return "", 0, invalid("Invalid value for field 'maxResults': '%d'. Values must be within the range: [0, 500]", n)
	} else if n > 0 {
		size = n
	}
	token, err := base64.RawURLEncoding.DecodeString(q.Get("pageToken"))
	if err != nil {
		return "", 0, invalid("Invalid value for field 'pageToken': '%s'. Invalid page token", clip(q.Get("pageToken")))
	}
	return string(token), size, nil
}

// status is what the life cycle of an instance calls what it does.
// discovery: Instance.status.
func (i *instance) status(now time.Time) string {
	switch {
	case i.deleting, i.turning && i.stopping:
		return "STOPPING"
	case i.running == 0, i.turning && now.UnixMicro() < i.turns:
		return "PROVISIONING"
	case i.turning:
		return "STAGING"
	case i.rests:
		return "TERMINATED"
	}
	return "RUNNING"
}

// answer is what is selected of an instance. The rest is not even made: a page
// has 500 of them.
func (i *instance) answer(c *call, want selection) any {
	b := append(make([]byte, 0, 512), '{')
	raw := func(key, value string) {
		if len(b) > 1 {
			b = append(b, ',')
		}
		b = append(append(append(b, '"'), key...), `":`...)
		b = append(b, value...)
	}
	put := func(key, value string) { // one that JSON needs not escape
		if _, ok := want.wants(key); ok {
			raw(key, `"`+value+`"`)
		}
	}
	object := func(key string, value func() any) {
		below, ok := want.wants(key)
		if !ok {
			return
		}
		text, err := json.Marshal(below.cut(value()))
		if err != nil {
			panic(err)
		}
		raw(key, string(text))
	}
	z := i.zone.name
	put("kind", "compute#instance")
	put("id", strconv.FormatUint(i.id, 10))
	put("name", i.name)
	put("creationTimestamp", stamp(i.created))
	put("status", i.status(c.now))
	put("labelFingerprint", "42WmSpB8rSM=")
	if _, ok := want.wants("zone"); ok {
		put("zone", c.link("zones", z))
	}
	if _, ok := want.wants("selfLink"); ok {
		put("selfLink", c.link("zones", z, "instances", i.name))
	}
	if below, ok := want.wants("labels"); ok && i.labels != "" {
		if below == nil {
			raw("labels", i.labels)
		} else {
			object("labels", func() any {
				var m map[string]any
				if err := json.Unmarshal([]byte(i.labels), &m); err != nil {
					panic(err)
				}
				return m
			})
		}
	}
	object("networkInterfaces", func() any { return i.networks() })
	for key, v := range i.shape.fields {
		object(key, func() any { return v })
	}
	return json.RawMessage(append(b, '}'))
}

// networks have the addresses that follow from the instance's number.
func (i *instance) networks() []any {
	out := make([]any, 0, len(i.shape.networks))
	for n, shape := range i.shape.networks {
		m := maps.Clone(shape)
		m["kind"], m["name"] = "compute#networkInterface", "nic"+strconv.Itoa(n)
		m["networkIP"] = fmt.Sprintf("10.%d.%d.%d", n, byte(i.id>>8), byte(i.id))
		if access := list(m["accessConfigs"]); len(access) > 0 {
			own := maps.Clone(object(access[0]))
			own["kind"], own["natIP"] = "compute#accessConfig", fmt.Sprintf("34.%d.%d.%d", byte(i.id>>16), byte(i.id>>8), byte(i.id))
			m["accessConfigs"] = []any{own}
		}
		out = append(out, m)
	}
	return out
}

// shapeOf returns what an instance has in common with others like it.
func (s *Sim) shapeOf(body map[string]any) *shape {
	fields := maps.Clone(body)
	for _, own := range []string{"name", "labels", "labelFingerprint"} {
		delete(fields, own)
	}
	text, err := json.Marshal(fields)
	if err != nil {
		panic(err)
	}
	key := string(text)
	sh := s.shapes[key]
	if sh == nil {
		sh = newShape(key, fields)
		s.shapes[key] = sh
	}
	sh.users++
	return sh
}

func newShape(key string, fields map[string]any) *shape {
	sh := &shape{key: key, fields: fields, cpus: 1}
	machine := path.Base(text(fields["machineType"]))
	if n, err := strconv.Atoi(machine[strings.LastIndex(machine, "-")+1:]); err == nil { // assumed: "n1-standard-8" has 8
		sh.cpus = float64(n)
	}
	for _, n := range list(fields["networkInterfaces"]) {
		nic := object(n)
		sh.external += len(list(nic["accessConfigs"]))
		sh.networks = append(sh.networks, nic)
	}
	delete(fields, "networkInterfaces")
	sh.protected, _ = fields["deletionProtection"].(bool)
	if disks := list(fields["disks"]); len(disks) > 0 {
		out := make([]any, 0, len(disks))
		for n, d := range disks {
			disk := maps.Clone(object(d))
			sh.scratch = sh.scratch || text(disk["type"]) == "SCRATCH"
			delete(disk, "initializeParams") // discovery: [Input Only]
			disk["index"], disk["kind"] = n, "compute#attachedDisk"
			out = append(out, disk)
		}
		fields["disks"] = out
	}
	delete(fields, "params") // discovery: [Input Only]
	return sh
}

// What a checked body consists of.
func object(v any) map[string]any { m, _ := v.(map[string]any); return m }
func list(v any) []any            { l, _ := v.([]any); return l }
func text(v any) string           { s, _ := v.(string); return s }

// Made returns what was ever made, in that order, where the options say that it
// is kept; else what is there.
func (s *Sim) Made() []Made {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle(time.Now())
	var out []Made
	if s.o.History {
		for _, m := range s.made {
			out = append(out, *m)
		}
		return out
	}
	for _, i := range s.byID {
		m := Made{Project: i.zone.project.name, Zone: i.zone.name, Name: i.name, ID: i.id, Created: time.UnixMicro(i.created)}
		if i.running != 0 {
			m.Running = time.UnixMicro(i.running)
		}
		m.Stopped = i.rests
		if i.labels != "" {
			if err := json.Unmarshal([]byte(i.labels), &m.Labels); err != nil {
				panic(err)
			}
		}
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b Made) int { return int(a.ID) - int(b.ID) })
	return out
}

func pageToken(last string) string { return base64.RawURLEncoding.EncodeToString([]byte(last)) }
