package warm

import (
	"maps"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// The names and their meanings; docs/hosts.md is held against them.
var (
	mRooms    = poolDesc("rooms", "Containers, by where in their life they are.", "state")
	mWanted   = poolDesc("rooms_wanted", "Containers that are to be in stock by demand.")
	mWaiting  = poolDesc("gets_waiting", "Gets that wait for a container.")
	mClients  = poolDesc("clients", "Connections.")
	mPaused   = poolDesc("paused", "1 while nothing is made because it failed.")
	mMade     = poolDesc("rooms_made_total", "Containers that became ready.")
	mFailed   = poolDesc("rooms_failed_total", "Containers that did not.")
	mReturned = poolDesc("rooms_returned_total", "Containers that went back into stock unused.")
	mRemoved  = poolDesc("rooms_removed_total", "Containers that were removed whole.")
	mLost     = poolDesc("rooms_lost_total", "Containers that ended by themselves.")
	mGets     = poolDesc("gets_total", "Answered gets.", "result")
	mErrors   = poolDesc("errors_total", "What went wrong, by what it was about.", "cause")
	mRejected = poolDesc("rejected_total", "Connections and messages that were refused as such.")
)

var poolMetrics = []*prometheus.Desc{mRooms, mWanted, mWaiting, mClients, mPaused, mMade, mFailed, mReturned, mRemoved, mLost, mGets, mErrors, mRejected}

func poolDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("skep_pool_"+name, help, labels, nil)
}

// metrics are what a pool tells a monitoring system. What can be read is read
// for a scrape, all of it at one moment.
type metrics struct {
	s        *Service
	registry *prometheus.Registry

	got, made prometheus.Histogram
}

func newMetrics(s *Service) *metrics {
	m := &metrics{
		s: s, registry: prometheus.NewRegistry(),
		got: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "skep_pool_get_seconds", Help: "Time from a get to its container, of those that got one.", Buckets: prometheus.ExponentialBuckets(0.0001, 4, 10),
		}),
		made: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "skep_pool_make_seconds", Help: "Time to make a container, of those that became ready.", Buckets: prometheus.ExponentialBuckets(0.01, 2, 12),
		}),
	}
	m.registry.MustRegister(m, m.got, m.made)
	return m
}

// Metrics serves them in the text format of Prometheus.
func (s *Service) Metrics() http.Handler {
	return promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 2})
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range poolMetrics {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	m.s.mu.Lock()
	st := m.s.status()
	errs := maps.Clone(m.s.errs)
	m.s.mu.Unlock()
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(mRooms, st.Making, string(cellMaking))
	gauge(mRooms, st.Ready, string(cellReady))
	gauge(mRooms, st.Leased, string(cellLeased))
	gauge(mRooms, st.Used, string(cellUsed))
	gauge(mRooms, st.Ending, string(cellEnding))
	gauge(mWanted, st.Wanted)
	gauge(mWaiting, st.Waiting)
	gauge(mClients, st.Clients)
	paused := 0
	if st.Paused != "" {
		paused = 1
	}
	gauge(mPaused, paused)
	count(mMade, st.Totals.Made)
	count(mFailed, st.Totals.Failed)
	count(mReturned, st.Totals.Returned)
	count(mRemoved, st.Totals.Removed)
	count(mLost, st.Totals.Lost)
	count(mGets, st.Totals.Served, "served")
	count(mGets, st.Totals.Refused, "refused")
	for _, cause := range failureCauses {
		count(mErrors, errs[cause], cause)
	}
	count(mRejected, st.Totals.Rejected)
}
