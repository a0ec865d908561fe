package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"
)

// event is a line of `go test -json`.
type event struct {
	Action, Package, Test string
	Elapsed               float64 // seconds
	Output                string
}

// runDirectly runs the same packages with go test.
func runDirectly(ctx context.Context, packages []*pkg) (map[*pkg]verdict, error) {
	byPath := map[string]*pkg{}
	var paths []string
	verdicts := map[*pkg]verdict{}
	for _, p := range packages {
		byPath[p.Path] = p
		if p.Path == "control" {
			if err := goTest(ctx, p.Dir, []string{"."}, byPath, verdicts); err != nil {
				return nil, err
			}
			continue
		}
		paths = append(paths, p.Path)
	}
	return verdicts, goTest(ctx, "", paths, byPath, verdicts)
}

// goTest adds what go test says of the given packages to verdicts. That some
// fail is no error.
func goTest(ctx context.Context, dir string, paths []string, packages map[string]*pkg, verdicts map[*pkg]verdict) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-short", "-count=1", "-vet=off", "-json"}, paths...)...)
	cmd.Dir = dir
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return fmt.Errorf("go test: %w", err)
	}
	tests := map[string]map[string]string{}
	said := map[string]string{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var e event
		if err := d.Decode(&e); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return fmt.Errorf("go test -json: %w\n%s", err, stderr.String())
		}
		p := packages[e.Package]
		if p == nil {
			continue
		}
		if tests[p.Path] == nil {
			tests[p.Path] = map[string]string{}
		}
		switch e.Action {
		case "output":
			said[p.Path] += e.Output
		case "pass", "fail", "skip":
			switch {
			case e.Test == "":
				v := verdict{ok: e.Action != "fail", tests: tests[p.Path], took: time.Duration(e.Elapsed * float64(time.Second))}
				if !v.ok {
					v.note = lastLines(said[p.Path], 30)
				}
				verdicts[p] = v
			case !strings.Contains(e.Test, "/"):
				tests[p.Path][e.Test] = e.Action
			}
		}
	}
	for _, path := range paths {
		if p := packages[path]; p != nil {
			if _, ok := verdicts[p]; !ok {
				return fmt.Errorf("go test says nothing of %s\n%s", path, stderr.String())
			}
		}
	}
	return nil
}
