// Package gcesim is a strict simulator of the part of the Compute Engine API
// that package gce uses. It is a http.Handler for the unchanged client, and
// lives in memory.
//
// What it refuses it refuses because Google's discovery document says so
// (discovery.go), or by a rule of rules.go that names its source. What is
// assumed without a source there is listed in docs/gcesim.md.
//
// Time is plain time, and nothing runs between two requests: what was due
// meanwhile happens before the next one is looked at. So it works in a bubble
// of testing/synctest, through Transport.
package gcesim

import (
	"bytes"
	"container/heap"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// requestMemory is how long a request id is remembered. spec/provider.md §6.
	requestMemory = 24 * time.Hour
	// maxBody bounds a request; the metadata of an instance is below 512 KB.
	maxBody = 2 << 20
	// maxPage is the largest page; discovery: maxResults of the list methods.
	maxPage = 500
)

// Options of a Sim.
type Options struct {
	Zones    []string // "REGION-X"; nil = DefaultZones
	Projects []string // nil = every project exists
	Seed     uint64   // of faults and delays
	History  bool     // keep what was ever made, for Made
	Check    bool     // hold answers against the document too; a wrong one is a panic
	Settings Settings
}

// DefaultZones are the zones of a Sim that is not told others.
var DefaultZones = []string{
	"europe-west1-b", "europe-west1-c", "europe-west1-d",
	"us-central1-a", "us-central1-b", "us-central1-c", "us-central1-f",
	"us-east1-b", "us-east1-c", "us-east1-d",
}

// Settings may be changed while a Sim works. The zero value is a cloud in
// which everything succeeds, at once.
type Settings struct {
	Insert time.Duration `json:"insert_ns,omitempty"` // how long it takes to make an instance
	Delete time.Duration `json:"delete_ns,omitempty"` // and to take it away
	Stop   time.Duration `json:"stop_ns,omitempty"`   // to stop it
	Start  time.Duration `json:"start_ns,omitempty"`  // and to start it again
	Spread time.Duration `json:"spread_ns,omitempty"` // up to that much is added to each

	Faults map[Fault]float64 `json:"faults,omitempty"`  // the share of calls that each happens to
	Slow   time.Duration     `json:"slow_ns,omitempty"` // how long a slow call waits

	CallsPerMinute int                `json:"calls_per_minute,omitempty"` // of a project; 0 = no limit
	Quota          map[string]float64 `json:"quota,omitempty"`            // metric → limit in each region; INSTANCES, CPUS, IN_USE_ADDRESSES; one that is missing has none
	Exhausted      []string           `json:"exhausted,omitempty"`        // zones without room
	Denied         []string           `json:"denied,omitempty"`           // projects in which nothing is allowed
	NoImages       []string           `json:"no_images,omitempty"`        // images that do not exist, as instances name them
}

// Fault is something that goes wrong by chance.
type Fault string

// The faults. Those of an operation are told when the operation is done.
const (
	RateLimit   Fault = "rate_limit"   // 403 with a rate limit's reason
	TooMany     Fault = "too_many"     // 429
	Unavailable Fault = "unavailable"  // 503
	Internal    Fault = "internal"     // 500
	Permission  Fault = "permission"   // 403
	Quota       Fault = "quota"        // 403 quotaExceeded, of an insert
	Invalid     Fault = "invalid"      // 400, of an insert
	Conflict    Fault = "conflict"     // somebody else's instance takes the name before the insert
	Exhausted   Fault = "exhausted"    // the operation of an insert or a start finds no room
	OpQuota     Fault = "op_quota"     // and no quota
	OpInternal  Fault = "op_internal"  // the operation fails
	Slow        Fault = "slow"         // the call takes Settings.Slow
	LostRequest Fault = "lost_request" // the connection ends before the call is looked at
	LostAnswer  Fault = "lost_answer"  // the call is done, and the connection ends
	Garbled     Fault = "garbled"      // the call is done, and half of the answer arrives
)

// faults is every Fault with the methods that it can happen to; "" = all.
var faults = []struct {
	fault  Fault
	method string
}{
	{RateLimit, ""},
	{TooMany, ""},
	{Unavailable, ""},
	{Internal, ""},
	{Permission, ""},
	{Quota, "compute.instances.insert"},
	{Invalid, "compute.instances.insert"},
	{Conflict, "compute.instances.insert"},
	{Exhausted, "compute.instances.insert"},
	{OpQuota, "compute.instances.insert"},
	{Exhausted, "compute.instances.start"},
	{OpQuota, "compute.instances.start"},
	{OpInternal, "compute.instances.insert"},
	{OpInternal, "compute.instances.delete"},
	{OpInternal, "compute.instances.stop"},
	{OpInternal, "compute.instances.start"},
	{Slow, ""},
	{LostRequest, ""},
	{LostAnswer, ""},
	{Garbled, ""},
}

