package machine

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skepdev/skep/provider"
)

// teller is a cloud that tells quotas.
type teller struct {
	*world
	fail  map[string]error // by project
	usage float64
	calls map[string]int
}

func (c *teller) Quotas(_ context.Context, project string, regions []string) (out []provider.Allowance, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls[project]++
	if err := c.fail[project]; err != nil {
		return nil, err
	}
	for _, region := range regions {
		for _, metric := range []string{"CPUS", "DISKS_TOTAL_GB", "INSTANCES"} {
			out = append(out, provider.Allowance{Region: region, Metric: metric, Limit: 100, Usage: c.usage})
		}
	}
	return out, nil
}

// Quota is read every minute, of what projects.cfg names alone; what was read
// too long ago is told no more.
func TestQuotas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		projects := []Project{{"a", []string{"CPUS", "INSTANCES"}, []string{"r1", "r2", "r1"}}, {"b", []string{"CPUS"}, []string{"r1"}}, {"c", []string{"CPUS"}, nil}}
		c := &teller{world: w, fail: map[string]error{}, calls: map[string]int{}, usage: 7}
		r, err := New(t.Context(), w.store, fleetOf{w}, func(kind string, _ []string) (provider.Provider, error) {
			if kind != "gce" {
				return nil, errors.New("no cloud of kind " + kind)
			}
			return c, nil
		}, Options{Projects: func() []Project { w.mu.Lock(); defer w.mu.Unlock(); return projects }})
		if err != nil {
			t.Fatal(err)
		}
		w.r = r
		stop := w.run()
		defer stop()
		want := func(what, want string) {
			t.Helper()
			got := ""
			for _, q := range r.Quotas() {
				got += fmt.Sprintf("%s/%s/%s:%v/%v ", q.Project, q.Region, q.Metric, q.Usage, q.Limit)
			}
			if got != want {
				t.Errorf("%s: %s, want %s", what, got, want)
			}
		}
		time.Sleep(time.Second)
		const b = "b/r1/CPUS:7/100 "
		want("at once", "a/r1/CPUS:7/100 a/r1/INSTANCES:7/100 a/r2/CPUS:7/100 a/r2/INSTANCES:7/100 "+b)
		w.mu.Lock()
		c.usage, c.fail["b"] = 8, errors.New("no answer")
		w.mu.Unlock()
		time.Sleep(time.Minute)
		const a = "a/r1/CPUS:8/100 a/r1/INSTANCES:8/100 a/r2/CPUS:8/100 a/r2/INSTANCES:8/100 "
		want("a minute later", a+b)
		time.Sleep(10 * time.Minute)
		want("of b nothing is known any more", a)
		w.mu.Lock()
		if n := c.calls["a"]; n != 12 {
			t.Errorf("project a was asked for %d times in 11 minutes", n)
		}
		projects = projects[1:2]
		delete(c.fail, "b")
		w.mu.Unlock()
		time.Sleep(time.Minute)
		want("without a", "b/r1/CPUS:8/100 ")
	})
}
