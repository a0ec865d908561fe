package prpc

import (
	"fmt"
	"math"
	"strconv"
	"time"
)

// timeoutUnits are the units of X-Prpc-Grpc-Timeout, largest first (spec/prpc.md §4).
var timeoutUnits = []struct {
	letter byte
	unit   time.Duration
}{
	{'H', time.Hour},
	{'M', time.Minute},
	{'S', time.Second},
	{'m', time.Millisecond},
	{'u', time.Microsecond},
	{'n', time.Nanosecond},
}

// maxTimeoutCount is the largest number that clients write before the unit.
const maxTimeoutCount = 99_999_999

// parseTimeout reads X-Prpc-Grpc-Timeout. A time beyond what a Duration can hold (292 years) becomes the longest one.
func parseTimeout(s string) (time.Duration, error) {
	if len(s) < 2 {
		return 0, fmt.Errorf("timeout %q: want digits and a unit, such as 90S", s)
	}
	digits, letter := s[:len(s)-1], s[len(s)-1]
	for _, c := range []byte(digits) {
		if c < '0' || c > '9' {
			return 0, fmt.Errorf("timeout %q: want digits and a unit, such as 90S", s)
		}
	}
	for _, u := range timeoutUnits {
		if u.letter != letter {
			continue
		}
		n, _ := strconv.ParseInt(digits, 10, 64) // it is all digits, so what does not fit gives the largest number
		if n > math.MaxInt64/int64(u.unit) {
			return math.MaxInt64, nil
		}
		return time.Duration(n) * u.unit, nil
	}
	return 0, fmt.Errorf("timeout %q: unit %q is not one of H, M, S, m, u, n", s, letter)
}

// formatTimeout writes d, rounded up, in the smallest unit whose number has at most eight digits. A time that is
// over becomes 0n.
func formatTimeout(d time.Duration) string {
	d = max(d, 0)
	for i := len(timeoutUnits) - 1; i >= 0; i-- {
		u := timeoutUnits[i]
		n := int64(d / u.unit)
		if d%u.unit != 0 {
			n++
		}
		if n <= maxTimeoutCount {
			return strconv.FormatInt(n, 10) + string(u.letter)
		}
	}
	panic("unreachable: the longest Duration is 2,562,048 hours")
}
