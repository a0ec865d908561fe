package gce

import (
	"context"
	"slices"

	compute "google.golang.org/api/compute/v1"

	"github.com/skepdev/skep/provider"
)

// Zones returns the zones of a project that are up, sorted.
func (p *Provider) Zones(ctx context.Context, project string) ([]string, error) {
	if err := placed(project, "-", "-"); err != nil {
		return nil, err
	}
	var zones []string
	for token := ""; ; {
		var res *compute.ZoneList
		err := p.call(ctx, func(ctx context.Context) (err error) {
			res, err = p.stable.Zones.List(project).MaxResults(pageSize).PageToken(token).Fields("nextPageToken,items(name,status)").Context(ctx).Do()
			return err
		})
		if err != nil {
			return nil, err
		}
		for _, z := range res.Items {
			if z.Status == "UP" {
				zones = append(zones, z.Name)
			}
		}
		if token = res.NextPageToken; token == "" {
			slices.Sort(zones)
			return zones, nil
		}
	}
}

// Quotas implements provider.QuotaTeller. A region that there is not has none.
func (p *Provider) Quotas(ctx context.Context, project string, regions []string) ([]provider.Allowance, error) {
	var out []provider.Allowance
	for _, name := range regions {
		if err := placed(project, "-", name); err != nil {
			return nil, err
		}
		var region *compute.Region
		err := p.call(ctx, func(ctx context.Context) (err error) {
			region, err = p.stable.Regions.Get(project, name).Fields("quotas(metric,limit,usage)").Context(ctx).Do()
			return err
		})
		if provider.ClassOf(err) == provider.NotFound {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, q := range region.Quotas {
			out = append(out, provider.Allowance{Region: name, Metric: q.Metric, Limit: q.Limit, Usage: q.Usage})
		}
	}
	return out, nil
}
