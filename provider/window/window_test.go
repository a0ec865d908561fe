package window

import (
	"testing"
	"time"

	"github.com/skepdev/skep/provider"
)

func place(t *testing.T, name string) *time.Location {
	t.Helper()
	loc, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

// TestAmount has the examples of spec/provider.md §2.2.
func TestAmount(t *testing.T) {
	a := provider.Amount{Min: 1, Max: 10, Windows: []provider.Window{{Day: time.Monday, Hour: 8, Location: time.UTC, Length: 10 * time.Hour, Min: 5, Max: 20}}}
	monday := time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		after          time.Duration
		proposed, want int
	}{
		{8*time.Hour - time.Second, 0, 1},
		{8 * time.Hour, 0, 5},
		{12 * time.Hour, 15, 15},
		{12 * time.Hour, 50, 20},
		{18 * time.Hour, 20, 10},
		{18*time.Hour - 1, 20, 20},
	} {
		if got := Amount(a, c.proposed, monday.Add(c.after)); got != c.want {
			t.Errorf("%v: %d, want %d", c.after, got, c.want)
		}
	}
	if got := Next(a, monday); !got.Equal(monday.Add(8 * time.Hour)) {
		t.Errorf("opens next at %v", got)
	}
	if got := Next(a, monday.Add(8*time.Hour)); !got.Equal(monday.Add(18 * time.Hour)) {
		t.Errorf("closes at %v", got)
	}
	if got := Next(provider.Amount{Min: 1}, monday); !got.IsZero() {
		t.Errorf("without windows: %v", got)
	}
}

// TestOpens has the cases of spec/provider.md §17 D4, and others where clocks
// are not plain.
func TestOpens(t *testing.T) {
	for _, c := range []struct {
		name, place string
		day         time.Weekday
		hour, min   int
		now, want   string // local times with their offset
	}{
		{"nine stays nine", "America/Los_Angeles", time.Saturday, 9, 0, "2024-03-10T12:00:00-07:00", "2024-03-09T09:00:00-08:00"},
		{"the same day, not a week before", "America/Los_Angeles", time.Sunday, 0, 30, "2024-03-11T12:00:00-07:00", "2024-03-10T00:30:00-08:00"},
		{"after a leap year of rules", "America/Chicago", time.Tuesday, 9, 0, "2041-01-01T12:00:00-06:00", "2041-01-01T09:00:00-06:00"},
		{"the last day of a leap year of rules", "America/Chicago", time.Monday, 9, 0, "2040-12-31T12:00:00-06:00", "2040-12-31T09:00:00-06:00"},
		{"a time that is jumped over", "America/Los_Angeles", time.Sunday, 2, 30, "2024-03-10T12:00:00-07:00", "2024-03-10T03:00:00-07:00"},
		{"a time that comes twice", "America/Los_Angeles", time.Sunday, 1, 30, "2024-11-03T12:00:00-08:00", "2024-11-03T01:30:00-07:00"},
		{"midnight that is jumped over", "America/Santiago", time.Sunday, 0, 0, "2024-09-08T12:00:00-03:00", "2024-09-08T01:00:00-03:00"},
		{"a midnight that comes twice, seen from the day before", "America/St_Johns", time.Sunday, 0, 0, "2010-11-06T23:30:00-03:30", "2010-11-07T00:00:00-02:30"},
		{"half an hour", "Australia/Lord_Howe", time.Sunday, 2, 10, "2024-10-06T12:00:00+11:00", "2024-10-06T02:30:00+11:00"},
		{"a day that is left out", "Pacific/Apia", time.Friday, 9, 0, "2011-12-29T12:00:00-10:00", "2011-12-23T09:00:00-10:00"},
	} {
		now, err := time.Parse(time.RFC3339, c.now)
		if err != nil {
			t.Fatal(err)
		}
		w := provider.Window{Day: c.day, Hour: c.hour, Minute: c.min, Location: place(t, c.place), Length: time.Hour}
		start, _, ok := last(w, now)
		if got := start.Format(time.RFC3339); !ok || got != c.want {
			t.Errorf("%s: %s (%v), want %s", c.name, got, ok, c.want)
		}
	}
	apia := provider.Window{Day: time.Friday, Hour: 9, Location: place(t, "Pacific/Apia"), Length: 10 * 24 * time.Hour}
	if Open(apia, time.Date(2011, 12, 31, 0, 0, 0, 0, apia.Location)) {
		t.Error("open for more than a week")
	}
}

func TestOverlap(t *testing.T) {
	at := func(day time.Weekday, hour int, length time.Duration, zone string) provider.Window {
		return provider.Window{Day: day, Hour: hour, Length: length, Location: place(t, zone)}
	}
	for _, c := range []struct {
		name string
		a, b provider.Window
		want bool
	}{
		{"one behind the other", at(1, 8, time.Hour, "UTC"), at(1, 9, time.Hour, "UTC"), false},
		{"a second too long", at(1, 8, time.Hour+time.Second, "UTC"), at(1, 9, time.Hour, "UTC"), true},
		{"the same", at(1, 8, time.Second, "UTC"), at(1, 8, time.Second, "UTC"), true},
		{"over the end of the week", at(6, 23, 2*time.Hour, "UTC"), at(0, 0, time.Hour, "UTC"), true},
		{"over the end of the week, beside", at(6, 23, time.Hour, "UTC"), at(0, 0, time.Hour, "UTC"), false},
		{"a week long", at(3, 0, 7*24*time.Hour, "UTC"), at(2, 0, time.Second, "UTC"), true},
		{"elsewhere", at(1, 0, time.Hour, "Asia/Tokyo"), at(0, 15, time.Hour, "UTC"), true},
		{"elsewhere, beside", at(1, 0, time.Hour, "Asia/Tokyo"), at(0, 16, time.Hour, "UTC"), false},
		{"in summer only", at(1, 8, time.Hour, "Europe/Berlin"), at(1, 6, time.Hour, "UTC"), true},
	} {
		if Overlap(c.a, c.b) != c.want || Overlap(c.b, c.a) != c.want {
			t.Errorf("%s: %v", c.name, !c.want)
		}
	}
}
