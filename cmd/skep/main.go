// Command skep is the whole product for operators and users: a server, a
// fleet on one machine, and the client of both. skep --help lists its verbs.
package main

import (
	"os"

	"github.com/skepdev/skep/cli"
)

func main() { os.Exit(cli.Main()) }
