package warm

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/host/pool"
	"github.com/skepdev/skep/internal/need"
)

// Everything that a connection lets the service do at a time counts: binds too,
// each of which is a thread.
func TestBusy(t *testing.T) {
	for name, r := range map[string]*pool.Request{
		"get":  {ID: 1, Get: &pool.Get{}},
		"bind": {ID: 1, Bind: &pool.Bind{At: "/x"}},
		"exec": {ID: 1, Exec: &pool.Exec{Args: []string{"x"}}},
	} {
		for busy, c := range map[string]*client{
			"execs":       {execs: map[uint64]running{}, binds: 0},
			"binds":       {binds: maxBusy},
			"some of all": {execs: map[uint64]running{7: {}}, binds: maxBusy - 1},
		} {
			c.s = &Service{}
			for i := range uint64(maxBusy) {
				if busy == "execs" {
					c.execs[100+i] = running{}
				}
			}
			if e := c.do(r, nil); e == nil || e.Reason != pool.ReasonTooMany || skep.KindOf(e) != skep.Exhausted {
				t.Errorf("%s while busy with %s: %v", name, busy, e)
			}
		}
	}
}

// An image gets its name, which says that it is whole, when it is durable.
func TestBaseIsSynced(t *testing.T) {
	need.Root(t, "images belong to other users")
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "file", Typeflag: tar.TypeReg, Mode: 0o644, Size: 4}); err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write([]byte("text"))
	_ = w.Close()
	sum := sha256.Sum256(b.Bytes())
	file, dir := filepath.Join(t.TempDir(), "base.tar"), t.TempDir()
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	sync := syncFiles
	defer func() { syncFiles = sync }()
	var seen []string
	syncFiles = func(of string) error {
		whole, _ := filepath.Glob(filepath.Join(of, "file"))
		named, _ := filepath.Glob(filepath.Join(dir, "[0-9a-f]*-1000000", "root", "file"))
		seen = append(seen, map[bool]string{true: "whole"}[len(whole) > 0]+map[bool]string{true: "named"}[len(named) > 0])
		return sync(of)
	}
	base := Base{File: file, Digest: "sha256:" + hex.EncodeToString(sum[:])}
	if err := base.prepare(t.Context(), dir, 1_000_000, 65536); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"whole", "named"}, seen); d != "" {
		t.Errorf("synced (-want +got):\n%s", d)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 || !slices.ContainsFunc(left, func(e os.DirEntry) bool { return e.Name() == hex.EncodeToString(sum[:])+"-1000000" }) {
		t.Errorf("left: %v, %v", left, err)
	}
}
