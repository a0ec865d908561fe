package cache

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"slices"
	"strconv"
	"time"
)

// record is what is known of an entry.
type record struct {
	size int64
	used int64 // seconds since 1970

	// How its file looked when its content was known to be right. ino 0 means
	// that this is not known: hash it first. ctime 0 is not compared: the file
	// has links that come and go with tasks, and each changes it.
	ino          uint64
	mtime, ctime int64 // ns

	dirty bool // differs from what state.json says
}

// matches reports whether a file still looks as recorded.
func (r *record) matches(k key, i info) bool {
	return r.ino != 0 && i.regular && i.ino == r.ino && i.size == r.size && i.mtime == r.mtime &&
		(r.ctime == 0 || i.ctime == r.ctime) && i.perm == k.perm() && int(i.uid) == os.Geteuid()
}

func (r *record) saw(i info) {
	r.size, r.ino, r.mtime, r.ctime, r.dirty = i.size, i.ino, i.mtime, i.ctime, true
}

// state is state.json, version 3 (spec bot.md §5.5): items oldest first, each
// [key, [size, seconds]]. What others do not know stands beside it: the boot
// in which the files were looked at, and for each item [inode, mtime, ctime].
type state struct {
	Items   []stateItem `json:"items"`
	Boot    string      `json:"skep_boot,omitempty"`
	Files   []fileState `json:"skep_files,omitempty"`
	Version int         `json:"version"`
}

type fileState struct {
	ino          uint64
	mtime, ctime int64
}

type stateItem struct {
	key  key
	size int64
	used int64
}

func (i *stateItem) UnmarshalJSON(b []byte) error {
	var name string
	value := [2]json.RawMessage{}
	if err := unmarshalPair(b, &name, &value); err != nil {
		return err
	}
	k, ok := parseKey(name)
	if !ok {
		return fmt.Errorf("%.80q is no key of an entry", name)
	}
	var used float64
	if err := json.Unmarshal(value[0], &i.size); err != nil {
		return err
	}
	if err := json.Unmarshal(value[1], &used); err != nil {
		return err
	}
	if i.size < 0 {
		return fmt.Errorf("%s has a size of %d", name, i.size)
	}
	i.key, i.used = k, int64(used)
	return nil
}

// unmarshalPair reads a list of exactly two.
func unmarshalPair(b []byte, first any, second *[2]json.RawMessage) error {
	var pair []json.RawMessage
	if err := json.Unmarshal(b, &pair); err != nil {
		return err
	}
	if len(pair) != 2 {
		return fmt.Errorf("an item has %d parts, want 2", len(pair))
	}
	if err := json.Unmarshal(pair[0], first); err != nil {
		return err
	}
	var value []json.RawMessage
	if err := json.Unmarshal(pair[1], &value); err != nil {
		return err
	}
	if len(value) != 2 {
		return fmt.Errorf("a value has %d parts, want 2", len(value))
	}
	*second = [2]json.RawMessage(value)
	return nil
}

func (f *fileState) UnmarshalJSON(b []byte) error {
	var parts []json.Number
	if err := json.Unmarshal(b, &parts); err != nil {
		return err
	}
	if len(parts) != 3 {
		return fmt.Errorf("a file has %d parts, want 3", len(parts))
	}
	var errs [3]error
	f.ino, errs[0] = strconv.ParseUint(parts[0].String(), 10, 64)
	f.mtime, errs[1] = strconv.ParseInt(parts[1].String(), 10, 64)
	f.ctime, errs[2] = strconv.ParseInt(parts[2].String(), 10, 64)
	return errors.Join(errs[:]...)
}

