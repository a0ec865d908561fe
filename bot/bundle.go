package bot

import (
	"archive/zip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
)

const (
	keptBundles = 5
	bundleTail  = 1 << 20 // bytes of each log file
)

// Bundle writes what a person needs to understand this bot (status, stacks,
// memory, the ends of its logs) into one zip in logs and returns its path. It
// holds no environment and no token.
func (b *Bot) Bundle() (string, error) {
	logs := filepath.Join(b.cfg.Dir, "logs")
	if err := os.MkdirAll(logs, 0o755); err != nil {
		return "", err
	}
	path := filepath.Join(logs, "bundle-"+b.cfg.Now().UTC().Format("20060102-150405.000")+".zip")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	defer f.Close()
	z := zip.NewWriter(f)
	if err := b.fillBundle(z, logs); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	if err := z.Close(); err != nil {
		return "", err
	}
	dropOldBundles(logs)
	return path, nil
}

func (b *Bot) fillBundle(z *zip.Writer, logs string) error {
	put := func(name string, data []byte) error {
		w, err := z.Create(name)
		if err != nil {
			return err
		}
		_, err = w.Write(data)
		return err
	}
	status, err := json.MarshalIndent(b.Status(), "", "  ")
	if err != nil {
		return err
	}
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	memory, err := json.MarshalIndent(mem, "", "  ")
	if err != nil {
		return err
	}
	if err := put("status.json", status); err != nil {
		return err
	}
	if err := put("stacks.txt", Stacks()); err != nil {
		return err
	}
	if err := put("memory.json", memory); err != nil {
		return err
	}
	files, _ := filepath.Glob(filepath.Join(logs, "*.log"))
	for _, name := range files {
		data, err := tail(name, bundleTail)
		if err != nil {
			continue // rotated away meanwhile
		}
		if err := put("logs/"+filepath.Base(name), data); err != nil {
			return err
		}
	}
	return nil
}

// tail returns the last n bytes of a file.
func tail(path string, n int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > n {
		if _, err := f.Seek(-n, io.SeekEnd); err != nil {
			return nil, err
		}
	}
	return io.ReadAll(io.LimitReader(f, n))
}

func dropOldBundles(logs string) {
	old, _ := filepath.Glob(filepath.Join(logs, "bundle-*.zip"))
	slices.Sort(old)
	for len(old) > keptBundles {
		_ = os.Remove(old[0])
		old = old[1:]
	}
}
