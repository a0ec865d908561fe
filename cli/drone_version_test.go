package cli

import (
	"testing"
	"time"
)

// What a drone says of its version is a number that grows.
func TestDroneVersion(t *testing.T) {
	at := time.Date(2026, 11, 27, 10, 10, 59, 0, time.FixedZone("", 3600))
	if got := droneVersion(at); got != "202611270910" {
		t.Errorf("droneVersion = %s", got)
	}
	if got := droneVersion(time.Time{}); got != "unknown" {
		t.Errorf("without a build: %s", got)
	}
}
