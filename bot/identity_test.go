package bot

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// A VM's identity is asked for once until 5 minutes before its end, for the
// server's URL, and kept while the metadata server is away and it is good.
func TestVMIdentity(t *testing.T) {
	now := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	var asked atomic.Int32
	away := false
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := asked.Add(1)
		if r.Header.Get("Metadata-Flavor") != "Google" || r.FormValue("audience") != "https://h:1" || r.FormValue("format") != "full" {
			t.Errorf("asked %s", r.URL)
		}
		if away {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Metadata-Flavor", "Google")
		payload := fmt.Sprintf(`{"exp":%d}`, now.Add(time.Hour).Unix())
		fmt.Fprintf(w, "h.%s.%d\n", base64.RawURLEncoding.EncodeToString([]byte(payload)), n)
	}))
	defer s.Close()
	v := NewVMIdentity(strings.TrimPrefix(s.URL, "http://"), "https://h:1")
	v.now = func() time.Time { return now }
	for _, c := range []struct {
		name  string
		after time.Duration
		away  bool
		want  string // end of the token
		asked int32
	}{
		{"the first", 0, false, ".1", 1},
		{"a later one", 54 * time.Minute, false, ".1", 1},
		{"5 minutes before its end, and away", 90 * time.Second, true, ".1", 2},
		{"at once again", 50 * time.Millisecond, true, ".1", 2},
		{"when it is back", 20 * time.Second, false, ".3", 3},
		{"away for longer", 2 * time.Hour, true, "", 4},
		{"and back", time.Minute, false, ".5", 5},
	} {
		now, away = now.Add(c.after), c.away
		got, err := v.Token()
		if !strings.HasSuffix(got, c.want) || (got == "") != (c.want == "") || (err != nil) != (c.want == "") || asked.Load() != c.asked {
			t.Errorf("%s: %q %v after %d questions, want %q after %d", c.name, got, err, asked.Load(), c.want, c.asked)
		}
	}
}

func TestEndOf(t *testing.T) {
	for _, bad := range []string{"", "a.b", "a.!.c", "a." + base64.RawURLEncoding.EncodeToString([]byte(`{}`)) + ".c", "a." + base64.RawURLEncoding.EncodeToString([]byte(`{"exp":1e300}`)) + ".c"} {
		if _, err := endOf(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