// EveryFault is every Fault with the same share; a call that all can happen to
// fails with probability total.
func EveryFault(total float64) map[Fault]float64 {
	m := map[Fault]float64{}
	for _, f := range faults {
		m[f.fault] = 0
	}
	for f := range m {
		m[f] = total / float64(len(m))
	}
	return m
}

// Sim is a simulated Compute Engine.
type Sim struct {
	o   Options
	mux *http.ServeMux

	mu       sync.Mutex
	set      Settings
	rng      *rand.Rand
	counts   map[string]int64
	projects map[string]*project
	ops      map[uint64]*operation
	byID     map[uint64]*instance
	due      dues
	shapes   map[string]*shape
	lastID   uint64
	made     []*Made
}

// New returns a Sim without instances.
func New(o Options) *Sim {
	if o.Zones == nil {
		o.Zones = DefaultZones
	}
	o.Zones = slices.Sorted(slices.Values(o.Zones))
	s := &Sim{
		o: o, set: o.Settings, rng: rand.New(rand.NewPCG(o.Seed, 1)), mux: http.NewServeMux(),
		counts: map[string]int64{}, projects: map[string]*project{}, ops: map[uint64]*operation{},
		byID: map[uint64]*instance{}, shapes: map[string]*shape{}, lastID: 1_000_000,
	}
	for version, d := range documents() {
		for id, m := range d.Methods {
			answer := answers[id]
			s.mux.HandleFunc(m.HTTPMethod+" /compute/"+version+"/"+m.Path, func(w http.ResponseWriter, r *http.Request) {
				s.serve(w, r, &call{d: d, version: version, id: id, m: m, r: r}, answer)
			})
		}
	}
	return s
}

// call is one request.
type call struct {
	d           *document
	version, id string
	m           *method
	r           *http.Request
	fields      selection
	project     *project
	body        map[string]any
	fault       Fault
	now         time.Time
}

// answers say what a method does; the Sim is locked.
var answers = map[string]func(*Sim, *call) (any, *refusal){
	"compute.instances.insert":   (*Sim).insert,
	"compute.instances.get":      (*Sim).get,
	"compute.instances.delete":   (*Sim).delete,
	"compute.instances.list":     (*Sim).list,
	"compute.instances.stop":     (*Sim).stop,
	"compute.instances.start":    (*Sim).start,
	"compute.zoneOperations.get": (*Sim).operation,
	"compute.zones.list":         (*Sim).zones,
	"compute.zones.get":          (*Sim).zone,
	"compute.regions.list":       (*Sim).regions,
	"compute.regions.get":        (*Sim).region,
}

// ServeHTTP implements http.Handler.
func (s *Sim) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h, pattern := s.mux.Handler(r); pattern == "" || h == nil {
		s.count("unknown")
		refuse(http.StatusNotFound, "notFound", "Not found: %s %s", r.Method, clip(r.URL.Path)).write(w)
		return
	}
	s.mux.ServeHTTP(w, r)
}

func (s *Sim) serve(w http.ResponseWriter, r *http.Request, c *call, answer func(*Sim, *call) (any, *refusal)) {
	s.count(c.id)
	c.fault = s.draw(c.id)
	switch c.fault {
	case LostRequest:
		panic(http.ErrAbortHandler)
	case Slow:
		s.mu.Lock()
		wait := time.NewTimer(s.set.Slow)
		s.mu.Unlock()
		defer wait.Stop()
		select {
		case <-wait.C:
		case <-r.Context().Done():
			panic(http.ErrAbortHandler)
		}
	default: // see do, and below
	}
	v, refused := s.do(c, answer)
	if c.fault == LostAnswer {
		panic(http.ErrAbortHandler)
	}
	if refused != nil {
		s.count(c.id + " " + strconv.Itoa(refused.code) + " " + refused.reason)
		refused.write(w)
		return
	}
	text, err := json.Marshal(c.fields.cut(v))
	if err != nil {
		panic(err)
	}
	if s.o.Check {
		c.checkAnswer(text)
	}
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	if c.fault == Garbled {
		w.Write(text[:len(text)/2])
		panic(http.ErrAbortHandler)
	}
	w.Write(text)
}

