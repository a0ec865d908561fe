package warm

import (
	"math"
	"time"
)

// Stock is what a pool has and what it is asked for.
type Stock struct {
	Ready, Making, Waiting int
	Total                  int // rooms of all kinds, those that are being removed too

	Rate float64       // gets per second, of late
	Took time.Duration // to make one, of late
}

// Size bounds a pool.
type Size struct {
	Min      int // stock when nobody asks; 0 = none, rooms are made when asked for
	Max      int // the most stock
	Limit    int // the most rooms of all kinds
	Creators int // the most that are made at a time
}

// Want is the stock that demand asks for: what will be asked for while as much
// is made again, and half as much more.
func (z Size) Want(s Stock) int {
	return max(z.Min, min(z.Max, int(math.Ceil(1.5*s.Rate*s.Took.Seconds()))))
}

// Plan returns how many rooms to begin to make now, and how many of the stock
// are too many. L14 of promises.md.
func Plan(z Size, s Stock) (begin, spare int) {
	need := z.Want(s) + s.Waiting - s.Ready - s.Making
	if need < 0 {
		return 0, min(-need, s.Ready)
	}
	return max(0, min(need, z.Creators-s.Making, z.Limit-s.Total)), 0
}

// rate is a count per second that forgets: what was half a minute ago counts
// by a third.
type rate struct {
	value float64
	at    time.Time
}

const rateMemory = 30 * time.Second

func (r *rate) now(t time.Time) float64 {
	return r.value * math.Exp(-t.Sub(r.at).Seconds()/rateMemory.Seconds())
}

func (r *rate) add(t time.Time) {
	r.value, r.at = r.now(t)+1/rateMemory.Seconds(), t
}
