package api

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/skepdev/skep"
	pb "github.com/skepdev/skep/api/swarmingpb"
)

// Limit returns the page size asked for. spec api-v2.md §1.4.
func Limit(limit int32) (int, error) {
	switch {
	case limit == 0:
		return 100, nil
	case limit < 0 || limit > 1000:
		return 0, &skep.Error{Kind: skep.Invalid, Field: "limit", Text: fmt.Sprintf("invalid limit %d: want 0 (for 100) to 1000", limit)}
	}
	return int(limit), nil
}

// maxFilters bounds the entries of one filter, and maxAlternatives their
// values in all.
const maxFilters = 128

// Tags returns a tag filter: entries ANDed, each with its alternatives as
// whole tags. spec api-v2.md §1.5.
func Tags(tags []string) ([][]string, error) {
	fault := func(format string, args ...any) error {
		return &skep.Error{Kind: skep.Invalid, Field: "tags", Text: "invalid tags: " + fmt.Sprintf(format, args...)}
	}
	if len(tags) > maxFilters {
		return nil, fault("%d entries, at most %d are allowed", len(tags), maxFilters)
	}
	var out [][]string
	total := 0
	for _, t := range tags {
		key, value, ok := strings.Cut(t, ":")
		if !ok || key == "" || strings.TrimSpace(key) != key {
			return nil, fault("%.80q is not key:value", t)
		}
		var alternatives []string
		for v := range strings.SplitSeq(value, "|") {
			if v == "" || strings.TrimSpace(v) != v {
				return nil, fault("%.80q has an empty value or surrounding blanks", t)
			}
			alternatives = append(alternatives, key+":"+v)
		}
		if total += len(alternatives); total > maxAlternatives {
			return nil, fault("more than %d values", maxAlternatives)
		}
		out = append(out, alternatives)
	}
	return out, nil
}

// Dimensions returns a dimension filter. spec api-v2.md §1.5.
func Dimensions(in []*pb.StringPair) (skep.Constraints, error) {
	fault := func(err error) error {
		return &skep.Error{Kind: skep.Invalid, Field: "dimensions", Text: "invalid dimensions: " + err.Error()}
	}
	if len(in) > maxFilters {
		return nil, fault(fmt.Errorf("%d entries, at most %d are allowed", len(in), maxFilters))
	}
	var out skep.Constraints
	for _, d := range in {
		if err := skep.CheckDimensionKey("dimensions", d.Key); err != nil {
			return nil, fault(err)
		}
		c := skep.ParseConstraint(d.Key, d.Value)
		if len(c.Values) > maxAlternatives {
			return nil, fault(fmt.Errorf("%s has more than %d values", d.Key, maxAlternatives))
		}
		for _, v := range c.Values {
			if err := skep.CheckDimensionValue("dimensions", d.Key, v); err != nil {
				return nil, fault(err)
			}
		}
		out = append(out, c)
	}
	return out, nil
}

// Range checks the creation times of a listing. spec api-v2.md §1.6. A start
// before the first task there can be is no limit: existing clients send 1970.
func Range(start, end *timestamppb.Timestamp) (from, to time.Time, err error) {
	if from, err = Instant("start", start); err != nil {
		return from, to, err
	}
	if from = from.Truncate(time.Millisecond); from.Before(firstInstant) {
		from = time.Time{}
	}
	if to, err = Instant("end", end); err != nil {
		return from, to, err
	}
	if to = to.Truncate(time.Millisecond); end != nil && to.Before(firstInstant) {
		return from, to, skep.Invalidf("end", "invalid time range: %s is before 2010", to.Format(time.RFC3339))
	}
	if !from.IsZero() && !to.IsZero() && !from.Before(to) {
		return from, to, skep.Invalidf("start", "invalid time range: start %s is not before end %s", from.Format(time.RFC3339), to.Format(time.RFC3339))
	}
	return from, to, nil
}

var firstInstant = time.Date(2010, 1, 1, 0, 0, 0, 0, time.UTC)

// Instant reads an optional time, zero when it is unset.
func Instant(field string, ts *timestamppb.Timestamp) (time.Time, error) {
	if ts == nil {
		return time.Time{}, nil
	}
	if err := ts.CheckValid(); err != nil {
		return time.Time{}, skep.Invalidf(field, "invalid time: %s", err)
	}
	return ts.AsTime(), nil
}

// stateQueries says which states each StateQuery selects; nil is all.
var stateQueries = map[pb.StateQuery][]skep.TaskState{
	pb.StateQuery_QUERY_PENDING:           {skep.Pending},
	pb.StateQuery_QUERY_RUNNING:           {skep.Running},
	pb.StateQuery_QUERY_PENDING_RUNNING:   {skep.Pending, skep.Running},
	pb.StateQuery_QUERY_COMPLETED:         {skep.Completed},
	pb.StateQuery_QUERY_COMPLETED_SUCCESS: {skep.Completed},
	pb.StateQuery_QUERY_COMPLETED_FAILURE: {skep.Completed},
	pb.StateQuery_QUERY_EXPIRED:           {skep.Expired},
	pb.StateQuery_QUERY_TIMED_OUT:         {skep.TimedOut},
	pb.StateQuery_QUERY_BOT_DIED:          {skep.BotDied},
	pb.StateQuery_QUERY_CANCELED:          {skep.Canceled},
	pb.StateQuery_QUERY_ALL:               nil,
	pb.StateQuery_QUERY_DEDUPED:           {}, // no task is deduplicated yet
	pb.StateQuery_QUERY_KILLED:            {skep.Killed},
	pb.StateQuery_QUERY_NO_RESOURCE:       {skep.NoResource},
	pb.StateQuery_QUERY_CLIENT_ERROR:      {skep.ClientError},
}

// States returns what a state filter selects: states (nil is all, empty is
// none) and, where it matters, the failure flag.
func States(q pb.StateQuery) (states []skep.TaskState, failure *bool, err error) {
	states, ok := stateQueries[q]
	if !ok {
		return nil, nil, skep.Invalidf("state", "%d is not a known filter", q)
	}
	switch q {
	case pb.StateQuery_QUERY_COMPLETED_SUCCESS:
		failure = new(false)
	case pb.StateQuery_QUERY_COMPLETED_FAILURE:
		failure = new(true)
	default: // the states say it all
	}
	return slices.Clone(states), failure, nil
}
