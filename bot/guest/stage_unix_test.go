//go:build !windows

package guest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skepdev/skep"
)

// TestStrangeStage: where code would be put until it is whole lies something
// that others made. Nothing in it is touched, a person is told, and a machine
// whose code is good starts all the same.
func TestStrangeStage(t *testing.T) {
	c := newCloud(t)
	for _, s := range []struct {
		name string
		put  func(dir, stage string) error
	}{
		{"a link", os.Symlink},
		{"a link to nothing", func(_, stage string) error { return os.Symlink("/nonexistent", stage) }},
		{"a directory that others may write in", func(dir, stage string) error {
			if err := os.Rename(dir, stage); err != nil {
				return err
			}
			return os.Chmod(stage, 0o777)
		}},
		{"another account's directory", func(dir, stage string) error {
			if os.Geteuid() != 0 {
				return os.Symlink(dir, stage) // only root can give it away
			}
			if err := os.Rename(dir, stage); err != nil {
				return err
			}
			return os.Chown(stage, 65534, 65534)
		}},
		{"a file", func(_, stage string) error { return os.WriteFile(stage, nil, 0o600) }},
	} {
		t.Run(s.name, func(t *testing.T) {
			o, installed := c.options(t)
			etc := filepath.Join(t.TempDir(), "etc")
			if err := os.Mkdir(etc, 0o700); err != nil {
				t.Fatal(err)
			}
			files := []string{"passwd", "x" + partSuffix}
			for _, name := range files {
				if err := os.WriteFile(filepath.Join(etc, name), []byte(name), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.put(etc, o.Dir+stageSuffix); err != nil {
				t.Fatal(err)
			}
			for _, good := range []bool{false, true} {
				if good {
					if err := os.WriteFile(filepath.Join(o.Dir, Executable("linux")), c.code, 0o755); err != nil {
						t.Fatal(err)
					}
				}
				err := Run(t.Context(), o)
				if good && (err != nil || installed.Exe == "") {
					t.Errorf("with good code: %v", err)
				}
				if !good && (skep.KindOf(err) != skep.Precondition || !strings.Contains(err.Error(), "only this account may use")) {
					t.Errorf("without: %v", err)
				}
			}
			if _, err := os.Stat(etc); err != nil {
				etc = o.Dir + stageSuffix // it was moved there
			}
			for _, name := range files {
				if text, err := os.ReadFile(filepath.Join(etc, name)); err != nil || string(text) != name {
					t.Errorf("%s: %q, %v", name, text, err)
				}
			}
		})
	}
}
