package skep

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// Dimensions are what a bot says of itself: each key has one or more values.
type Dimensions map[string][]string

// Constraint is one demand of a task on its bot: the bot must have Key with at
// least one of Values (the "a|b" alternatives of one entry).
type Constraint struct {
	Key    string   `json:"k"`
	Values []string `json:"v"`
}

// Constraints is everything a slice demands. Entries are ANDed, also those
// with an equal key. Sorted (see Sort) it is the identity of a queue.
type Constraints []Constraint

// ParseConstraint splits a "a|b|c" value into its alternatives.
func ParseConstraint(key, value string) Constraint {
	return Constraint{Key: key, Values: strings.Split(value, "|")}
}

// Value returns the alternatives as written on the wire, "a|b|c".
func (c Constraint) Value() string { return strings.Join(c.Values, "|") }

// Match reports whether a bot with dimensions d meets every constraint.
func (cs Constraints) Match(d Dimensions) bool {
	for _, c := range cs {
		have := d[c.Key]
		if !slices.ContainsFunc(c.Values, func(v string) bool { return slices.Contains(have, v) }) {
			return false
		}
	}
	return true
}

// Get returns the alternatives of the first constraint on key, or nil.
func (cs Constraints) Get(key string) []string {
	for _, c := range cs {
		if c.Key == key {
			return c.Values
		}
	}
	return nil
}

// Sort orders alternatives within each entry and the entries by key and value,
// so that equal demands are written equally.
func (cs Constraints) Sort() {
	for _, c := range cs {
		slices.Sort(c.Values)
	}
	slices.SortFunc(cs, func(a, b Constraint) int {
		if c := strings.Compare(a.Key, b.Key); c != 0 {
			return c
		}
		return slices.Compare(a.Values, b.Values)
	})
}

// QueueID names the queue of all slices with the same constraints.
type QueueID int64

// Queue returns the queue of sorted constraints: the first 8 bytes of the
// SHA-256 of their canonical JSON, never 0.
func (cs Constraints) Queue() QueueID {
	b, err := json.Marshal(cs)
	if err != nil {
		panic("skep: constraints do not encode: " + err.Error()) // strings always do
	}
	sum := sha256.Sum256(b)
	return QueueID(binary.BigEndian.Uint64(sum[:8])>>1 | 1)
}

// Dimension limits, spec/api-v2.md §4.4 and spec/bot.md §2.5.
const (
	MaxDimensionKey   = 64
	MaxDimensionValue = 256

	// MaxDimensionValues bounds the values of one key of a bot: ours, the
	// reference has no limit. A device lab reports a few dozen.
	MaxDimensionValues = 1024
)

// dimensionKey is made when it is first asked for: most processes of a task
// never do.
var dimensionKey = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-zA-Z\-_.][0-9a-zA-Z\-_.]*$`) })

// CheckDimensionKey returns an Invalid error about field if key cannot be one.
func CheckDimensionKey(field, key string) error {
	switch {
	case key == "":
		return Invalidf(field, "the key is empty")
	case len(key) > MaxDimensionKey:
		return Invalidf(field, "key %.20q… has %d characters, at most %d are allowed", key, len(key), MaxDimensionKey)
	case !dimensionKey().MatchString(key):
		return Invalidf(field, "key %q must match %s", key, dimensionKey())
	}
	return nil
}

// CheckDimensionValue returns an Invalid error about field if a bot could not
// have value for key, or a task not ask for it.
func CheckDimensionValue(field, key, value string) error {
	switch {
	case value == "":
		return Invalidf(field, "%s has an empty value", key)
	case len(value) > MaxDimensionValue:
		return Invalidf(field, "%s has a value of %d bytes, at most %d are allowed", key, len(value), MaxDimensionValue)
	case strings.ContainsRune(value, 0):
		return Invalidf(field, "%s has value %q with a NUL byte", key, value)
	case strings.TrimSpace(value) != value:
		return Invalidf(field, "%s has value %q with surrounding blanks", key, value)
	case (key == "id" || key == "pool") && strings.Contains(value, ":"):
		return Invalidf(field, "%s has value %q with a colon", key, value)
	}
	return nil
}

// Validate checks dimensions that a bot reports: keys, values, no duplicates,
// exactly one id. All faults are not collected; the first in key order is
// returned, as the bot's owner mends them one by one.
func (d Dimensions) Validate() error {
	for _, k := range slices.Sorted(maps.Keys(d)) {
		if err := CheckDimensionKey("dimensions", k); err != nil {
			return err
		}
		if len(d[k]) == 0 {
			return Invalidf("dimensions", "%s has no value", k)
		}
		if n := len(d[k]); n > MaxDimensionValues {
			return Invalidf("dimensions", "%s has %d values, at most %d are allowed", k, n, MaxDimensionValues)
		}
		for i, v := range d[k] {
			if err := CheckDimensionValue("dimensions", k, v); err != nil {
				return err
			}
			if slices.Contains(d[k][:i], v) {
				return Invalidf("dimensions", "%s has value %q twice", k, v)
			}
		}
	}
	if len(d["id"]) != 1 {
		return Invalidf("dimensions", "id must have exactly one value, it has %d", len(d["id"]))
	}
	return nil
}

// Equal reports whether both have the same keys and values, in any order of
// values.
func (d Dimensions) Equal(o Dimensions) bool {
	return maps.EqualFunc(d, o, func(a, b []string) bool {
		return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
	})
}
