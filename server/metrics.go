package server

import (
	"context"
	"crypto/subtle"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/health"
	"github.com/skepdev/skep/queen"
	"github.com/skepdev/skep/store"
)

// Bounds of what a scrape costs. docs/metrics.md names them.
const (
	maxPoolLabels  = 200 // further pools are counted as "other"
	maxMetricsSecs = 10
	countEvery     = 2 * time.Second // waiting tasks are counted again
)

// metrics are what is counted as it happens, and what is read for a scrape.
type metrics struct {
	s       *Server
	handler http.Handler

	routes     map[string]*routeCount // by pattern; fixed
	events     map[string]*atomic.Uint64
	mismatches atomic.Uint64 // bot code that was not what its digest says

	reports map[queen.Status]*atomic.Uint64 // of drones

	mu      sync.Mutex
	counted time.Time
	waiting map[string]poolQueue // by pool
	looked  time.Time            // at drones and devices
	hives   map[string]*hive

	untracked atomic.Uint64 // virtual machines that asked for themselves and have no record
}

// hive is what drones and devices of one there are.
type hive struct{ drones, used, free, unassigned, assigned, draining int }

type poolQueue struct {
	tasks  int
	oldest skep.TaskID
}

// routeCount counts the answers of one route by status.
type routeCount struct{ codes [600]atomic.Uint64 }

func (c *routeCount) note(status int) {
	if status >= 100 && status < len(c.codes) {
		c.codes[status].Add(1)
	}
}

var botEvents = []string{"bot_error", "bot_log", "bot_rebooting", "bot_shutdown"}

func newMetrics(s *Server) *metrics {
	m := &metrics{s: s, routes: map[string]*routeCount{}, events: map[string]*atomic.Uint64{}, waiting: map[string]poolQueue{}}
	for _, rt := range table {
		m.routes[rt.pattern] = &routeCount{}
	}
	for _, e := range botEvents {
		m.events[e] = &atomic.Uint64{}
	}
	m.reports = map[queen.Status]*atomic.Uint64{}
	for st := range droneStatus {
		m.reports[st] = &atomic.Uint64{}
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), m)
	m.handler = promhttp.HandlerFor(reg, promhttp.HandlerOpts{
		MaxRequestsInFlight: 2, Timeout: maxMetricsSecs * time.Second, ErrorHandling: promhttp.ContinueOnError,
	})
	return m
}

// event counts what a bot reports, and reports whether that was other code
// than it was told to run.
func (m *metrics) event(kind, text string) (mismatch bool) {
	m.events[kind].Add(1)
	mismatch = strings.Contains(text, "it is not run") && strings.Contains(text, "digest")
	if mismatch {
		m.mismatches.Add(1)
	}
	return mismatch
}

// serveMetrics answers who may scrape: a token of scope admin, or the one of
// --metrics-token-file; on an open server everybody. ADR 32.
func (s *Server) serveMetrics(w http.ResponseWriter, r *http.Request) error {
	if !s.isScraper(r) {
		var err error
		if r, err = s.identify(r); err != nil {
			return err
		}
		if c := callerOf(r.Context()); c.scope != ScopeAdmin {
			return skep.Errorf(map[bool]skep.Kind{true: skep.Unauthenticated, false: skep.Denied}[c.scope == ""],
				"metrics are for tokens of scope admin, and for that of --metrics-token-file")
		}
	}
	s.metrics.handler.ServeHTTP(w, r)
	return nil
}

func (s *Server) isScraper(r *http.Request) bool {
	return s.o.MetricsToken != nil && brings(r, s.o.MetricsToken())
}

// brings reports whether a request has this token, which is not empty.
func brings(r *http.Request, want string) bool {
	got, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return want != "" && subtle.ConstantTimeCompare([]byte(want), []byte(strings.TrimSpace(got))) == 1
}

// counted notes the status of an answer.
type countedWriter struct {
	http.ResponseWriter
	status int
}

func (w *countedWriter) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *countedWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(p)
}

// pieces are what large answers are sent in.
var pieces = sync.Pool{New: func() any { return new([256 << 10]byte) }}

