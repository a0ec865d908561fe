// Package weeks shows that weekly windows open and close as clocks say: package
// window is held to clocks that are watched minute by minute, in every time
// zone that Go has.
package weeks

import (
	"archive/zip"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skepdev/skep/internal/show/form"
	"github.com/skepdev/skep/provider/window/windowtest"
)

// Main runs the show and returns its exit code.
func Main(args []string) int {
	flags := flag.NewFlagSet("weeks", flag.ContinueOnError)
	years, seed := flags.Int("years", 10, "how many years in each zone"), flags.Uint64("seed", form.Of(uint64(time.Now().UnixNano()), 1), "of the windows")
	zones := flags.Int("zones", 0, "how many zones, by chance; 0 = all")
	part := flags.String("part", "1/1", "K/N: only each Nth of the zones, from the Kth on, as one of several runs with a seed")
	if flags.Parse(args) != nil {
		return 2
	}
	if form.Short() {
		*years, *zones = 1, 40
	}
	if err := show(*zones, *part, *years, *seed); err != nil {
		fmt.Fprintln(os.Stderr, "weeks:", err)
		return 1
	}
	return 0
}

func show(most int, part string, years int, seed uint64) error {
	names, err := allZones()
	if err != nil {
		return err
	}
	if len(names) < 400 {
		return fmt.Errorf("there are %d zones, want 400 or more", len(names))
	}
	r := rand.New(rand.NewPCG(seed, 0))
	r.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	if most > 0 {
		names = names[:min(most, len(names))]
	}
	var k, of int
	if _, err := fmt.Sscanf(part, "%d/%d", &k, &of); err != nil || k < 1 || k > of {
		return fmt.Errorf("-part %q is not K/N", part)
	}
	n := 0
	names = slices.DeleteFunc(names, func(string) bool { n++; return n%of != k%of })
	fmt.Printf("windows: %d zones, %d years each, seed %d\n", len(names), years, seed)
	began := time.Now()
	var (
		mu      sync.Mutex
		minutes int
		bad     []string
		wg      sync.WaitGroup
		work    = make(chan int)
	)
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for i := range work {
				n, wrong := zone(names[i], years, rand.New(rand.NewPCG(seed, uint64(i)+1)))
				mu.Lock()
				minutes += n
				bad = append(bad, wrong...)
				mu.Unlock()
			}
		})
	}
	for i := range names {
		work <- i
	}
	close(work)
	wg.Wait()
	slices.Sort(bad)
	for _, b := range bad[:min(len(bad), 20)] {
		fmt.Println("  " + b)
	}
	fmt.Printf("windows: %d minutes compared in %v, %d mismatches (bound 0)\n", minutes, time.Since(began).Round(time.Second), len(bad))
	if want := len(names) * years * 365 * 24 * 60; len(bad) > 0 || minutes < want {
		return fmt.Errorf("%d mismatches in %d minutes, of which %d were to be compared", len(bad), minutes, want)
	}
	return nil
}

// zone compares so many years of a zone, each with windows of its own. They
// begin after 1972, when the last clocks had come to whole minutes, and end
// after 2037, from which on zones are rules and not tables.
func zone(name string, years int, r *rand.Rand) (minutes int, bad []string) {
	loc, err := time.LoadLocation(name)
	if err != nil {
		return 0, []string{err.Error()}
	}
	first := 1973 + r.IntN(60)
	for y := range years {
		from := time.Date(first+y, 1, 1, 0, 0, 0, 0, time.UTC)
		n, wrong := windowtest.Check(windowtest.Random(r, loc, from), from, from.AddDate(1, 0, 0))
		minutes, bad = minutes+n, append(bad, wrong...)
	}
	return minutes, bad
}

// allZones are those of time/tzdata, which is made of this file.
func allZones() (names []string, err error) {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return nil, err
	}
	z, err := zip.OpenReader(filepath.Join(strings.TrimSpace(string(root)), "lib", "time", "zoneinfo.zip"))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	for _, f := range z.File {
		if !strings.HasSuffix(f.Name, "/") {
			names = append(names, f.Name)
		}
	}
	return names, nil
}
