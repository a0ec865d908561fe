package gce_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/provider/gce"
	"github.com/skepdev/skep/provider/gce/gcesim"
)

// BenchmarkList reads the 100,000 instances of a zone over a real connection.
func BenchmarkList(b *testing.B) {
	const n = 100_000
	sim := gcesim.New(gcesim.Options{})
	srv := httptest.NewServer(sim)
	defer srv.Close()
	carrier := &http.Transport{}
	defer carrier.CloseIdleConnections()
	inside, err := gce.New(b.Context(), gce.Options{Transport: sim.Transport()})
	if err != nil {
		b.Fatal(err)
	}
	for i := range n {
		if done, err := inside.Create(b.Context(), order(fmt.Sprintf("vm-%d", i))); !done || err != nil {
			b.Fatal(done, err)
		}
	}
	p, err := gce.New(b.Context(), gce.Options{Endpoint: srv.URL, Transport: carrier})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		got := 0
		for token := ""; ; {
			page, next, err := p.List(b.Context(), provider.Scope{Project: scope.Project, Zone: scope.Zone}, token)
			if err != nil {
				b.Fatal(err)
			}
			got += len(page)
			if token = next; token == "" {
				break
			}
		}
		if got != n {
			b.Fatalf("%d instances, want %d", got, n)
		}
	}
}