func (s *Sim) do(c *call, answer func(*Sim, *call) (any, *refusal)) (any, *refusal) {
	switch c.fault {
	case RateLimit:
		return nil, rateLimited()
	case TooMany:
		return nil, refuse(http.StatusTooManyRequests, "tooManyRequests", "Too many requests")
	case Unavailable:
		return nil, refuse(http.StatusServiceUnavailable, "backendError", "Service unavailable. Try again later.")
	case Internal:
		return nil, refuse(http.StatusInternalServerError, "backendError", "Internal error. Please try again or contact Google Support. (Code: '0')")
	case Permission:
		return nil, denied(c.id, c.r.PathValue("project"))
	case Quota:
		return nil, refuse(http.StatusForbidden, "quotaExceeded", "Quota 'CPUS' exceeded.  Limit: 0.0 in region.")
	case Invalid:
		return nil, invalid("Invalid value for field 'resource': ''. A fault of the simulator")
	default:
	}
	if r := c.read(); r != nil {
		return nil, r
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c.now = time.Now()
	s.settle(c.now)
	name := c.r.PathValue("project")
	if s.o.Projects != nil && !slices.Contains(s.o.Projects, name) {
		return nil, notFound("The resource 'projects/%s' was not found", name) // assumed
	}
	if slices.Contains(s.set.Denied, name) {
		return nil, denied(c.id, name)
	}
	c.project = s.projects[name]
	if c.project == nil {
		if len(s.projects) >= maxProjects {
			return nil, denied(c.id, name) // a simulator's memory is bounded
		}
		c.project = &project{name: name, requests: map[[16]byte]*operation{}, zones: map[string]*zone{}, usage: map[string]map[string]float64{}}
		s.projects[name] = c.project
	}
	if limit := s.set.CallsPerMinute; limit > 0 {
		if minute := c.now.Truncate(time.Minute); !minute.Equal(c.project.minute) {
			c.project.minute, c.project.calls = minute, 0
		}
		if c.project.calls++; c.project.calls > limit {
			return nil, rateLimited()
		}
	}
	return answer(s, c)
}

// read holds the request's path, query and body against the document.
func (c *call) read() *refusal {
	for name, p := range c.m.Parameters {
		if p.Location != "path" {
			continue
		}
		if v := c.r.PathValue(name); p.compiled != nil && !p.compiled.MatchString(v) {
			return invalid("Invalid value for field '%s': '%s'. Must be a match of regex '%s'", name, clip(v), p.Pattern)
		}
	}
	query, err := url.ParseQuery(c.r.URL.RawQuery)
	if err != nil {
		return invalid("Invalid query: %s", clip(err))
	}
	for name, values := range query {
		p := c.m.Parameters[name]
		if p == nil || p.Location != "query" {
			p = c.d.Parameters[name]
		}
		if p == nil {
			return invalid("Invalid JSON payload received. Unknown name %q: Cannot bind query parameter. Field '%s' could not be found in request message.", clip(name), clip(name))
		}
		if len(values) > 1 {
			return invalid("Invalid value for parameter '%s': it is given %d times", clip(name), len(values))
		}
		if r := parameter(name, p, values[0]); r != nil {
			return r
		}
	}
	if alt := query.Get("alt"); alt != "" && alt != "json" {
		return refuse(http.StatusBadRequest, "invalidAltValue", "the simulator answers in JSON alone")
	}
	fields := query.Get("fields")
	if c.fields, err = parseFields(fields); err != nil {
		return refuse(http.StatusBadRequest, "invalidParameter", "Invalid field selection %s: %v", clip(fields), err)
	}
	if u := c.fields.unknown(c.d, c.m.Response); u != "" {
		return refuse(http.StatusBadRequest, "invalidParameter", "Invalid field selection %s", clip(u))
	}
	body, err := io.ReadAll(io.LimitReader(c.r.Body, maxBody+1))
	switch {
	case err != nil:
		return invalid("The request ended early")
	case len(body) > maxBody:
		return refuse(http.StatusRequestEntityTooLarge, "uploadTooLarge", "Request is too large.")
	case c.m.Request == nil && len(bytes.TrimSpace(body)) > 0:
		return invalid("This method has no request body")
	case c.m.Request == nil:
		return nil
	}
	v, r := decode(body)
	if r != nil {
		return r
	}
	v, r = checker{c.d, c.id}.check(c.m.Request, v, "resource")
	if r != nil {
		return r
	}
	c.body, _ = v.(map[string]any)
	if c.body == nil {
		return refuse(http.StatusBadRequest, "required", "Required field 'resource' not specified")
	}
	return nil
}

// decode reads one JSON value.
func decode(body []byte) (any, *refusal) {
	var v any
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	err := dec.Decode(&v)
	if err == nil {
		if _, more := dec.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("something follows the value")
		}
	}
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "parseError", "Parse Error: %s", clip(err))
	}
	return v, nil
}

