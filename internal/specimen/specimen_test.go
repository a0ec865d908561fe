package specimen

import (
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep/cas/archive"
)

func TestSmall(t *testing.T) {
	var roots []string
	for _, seed := range []uint64{1, 1, 2} {
		dir := filepath.Join(t.TempDir(), "tree")
		if err := Small(dir, Shape{Files: 500, Bytes: 1 << 20, Seed: seed}); err != nil {
			t.Fatal(err)
		}
		files, bytes, err := Size(dir)
		if err != nil {
			t.Fatal(err)
		}
		if files != 500 || bytes < 1<<20-500 || bytes > 1<<20 {
			t.Errorf("%d files of %d bytes", files, bytes)
		}
		tree, err := archive.Scan(t.Context(), dir, archive.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if tree.Symlinks == 0 || tree.Dirs < 40 {
			t.Errorf("%d symlinks and %d directories", tree.Symlinks, tree.Dirs)
		}
		roots = append(roots, tree.Root.String())
	}
	if roots[0] != roots[1] || roots[0] == roots[2] {
		t.Errorf("trees of seeds 1, 1 and 2: %q", roots)
	}
}

func TestLarge(t *testing.T) {
	dir := t.TempDir()
	var roots []string
	for _, seed := range []uint64{1, 1, 2} {
		path := filepath.Join(t.TempDir(), "f")
		if err := Large(path, 3<<20+1, seed); err != nil {
			t.Fatal(err)
		}
		tree, err := archive.Scan(t.Context(), filepath.Dir(path), archive.Options{})
		if err != nil {
			t.Fatal(err)
		}
		roots = append(roots, tree.Root.String())
	}
	if diff := cmp.Diff(roots[0], roots[1]); diff != "" || roots[0] == roots[2] {
		t.Errorf("files of seeds 1, 1 and 2: %q", roots)
	}
	if files, _, err := Size(dir); files != 0 || err != nil {
		t.Errorf("empty directory: %d, %v", files, err)
	}
}
