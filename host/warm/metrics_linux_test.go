package warm_test

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep/host/pool"
	"github.com/skepdev/skep/host/warm"
	"github.com/skepdev/skep/host/warm/warmtest"
	"github.com/skepdev/skep/internal/need"
)

func scrape(t *testing.T, s *warm.Service) string {
	t.Helper()
	w := httptest.NewRecorder()
	s.Metrics().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	return w.Body.String()
}

// wants checks that the metrics say exactly this.
func wants(t *testing.T, s *warm.Service, lines ...string) {
	t.Helper()
	says(t, scrape(t, s), lines...)
}

func says(t *testing.T, text string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !strings.Contains(text, "\nskep_pool_"+line+"\n") {
			name, _, _ := strings.Cut(line, " ")
			name, _, _ = strings.Cut(name, "{")
			t.Errorf("want %s, got:\n%s", line, strings.Join(regexp.MustCompile(`(?m)^skep_pool_`+name+`.*$`).FindAllString(text, -1), "\n"))
		}
	}
}

// Metrics say what happened, and what is. L16 of promises.md.
func TestMetrics(t *testing.T) {
	need.Root(t, "a pool needs root")
	var broken atomic.Bool
	s := warmtest.Start(t, warm.Options{Size: warm.Size{Min: 2, Max: 2, Limit: 2, Creators: 1}, Runtime: &warmtest.Fake{Break: func(*warm.Spec) error {
		if broken.Load() {
			return errors.New("broken on purpose")
		}
		return nil
	}}})
	c, other := warmtest.Dial(t, s), warmtest.Dial(t, s)
	warmtest.Await(t, c, func(st *pool.Status) bool { return st.Ready == 2 })
	wants(t, s, `rooms{state="ready"} 2`, `rooms{state="making"} 0`, `rooms_made_total 2`, `gets_total{result="served"} 0`, `clients 2`, `paused 0`, `get_seconds_count 0`, `make_seconds_count 2`)

	used, err := c.Get(t.Context(), pool.Get{Confirm: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Get(t.Context(), pool.Get{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Get(t.Context(), pool.Get{}); pool.Reason(err) != pool.ReasonNoStock {
		t.Fatalf("a third of two: %v", err)
	}
	wants(t, s, `rooms{state="ready"} 0`, `rooms{state="used"} 1`, `rooms{state="leased"} 1`, `gets_total{result="served"} 2`, `gets_total{result="refused"} 1`, `get_seconds_count 2`)

	_ = other.Close() // back into stock
	warmtest.Await(t, c, func(st *pool.Status) bool { return st.Ready == 1 && st.Leased == 0 && st.Clients == 1 })
	wants(t, s, `rooms_returned_total 1`, `rooms_removed_total 0`, `clients 1`)

	broken.Store(true)
	if err := c.Release(t.Context(), used.Lease); err != nil {
		t.Fatal(err)
	}
	var text string // of a moment in which no further try failed
	st, before := &pool.Status{}, pool.Totals{}
	for st.Totals.Failed == 0 || st.Totals != before || st.Ending > 0 {
		before = warmtest.Await(t, c, func(st *pool.Status) bool { return st.Totals.Failed > 0 && st.Ending == 0 }).Totals
		text = scrape(t, s)
		if st, err = c.Status(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	says(t, text, `paused 1`, `rooms_made_total 2`, fmt.Sprintf(`errors_total{cause="make"} %d`, st.Totals.Failed), `errors_total{cause="base"} 0`, fmt.Sprintf("rooms_failed_total %d", st.Totals.Failed), fmt.Sprintf("rooms_removed_total %d", st.Totals.Removed), `make_seconds_count 2`)
	broken.Store(false)
	warmtest.Await(t, c, func(st *pool.Status) bool { return st.Ready == 2 })
	wants(t, s, `paused 0`, `rooms_made_total 3`, `rooms_lost_total 0`)

	raw, err := net.Dial("unix", s.Socket())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = raw.Write([]byte("nonsense\n"))
	warmtest.Await(t, c, func(st *pool.Status) bool { return st.Totals.Rejected == 1 })
	_ = raw.Close()
	wants(t, s, `rejected_total 1`)
}

// The page names all metrics of the pool, and no other.
func TestMetricsAreDocumented(t *testing.T) {
	need.Root(t, "a pool needs root")
	page, err := os.ReadFile(filepath.FromSlash("../../docs/hosts.md"))
	if err != nil {
		t.Fatal(err)
	}
	var documented, have []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(skep_pool_[a-z_]+)`").FindAllStringSubmatch(string(page), -1) {
		documented = append(documented, m[1])
	}
	s := warmtest.Start(t, warm.Options{Runtime: &warmtest.Fake{}, Size: warm.Size{Min: 1, Max: 1}})
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (\S+)`).FindAllStringSubmatch(scrape(t, s), -1) {
		have = append(have, m[1])
	}
	slices.Sort(documented)
	slices.Sort(have)
	if diff := cmp.Diff(have, documented); diff != "" {
		t.Error(diff)
	}
}
