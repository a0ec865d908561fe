package queen

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/skepdev/skep/store"
)

// Move is one change that Plan asks for: a device that is nobody's is taken by
// a drone, or one leaves its drone.
type Move struct {
	Dut, Hive string
	Drone     string
	Leave     bool // false = the drone takes it
}

// Plan says how devices move so that the drones of each hive have equally many
// as far as they can carry them, and so that each device is in its hive. It
// moves no more than that needs.
func Plan(now time.Time, drones []store.Drone, duts []store.Dut) []Move {
	hives := map[string][]store.Drone{}
	hiveOf := map[string]string{}
	for _, d := range drones {
		if d.Expires.After(now) {
			hiveOf[d.UUID] = d.Hive
			if d.Capacity > 0 {
				hives[d.Hive] = append(hives[d.Hive], d)
			}
		}
	}
	var moves []Move
	free := map[string][]store.Dut{} // by hive
	stay := map[string][]store.Dut{} // by drone
	carried := map[string]int{}      // by drone: all that it has, on its way out too
	total := map[string]int{}        // by hive: devices to place
	for _, d := range duts {
		if !d.Gone {
			total[d.Hive]++
		}
		hive, live := hiveOf[d.Drone]
		switch {
		case d.Drone == "" && !d.Gone:
			free[d.Hive] = append(free[d.Hive], d)
		case !live: // its lease ends it
		case d.Gone || d.Leaving:
			carried[d.Drone]++
		case d.Hive != hive:
			carried[d.Drone]++
			moves = append(moves, Move{Dut: d.Name, Hive: d.Hive, Drone: d.Drone, Leave: true})
		default:
			carried[d.Drone]++
			stay[d.Drone] = append(stay[d.Drone], d)
		}
	}
	for _, hive := range slices.Sorted(maps.Keys(hives)) {
		group := hives[hive]
		// Who has more gets the remainder, so that nothing moves for it.
		slices.SortFunc(group, func(a, b store.Drone) int {
			return cmp.Or(cmp.Compare(len(stay[b.UUID]), len(stay[a.UUID])), cmp.Compare(a.UUID, b.UUID))
		})
		capacities := make([]int, len(group))
		for i, d := range group {
			capacities[i] = d.Capacity
		}
		for i, want := range share(total[hive], capacities) {
			d := group[i]
			have := stay[d.UUID]
			for _, dut := range have[min(len(have), want):] {
				moves = append(moves, Move{Dut: dut.Name, Hive: hive, Drone: d.UUID, Leave: true})
			}
			room := min(want-len(have), d.Capacity-carried[d.UUID], len(free[hive]))
			for ; room > 0; room-- {
				moves = append(moves, Move{Dut: free[hive][0].Name, Hive: hive, Drone: d.UUID})
				free[hive] = free[hive][1:]
			}
		}
	}
	return moves
}

// share divides n among places of these capacities, as equally as they allow;
// what does not divide goes to the first.
func share(n int, capacities []int) []int {
	out := make([]int, len(capacities))
	for left := n; left > 0; {
		open := 0
		for i, c := range capacities {
			if out[i] < c {
				open++
			}
		}
		if open == 0 {
			break
		}
		each := max(left/open, 1)
		for i, c := range capacities {
			k := min(each, c-out[i], left)
			out[i] += k
			left -= k
		}
	}
	return out
}