// encode is compact JSON with sorted keys. A task waits for it, so it is
// written by hand.
func (s *state) encode() []byte {
	b := make([]byte, 0, 160*len(s.Items)+128)
	b = append(b, `{"items":[`...)
	for i, it := range s.Items {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `["`...)
		b = appendHex(b, it.key.hash[:])
		if it.key.exec {
			b = append(b, execSuffix...)
		}
		b = append(b, `",[`...)
		b = strconv.AppendInt(b, it.size, 10)
		b = append(b, ',')
		b = strconv.AppendInt(b, it.used, 10)
		b = append(b, `]]`...)
	}
	b = append(b, `],"skep_boot":`...)
	boot, _ := json.Marshal(s.Boot)
	b = append(b, boot...)
	b = append(b, `,"skep_files":[`...)
	for i, f := range s.Files {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '[')
		b = strconv.AppendUint(b, f.ino, 10)
		b = append(b, ',')
		b = strconv.AppendInt(b, f.mtime, 10)
		b = append(b, ',')
		b = strconv.AppendInt(b, f.ctime, 10)
		b = append(b, ']')
	}
	return append(b, `],"version":3}`...)
}

func appendHex(b, raw []byte) []byte {
	const digits = "0123456789abcdef"
	for _, c := range raw {
		b = append(b, digits[c>>4], digits[c&15])
	}
	return b
}

// decodeState reads a state.json: ours quickly, any other of the same shape
// too.
func decodeState(b []byte) (*state, error) {
	if s := scanState(b); s != nil {
		return s, nil
	}
	var s state
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, err
	}
	if s.Version != 3 {
		return nil, fmt.Errorf("version %d, want 3", s.Version)
	}
	if len(s.Files) != len(s.Items) {
		s.Files = nil // another program has written it
	}
	return &s, nil
}

// scanState reads exactly what encode writes, and returns nil for anything
// else. It is five times faster than encoding/json.
func scanState(b []byte) *state {
	p := scanner{b: b}
	var s state
	p.word(`{"items":[`)
	s.Items = make([]stateItem, 0, len(b)/150)
	for n := 0; !p.bad && !p.peek(']'); n++ {
		if n > 0 {
			p.word(",")
		}
		p.word(`["`)
		var it stateItem
		it.key = p.key()
		p.word(`",[`)
		it.size = p.number()
		p.word(",")
		it.used = p.number()
		p.word(`]]`)
		if it.size < 0 {
			p.bad = true
		}
		s.Items = append(s.Items, it)
	}
	p.word(`],"skep_boot":"`)
	s.Boot = p.plain()
	p.word(`","skep_files":[`)
	s.Files = make([]fileState, 0, len(s.Items))
	for n := 0; !p.bad && !p.peek(']'); n++ {
		if n > 0 {
			p.word(",")
		}
		p.word("[")
		var f fileState
		f.ino = uint64(p.number())
		p.word(",")
		f.mtime = p.number()
		p.word(",")
		f.ctime = p.number()
		p.word("]")
		s.Files = append(s.Files, f)
	}
	p.word(`],"version":3}`)
	if p.bad || len(p.b) != 0 || len(s.Files) != len(s.Items) {
		return nil
	}
	s.Version = 3
	return &s
}

type scanner struct {
	b   []byte
	bad bool
}

func (p *scanner) peek(c byte) bool { return len(p.b) > 0 && p.b[0] == c }

func (p *scanner) word(w string) {
	if p.bad || len(p.b) < len(w) || string(p.b[:len(w)]) != w {
		p.bad = true
		return
	}
	p.b = p.b[len(w):]
}

func (p *scanner) number() int64 {
	neg := p.peek('-')
	if neg {
		p.b = p.b[1:]
	}
	var n uint64
	i := 0
	for ; i < len(p.b) && p.b[i] >= '0' && p.b[i] <= '9'; i++ {
		n = n*10 + uint64(p.b[i]-'0')
	}
	if i == 0 || i > 19 || n > math.MaxInt64 { // 19 digits fit 64 bits
		p.bad = true
		return 0
	}
	p.b = p.b[i:]
	if neg {
		return -int64(n)
	}
	return int64(n)
}

