// Package window says how many machines a pool may have at a moment: bounds for
// the whole time, and others for weekly windows by the clocks of a place.
// spec/provider.md §2.2. It steps by days of the calendar and then looks when
// the clocks show the time, so that a change of daylight saving moves nothing.
//
// A window opens when its clocks first show its time, or have jumped over it,
// on its day; on a day that a place leaves out it does not open. It is open for
// its length, and at the longest until its clocks show its time a week later.
package window

import (
	"time"
	_ "time/tzdata" // wherever it runs, the zones are there

	"github.com/skepdev/skep/provider"
)

// Amount returns proposed, put into the bounds of the first window that is open
// at now, else into those of a.
func Amount(a provider.Amount, proposed int, now time.Time) int {
	low, high := Bounds(a, now)
	return min(max(proposed, low), high)
}

// Bounds returns the fewest and the most at now.
func Bounds(a provider.Amount, now time.Time) (low, high int) {
	for _, w := range a.Windows {
		if Open(w, now) {
			return w.Min, w.Max
		}
	}
	return a.Min, a.Max
}

// Open reports whether a window is open at now.
func Open(w provider.Window, now time.Time) bool {
	start, end, ok := last(w, now)
	return ok && !start.After(now) && now.Before(end)
}

// Next returns when the bounds may change next: before, Bounds answers as now.
// Without windows it is zero.
func Next(a provider.Amount, now time.Time) (next time.Time) {
	for _, w := range a.Windows {
		if _, end, ok := last(w, now); ok && end.After(now) && (next.IsZero() || end.Before(next)) {
			next = end
		}
		if start := following(w, now); next.IsZero() || start.Before(next) {
			next = start
		}
	}
	return next
}

// last returns the latest time that w opened, up to now, and when that ends. ok
// is false when that was more than a week ago.
func last(w provider.Window, now time.Time) (start, end time.Time, ok bool) {
	y, m, d := now.In(w.Location).Date()
	for k := before(w, y, m, d); k >= -7; k -= 7 {
		if start, ok = opens(w, y, m, d+k); ok && !start.After(now) {
			end = start.Add(w.Length)
			if w.Length > 5*24*time.Hour { // no week is as short, whatever the clocks do
				if week := shows(w.Location, y, m, d+k+7, w.Hour, w.Minute); week.Before(end) {
					end = week
				}
			}
			return start, end, true
		}
	}
	return start, end, false
}

// following returns when w opens next, after now.
func following(w provider.Window, now time.Time) time.Time {
	y, m, d := now.In(w.Location).Date()
	for k := before(w, y, m, d); ; k += 7 { // of a few weeks a place leaves out one day at most
		if start, ok := opens(w, y, m, d+k); ok && start.After(now) {
			return start
		}
	}
}

// before returns the day of w's weekday from which on it may have opened last,
// as 1 for tomorrow and -6 for six days ago. It may have opened tomorrow: where
// clocks go back at midnight the day before comes again.
func before(w provider.Window, y int, m time.Month, d int) int {
	tomorrow := time.Date(y, m, d+1, 0, 0, 0, 0, time.UTC).Weekday()
	return 1 - int(tomorrow-w.Day+7)%7
}

// opens returns when w opens on a day of its weekday, if it does. The day is as
// for time.Date.
func opens(w provider.Window, y int, m time.Month, d int) (time.Time, bool) {
	t := shows(w.Location, y, m, d, w.Hour, w.Minute)
	return t, t.Weekday() == w.Day // a day that is left out is another one then
}

// shows returns when the clocks of a place first show a time, or a later one.
// time.Date does not say which of two instants it takes, nor what it makes of
// times that there are not.
func shows(loc *time.Location, y int, m time.Month, d, hour, minute int) time.Time {
	wanted := time.Date(y, m, d, hour, minute, 0, 0, time.UTC)
	t := wanted.Add(-26 * time.Hour).In(loc) // before, anywhere
	for {
		_, offset := t.Zone()
		end := zoneEnd(t)
		at := wanted.Add(-time.Duration(offset) * time.Second)
		if at.Before(t) { // the clocks have jumped over it
			at = t
		}
		if end.IsZero() || at.Before(end) {
			return at.In(loc)
		}
		t = end.In(loc)
	}
}

// zoneEnd returns when the clocks at t change, or a day on which they might;
// zero if never. Go 1.26 ends the last year of a zone's rules after 365 days, so
// that on the last day of a leap year the end is not after t.
func zoneEnd(t time.Time) time.Time {
	_, end := t.ZoneBounds()
	if end.IsZero() || end.After(t) {
		return end
	}
	_, end = t.Add(24 * time.Hour).ZoneBounds()
	return end
}

// Overlap reports whether two windows are open at the same time in a usual week.
// Clocks of different places are compared as they stand in January and in July;
// that for an hour or two at a change of daylight saving two windows are open is
// not meant: the first counts.
func Overlap(a, b provider.Window) bool {
	const week = 7 * 24 * time.Hour
	for _, month := range []time.Month{time.January, time.July} {
		between := (weekly(b, month) - weekly(a, month) + 2*week) % week // from where a opens to where b does
		if between < a.Length || week-between < b.Length {
			return true
		}
	}
	return false
}

// weekly is when a window opens in the week of UTC, which may be before or
// behind it.
func weekly(w provider.Window, month time.Month) time.Duration {
	_, offset := time.Date(2026, month, 15, 12, 0, 0, 0, w.Location).Zone()
	return time.Duration(w.Day)*24*time.Hour + time.Duration(w.Hour)*time.Hour + time.Duration(w.Minute)*time.Minute - time.Duration(offset)*time.Second
}
