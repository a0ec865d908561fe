package botcli

import (
	"os"

	"github.com/skepdev/skep/internal/proc"
)

// execSelf starts the successor and waits for it: a process cannot be replaced
// on this system. It ends this one with the successor's exit code.
func execSelf(exe string, args, env []string) error {
	p, err := proc.Start(&proc.Cmd{Path: exe, Args: args, Env: env, Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
	if err != nil {
		return err
	}
	os.Exit(p.Wait().Code)
	return nil
}