// ReadFrom sends what r has, in pieces larger than those of package io. They may
// be used again after it, as nothing here speaks HTTP/2.
func (w *countedWriter) ReadFrom(r io.Reader) (int64, error) {
	p := pieces.Get().(*[256 << 10]byte)
	defer pieces.Put(p)
	return io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, p[:])
}

// Unwrap lets http.ResponseController reach what is below.
func (w *countedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("skep_"+name, help, labels, nil)
}

// The names and their meanings; docs/metrics.md is held against them.
var (
	mRequests     = desc("http_requests_total", "Answers, by route and HTTP status.", "route", "code")
	mTasks        = desc("tasks_total", "Tasks that came into a state on this server.", "state")
	mPending      = desc("tasks_pending", "Tasks that wait for a bot.", "pool")
	mPendingAge   = desc("tasks_pending_age_seconds", "Age of the oldest task that waits for a bot.", "pool")
	mBots         = desc("bots", "Bots, by what they do: each counts once.", "pool", "status")
	mPolls        = desc("polls_waiting", "Polls that wait for work on this server.")
	mEvents       = desc("bot_events_total", "Events that bots reported to this server.", "event")
	mMismatches   = desc("bot_code_mismatches_total", "Downloads of bot code that bots refused, as their digest was another.")
	mCommits      = desc("store_commits_total", "Group commits of this server.")
	mChanges      = desc("store_changes_total", "Changes in them.")
	mFailed       = desc("store_commit_failures_total", "Group commits that the database did not confirm.")
	mCommitTime   = desc("store_commit_seconds", "Time of a group commit, from its first statement until it was durable.")
	mAlarms       = desc("alarms", "Alarms that are on, by kind; skep bots alarms tells more.", "kind", "pool")
	mHeld         = desc("breaker_held_bots", "Bots that say they are ill and are not believed.", "pool")
	mRollout      = desc("rollout_bots", "Bots that were told to run the release that rolls out.", "result")
	mRolloutStage = desc("rollout_stage", "1 for where the rollout is: none, canary, all or halted.", "stage")
	mConfig       = desc("config_refused", "1 for a file of the configuration whose change is refused.", "file")
	mFleetAge     = desc("fleet_view_age_seconds", "Age of the numbers of bots and alarms.")
	mBlobs        = desc("cas_blobs", "Blobs in this server's storage.")
	mBlobBytes    = desc("cas_bytes", "Bytes of this server's storage, by what they are.", "kind")
	mEvicted      = desc("cas_evicted_bytes_total", "Bytes that were evicted from it.")
	mDrones       = desc("drones", "Drones that have a lease.", "hive")
	mPlaces       = desc("drone_places", "Devices that those drones can have, by whether they have them.", "hive", "kind")
	mDuts         = desc("duts", "Devices: free, assigned, or draining (assigned, and on their way out).", "hive", "state")
	mReports      = desc("drone_reports_total", "Reports of drones that this server answered.", "status")
	mLeases       = desc("drone_leases_ended_total", "Leases that this server ended because their drone did not report.")
	mCorrupt      = desc("cas_corrupt_blobs_total", "Blobs in it that were found corrupt.")
)

var allMetrics = []*prometheus.Desc{
	mRequests, mTasks, mPending, mPendingAge, mBots, mPolls, mEvents, mMismatches, mCommits, mChanges, mFailed, mCommitTime,
	mAlarms, mHeld, mRollout, mRolloutStage, mConfig, mFleetAge, mBlobs, mBlobBytes, mEvicted, mCorrupt,
	mDrones, mPlaces, mDuts, mReports, mLeases,
	mUntracked,
}

// machineMetrics are those of machines: a server has them, and a provider that
// is a process of its own.
var machineMetrics = []*prometheus.Desc{
	mConfigured, mCreated, mConnected, mMachinesIn, mCreates, mDestroys, mCreation, mConnection, mReady, mCreateFails, mPoolFailure, mLeaks, mAnswers,
	mScan, mQuotaLimit, mQuotaUsage, mQuotaLeft,
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range slices.Concat(allMetrics, machineMetrics) {
		out <- d
	}
}

