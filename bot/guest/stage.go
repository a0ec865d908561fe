package guest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/skepdev/skep"
)

// stage is the directory in which code lies until it is whole.
type stage struct{ *os.Root }

// openStage opens dir, which is made if need be. Whoever runs this may be root,
// and who may write in the directory above, as the bot's account may where it
// was given that, can put anything in its place: a link to a directory of the
// system, say, whose files would be removed. So only a directory counts that is
// ours, in which nobody else may write or look.
func openStage(dir string) (*stage, error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	stranger := func() error {
		return skep.Errorf(skep.Precondition, "%s is not a directory that only this account may use: see who put it there, remove it, and let nobody else write in %s", dir, filepath.Dir(dir))
	}
	named, err := os.Lstat(dir)
	if err != nil {
		return nil, err
	}
	if !named.IsDir() {
		return nil, stranger()
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	opened, err := root.Stat(".")
	if err == nil && (!os.SameFile(named, opened) || !isOurs(opened)) {
		err = stranger()
	}
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return &stage{root}, nil
}

// forget removes parts of code but one; "" = all.
func (s *stage) forget(but string) error {
	entries, err := fs.ReadDir(s.FS(), ".")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != but && strings.HasSuffix(e.Name(), partSuffix) {
			if err := s.Remove(e.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}

// drop removes the directory, if nothing but parts is in it.
func (s *stage) drop() error {
	err := s.forget("")
	if err = errors.Join(err, s.Close()); err != nil {
		return err
	}
	_ = os.Remove(s.Name())
	return nil
}
