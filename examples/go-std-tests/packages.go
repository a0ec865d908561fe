package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// pkg is one package whose tests run.
type pkg struct {
	Path   string `json:"ImportPath"`
	Dir    string // where its tests expect to be run
	binary string

	TestGoFiles, XTestGoFiles, CgoFiles []string
	TestImports, XTestImports           []string
}

// away are imports of tests that reach out of the package: to the network, to
// other processes and users, or to the go command.
var away = []string{"net", "os/exec", "os/signal", "os/user", "plugin", "syscall", "internal/testenv", "runtime/cgo"}

// choose lists the packages of the standard library whose tests can run
// anywhere: they have tests, are public, and neither they nor their tests
// need cgo or anything in away. The list depends on the version of Go only.
// With a limit, that many are taken, spread evenly.
func choose(ctx context.Context, limit int) ([]*pkg, error) {
	out, err := output(ctx, "", "go", "list", "-json=ImportPath,Dir,TestGoFiles,XTestGoFiles,CgoFiles,TestImports,XTestImports", "std")
	if err != nil {
		return nil, err
	}
	var chosen []*pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		p := &pkg{}
		if err := d.Decode(p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		if p.suits() {
			chosen = append(chosen, p)
		}
	}
	if limit > 0 && limit < len(chosen) {
		var some []*pkg
		for i := range limit {
			some = append(some, chosen[i*len(chosen)/limit])
		}
		chosen = some
	}
	return chosen, nil
}

func (p *pkg) suits() bool {
	parts := strings.Split(p.Path, "/")
	if slices.Contains(parts, "internal") || slices.Contains(parts, "vendor") {
		return false
	}
	if len(p.TestGoFiles)+len(p.XTestGoFiles) == 0 || len(p.CgoFiles) > 0 {
		return false
	}
	return !slices.ContainsFunc(slices.Concat(p.TestImports, p.XTestImports, []string{p.Path}), func(path string) bool {
		return slices.ContainsFunc(away, func(a string) bool { return path == a || strings.HasPrefix(path, a+"/") })
	})
}

const controlTest = `package control

import "testing"

func TestPasses(t *testing.T) {}
func TestFails(t *testing.T)  { t.Error("as it must") }
func TestSkips(t *testing.T)  { t.Skip() }
`

// writeControl makes a package that must fail both ways: a comparison in which
// everything is always fine proves little.
func writeControl(dir string) (*pkg, error) {
	p := &pkg{Path: "control", Dir: filepath.Join(dir, "control")}
	if err := os.Mkdir(p.Dir, 0o755); err != nil {
		return nil, err
	}
	return p, errors.Join(
		os.WriteFile(filepath.Join(p.Dir, "go.mod"), []byte("module control\n\ngo 1.24\n"), 0o644),
		os.WriteFile(filepath.Join(p.Dir, "control_test.go"), []byte(controlTest), 0o644),
	)
}

// shareSource makes sure that every user can read Go's source, which tests
// read their test data from. Where Go lies in somebody's home, it copies the
// source and moves the packages there; env is what the tests need to know
// then.
func shareSource(ctx context.Context, dir string, packages []*pkg) (env map[string]string, err error) {
	out, err := output(ctx, "", "go", "env", "GOROOT")
	if err != nil {
		return nil, err
	}
	root := strings.TrimSpace(string(out))
	if public(root) {
		return nil, nil
	}
	shared := filepath.Join(dir, "goroot")
	for _, part := range []string{"src", "lib"} {
		if err := os.CopyFS(filepath.Join(shared, part), os.DirFS(filepath.Join(root, part))); err != nil {
			return nil, fmt.Errorf("copy Go's source: %w", err)
		}
	}
	for _, p := range packages {
		rel, err := filepath.Rel(root, p.Dir)
		if err != nil {
			return nil, err
		}
		p.Dir = filepath.Join(shared, rel)
	}
	return map[string]string{"GOROOT": shared}, nil
}

// public reports whether every user may enter the directory.
func public(dir string) bool {
	for {
		info, err := os.Stat(dir)
		if err != nil || info.Mode()&0o001 == 0 {
			return false
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return true
		}
		dir = parent
	}
}
