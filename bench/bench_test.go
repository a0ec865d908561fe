package bench

import (
	"context"
	"fmt"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/api/prpc"
	"github.com/skepdev/skep/bench/simbot"
	"github.com/skepdev/skep/client"
	"github.com/skepdev/skep/scheduler"
	"github.com/skepdev/skep/server"
	"github.com/skepdev/skep/store"
)

// inProcess serves a fleet without a process of its own.
func inProcess(t *testing.T) *service {
	t.Helper()
	st, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "skep.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	sched := scheduler.New(st, scheduler.Options{Version: "test"})
	if err := sched.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	srv, err := server.New(t.Context(), server.Options{Store: st, Scheduler: sched, Version: "test", Open: true, CASInstance: "projects/skep/instances/default"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- sched.Run(ctx) }()
	hs := httptest.NewServer(srv)
	s := &service{URL: hs.URL, Engine: "sqlite", Durability: map[string]string{"synchronous": "FULL"}}
	if s.client, err = client.New(client.Options{Server: hs.URL, Retry: prpc.Retry{Times: -1}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		srv.Drain()
		s.client.Close()
		hs.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestGeneratorAndServerAgree(t *testing.T) {
	s := inProcess(t)
	g := &generator{tag: "bench:test", limit: 40}
	if err := g.prepare(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for i := range 4 {
		b, err := simbot.Dial(s.URL, fmt.Sprintf("bench--%d", i))
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		if err := b.Ask(0); err != nil {
			t.Fatal(err)
		}
		if cmd, _, err := b.Answer(); err != nil || cmd != botapi.CmdSleep {
			t.Fatalf("an idle poll got %q, %v", cmd, err)
		}
		g.bots = append(g.bots, b)
	}
	res, err := g.work(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.recount(t.Context(), s, began); err != nil {
		t.Fatal(err)
	}
	rep := res.report()
	if rep.N < 40 || g.finished() < rep.N {
		t.Errorf("%d samples of %d lifecycles, want 40", rep.N, g.finished())
	}
	g.ids["5a00000000000111"] = true
	if err := g.recount(t.Context(), s, began); err == nil {
		t.Error("one that the server never saw was not missed")
	}
}

func TestSpread(t *testing.T) {
	var vs []float64
	for i := range 1000 {
		vs = append(vs, float64((i*7)%1000))
	}
	if d := cmp.Diff(spread{Median: 500, P99: 990}, spreadOf(vs)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if d := cmp.Diff(spread{}, spreadOf(nil)); d != "" {
		t.Errorf("of nothing (-want +got):\n%s", d)
	}
}

func TestRunRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		name string
		o    Options
	}{
		"an unknown case":          {"speed", Options{}},
		"too few samples":          {"lifecycle", Options{N: 10}},
		"a program that is none":   {"lifecycle", Options{Exe: "/bin/false", Dir: t.TempDir()}},
		"a directory that is none": {"lifecycle", Options{Dir: filepath.Join(t.TempDir(), "none")}},
	} {
		if rep, err := Run(t.Context(), tc.name, tc.o); err == nil {
			t.Errorf("%s: %v", name, rep)
		}
	}
}

func TestNumber(t *testing.T) {
	r := &Report{Extra: map[string]any{"a": map[string]spread{"b": {Median: 2}}, "n": 3}}
	for _, tc := range []struct {
		path []string
		want float64
		ok   bool
	}{
		{[]string{"n"}, 3, true},
		{[]string{"a", "b", "median"}, 2, true},
		{[]string{"a", "b"}, 0, false},
		{[]string{"x"}, 0, false},
		{[]string{"n", "x"}, 0, false},
	} {
		if got, ok := r.Number(tc.path...); got != tc.want || ok != tc.ok {
			t.Errorf("%v: %v %v, want %v %v", tc.path, got, ok, tc.want, tc.ok)
		}
	}
}
