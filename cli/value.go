package cli

import (
	"crypto/rand"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// choice is a flag that takes one of a few words, in any case.
type choice struct {
	to    *string
	words []string
}

func newChoice(to *string, def string, words ...string) *choice {
	*to = def
	return &choice{to: to, words: words}
}

func (c *choice) String() string { return *c.to }
func (c *choice) Type() string   { return strings.Join(c.words, "|") }
func (c *choice) Set(s string) error {
	s = strings.ToLower(s)
	if !slices.Contains(c.words, s) {
		return fmt.Errorf("want %s", strings.Join(c.words, ", "))
	}
	*c.to = s
	return nil
}

// seconds is a flag in seconds that also takes 30s, 5m or 1h.
type seconds int32

func (s *seconds) String() string { return strconv.Itoa(int(*s)) }
func (s *seconds) Type() string   { return "seconds" }
func (s *seconds) Set(text string) error {
	v, err := parseSeconds(text)
	if err != nil {
		return err
	}
	*s = v
	return nil
}

func parseSeconds(text string) (seconds, error) {
	if n, err := strconv.ParseInt(text, 10, 32); err == nil && n >= 0 {
		return seconds(n), nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 || d%time.Second != 0 || d/time.Second > 1<<31-1 {
		return 0, fmt.Errorf("want whole seconds, as 90, 90s or 5m")
	}
	return seconds(d / time.Second), nil
}

// pair is one key=value of a flag.
type pair struct{ key, value string }

// pairs is a repeatable flag of key=value entries in the order given.
type pairs struct {
	list   []pair
	unique bool // a key given twice is an error
	what   string
}

func (p *pairs) String() string { return "" }
func (p *pairs) Type() string   { return p.what }
func (p *pairs) Set(s string) error {
	key, value, ok := strings.Cut(s, "=")
	if !ok || key == "" {
		return fmt.Errorf("want %s", p.what)
	}
	if p.unique && slices.ContainsFunc(p.list, func(o pair) bool { return o.key == key }) {
		return fmt.Errorf("%s is given twice", key)
	}
	p.list = append(p.list, pair{key, value})
	return nil
}

// get returns the value of the last entry of key.
func (p *pairs) get(key string) (string, bool) {
	for _, e := range slices.Backward(p.list) {
		if e.key == key {
			return e.value, true
		}
	}
	return "", false
}

// sorted returns the entries by key; of a repeated key the last stays.
func (p *pairs) sorted() []pair {
	var out []pair
	for i, e := range p.list {
		if !slices.ContainsFunc(p.list[i+1:], func(o pair) bool { return o.key == e.key }) {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b pair) int { return strings.Compare(a.key, b.key) })
	return out
}

// newUUID returns a random UUID; it makes a call repeatable.
func newUUID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// checkTaskIDs refuses what no server would take before any call: an id that
// is not lower-case hex, or one named twice.
func checkTaskIDs(ids []string) error {
	seen := map[string]bool{}
	for _, id := range ids {
		if len(id) < 2 || strings.Trim(id, "0123456789abcdef") != "" {
			return fmt.Errorf("%q is not a task id: want lower-case hex, at least 2 digits", id)
		}
		if seen[id] {
			return fmt.Errorf("task id %s is given twice", id)
		}
		seen[id] = true
	}
	return nil
}
