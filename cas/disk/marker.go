package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/skepdev/skep"
)

// The names in the directory of a store.
const (
	markerName    = "README"
	markerNew     = "README.new"
	lockName      = "lock"
	blobsDir      = "blobs"
	packsDir      = "packs"
	tempDir       = "tmp"
	quarantineDir = "quarantine"
)

// markerLine starts the marker; another layout gets another number.
const markerLine = "skep content-addressed storage, layout 1\n"

const markerText = markerLine + `
This directory belongs to a skep server, which finds its blobs here. Stop the
server before you copy or remove it, and change nothing inside.

  blobs/XX/HASH      a blob of more than 64 KiB, and checksums behind it
  packs/N.pack       smaller blobs, one behind another
  packs/N.idx, .use  where they lie, and when they were last used; made anew when missing
  tmp                uploads under way; emptied at each start
  quarantine         what was found damaged, for you to look at; may be removed
`

// checkForeign refuses a directory that holds something else than a store.
func checkForeign(root *os.Root, dir string) error {
	b, err := root.ReadFile(markerName)
	switch {
	case err == nil && strings.HasPrefix(string(b), markerLine):
		return nil
	case err == nil:
		return skep.Errorf(skep.Precondition, "%s is no content-addressed storage that this version knows: its %s says otherwise; want %q first", dir, markerName, strings.TrimSpace(markerLine))
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	names, err := readNames(root, ".")
	if err != nil {
		return err
	}
	for _, n := range names {
		if n != lockName && n != markerNew { // of a first start that was killed
			return skep.Errorf(skep.Precondition, "%s holds other files (%.80q) and is no content-addressed storage; give it a directory of its own", dir, n)
		}
	}
	return nil
}

// writeMarker makes the directory a store.
func writeMarker(root *os.Root) error {
	if _, err := root.Lstat(markerName); err == nil {
		return nil
	}
	f, err := root.OpenFile(markerNew, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(markerText)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", markerName, err)
	}
	if err := root.Rename(markerNew, markerName); err != nil {
		return err
	}
	return syncDir(root, ".")
}

func readNames(root *os.Root, dir string) ([]string, error) {
	d, err := root.Open(dir)
	if err != nil {
		return nil, err
	}
	names, err := d.Readdirnames(-1)
	return names, errors.Join(err, d.Close())
}
