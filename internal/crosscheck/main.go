// Command crosscheck type-checks this module, its tests included, for other
// platforms: `go run ./internal/crosscheck darwin/arm64 windows/amd64`.
//
// It finds what keeps a package from building there, in seconds: compiling a
// large dependency for each platform would take minutes, so the bodies of its
// functions are not even looked at. `make dist` compiles and links for real.
package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

func main() {
	bad := false
	for _, platform := range os.Args[1:] {
		start := time.Now()
		n, err := check(platform)
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s:\n%v\n", platform, err)
			bad = true
			continue
		}
		fmt.Printf("%-14s %d packages, %.1f s\n", platform, n, time.Since(start).Seconds())
	}
	if bad {
		os.Exit(1)
	}
}

// listed is a package as `go list` tells of it. A package that is compiled
// anew for the test of another has the test's name in its ImportPath.
type listed struct {
	ImportPath, Dir string
	Standard        bool
	GoFiles         []string
	ImportMap       map[string]string // import in a file → ImportPath
	Module          *struct {
		Main      bool
		GoVersion string
	}
	Error *struct{ Err string }
}

func (p *listed) ours() bool { return p.Module != nil && p.Module.Main }

// check returns how many packages it checked.
func check(platform string) (int, error) {
	goos, goarch, ok := strings.Cut(platform, "/")
	if !ok {
		return 0, errors.New("want OS/ARCHITECTURE")
	}
	packages, err := list(goos, goarch)
	if err != nil {
		return 0, err
	}
	c := &checker{
		fset: token.NewFileSet(), sizes: types.SizesFor("gc", goarch),
		files: map[*listed][]*ast.File{}, done: map[string]*types.Package{"unsafe": types.Unsafe},
	}
	if c.sizes == nil {
		return 0, fmt.Errorf("unknown architecture %s", goarch)
	}
	if err := c.parse(packages); err != nil {
		return 0, err
	}
	for _, p := range packages { // dependencies come first
		if err := c.check(p); err != nil {
			return 0, err
		}
	}
	return len(packages), errors.Join(c.faults...)
}

// list returns the packages of this module, their tests, and all that these
// stand on, as far as they are Go.
func list(goos, goarch string) ([]*listed, error) {
	cmd := exec.Command("go", "list", "-e", "-deps", "-test", "-json=ImportPath,Dir,Standard,GoFiles,ImportMap,Module,Error", "./...")
	cmd.Env = append(os.Environ(), "GOOS="+goos, "GOARCH="+goarch, "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	var all []*listed
	var faults []error
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		p := &listed{}
		if err := d.Decode(p); errors.Is(err, io.EOF) {
			return all, errors.Join(faults...)
		} else if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		switch {
		case p.ImportPath == "unsafe" || strings.HasSuffix(p.ImportPath, ".test"): // the latter is written by go test
		case p.Error != nil && strings.Contains(p.Error.Err, "build constraints exclude all Go files"):
		case p.Error != nil:
			faults = append(faults, errors.New(p.Error.Err))
		default:
			all = append(all, p)
		}
	}
}

type checker struct {
	fset   *token.FileSet
	sizes  types.Sizes
	files  map[*listed][]*ast.File
	done   map[string]*types.Package // by listed.ImportPath
	faults []error
}

// parse reads all files. Many packages take long to read.
func (c *checker) parse(packages []*listed) error {
	parsed := make([][]*ast.File, len(packages))
	var g errgroup.Group
	g.SetLimit(runtime.NumCPU())
	for i, p := range packages {
		g.Go(func() error {
			for _, name := range p.GoFiles {
				if !filepath.IsAbs(name) {
					name = filepath.Join(p.Dir, name)
				}
				f, err := parser.ParseFile(c.fset, name, nil, parser.SkipObjectResolution)
				if err != nil {
					return err
				}
				parsed[i] = append(parsed[i], f)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i, p := range packages {
		c.files[p] = parsed[i]
	}
	return nil
}

// maxFaults of one platform are enough to read.
const maxFaults = 20

func (c *checker) check(p *listed) error {
	conf := types.Config{
		Importer:         imports{c, p},
		Sizes:            c.sizes,
		IgnoreFuncBodies: !p.ours(),
		Error: func(err error) { // what a dependency does is its own affair
			if p.ours() && len(c.faults) < maxFaults {
				c.faults = append(c.faults, err)
			}
		},
	}
	if p.Module != nil && p.Module.GoVersion != "" {
		conf.GoVersion = "go" + p.Module.GoVersion
	}
	path, _, _ := strings.Cut(p.ImportPath, " ")
	pkg, _ := conf.Check(path, c.fset, c.files[p], nil) // its errors went to conf.Error
	if pkg == nil {
		return fmt.Errorf("%s cannot be checked", p.ImportPath)
	}
	c.done[p.ImportPath] = pkg
	delete(c.files, p)
	return nil
}

// imports finds what one package imports.
type imports struct {
	c *checker
	p *listed
}

func (i imports) Import(path string) (*types.Package, error) {
	id := cmp.Or(i.p.ImportMap[path], path)
	if pkg := i.c.done[id]; pkg != nil {
		return pkg, nil
	}
	return nil, fmt.Errorf("%s does not build on this platform, or does not exist", id)
}
