// Package windowtest holds package window to clocks that are watched minute by
// minute, and that know nothing of its calendar.
package windowtest

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/provider/window"
)

// week in minutes.
const week = 7 * 24 * 60

// clock watches the clocks of a window's place.
type clock struct {
	w      provider.Window
	target int   // minute of the week, from Thursday 0:00, as 1970 began
	shown  int64 // the latest that the clocks have shown, in minutes since 1970
	opened int64 // what they showed, or should have, when it opened last; -1 = it did not
	until  int64 // Unix time
	any    bool
}

func watch(w provider.Window) *clock {
	day := (int(w.Day) - int(time.Thursday) + 7) % 7
	return &clock{w: w, target: day*24*60 + w.Hour*60 + w.Minute, opened: -1}
}

// minute passes: it is now t, in whole minutes since 1970.
func (c *clock) minute(t int64) {
	_, offset := time.Unix(t*60, 0).In(c.w.Location).Zone()
	local := t + int64(offset)/60
	if !c.any {
		c.any, c.shown = true, local
		return
	}
	if local <= c.shown { // the clocks have gone back
		return
	}
	// The first time behind what was shown that is one to open at.
	at := c.shown + 1 + (int64(c.target)-(c.shown+1)%week+week)%week
	if at <= local && at/(24*60) == local/(24*60) {
		c.opened, c.until = at, t*60+int64(c.w.Length/time.Second)
	}
	c.shown = local
}

// open reports whether the window is open at a second of the minute.
func (c *clock) open(second int64) bool {
	return c.opened >= 0 && second < c.until && c.shown < c.opened+week
}

// Random returns an amount with one or two weekly windows by the clocks of loc,
// many of them for when these change within a year after from.
func Random(r *rand.Rand, loc *time.Location, from time.Time) provider.Amount {
	a := provider.Amount{Min: r.IntN(50), Max: 50 + r.IntN(50)}
	var changes []time.Time
	for at := from.In(loc); at.Before(from.AddDate(1, 0, 0)); {
		_, t := at.ZoneBounds()
		switch {
		case t.IsZero():
			at = from.AddDate(1, 0, 0)
		case !t.After(at): // as Go has it at the end of a leap year
			at = at.AddDate(0, 0, 1)
		default:
			changes, at = append(changes, t), t
		}
	}
	for range 1 + r.IntN(2) {
		w := provider.Window{
			Day: time.Weekday(r.IntN(7)), Hour: r.IntN(24), Minute: r.IntN(60), Location: loc, Min: r.IntN(50), Max: 50 + r.IntN(50),
			Length: time.Duration(1+r.IntN(12*3600)) * time.Second,
		}
		if len(changes) > 0 && r.IntN(2) == 0 {
			t := changes[r.IntN(len(changes))].Add(time.Duration(r.IntN(2)-1) * time.Minute) // by the clocks before, or after
			_, offset := t.Zone()
			shown := t.UTC().Add(time.Duration(offset)*time.Second + time.Duration(r.IntN(180)-90)*time.Minute)
			w.Day, w.Hour, w.Minute = shown.Weekday(), shown.Hour(), shown.Minute()
		}
		if r.IntN(4) == 0 {
			w.Length = time.Duration(1+r.IntN(10*24*60)) * time.Minute // longer than a week, too
		}
		a.Windows = append(a.Windows, w)
	}
	return a
}

// Check compares window with clocks that are watched from one minute to
// another. It returns how many minutes it compared, and the first that differ.
func Check(a provider.Amount, from, to time.Time) (minutes int, mismatches []string) {
	clocks := make([]*clock, len(a.Windows))
	for i, w := range a.Windows {
		clocks[i] = watch(w)
	}
	mismatch := func(second int64, format string, args ...any) {
		if len(mismatches) < 10 {
			mismatches = append(mismatches, fmt.Sprintf("%s %s: %s", time.Unix(second, 0).In(a.Windows[0].Location), describe(a), fmt.Sprintf(format, args...)))
		}
	}
	start := from.Unix() / 60
	next, was := int64(0), provider.Amount{Min: -1}
	for t := start - 2*week; t < to.Unix()/60; t++ {
		for _, c := range clocks {
			c.minute(t)
		}
		if t < start {
			continue
		}
		minutes++
		for _, second := range []int64{t * 60, t*60 + 59}[:1+t%7/6] { // now and then its last second too
			want := provider.Amount{Min: a.Min, Max: a.Max}
			for i, c := range clocks {
				if c.open(second) {
					want = provider.Amount{Min: a.Windows[i].Min, Max: a.Windows[i].Max}
					break
				}
			}
			now := time.Unix(second, 0)
			low, high := window.Bounds(a, now)
			if low != want.Min || high != want.Max {
				mismatch(second, "%d to %d, want %d to %d", low, high, want.Min, want.Max)
			}
			if t > start && second < next && (want.Min != was.Min || want.Max != was.Max) {
				mismatch(second, "the bounds change, and were to stay until %v", time.Unix(next, 0))
			}
			if second >= next {
				n := window.Next(a, now)
				if !n.After(now) {
					mismatch(second, "the next change is at %v", n)
				}
				next = n.Unix()
			}
			was = want
		}
	}
	return minutes, mismatches
}

func describe(a provider.Amount) string {
	s := ""
	for _, w := range a.Windows {
		s += fmt.Sprintf("[%v %d:%02d %v]", w.Day, w.Hour, w.Minute, w.Length)
	}
	return s
}
