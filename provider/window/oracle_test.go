package window_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/skepdev/skep/provider/window/windowtest"
)

// TestOracle is a sample of make show-5.4, of years and places with odd clocks.
func TestOracle(t *testing.T) {
	for _, c := range []struct {
		place string
		year  int
	}{
		{"UTC", 2026},
		{"America/Los_Angeles", 2024},
		{"America/St_Johns", 2010},
		{"Pacific/Apia", 2011},
		{"Australia/Lord_Howe", 2025},
		{"Africa/Casablanca", 2025},
		{"America/Santiago", 2024},
		{"Africa/Cairo", 2010},
		{"Asia/Gaza", 2022},
		{"Antarctica/Troll", 2023},
		{"Pacific/Kwajalein", 1993},
	} {
		loc, err := time.LoadLocation(c.place)
		if err != nil {
			t.Fatal(err)
		}
		for seed := range uint64(2) {
			from := time.Date(c.year, time.Month(1+6*seed), 1, 0, 0, 0, 0, time.UTC)
			a := windowtest.Random(rand.New(rand.NewPCG(seed, uint64(c.year))), loc, from)
			minutes, bad := windowtest.Check(a, from, from.AddDate(0, 6, 0))
			if minutes < 180*24*60 {
				t.Errorf("%d minutes", minutes)
			}
			for _, b := range bad {
				t.Errorf("%s: %s", c.place, b)
			}
		}
	}
}
