package cli

import (
	"fmt"
	"math"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// instant is a flag in RFC 3339 that also takes Unix seconds; zero is unset.
type instant struct{ time.Time }

func (i *instant) Type() string { return "time" }
func (i *instant) String() string {
	if i.IsZero() {
		return ""
	}
	return i.Format(time.RFC3339Nano)
}

func (i *instant) Set(s string) error {
	if secs, err := strconv.ParseFloat(s, 64); err == nil && secs >= 0 && secs < math.MaxInt32*100 {
		i.Time = time.Time{}
		if secs > 0 {
			i.Time = time.UnixMicro(int64(secs * 1e6))
		}
		return nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return fmt.Errorf("want a time as 2026-08-01T12:00:00Z, or Unix seconds")
	}
	i.Time = t
	return nil
}

func (i *instant) proto() *timestamppb.Timestamp {
	if i.IsZero() {
		return nil
	}
	return timestamppb.New(i.Time)
}
