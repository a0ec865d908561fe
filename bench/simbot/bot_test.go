package simbot

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/skepdev/skep/api/botapi"
)

// A bot says as much as a real one does, and ends as it does.
func TestBotSaysWhatARealOneDoes(t *testing.T) {
	polls := []string{`{"cmd":"sleep","session":"s2"}`, `{"cmd":"run","task_id":"5a01","session":"s3"}`, `{"cmd":"terminate","task_id":"5a11","session":"s4"}`, `{"cmd":"host_reboot","session":"s5"}`}
	var said []string
	hs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var got map[string]any
		if err := json.Unmarshal(body, &got); err != nil {
			t.Errorf("%s: %v: %s", r.URL.Path, err, body)
		}
		said = append(said, fmt.Sprint(strings.TrimPrefix(r.URL.Path, "/swarming/api/v1/bot/"), " ", got["session"]))
		switch r.URL.Path {
		case botapi.PathPoll:
			const recorded = 2782 // Content-Length in api/testdata/captures/bot_poll_run.json
			if n := len(body); n < recorded || n > recorded+recorded/10 {
				t.Errorf("a poll has %d bytes, the recorded one %d", n, recorded)
			}
			_, _ = io.WriteString(w, polls[0])
			polls = polls[1:]
		case botapi.PathHandshake:
			_, _ = io.WriteString(w, `{"session":"s1"}`)
		default:
			_, _ = io.WriteString(w, `{"ok":true,"must_stop":false,"session":"u"}`)
		}
	}))
	defer hs.Close()
	b, err := Dial(hs.URL, "bench--1")
	if err != nil {
		t.Fatal(err)
	}
	poll := func() (string, string, error) {
		if err := b.Ask(0); err != nil {
			t.Fatal(err)
		}
		cmd, task, err := b.Answer()
		return cmd, string(task), err
	}
	for _, want := range [][2]string{{"sleep", ""}, {"run", "5a01"}, {"terminate", "5a11"}} {
		if cmd, task, err := poll(); err != nil || cmd != want[0] || task != want[1] {
			t.Errorf("got %q %q, %v, want %v", cmd, task, err, want)
		}
	}
	if cmd, _, err := poll(); err == nil {
		t.Errorf("%q is taken for something that it knows", cmd)
	}
	if err := b.Leave([]byte("5a11")); err != nil {
		t.Fatal(err)
	}
	want := []string{"handshake <nil>", "poll s1", "poll s2", "poll s3", "poll s4", "task_update/5a11 s5", "event u"}
	if !slices.Equal(said, want) {
		t.Errorf("said %q, want %q", said, want)
	}
}

func TestWire(t *testing.T) {
	hs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/chunks":
			for _, s := range []string{"one ", strings.Repeat("x", 9000), " three"} {
				_, _ = w.Write([]byte(s))
				w.(http.Flusher).Flush()
			}
		case "/refused":
			http.Error(w, "no", http.StatusTeapot)
		default:
			_, _ = fmt.Fprintf(w, "%s %s", r.Method, r.Header.Get("Content-Type"))
		}
	}))
	defer hs.Close()
	w, err := DialWire(hs.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, tc := range []struct{ path, want, err string }{
		{"/", "POST application/json; charset=UTF-8", ""},
		{"/chunks", "one " + strings.Repeat("x", 9000) + " three", ""},
		{"/refused", "", "418"},
		{"/", "POST application/json; charset=UTF-8", ""},
	} {
		got, err := w.Post(tc.path, JSON, []byte("{}"))
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%s: error %v, want one with %s", tc.path, err, tc.err)
			}
			continue
		}
		if err != nil || string(got) != tc.want {
			t.Errorf("%s: %.40q %v, want %.40q", tc.path, got, err, tc.want)
		}
	}
}
