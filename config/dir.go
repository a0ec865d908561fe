package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// ReadDir returns the configuration in a directory, or all Faults in it. It is
// strict about names too: a setting.cfg is no file of ours.
func ReadDir(dir string) (*Snapshot, error) {
	files, faults, err := load(dir)
	if err != nil {
		return nil, err
	}
	s, err := New(files)
	if more := Faults(nil); errors.As(err, &more) {
		faults = append(faults, more...)
	} else if err != nil {
		return nil, err
	}
	faults.sort()
	if err := faults.err(); err != nil {
		return nil, err
	}
	return s, nil
}

// cfgFiles are the files that an operator edits.
var cfgFiles = []string{fileSettings, filePools, fileBots, fileMachines, fileProjects}

// load reads the files of dir. Faults are files that cannot be read or have no
// business there; the error is about the directory itself. Links may lead
// anywhere below dir, as those that Kubernetes makes do, but not out of it.
func load(dir string) (Files, Faults, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("configuration: %w", err)
	}
	defer root.Close()
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return nil, nil, fmt.Errorf("configuration: %w", err)
	}
	files, faults := Files{}, Faults(nil)
	add := func(name string, limit int64) {
		content, err := readFile(root, name, limit)
		if err != nil {
			faults = append(faults, Fault{File: name, Text: err.Error()})
			return
		}
		files[name] = content
	}
	for _, e := range entries {
		name := e.Name()
		switch {
		case slices.Contains(cfgFiles, name):
			add(name, maxFile)
		case strings.HasPrefix(name, ".") || strings.HasSuffix(name, "~"):
		case strings.HasSuffix(name, ".cfg"):
			faults = append(faults, Fault{File: name, Text: "is not read: the files are " + strings.Join(cfgFiles, ", ")})
		}
	}
	for _, name := range metadataFiles(files[fileMachines]) {
		if content, err := readFile(root, name, maxMetadata); err == nil { // else the entry that names it is broken
			files[name] = content
		}
	}
	scripts, err := fs.ReadDir(root.FS(), scriptDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		faults = append(faults, Fault{File: scriptDir, Text: plain(err)})
	}
	for i, e := range scripts {
		name := e.Name()
		switch {
		case i > 10*maxScripts:
			return files, append(faults, Fault{File: scriptDir, Text: "has too many files"}), nil
		case strings.HasPrefix(name, ".") || strings.HasPrefix(name, "#") || strings.HasSuffix(name, "~") || name == "__pycache__":
		case e.IsDir():
			faults = append(faults, Fault{File: path.Join(scriptDir, name), Text: "is a directory; scripts lie side by side"})
		default:
			add(path.Join(scriptDir, name), maxScript)
		}
	}
	return files, faults, nil
}

// plain is an error of the file system without its path, which the fault has.
func plain(err error) string {
	if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
		return "cannot be read: " + pe.Err.Error()
	}
	return "cannot be read: " + err.Error()
}

func readFile(root *os.Root, name string, limit int64) (string, error) {
	info, err := root.Stat(name)
	if err != nil {
		return "", errors.New(plain(err))
	}
	if !info.Mode().IsRegular() {
		return "", errors.New("is not a file") // opening a pipe would wait for ever
	}
	f, err := root.Open(name)
	if err != nil {
		return "", errors.New(plain(err))
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return "", errors.New(plain(err))
	}
	if int64(len(b)) > limit {
		return "", fmt.Errorf("has more than %d bytes", limit)
	}
	return string(b), nil
}