// Collect implements prometheus.Collector. It reads what lies at hand, and the
// queues.
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), maxMetricsSecs*time.Second)
	defer cancel()
	count := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for pattern, c := range m.routes {
		for code := range c.codes {
			if n := c.codes[code].Load(); n > 0 {
				count(mRequests, float64(n), pattern, strconv.Itoa(code))
			}
		}
	}
	for state, n := range m.s.sched.Entered() {
		count(mTasks, float64(n), state.String())
	}
	for name, n := range m.events {
		count(mEvents, float64(n.Load()), name)
	}
	count(mMismatches, float64(m.mismatches.Load()))
	gauge(mPolls, float64(m.s.sched.Waiting()))
	collectStore(m.s.store, out)
	m.collectFleet(gauge)
	m.collectWaiting(ctx, gauge)
	m.collectRollout(ctx, gauge)
	for st, n := range m.reports {
		count(mReports, float64(n.Load()), strings.ToLower(droneStatus[st].String()))
	}
	count(mLeases, float64(m.s.queen.LeasesEnded()))
	m.collectHives(ctx, gauge)
	count(mUntracked, float64(m.untracked.Load()))
	if m.s.o.Machines != nil {
		collectMachines(ctx, m.s.o.Machines, m.s.log, out)
	}
	if st := m.s.rules().State; st != nil {
		for _, f := range st.Files {
			if f.RefusedSince != nil {
				gauge(mConfig, 1, clip(f.Name, 256))
			}
		}
	}
	if m.s.o.Usage != nil {
		u := m.s.o.Usage()
		gauge(mBlobs, float64(u.Blobs))
		gauge(mBlobBytes, float64(u.Bytes), "used")
		gauge(mBlobBytes, float64(u.Limit), "limit")
		gauge(mBlobBytes, float64(u.Reserved), "reserved")
		gauge(mBlobBytes, float64(u.Quarantine), "quarantine")
		if u.Free >= 0 {
			gauge(mBlobBytes, float64(u.Free), "disk_free")
		}
		count(mEvicted, float64(u.EvictedBytes))
		count(mCorrupt, float64(u.Corrupt))
	}
}

func collectStore(s *store.Store, out chan<- prometheus.Metric) {
	st := s.Stats()
	for d, n := range map[*prometheus.Desc]uint64{mCommits: st.Commits, mChanges: st.Changes, mFailed: st.Failed} {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n))
	}
	buckets, sum := map[float64]uint64{}, uint64(0)
	for i, bound := range store.CommitBounds {
		sum += st.Took[i]
		buckets[bound] = sum
	}
	out <- prometheus.MustNewConstHistogram(mCommitTime, sum+st.Took[len(store.CommitBounds)], st.Seconds, buckets)
}

// labels bounds the names of pools that become labels: where there is no
// pools.cfg, bots may say what they like.
type labels map[string]bool

func (l labels) of(pool string) string {
	switch {
	case pool == "":
		return "none"
	case l[pool]:
		return pool
	case len(l) >= maxPoolLabels:
		return "other"
	}
	l[pool] = true
	return pool
}

// statusOf says what a bot does: the first that is true.
func statusOf(b *health.Bot) string {
	switch {
	case b.Dead:
		return "dead"
	case b.Ill:
		return "quarantined"
	case b.Maintenance:
		return "maintenance"
	case b.Busy:
		return "busy"
	}
	return "idle"
}

func (m *metrics) collectFleet(gauge func(*prometheus.Desc, float64, ...string)) {
	v, names := m.s.fleet.view.Load(), labels{}
	if !v.at.IsZero() {
		gauge(mFleetAge, max(0, m.s.o.Now().Sub(v.at).Seconds()))
	}
	bots, alarms := map[[2]string]int{}, map[[2]string]int{}
	for i := range v.bots {
		bots[[2]string{names.of(v.bots[i].Pool()), statusOf(&v.bots[i])}]++
	}
	for k, n := range bots {
		gauge(mBots, float64(n), k[0], k[1])
	}
	for _, a := range v.alarms {
		alarms[[2]string{a.Kind, names.of(a.Pool)}]++
	}
	for k, n := range alarms {
		gauge(mAlarms, float64(n), k[0], k[1])
	}
	held := map[string]int{}
	for pool, h := range m.s.fleet.ill.held() {
		held[names.of(pool)] += h.Count
	}
	for pool, n := range held {
		gauge(mHeld, float64(n), pool)
	}
}

