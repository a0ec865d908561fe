package gcpace

import "testing"

func TestPercent(t *testing.T) {
	const mib = 1 << 20
	for _, tc := range []struct {
		name        string
		live, slack uint64
		want        int
	}{
		{"a new process", 0, 64 * mib, maxPercent},
		{"a small one waits long", 8 * mib, 64 * mib, 800},
		{"as large as the slack", 64 * mib, 64 * mib, 100},
		{"a large one", 128 * mib, 64 * mib, 50},
		{"a huge one", 1 << 40, 64 * mib, minPercent},
	} {
		if got := percentOf(tc.live, tc.slack); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
		}
	}
}
