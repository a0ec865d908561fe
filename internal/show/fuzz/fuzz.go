// Package fuzz runs every fuzz target of the repository for a while.
package fuzz

import (
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skepdev/skep/internal/show/form"
)

// How long each target runs, unless SKEP_FUZZTIME says so.
const (
	longTime  = "10s"
	shortTime = "1s"
)

// Main runs the demonstration and returns an exit code. Arguments are package
// patterns; none means all of the module. With -only, a regular expression, just
// the targets whose names it matches run.
func Main(args []string) int {
	flags := flag.NewFlagSet("fuzz", flag.ExitOnError)
	only := flags.String("only", "", "regular expression of names of targets")
	_ = flags.Parse(args)
	match, err := regexp.Compile(*only)
	if err != nil {
		fmt.Fprintln(os.Stderr, "show fuzz:", err)
		return 2
	}
	if args = flags.Args(); len(args) == 0 {
		args = []string{"./..."}
	}
	if err := show(args, match); err != nil {
		fmt.Fprintln(os.Stderr, "show fuzz:", err)
		return 1
	}
	return 0
}

// target is one fuzz test.
type target struct{ pkg, name string }

func show(patterns []string, only *regexp.Regexp) error {
	each := cmp.Or(os.Getenv("SKEP_FUZZTIME"), form.Of(longTime, shortTime))
	targets, err := find(patterns)
	if err != nil {
		return err
	}
	targets = slices.DeleteFunc(targets, func(t target) bool { return !only.MatchString(t.name) })
	if len(targets) == 0 {
		return errors.New("there are no fuzz targets")
	}
	start := time.Now()
	var (
		g      errgroup.Group
		mu     sync.Mutex
		failed []string
	)
	g.SetLimit(form.Of(1, runtime.NumCPU())) // of a short run most is building
	for _, t := range targets {
		g.Go(func() error {
			execs, err := run(t, each)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = append(failed, t.pkg+"."+t.name)
				fmt.Printf("FAIL  %-28s %s\n%s\n", t.name, t.pkg, err)
				return nil
			}
			fmt.Printf("ok    %-28s %s   %s\n", t.name, t.pkg, execs)
			return nil
		})
	}
	_ = g.Wait()
	fmt.Printf("%d targets for %s each, %d failed, %v in all\n", len(targets), each, len(failed), time.Since(start).Round(time.Second))
	if len(failed) > 0 {
		return fmt.Errorf("failed: %s", strings.Join(failed, ", "))
	}
	return nil
}

var fuzzFunc = regexp.MustCompile(`(?m)^func (Fuzz\w+)\(\w+ \*testing\.F\)`)

// find reads the test files that this platform builds. Asking `go test -list`
// instead would link every test of the module.
func find(patterns []string) ([]target, error) {
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Dir,TestGoFiles,XTestGoFiles"}, patterns...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	var targets []target
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath, Dir           string
			TestGoFiles, XTestGoFiles []string
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return targets, nil
		} else if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		for _, file := range slices.Concat(p.TestGoFiles, p.XTestGoFiles) {
			src, err := os.ReadFile(filepath.Join(p.Dir, file))
			if err != nil {
				return nil, err
			}
			for _, m := range fuzzFunc.FindAllSubmatch(src, -1) {
				targets = append(targets, target{p.ImportPath, string(m[1])})
			}
		}
	}
}

var lastExecs = regexp.MustCompile(`execs: \d+ \(\d+/sec\)`)

// outOfTime is how a run ends that found nothing and whose time was over while
// a processor was busy elsewhere: https://go.dev/issue/75804. What fails on an
// input says where that was written.
var outOfTime = regexp.MustCompile(`(?m)^--- FAIL: \w+ \([\d.]+s\)\n    context deadline exceeded\nFAIL$`)

// run fuzzes one target and returns how much it was tried. What counts is a run
// that Go itself brought to an end.
func run(t target, each string) (execs string, err error) {
	for range 3 {
		var out []byte
		if out, err = fuzz(t, each); err == nil {
			return tried(out), nil
		}
		err = fmt.Errorf("%w\n%s", err, out)
		if !outOfTime.Match(out) {
			break
		}
		fmt.Printf("      %-28s again: Go did not bring the run to its end\n", t.name)
	}
	return "", err
}

// minimizeTime is how long Go may look for a smaller input as interesting as one
// that it found. Its minute would be all the time that there is.
const minimizeTime = "200ms"

func fuzz(t target, each string) ([]byte, error) {
	cmd := exec.Command("go", "test", "-run=^$", "-fuzz=^"+t.name+"$", "-fuzztime="+each, "-fuzzminimizetime="+minimizeTime, t.pkg)
	// What is tried are programs, not disks: a database in memory lets a target
	// that writes be tried a hundred times as often.
	if st, err := os.Stat("/dev/shm"); err == nil && st.IsDir() {
		cmd.Env = append(os.Environ(), "TMPDIR=/dev/shm", "GOTMPDIR="+os.TempDir())
	}
	return cmd.CombinedOutput()
}

// tried is what the last line but one says: the last one says 0/sec. A busy
// machine may need a short time for the inputs that it has.
func tried(out []byte) string {
	execs := ""
	for _, e := range lastExecs.FindAll(out, -1) {
		if !strings.Contains(string(e), "(0/sec)") || execs == "" {
			execs = string(e)
		}
	}
	return cmp.Or(execs, "no more than its known inputs")
}
