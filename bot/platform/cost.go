package platform

import (
	"math"
	"slices"
	"strconv"
)

// family is a group of Compute Engine machine types with the same memory per
// core. The figures serve to compare the cost of tasks, not to pay bills.
type family struct {
	name    string
	gbCore  float64
	usdCore float64 // an hour
	cores   []int   // sizes on offer
}

var families = []family{
	{"highcpu", 0.9, 0.038, []int{2, 4, 8, 16, 32}},
	{"standard", 3.75, 0.050, []int{1, 2, 4, 8, 16, 32}},
	{"highmem", 6.5, 0.063, []int{2, 4, 8, 16, 32}},
}

const usdGBHour = 0.04 / 720 // of disk

// machineType returns the nearest machine type of Compute Engine and its price
// in USD an hour; "" when the machine is smaller than all. spec bot.md §7.1.
func machineType(cores int, ramMB int) (string, float64) {
	gb := float64(ramMB) / 1024
	if cores == 1 {
		switch {
		case gb < 1.7:
			return "f1-micro", 0.008
		case gb < 3.75:
			return "g1-small", 0.027
		}
		return "n1-standard-1", 0.050
	}
	if cores < 1 || ramMB <= 0 {
		return "", 0
	}
	best := slices.MinFunc(families, func(a, b family) int {
		per := gb / float64(cores)
		da, db := math.Pow(per-a.gbCore, 2), math.Pow(per-b.gbCore, 2)
		switch {
		case da < db:
			return -1
		case da > db:
			return 1
		}
		return 0
	})
	n := cores
	if !slices.Contains(best.cores, n) {
		for _, n = range []int{16, 8, 4, 2} {
			if n <= cores {
				break
			}
		}
	}
	return "n1-" + best.name + "-" + strconv.Itoa(n), best.usdCore * float64(n)
}

// osCost is what the system adds to an hour, in USD. spec bot.md §7.3.
func osCost(goos string, cores int) float64 {
	switch goos {
	case "windows":
		return 0.04 * float64(cores)
	case "darwin":
		return 0.06 * float64(cores)
	}
	return 0
}
