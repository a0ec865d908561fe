package named

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// item is one cache.
type item struct {
	Name string
	Dir  string // below the directory of all
	Size int64
	Used int64 // seconds since 1970
}

const version = 3

// encode writes state.json: compact, keys sorted, the longest unused first.
func encode(items []item) []byte {
	slices.SortFunc(items, func(a, b item) int { return cmp.Or(cmp.Compare(a.Used, b.Used), cmp.Compare(a.Name, b.Name)) })
	list := make([]any, len(items))
	for i, it := range items {
		list[i] = []any{it.Name, []any{[]any{it.Dir, it.Size}, it.Used}}
	}
	b, _ := json.Marshal(map[string]any{"items": list, "version": version}) // strings and numbers
	return b
}

// decode reads a state.json. It refuses what would lead out of the directory
// or give one directory two names.
func decode(b []byte) ([]item, error) {
	var s struct {
		Items   []json.RawMessage `json:"items"`
		Version int               `json:"version"`
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, err
	}
	if s.Version != version {
		return nil, fmt.Errorf("version %d, want %d", s.Version, version)
	}
	names, dirs := map[string]bool{}, map[string]bool{}
	var out []item
	for _, raw := range s.Items {
		var it item
		var used float64
		var entry, value, place []json.RawMessage
		err := cmp.Or(
			pair(raw, &entry), one(entry, 0, &it.Name), part(entry, 1, &value),
			part(value, 0, &place), one(value, 1, &used), one(place, 0, &it.Dir), one(place, 1, &it.Size),
		)
		it.Used = int64(used)
		switch {
		case err != nil:
			return nil, err
		case !Valid(it.Name), !validDir(it.Dir), it.Size < 0:
			return nil, fmt.Errorf("no cache: %.200s", raw)
		case names[it.Name], dirs[it.Dir]:
			return nil, fmt.Errorf("cache %s or its directory %s stands twice", it.Name, it.Dir)
		}
		names[it.Name], dirs[it.Dir] = true, true
		out = append(out, it)
	}
	return out, nil
}

var errShape = errors.New("an item is not [name, [[directory, size], time]]")

func pair(raw json.RawMessage, list *[]json.RawMessage) error {
	if json.Unmarshal(raw, list) != nil || len(*list) != 2 {
		return errShape
	}
	return nil
}

func part(list []json.RawMessage, n int, into *[]json.RawMessage) error {
	if n >= len(list) {
		return errShape
	}
	return pair(list[n], into)
}

func one(list []json.RawMessage, n int, into any) error {
	if n >= len(list) || string(list[n]) == "null" || json.Unmarshal(list[n], into) != nil {
		return errShape
	}
	return nil
}

// Valid reports whether s can name a cache: ^[a-z0-9_]{1,255}$, which is a
// file name everywhere.
func Valid(s string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return s != "" && len(s) <= 255
}

const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

func validDir(s string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') {
			return false
		}
	}
	return len(s) == 2
}