func (m *metrics) collectWaiting(ctx context.Context, gauge func(*prometheus.Desc, float64, ...string)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.s.o.Now()
	if now.Sub(m.counted) >= countEvery {
		queues, err := m.s.store.QueueCounts(ctx)
		if err != nil {
			m.s.log.WarnContext(ctx, "count waiting tasks", "err", err)
			return
		}
		m.counted = now
		clear(m.waiting)
		names := labels{}
		for _, q := range queues {
			name := names.of(m.s.sched.QueuePool(q.Queue))
			p := m.waiting[name]
			if p.tasks += q.Tasks; p.oldest == 0 || q.Oldest < p.oldest {
				p.oldest = q.Oldest
			}
			m.waiting[name] = p
		}
	}
	for name, p := range m.waiting {
		gauge(mPending, float64(p.tasks), name)
		gauge(mPendingAge, max(0, now.Sub(p.oldest.Created()).Seconds()), name)
	}
}

func (m *metrics) collectHives(ctx context.Context, gauge func(*prometheus.Desc, float64, ...string)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if now := m.s.o.Now(); now.Sub(m.looked) >= countEvery {
		hives, err := m.readHives(ctx, now)
		if err != nil {
			m.s.log.WarnContext(ctx, "count drones and devices", "err", err)
			return
		}
		m.looked, m.hives = now, hives
	}
	for name, h := range m.hives {
		gauge(mDrones, float64(h.drones), name)
		gauge(mPlaces, float64(h.used), name, "used")
		gauge(mPlaces, float64(h.free), name, "free")
		gauge(mDuts, float64(h.unassigned), name, "free")
		gauge(mDuts, float64(h.assigned), name, "assigned")
		gauge(mDuts, float64(h.draining), name, "draining")
	}
}

// readHives counts what the store has at one moment.
func (m *metrics) readHives(ctx context.Context, now time.Time) (map[string]*hive, error) {
	drones, err := m.s.store.Drones(ctx)
	if err != nil {
		return nil, err
	}
	duts, err := m.s.store.Duts(ctx)
	if err != nil {
		return nil, err
	}
	hives, names, has := map[string]*hive{}, labels{}, map[string]int{}
	of := func(name string) *hive {
		name = names.of(name)
		if hives[name] == nil {
			hives[name] = &hive{}
		}
		return hives[name]
	}
	for _, d := range duts {
		h := of(d.Hive)
		switch {
		case d.Drone == "" && !d.Gone:
			h.unassigned++
		case d.Drone == "": // the next look forgets it
		case d.Gone || d.Leaving:
			h.draining++
		default:
			h.assigned++
		}
		has[d.Drone]++
	}
	for _, d := range drones {
		if !d.Expires.After(now) {
			continue
		}
		h := of(d.Hive)
		h.drones++
		h.used += has[d.UUID]
		h.free += max(0, d.Capacity-has[d.UUID])
	}
	return hives, nil
}

func (m *metrics) collectRollout(ctx context.Context, gauge func(*prometheus.Desc, float64, ...string)) {
	if m.s.o.Code == nil {
		return
	}
	st, err := m.s.o.Code.Status(ctx)
	if err != nil {
		m.s.log.WarnContext(ctx, "read the rollout", "err", err)
		return
	}
	stage := "none"
	switch {
	case st.Halted != "":
		stage = "halted"
	case st.Next != "":
		stage = st.Stage
	}
	gauge(mRolloutStage, 1, stage)
	gauge(mRollout, float64(st.Waiting), "waiting")
	gauge(mRollout, float64(st.Confirmed), "confirmed")
	gauge(mRollout, float64(st.Crashed), "crashed")
}
