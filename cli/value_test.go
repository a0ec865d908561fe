package cli

import (
	"regexp"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseSeconds(t *testing.T) {
	for _, test := range []struct {
		in   string
		want seconds
		ok   bool
	}{
		{"0", 0, true},
		{"90", 90, true},
		{"90s", 90, true},
		{"1h30m", 5400, true},
		{"500ms", 0, false},
		{"-1", 0, false},
		{"-1s", 0, false},
		{"9999999999", 0, false},
		{"soon", 0, false},
		{"", 0, false},
	} {
		got, err := parseSeconds(test.in)
		if got != test.want || (err == nil) != test.ok {
			t.Errorf("parseSeconds(%q) = %d, %v; want %d, ok %v", test.in, got, err, test.want, test.ok)
		}
	}
}

func TestPairs(t *testing.T) {
	p := pairs{what: "k=v"}
	for _, s := range []string{"b=1", "a=x=y", "b=2", "c="} {
		if err := p.Set(s); err != nil {
			t.Errorf("Set(%q): %v", s, err)
		}
	}
	want := []pair{{"a", "x=y"}, {"b", "2"}, {"c", ""}}
	if diff := cmp.Diff(want, p.sorted(), cmp.AllowUnexported(pair{})); diff != "" {
		t.Error(diff)
	}
	for _, s := range []string{"", "k", "=v"} {
		if err := p.Set(s); err == nil {
			t.Errorf("Set(%q) was accepted", s)
		}
	}
}

func TestInstant(t *testing.T) {
	for in, want := range map[string]time.Time{
		"2026-08-01T12:00:00Z":      time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC),
		"2026-08-01T12:00:00+02:00": time.Date(2026, 8, 1, 10, 0, 0, 0, time.UTC),
		"1785585600":                time.Unix(1785585600, 0),
		"1785585600.5":              time.Unix(1785585600, 500000000),
		"0":                         {},
	} {
		var got instant
		if err := got.Set(in); err != nil || !got.Equal(want) {
			t.Errorf("Set(%q) gives %v, %v; want %v", in, got, err, want)
		}
	}
	if err := new(instant).Set("NaN"); err == nil {
		t.Error("NaN was accepted")
	}
}

func TestNewUUID(t *testing.T) {
	form := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	a, b := newUUID(), newUUID()
	if !form.MatchString(a) || a == b {
		t.Errorf("newUUID gives %s, then %s", a, b)
	}
}

func TestExitCode(t *testing.T) {
	for in, want := range map[int64]int{1: 1, 255: 255, 256: 1, 257: 1, -9: 137, -15: 143, -1073741510: 1} {
		if got := exitCode(in); got != want && in != -1073741510 || got == 0 || got > 255 {
			t.Errorf("exitCode(%d) = %d, want %d", in, got, want)
		}
	}
}

func TestPollDelay(t *testing.T) {
	d := newPollDelay()
	var elapsed, last time.Duration
	for range 200 {
		pause := d.step(elapsed)
		if pause < last || pause > 15*time.Second {
			t.Fatalf("after %v the pause is %v, the one before it %v", elapsed, pause, last)
		}
		if pause > firstPoll && pause > time.Second+elapsed/30 {
			t.Fatalf("after %v the pause is %v", elapsed, pause)
		}
		last, elapsed = pause, elapsed+pause
	}
	if last != 15*time.Second {
		t.Errorf("after %v the pause is %v, want 15 s", elapsed, last)
	}
	d.reset()
	if got := d.step(elapsed); got != firstPoll {
		t.Errorf("after a reset the pause is %v, want %v", got, firstPoll)
	}
}

func TestQuoteCommand(t *testing.T) {
	got := quoteCommand([]string{"sh", "-c", "echo 'a b'; exit 3", "", "plain-1"})
	want := `sh -c 'echo '\''a b'\''; exit 3' '' plain-1`
	if got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
