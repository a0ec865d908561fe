package server

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/provider/machine"
	"github.com/skepdev/skep/store"
)

// How a provider of its own is looked at: whether it is ready, and what it
// counts, for who brings the token where there is one.
func TestProviderDoor(t *testing.T) {
	st, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "skep.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	rec, err := machine.New(t.Context(), st, nil, nil, machine.Options{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	c := provider.Config{Prefix: "p", Kind: "fake", Amount: provider.Amount{Min: 2, Max: 2}, Lifetime: time.Hour}
	if err := rec.Import(t.Context(), []provider.Config{c}, nil); err != nil {
		t.Fatal(err)
	}
	token := ""
	door := &ProviderDoor{Store: st, Machines: rec, Log: log}
	get := func(path, bearer string) (int, string) {
		r := httptest.NewRequestWithContext(context.WithoutCancel(t.Context()), http.MethodGet, path, nil)
		if bearer != "" {
			r.Header.Set("Authorization", "Bearer "+bearer)
		}
		w := httptest.NewRecorder()
		door.Handler().ServeHTTP(w, r)
		return w.Code, w.Body.String()
	}
	want := func(path, bearer string, code int, text string) {
		t.Helper()
		if got, body := get(path, bearer); got != code || !strings.Contains(body, text) {
			t.Errorf("%s with %q: %d %s", path, bearer, got, body)
		}
	}
	want("/healthz", "", 200, "ok")
	want("/readyz", "", 200, "ok")
	want("/metrics", "", 200, `skep_machines{pool="p",state="planned"} 0`)
	want("/metrics", "", 200, "skep_store_commits_total")
	want("/prpc/skep.v1.Machines/Drain", "", 404, "")
	door.Token = func() string { return token }
	want("/metrics", "", 401, "--metrics-token-file") // it cannot be read
	token = "0123456789abcdef"
	want("/metrics", "", 401, "--metrics-token-file")
	want("/metrics", "other", 401, "--metrics-token-file")
	want("/metrics", token, 200, "skep_machines")
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	want("/readyz", "", 503, "does not answer")
	want("/healthz", "", 200, "ok")
}
