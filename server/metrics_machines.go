package server

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/skepdev/skep/provider/machine"
)

// What spec/provider.md §14 asks for, but for what ADR 84 leaves out. No label
// holds a machine, so that their number does not grow with replacements; a pool
// of up to three zones has at most 50. promise P25.
var (
	mConfigured  = desc("machines_configured", "Machines that are wanted.", "pool", "kind", "scaling", "project", "resource_group")
	mCreated     = desc("machines_created", "Machines that exist.", "pool", "project", "zone", "scaling")
	mConnected   = desc("machines_connected", "Machines whose bot is alive.", "pool", "project", "zone", "scaling", "resource_group")
	mMachinesIn  = desc("machines", "Machines by what they are; one may count in several.", "pool", "state")
	mCreates     = desc("machine_creations_total", "Calls of this server that make a machine, repeated ones too.", "pool")
	mDestroys    = desc("machine_destructions_total", "Calls of this server that take a machine away, repeated ones too.", "pool")
	mCreation    = desc("machine_creation_seconds", "Time from the plan of a machine until it existed.", "pool")
	mConnection  = desc("machine_connection_seconds", "Time from then until its bot came.", "pool")
	mReady       = desc("machine_ready_seconds", "Time from the plan of a machine, or from its next start, until its bot came.", "pool", "resource_group")
	mCreateFails = desc("machine_creation_failures_total", "Machines that this server could not have made.", "pool", "project", "zone", "class")
	mPoolFailure = desc("machine_pool_failing", "1 for a pool whose last machine could not be made, or whose bot did not come, by the class of the cause.", "pool", "class")
	mLeaks       = desc("machine_leaks", "Instances without a record that the last audit of this server found in a place.", "kind", "project", "zone")
	mScan        = desc("machine_scan_seconds", "Time that the last look of this server at the records of all machines took.")
	mAnswers     = desc("machine_server_answers", "1 for another Swarming server whose bots this process looked at last time, 0 for one that did not answer.", "server")
	mQuotaLimit  = desc("machine_quota_limit", "What a project may use in a region.", "metric", "project", "region")
	mQuotaUsage  = desc("machine_quota_usage", "What it uses.", "metric", "project", "region")
	mQuotaLeft   = desc("machine_quota_remaining", "What it may use besides.", "metric", "project", "region")
	mUntracked   = desc("machine_untracked_gets_total", "Virtual machines that asked for themselves and have no record.")
)

// maxQuotas bounds how many limits of projects are told.
const maxQuotas = 1000

// collectMachines recounts what is stored, so that no number drifts. promise P17.
func collectMachines(ctx context.Context, r *machine.Reconciler, log *slog.Logger, out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	all, err := r.Status(ctx, "")
	if err != nil {
		log.WarnContext(ctx, "machines are not counted", "err", err)
		return
	}
	counts := r.Counts()
	for i := range all[:min(len(all), maxPoolLabels)] {
		st := &all[i]
		p := st.Pool.Prefix
		gauge(mConfigured, st.Configured, p, st.Pool.Kind, st.Scaling, st.Project, st.Group)
		created := map[[2]string]int{}
		for at, n := range st.ByPlace {
			created[[2]string{at.Project, at.Zone}] += n.Created
			gauge(mConnected, n.Connected, p, at.Project, at.Zone, st.Scaling, at.Group)
		}
		for at, n := range created {
			gauge(mCreated, n, p, at[0], at[1], st.Scaling)
		}
		for state, n := range map[string]int{
			"planned": st.Planned, "created": st.Created, "connected": st.Connected, "busy": st.Busy, "draining": st.Draining, "stopped": st.Stopped, "outdated": st.Outdated,
		} {
			gauge(mMachinesIn, n, p, state)
		}
		if f := st.Pool.Failure; !f.At.IsZero() {
			gauge(mPoolFailure, 1, p, f.Class)
		}
		c, ok := counts[p]
		if !ok {
			continue
		}
		count(mCreates, c.Creates, p)
		count(mDestroys, c.Destroys, p)
		for f, n := range c.Failures {
			count(mCreateFails, n, p, st.Project, f.Zone, string(f.Class))
		}
		distribution(out, mCreation, &c.Created, p)
		distribution(out, mConnection, &c.Connected, p)
		distribution(out, mReady, &c.ReadyAfter, p, st.Group)
	}
	quotas := r.Quotas()
	for _, q := range quotas[:min(len(quotas), maxQuotas)] {
		for d, v := range map[*prometheus.Desc]float64{mQuotaLimit: q.Limit, mQuotaUsage: q.Usage, mQuotaLeft: q.Limit - q.Usage} {
			out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, q.Metric, q.Project, q.Region)
		}
	}
	if scan := r.LastScan(); !scan.At.IsZero() {
		out <- prometheus.MustNewConstMetric(mScan, prometheus.GaugeValue, scan.Took.Seconds())
	}
	for _, s := range r.Servers() {
		answers := 0
		if s.Err == nil {
			answers = 1
		}
		gauge(mAnswers, answers, s.Server)
	}
	for at, n := range leaks(r.Audits()) {
		gauge(mLeaks, n, at[0], at[1], at[2])
	}
}

// leaks counts by kind, project and zone. Programs of our own, which a name
// does not tell apart, may have one place together.
func leaks(audits []machine.AuditResult) map[[3]string]int {
	out := map[[3]string]int{}
	for _, a := range audits {
		out[[3]string{a.Kind, a.Project, a.Zone}] += a.Leaks
	}
	return out
}

func distribution(out chan<- prometheus.Metric, d *prometheus.Desc, v *machine.Distribution, labels ...string) {
	buckets, sum := map[float64]uint64{}, uint64(0)
	for i, bound := range machine.TimeBounds {
		sum += v.Buckets[i]
		buckets[bound] = sum
	}
	out <- prometheus.MustNewConstHistogram(d, v.Count, v.Seconds, buckets, labels...)
}
