package launch

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/skepdev/skep/host/engine"
)

// metrics are what a launcher tells a monitoring system. docs/hosts.md
type metrics struct {
	registry         *prometheus.Registry
	started, crashes prometheus.Counter
	drains, cures    *prometheus.CounterVec
}

func newMetrics(l *Launcher) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		started:  prometheus.NewCounter(prometheus.CounterOpts{Name: "skep_host_containers_started_total", Help: "Containers started."}),
		crashes:  prometheus.NewCounter(prometheus.CounterOpts{Name: "skep_host_container_crashes_total", Help: "Containers that ended and were not asked to."}),
		drains:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "skep_host_drains_total", Help: "Bots asked to end, by cause."}, []string{"cause"}),
		cures:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "skep_host_engine_cures_total", Help: "What an engine that did not answer needed."}, []string{"cure"}),
	}
	wanted := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "skep_host_containers_wanted", Help: "Containers that are to run."}, func() float64 { return float64(l.o.Settings().Slots) })
	running := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "skep_host_containers_running", Help: "Containers that ran when last looked."}, func() float64 {
		l.mu.Lock()
		defer l.mu.Unlock()
		n := 0
		for _, c := range l.snapshot {
			if c.State == engine.Running {
				n++
			}
		}
		return float64(n)
	})
	m.registry.MustRegister(m.started, m.crashes, m.drains, m.cures, wanted, running)
	return m
}
