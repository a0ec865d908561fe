package gcesim

import (
	"slices"
	"strconv"
)

// number is a number for an id that does not change.
func number(list []string, name string) string {
	return strconv.Itoa(1000 + slices.Index(list, name))
}

func (s *Sim) zoneAnswer(c *call, name string) any {
	return map[string]any{
		"kind": "compute#zone", "id": number(s.o.Zones, name), "name": name, "description": name, "status": "UP",
		"region": c.link("regions", regionOf(name)), "selfLink": c.link("zones", name), "creationTimestamp": stamp(0),
	}
}

func (s *Sim) zone(c *call) (any, *refusal) {
	name := c.r.PathValue("zone")
	if !slices.Contains(s.o.Zones, name) {
		return nil, notFound("The resource 'projects/%s/zones/%s' was not found", c.project.name, clip(name))
	}
	return s.zoneAnswer(c, name), nil
}

func (s *Sim) zones(c *call) (any, *refusal) {
	return c.catalog("compute#zoneList", "zones", s.o.Zones, func(name string) any { return s.zoneAnswer(c, name) })
}

func (s *Sim) regionNames() []string {
	var names []string
	for _, z := range s.o.Zones {
		names = append(names, regionOf(z))
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (s *Sim) regionAnswer(c *call, name string) any {
	var zones, quotas []any
	for _, z := range s.o.Zones {
		if regionOf(z) == name {
			zones = append(zones, c.link("zones", z))
		}
	}
	for _, m := range metrics {
		limit, ok := s.set.Quota[m]
		if !ok {
			limit = 1e6
		}
		quotas = append(quotas, map[string]any{"metric": m, "limit": limit, "usage": c.project.usage[name][m]})
	}
	return map[string]any{
		"kind": "compute#region", "id": number(s.regionNames(), name), "name": name, "description": name, "status": "UP",
		"zones": zones, "quotas": quotas, "selfLink": c.link("regions", name), "creationTimestamp": stamp(0),
	}
}

func (s *Sim) region(c *call) (any, *refusal) {
	name := c.r.PathValue("region")
	if !slices.Contains(s.regionNames(), name) {
		return nil, notFound("The resource 'projects/%s/regions/%s' was not found", c.project.name, clip(name))
	}
	return s.regionAnswer(c, name), nil
}

func (s *Sim) regions(c *call) (any, *refusal) {
	return c.catalog("compute#regionList", "regions", s.regionNames(), func(name string) any { return s.regionAnswer(c, name) })
}

// catalog is a page of sorted names.
func (c *call) catalog(kind, what string, names []string, item func(string) any) (any, *refusal) {
	from, size, r := c.page()
	if r != nil {
		return nil, r
	}
	start, ok := slices.BinarySearch(names, from)
	if ok {
		start++
	}
	end := min(start+size, len(names))
	items := []any{}
	for _, n := range names[start:end] {
		items = append(items, item(n))
	}
	m := map[string]any{"kind": kind, "id": "projects/" + c.project.name + "/" + what, "selfLink": c.link(what), "items": items}
	if end < len(names) {
		m["nextPageToken"] = pageToken(names[end-1])
	}
	return m, nil
}
