package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"
)

// compile makes one test binary per package, as `go test` would.
func (r *run) compile(ctx context.Context, packages []*pkg) error {
	bin := filepath.Join(r.dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(1, r.parallel))
	for _, p := range packages {
		p.binary = filepath.Join(bin, strings.ReplaceAll(p.Path, "/", "-")+".test")
		g.Go(func() error {
			target, dir := p.Path, ""
			if p.Path == "control" {
				target, dir = ".", p.Dir
			}
			if _, err := output(ctx, dir, "go", "test", "-c", "-o", p.binary, target); err != nil {
				return fmt.Errorf("compile the tests of %s: %w", p.Path, err)
			}
			return os.Chmod(p.binary, 0o755)
		})
	}
	return g.Wait()
}