// checkAnswer holds an answer against the document.
func (c *call) checkAnswer(text []byte) {
	v, r := decode(text)
	if r == nil {
		_, r = checker{c.d, ""}.check(c.m.Response, v, "answer")
	}
	if r != nil {
		panic(fmt.Sprintf("the simulator's answer to %s is wrong: %s", c.id, r.text))
	}
}

// parameter holds a query parameter against the document.
func parameter(name string, p *schema, text string) *refusal {
	switch p.Type {
	case "boolean":
		if text != "true" && text != "false" {
			return invalid("Invalid value for parameter '%s': '%s'", name, clip(text))
		}
	case "integer":
		n, err := strconv.ParseInt(text, 10, 64)
		low, _ := strconv.ParseInt(p.Minimum, 10, 64)
		if err != nil || p.Minimum != "" && n < low {
			return invalid("Invalid value for parameter '%s': '%s'", name, clip(text))
		}
	}
	if p.Enum != nil && !slices.Contains(p.Enum, text) {
		return invalid("Invalid value for parameter '%s': '%s'. Acceptable values are %s", name, clip(text), strings.Join(p.Enum, ", "))
	}
	return nil
}

// draw says which fault happens to a call, "" = none.
func (s *Sim) draw(id string) Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.set.Faults) == 0 {
		return ""
	}
	x := s.rng.Float64()
	for _, f := range faults {
		if f.method != "" && f.method != id {
			continue
		}
		if x -= s.set.Faults[f.fault]; x < 0 {
			s.counts["fault "+string(f.fault)]++
			return f.fault
		}
	}
	return ""
}

func (s *Sim) count(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[what]++
}

// Counts returns how often each method was called, by its id, "ID CODE REASON"
// for those that were refused, and "fault F".
func (s *Sim) Counts() map[string]int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.counts)
}

// Calls returns how often methods of the API were called.
func (s *Sim) Calls() (n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range answers {
		n += s.counts[id]
	}
	return n
}

// Set changes the settings.
func (s *Sim) Set(change func(*Settings)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.set)
}

// refusal is an answer that is an error.
type refusal struct {
	code         int
	reason, text string
}

func refuse(code int, reason, format string, args ...any) *refusal {
	return &refusal{code, reason, fmt.Sprintf(format, args...)}
}

func invalid(format string, args ...any) *refusal {
	return refuse(http.StatusBadRequest, "invalid", format, args...)
}

func notFound(format string, args ...any) *refusal {
	return refuse(http.StatusNotFound, "notFound", format, args...)
}

// rateLimited arrives as 403. spec/provider.md §7.3.
func rateLimited() *refusal {
	return refuse(http.StatusForbidden, "rateLimitExceeded", "Rate Limit Exceeded")
}

func denied(id, project string) *refusal {
	return refuse(http.StatusForbidden, "forbidden", "Required '%s' permission for 'projects/%s'", id, clip(project))
}

// write sends the refusal in the V1 error format. discovery: parameter $.xgafv.
func (r *refusal) write(w http.ResponseWriter) {
	text, err := json.Marshal(map[string]any{"error": map[string]any{
		"code": r.code, "message": r.text,
		"errors": []any{map[string]any{"message": r.text, "domain": "global", "reason": r.reason}},
	}})
	if err != nil {
		panic(err)
	}
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	w.WriteHeader(r.code)
	w.Write(text)
}

// dues are the operations that are not done, the next first.
type dues []*operation

func (d dues) Len() int { return len(d) }
func (d dues) Less(i, j int) bool {
	return d[i].done < d[j].done || d[i].done == d[j].done && d[i].id < d[j].id
}
func (d dues) Swap(i, j int) { d[i], d[j] = d[j], d[i] }
func (d *dues) Push(x any)   { *d = append(*d, x.(*operation)) }
func (d *dues) Pop() any {
	old := *d
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*d = old[:len(old)-1]
	return last
}

// settle lets happen what was due by now.
func (s *Sim) settle(now time.Time) {
	for len(s.due) > 0 && s.due[0].done <= now.UnixMicro() {
		s.finish(heap.Pop(&s.due).(*operation))
	}
}

var uuidForm = regexp.MustCompile(`^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$`)
