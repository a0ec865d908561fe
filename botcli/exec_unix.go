//go:build unix

package botcli

import "github.com/skepdev/skep/internal/proc"

// execSelf replaces this process.
func execSelf(exe string, args, env []string) error { return proc.Exec(exe, args, env) }
