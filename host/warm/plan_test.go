package warm

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestPlan(t *testing.T) {
	z := Size{Min: 2, Max: 20, Limit: 100, Creators: 5}
	for _, c := range []struct {
		name         string
		stock        Stock
		begin, spare int
	}{
		{"empty", Stock{}, 2, 0},
		{"full", Stock{Ready: 2, Total: 2}, 0, 0},
		{"waiters beyond the stock", Stock{Waiting: 9}, 5, 0},
		{"creators are busy", Stock{Waiting: 9, Making: 5, Total: 5}, 0, 0},
		{"demand", Stock{Ready: 2, Total: 2, Rate: 10, Took: 400 * time.Millisecond}, 4, 0},
		{"demand beyond the most", Stock{Ready: 19, Total: 19, Rate: 1000, Took: time.Second}, 1, 0},
		{"demand is over", Stock{Ready: 7, Total: 7}, 0, 5},
		{"at the limit", Stock{Waiting: 3, Total: 99}, 1, 0},
	} {
		if begin, spare := Plan(z, c.stock); begin != c.begin || spare != c.spare {
			t.Errorf("%s: begin %d, spare %d; want %d, %d", c.name, begin, spare, c.begin, c.spare)
		}
	}
}

// Never more creators or rooms than there may be, and never both at once.
func TestPlanKeepsItsBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := func(name string, most int) int { return rapid.IntRange(0, most).Draw(t, name) }
		z := Size{Min: n("min", 10), Limit: n("limit", 50), Creators: n("creators", 8)}
		z.Max = z.Min + n("more", 10)
		s := Stock{Ready: n("ready", 30), Making: n("making", 8), Waiting: n("waiting", 99), Total: n("total", 60), Rate: float64(n("rate", 1000)), Took: time.Duration(n("took", 5000)) * time.Millisecond}
		begin, spare := Plan(z, s)
		if begin < 0 || spare < 0 || spare > s.Ready || begin > 0 && (spare > 0 || s.Making+begin > z.Creators || s.Total+begin > z.Limit) {
			t.Fatalf("Plan(%+v, %+v) = %d, %d", z, s, begin, spare)
		}
	})
}
