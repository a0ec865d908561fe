// Package gostd runs examples/go-std-tests on a fleet of its own.
package gostd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/skepdev/skep/internal/show/form"
	"github.com/skepdev/skep/internal/stage/fleet"
)

const (
	bots  = "4"
	short = "12" // packages in the short form

	readyTime = 2 * time.Minute
)

// Main runs the demonstration with the skep in bin and returns an exit code.
// Arguments are given to the example.
func Main(args []string) int {
	if err := show(args); err != nil {
		fmt.Fprintln(os.Stderr, "show gostd:", err)
		return 1
	}
	return 0
}

func show(args []string) (err error) {
	dir, err := os.MkdirTemp("", "skep-gostd-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	skep, err := filepath.Abs(filepath.Join("bin", "skep"))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), readyTime)
	defer cancel()
	f, err := fleet.Start(ctx, "", append([]string{skep, "up", "--bots", bots}, fleet.Flags(dir)...)...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Stop()) }()
	fmt.Printf("skep up with %s bots is ready at %s after %v\n", bots, f.URL, f.Ready.Round(time.Millisecond))
	run := []string{"run", "./examples/go-std-tests", "-server", f.URL, "-skep", skep}
	if form.Short() {
		run = append(run, "-packages", short, "-again")
	}
	cmd := exec.Command("go", append(run, args...)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w\nthe fleet said:\n%s", err, f.Log())
	}
	return nil
}
