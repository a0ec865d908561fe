package bench

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
)

// makeDir makes a directory for one run on a disk: where memory plays the
// disk, an fsync costs nothing and no figure is worth anything. Others may
// enter it, as a task may run as another user.
func makeDir(parent string) (string, error) {
	parents := []string{parent}
	if parent == "" {
		parents = []string{os.TempDir(), "/var/tmp", "."}
	}
	for _, p := range parents {
		if volatile(p) {
			continue
		}
		dir, err := os.MkdirTemp(p, "skep-bench-")
		if err != nil {
			continue
		}
		if dir, err = filepath.Abs(dir); err != nil {
			return "", err
		}
		return dir, os.Chmod(dir, 0o711)
	}
	return "", fmt.Errorf("no place on a disk for a temporary directory in %s; name one with --dir", cmp.Or(parent, fmt.Sprint(parents)))
}
