package disk

import (
	"encoding/binary"
	"runtime"
	"testing"

	"github.com/skepdev/skep/cas"
)

// TestMemory holds what the package comment says of memory.
func TestMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("half a million blobs")
	}
	heap := func() int64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	name := func(i int) (h cas.Hash) {
		binary.LittleEndian.PutUint64(h[:], uint64(i)*0x9e3779b97f4a7c15)
		return h
	}
	const n = 500_000
	for _, tc := range []struct {
		name string
		max  int64
		add  func(s *Store)
	}{
		{"small", 115, func(s *Store) {
			const each = 10_000
			for k := range n / each {
				p := &pack{id: uint32(k + 1), sealed: true, offs: make([]uint32, each), used: make([]uint32, each), flags: make([]uint8, each)}
				for i := range each {
					s.index[name(k*each+i)] = ref{p.id, uint32(i)}
				}
				s.packs[p.id] = p
			}
		}},
		{"large", 170, func(s *Store) {
			for i := range n {
				s.addFile(fileEntry{hash: name(i), size: 1 << 20})
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := &Store{index: map[cas.Hash]ref{}, packs: map[uint32]*pack{}}
			before := heap()
			tc.add(s)
			got := (heap() - before) / n
			t.Logf("%d bytes a blob", got)
			if got > tc.max {
				t.Errorf("%d bytes a blob, want %d at most", got, tc.max)
			}
			runtime.KeepAlive(s)
		})
	}
}
