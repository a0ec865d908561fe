package reconcile

import (
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/skepdev/skep"
)

// Never two live holders of a key, whoever takes, keeps and gives when; and
// what an earlier holder still holds is refused.
func TestOneHolderAtATime(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var table Leases
		now := time.Unix(1e9, 0)
		has := map[string]Lease{} // by holder
		for range rapid.IntRange(1, 100).Draw(rt, "moves") {
			now = now.Add(time.Duration(rapid.IntRange(0, 5).Draw(rt, "later")) * time.Second)
			who := rapid.SampledFrom([]string{"x", "y", "z"}).Draw(rt, "who")
			until := now.Add(time.Duration(rapid.IntRange(1, 10).Draw(rt, "for")) * time.Second)
			mine := has[who]
			var held bool
			for other, l := range has {
				held = held || other != who && l.Live(now, 0)
			}
			switch rapid.IntRange(0, 3).Draw(rt, "move") {
			case 0:
				l, err := table.Take("key", who, now, until)
				if (err != nil) != held || err != nil && skep.KindOf(err) != skep.Conflict {
					rt.Fatalf("Take by %s: %v; held by another: %v", who, err, held)
				}
				if err == nil {
					if mine.Live(now, 0) != (l.Generation == mine.Generation) {
						rt.Fatalf("generation %d after %d, which lived: %v", l.Generation, mine.Generation, mine.Live(now, 0))
					}
					has[who] = l
				}
			case 1:
				l, err := table.Keep(mine, now, until)
				if (err == nil) != mine.Live(now, 0) {
					rt.Fatalf("Keep by %s: %v; in force: %v", who, err, mine.Live(now, 0))
				}
				if mine.Key == "" {
					break
				}
				if err == nil {
					has[who] = l
				}
			case 2:
				table.Give(mine)
				delete(has, who)
			case 3:
				for _, l := range table.Over(now) {
					if l.Live(now, 0) {
						rt.Fatalf("%+v is over at %v", l, now)
					}
				}
			}
		}
	})
}

func TestCircuitLetsOneTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := Circuit{Min: 4 * time.Second, Max: 16 * time.Second}
		if c.Wait("engine") != 0 {
			t.Error("a pause before any failure")
		}
		d := c.Failed("engine")
		if d < 2*time.Second || d > 4*time.Second || c.Wait("engine") != d || c.Wait("quota") != 0 {
			t.Errorf("a pause of %v", d)
		}
		time.Sleep(d)
		if c.Wait("engine") != 0 || c.Wait("engine") == 0 {
			t.Error("not one of two may try after the pause")
		}
		for range 10 {
			d = c.Failed("engine")
		}
		if d < 8*time.Second || d > 16*time.Second {
			t.Errorf("the longest pause is %v", d)
		}
		c.Succeeded("engine")
		if c.Wait("engine") != 0 {
			t.Error("a pause after success")
		}
	})
}
