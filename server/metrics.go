package server

import (
	"context"
	"crypto/subtle"
	"net/http"
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

	mu      sync.Mutex
	counted time.Time
	waiting map[string]poolQueue // by pool
}

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
	if s.o.MetricsToken == nil {
		return false
	}
	want := s.o.MetricsToken()
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
	mCorrupt      = desc("cas_corrupt_blobs_total", "Blobs in it that were found corrupt.")
)

var allMetrics = []*prometheus.Desc{
	mRequests, mTasks, mPending, mPendingAge, mBots, mPolls, mEvents, mMismatches, mCommits, mChanges, mFailed, mCommitTime,
	mAlarms, mHeld, mRollout, mRolloutStage, mConfig, mFleetAge, mBlobs, mBlobBytes, mEvicted, mCorrupt,
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range allMetrics {
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
	m.collectStore(out, count)
	m.collectFleet(gauge)
	m.collectWaiting(ctx, gauge)
	m.collectRollout(ctx, gauge)
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

func (m *metrics) collectStore(out chan<- prometheus.Metric, count func(*prometheus.Desc, float64, ...string)) {
	st := m.s.store.Stats()
	count(mCommits, float64(st.Commits))
	count(mChanges, float64(st.Changes))
	count(mFailed, float64(st.Failed))
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
