package server

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/health"
	"github.com/skepdev/skep/rollout"
)

func scrape(t *testing.T, url, token string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

func TestMetrics(t *testing.T) {
	var srv *Server
	f := serve(t, func(o *Options) {
		code, err := rollout.New(t.Context(), rollout.Options{Store: o.Store, URLs: []string{"http://127.0.0.1:1"}})
		if err != nil {
			t.Fatal(err)
		}
		o.Code = code
	})
	srv = f.server
	bot := map[string]any{"dimensions": map[string]any{"id": []string{"b1"}, "pool": []string{"p"}}, "state": map[string]any{}, "version": "v"}
	if status, ans := f.post("/swarming/api/v1/bot/poll", bot); status != http.StatusOK {
		t.Fatal(ans)
	}
	bot["event"], bot["message"] = "bot_error", "fetch bot code x: what came has the digest y; it is not run"
	if status, ans := f.post("/swarming/api/v1/bot/event", bot); status != http.StatusOK {
		t.Fatal(ans)
	}
	if _, err := f.client.TerminateBot(t.Context(), &pb.TerminateRequest{BotId: "b1"}); err != nil {
		t.Fatal(err)
	}
	if err := srv.fleet.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	status, body := scrape(t, f.url, "")
	if status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	for _, want := range []string{
		`skep_http_requests_total{code="200",route="POST /swarming/api/v1/bot/poll"} 1`,
		`skep_tasks_total{state="PENDING"} 1`,
		`skep_tasks_pending{pool="none"} 1`,
		`skep_bots{pool="p",status="idle"} 1`,
		`skep_bot_events_total{event="bot_error"} 1`,
		`skep_bot_code_mismatches_total 1`,
		`skep_polls_waiting 0`,
		`skep_rollout_stage{stage="none"} 1`,
	} {
		if !strings.Contains(body, want+"\n") {
			t.Errorf("no %s", want)
		}
	}
	for _, name := range []string{"skep_store_commits_total", "skep_store_changes_total", "skep_store_commit_seconds_bucket", "skep_tasks_pending_age_seconds", "go_goroutines"} {
		if !strings.Contains(body, "\n"+name) {
			t.Errorf("no %s", name)
		}
	}
	if t.Failed() {
		t.Log(body)
	}
}

func TestWhoMayScrape(t *testing.T) {
	f := serve(t, func(o *Options) { o.MetricsToken = func() string { return "scraper-scraper-scraper" } })
	tokens := map[string]string{}
	for _, scope := range []string{ScopeAdmin, ScopeUser, ScopeBot} {
		n := NewToken{Name: scope, Scope: scope}
		if scope == ScopeBot {
			n.Bots = []string{"*"}
		}
		var err error
		if tokens[scope], _, err = CreateToken(t.Context(), f.store, n); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.server.tokens.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, token string
		want        int
	}{
		{"admin", tokens[ScopeAdmin], 200},
		{"scraper", "scraper-scraper-scraper", 200},
		{"user", tokens[ScopeUser], 403},
		{"bot", tokens[ScopeBot], 403},
		{"nobody", "", 401},
		{"a wrong token", "scraper-scraper-scrapes", 401},
	} {
		if got, body := scrape(t, f.url, tc.token); got != tc.want {
			t.Errorf("%s: %d, want %d: %.200s", tc.name, got, tc.want, body)
		}
	}
}

// The page names all metrics, and no other.
func TestMetricsAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented, have []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(skep_[a-z_]+)`").FindAllStringSubmatch(string(page), -1) {
		documented = append(documented, m[1])
	}
	for _, d := range slices.Concat(allMetrics, machineMetrics) {
		have = append(have, regexp.MustCompile(`fqName: "([^"]+)"`).FindStringSubmatch(d.String())[1])
	}
	slices.Sort(documented)
	slices.Sort(have)
	if diff := cmp.Diff(have, documented); diff != "" {
		t.Error(diff)
	}
}

// However many pools bots make up, labels are few.
func TestPoolLabelsAreBounded(t *testing.T) {
	names, got := labels{}, map[string]bool{}
	for i := range 10 * maxPoolLabels {
		got[names.of(fmt.Sprint("p", i))] = true
	}
	if len(got) != maxPoolLabels+1 || !got["other"] {
		t.Errorf("%d labels, want %d and other", len(got), maxPoolLabels)
	}
	if s := statusOf(&health.Bot{Dead: true, Ill: true}); s != "dead" {
		t.Errorf("a dead bot counts as %s", s)
	}
}
