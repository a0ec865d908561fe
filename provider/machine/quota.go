package machine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/skepdev/skep/provider"
)

// Project is a project of Compute Engine whose quota is read. spec §2.5.
type Project struct {
	Name             string
	Metrics, Regions []string
}

// ProjectQuota is one limit of a project.
type ProjectQuota struct {
	Project string
	provider.Allowance
}

// quotas are what a project's cloud said last.
type quotas struct {
	at   time.Time
	list []provider.Allowance
}

const (
	quotaLease = "(quota)"        // the right to read quotas. No pool has this name
	quotaKind  = "gce"            // whose projects projects.cfg names
	quotaEvery = time.Minute      // spec §5: report-quota
	quotaLife  = 10 * time.Minute // what is older says nothing
	quotaLimit = 50 * time.Second // for all projects
	quotaMost  = 1000             // that are kept of a project: regions × metrics
)

// projects are those whose quota is read.
func (r *Reconciler) projects() []Project {
	if r.o.Projects == nil {
		return nil
	}
	return r.o.Projects()
}

// readQuotas reads quotas every minute, on one server of those that share a
// database. spec §7.12.
func (r *Reconciler) readQuotas(ctx context.Context) error {
	tick := time.NewTicker(quotaEvery)
	defer tick.Stop()
	for {
		r.readQuotasOnce(ctx)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func (r *Reconciler) readQuotasOnce(ctx context.Context) {
	projects := r.projects()
	mine := len(projects) > 0 && r.ours(quotaLease)
	r.mu.Lock()
	for name, q := range r.quotas { // what is not read here any more, or could not be
		known := slices.ContainsFunc(projects, func(p Project) bool { return p.Name == name })
		if !mine || !known || r.o.Now().Sub(q.at) >= quotaLife {
			delete(r.quotas, name)
		}
	}
	r.mu.Unlock()
	if !mine {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, quotaLimit)
	defer cancel()
	for _, p := range projects {
		list, err := r.quotaOf(ctx, p)
		if errors.Is(ctx.Err(), context.Canceled) {
			return
		}
		if err != nil {
			r.o.Log.WarnContext(ctx, "quota not read", "project", p.Name, "err", err)
			continue
		}
		r.mu.Lock()
		r.quotas[p.Name] = quotas{r.o.Now(), list}
		r.mu.Unlock()
	}
}

// quotaOf asks for what of a project's quota is to be told.
func (r *Reconciler) quotaOf(ctx context.Context, p Project) ([]provider.Allowance, error) {
	cloud, err := r.clouds(quotaKind, nil)
	if err != nil {
		return nil, err
	}
	teller, ok := cloud.(provider.QuotaTeller)
	if !ok {
		return nil, fmt.Errorf("machines of kind %s have no quota", quotaKind)
	}
	list, err := teller.Quotas(ctx, p.Name, p.Regions)
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(q provider.Allowance) bool {
		return !slices.Contains(p.Metrics, q.Metric) || !slices.Contains(p.Regions, q.Region)
	})
	return list[:min(len(list), quotaMost)], nil
}

// Quotas returns what was read last, by project, region and metric.
func (r *Reconciler) Quotas() (out []ProjectQuota) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, q := range r.quotas {
		if r.o.Now().Sub(q.at) >= quotaLife {
			continue
		}
		for _, one := range q.list {
			out = append(out, ProjectQuota{name, one})
		}
	}
	slices.SortFunc(out, func(a, b ProjectQuota) int {
		return strings.Compare(a.Project+" "+a.Region+" "+a.Metric, b.Project+" "+b.Region+" "+b.Metric)
	})
	return slices.CompactFunc(out, func(a, b ProjectQuota) bool { // a project may name a region twice
		return a.Project == b.Project && a.Region == b.Region && a.Metric == b.Metric
	})
}
