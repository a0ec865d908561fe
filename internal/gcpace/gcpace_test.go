package gcpace

import "testing"

func TestPercent(t *testing.T) {
	const mib = 1 << 20
	for _, tc := range []struct {
		name         string
		live, target uint64
		want         int
	}{
		{"a new process", 0, 64 * mib, maxPercent},
		{"a small one waits long", 8 * mib, 64 * mib, 700},
		{"half of the target", 32 * mib, 64 * mib, 100},
		{"near the target", 60 * mib, 64 * mib, minPercent},
		{"beyond it", 1 << 40, 64 * mib, minPercent},
	} {
		if got := percentOf(tc.live, tc.target); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
		}
	}
}