func (p *scanner) key() (k key) {
	if p.bad || len(p.b) < 2*len(k.hash) {
		p.bad = true
		return k
	}
	for i := range k.hash {
		hi, lo := nibble(p.b[2*i]), nibble(p.b[2*i+1])
		if hi|lo > 15 {
			p.bad = true
		}
		k.hash[i] = hi<<4 | lo
	}
	p.b = p.b[2*len(k.hash):]
	if rest, ok := bytes.CutPrefix(p.b, []byte(execSuffix)); ok {
		k.exec, p.b = true, rest
	}
	return k
}

func nibble(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	}
	return 0xff
}

// plain reads text without escapes up to a quote.
func (p *scanner) plain() string {
	i := bytes.IndexByte(p.b, '"')
	if p.bad || i < 0 || bytes.ContainsFunc(p.b[:i], func(r rune) bool { return r < 0x20 || r == '\\' || r > 0x7e }) {
		p.bad = true
		return ""
	}
	s := string(p.b[:i])
	p.b = p.b[i:]
	return s
}

// load reads state.json anew if it changed, keeping what we know better. Only
// one goroutine uses the cache then, or c.mu is held.
func (c *Cache) load() error {
	i, err := c.dir.lstat(stateFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if i.ino == c.seen.ino && i.mtime == c.seen.mtime && i.ctime == c.seen.ctime && i.size == c.seen.size {
		return nil
	}
	b, err := c.dir.readFile(stateFile)
	if err != nil {
		return err
	}
	s, err := decodeState(b)
	if err != nil {
		return err
	}
	items := make(map[key]*record, len(s.Items))
	slab := make([]record, len(s.Items))
	for n, it := range s.Items {
		r := &slab[n]
		r.size, r.used = it.size, it.used
		if s.Files != nil && s.Boot == c.boot {
			f := s.Files[n]
			r.ino, r.mtime, r.ctime = f.ino, f.mtime, f.ctime
		}
		if c.dropped[it.key] {
			continue
		}
		items[it.key] = r
	}
	for k, r := range c.items {
		if !r.dirty {
			continue
		}
		if old := items[k]; old != nil {
			r.used = max(r.used, old.used)
		}
		items[k] = r
	}
	c.items, c.seen = items, i
	return nil
}

// save writes state.json if something changed, together with what others have
// written meanwhile. A used time may be a minute old: then nothing changed.
func (c *Cache) save() error {
	if !c.dirty {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	unlock, err := c.lock(ctx, stateLock, false)
	if err != nil {
		return err
	}
	defer unlock()
	if err := c.load(); err != nil {
		c.opt.Log.Warn("cache state is broken; writing anew", "dir", c.opt.Dir, "err", err)
	}
	type item struct {
		k key
		r *record
	}
	list := make([]item, 0, len(c.items))
	for k, r := range c.items {
		list = append(list, item{k, r})
	}
	slices.SortFunc(list, func(a, b item) int {
		return cmp.Or(cmp.Compare(a.r.used, b.r.used), bytes.Compare(a.k.hash[:], b.k.hash[:]), cmp.Compare(b2i(a.k.exec), b2i(b.k.exec)))
	})
	s := state{Boot: c.boot, Items: make([]stateItem, len(list)), Files: make([]fileState, len(list))}
	for i, it := range list {
		s.Items[i] = stateItem{it.k, it.r.size, it.r.used}
		s.Files[i] = fileState{it.r.ino, it.r.mtime, it.r.ctime}
	}
	temp := c.tempName()
	if _, err := c.dir.writeFile(temp, 0o600, s.encode()); err != nil {
		return fmt.Errorf("save the cache's state: %w", err)
	}
	if err := c.dir.rename(temp, stateFile); err != nil {
		_ = c.dir.remove(temp)
		return fmt.Errorf("save the cache's state: %w", err)
	}
	if c.seen, err = c.dir.lstat(stateFile); err != nil {
		return err
	}
	for _, it := range list {
		it.r.dirty = false
	}
	clear(c.dropped)
	c.dirty = false
	return nil
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}
