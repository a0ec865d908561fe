package bench

import (
	"testing"
	"time"
)

func TestInMS(t *testing.T) {
	got := inMS([]time.Duration{time.Second, 250 * time.Microsecond})
	if len(got) != 2 || got[0] != 1000 || got[1] != 0.25 {
		t.Errorf("inMS = %v", got)
	}
}
