package fuzz

import "testing"

func TestOutOfTime(t *testing.T) {
	for _, c := range []struct {
		name, out string
		want      bool
	}{
		{"Go's own trouble", "fuzz: elapsed: 11s, execs: 25594 (0/sec)\n--- FAIL: FuzzX (11.03s)\n    context deadline exceeded\nFAIL\nexit status 1\n", true},
		{"an input", "--- FAIL: FuzzX (0.47s)\n    --- FAIL: FuzzX (0.00s)\n        x_test.go:42: context deadline exceeded\n    \n    Failing input written to testdata/fuzz/FuzzX/cb62\nFAIL\n", false},
		{"a hang", "--- FAIL: FuzzX (11.00s)\n    fuzzing process hung or terminated unexpectedly: exit status 2\n    Failing input written to testdata/fuzz/FuzzX/cb62\nFAIL\n", false},
	} {
		if got := outOfTime.MatchString(c.out); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
