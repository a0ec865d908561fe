package server

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/skepdev/skep/provider/machine"
	"github.com/skepdev/skep/store"
)

// ProviderDoor is how a provider that is a process of its own is looked at:
// GET /healthz, /readyz and /metrics. It cannot be steered here: that is done
// at any server of the database.
type ProviderDoor struct {
	Store    *store.Store
	Machines *machine.Reconciler
	Log      *slog.Logger
	// Token is what a scraper of /metrics must bring; nil = nothing. While it is
	// "", nobody comes in.
	Token func() string
}

// Handler returns what serves it.
func (d *ProviderDoor) Handler() http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), d)
	metrics := promhttp.HandlerFor(reg, promhttp.HandlerOpts{
		MaxRequestsInFlight: 2, Timeout: maxMetricsSecs * time.Second, ErrorHandling: promhttp.ContinueOnError,
	})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if err := d.Store.Ping(r.Context()); err != nil {
			http.Error(w, "the database does not answer", http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ok\n"))
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		if d.Token != nil && !brings(r, d.Token()) {
			http.Error(w, "metrics are for who brings the token of --metrics-token-file", http.StatusUnauthorized)
			return
		}
		metrics.ServeHTTP(w, r)
	})
	return mux
}

// providerMetrics are what it counts.
var providerMetrics = slices.Concat(machineMetrics, []*prometheus.Desc{mCommits, mChanges, mFailed, mCommitTime})

// Describe implements prometheus.Collector.
func (d *ProviderDoor) Describe(out chan<- *prometheus.Desc) {
	for _, m := range providerMetrics {
		out <- m
	}
}

// Collect implements prometheus.Collector.
func (d *ProviderDoor) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), maxMetricsSecs*time.Second)
	defer cancel()
	collectStore(d.Store, out)
	collectMachines(ctx, d.Machines, d.Log, out)
}
