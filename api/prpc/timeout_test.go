package prpc

import (
	"math"
	"testing"
	"time"
)

func TestParseTimeout(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		want     time.Duration
		ok       bool
	}{
		{"hours", "2H", 2 * time.Hour, true},
		{"minutes", "3M", 3 * time.Minute, true},
		{"seconds", "90S", 90 * time.Second, true},
		{"milliseconds", "5m", 5 * time.Millisecond, true},
		{"microseconds of the existing client", "90000000u", 90 * time.Second, true},
		{"nanoseconds", "7n", 7, true},
		{"zero is over at once", "0S", 0, true},
		{"leading zeros", "0001S", time.Second, true},
		{"longer than a Duration", "99999999H", math.MaxInt64, true},
		{"longer than an integer", "99999999999999999999n", math.MaxInt64, true},
		{"empty", "", 0, false},
		{"no digits", "S", 0, false},
		{"no unit", "90", 0, false},
		{"unknown unit", "90s", 0, false},
		{"negative", "-1S", 0, false},
		{"signed", "+1S", 0, false},
		{"fraction", "1.5S", 0, false},
		{"blank", "1 S", 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := parseTimeout(tc.in)
			if got != tc.want || (err == nil) != tc.ok {
				t.Errorf("parseTimeout(%q) = %v, %v; want %v, ok %v", tc.in, got, err, tc.want, tc.ok)
			}
		})
	}
}

func TestFormatTimeout(t *testing.T) {
	for _, tc := range []struct {
		name string
		in   time.Duration
		want string
	}{
		{"90 s as the existing client writes it", 90 * time.Second, "90000000u"},
		{"the most nanoseconds", 99_999_999, "99999999n"},
		{"one more is rounded up", 100_000_001, "100001u"},
		{"two minutes no longer fit microseconds", 2 * time.Minute, "120000m"},
		{"days", 100 * 24 * time.Hour, "8640000S"},
		{"years", 10 * 365 * 24 * time.Hour, "5256000M"},
		{"the longest", math.MaxInt64, "2562048H"},
		{"zero", 0, "0n"},
		{"over", -time.Second, "0n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := formatTimeout(tc.in); got != tc.want {
				t.Errorf("formatTimeout(%v) = %s, want %s", tc.in, got, tc.want)
			}
		})
	}
}

// A timeout that is read and written again is never shorter, and at most a rounding longer.
func FuzzTimeout(f *testing.F) {
	for _, s := range []string{"", "1", "90S", "90000000u", "99999999H", "18446744073709551616n", "-1S"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := parseTimeout(s)
		if err != nil {
			return
		}
		if d < 0 {
			t.Fatalf("parseTimeout(%q) = %v", s, d)
		}
		again, err := parseTimeout(formatTimeout(d))
		if err != nil || again < d {
			t.Errorf("%q is %v, written %s, read %v, %v", s, d, formatTimeout(d), again, err)
		}
	})
}
