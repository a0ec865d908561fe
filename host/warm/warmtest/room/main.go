// Command room is the first process of rooms in tests: small and quick to
// build.
package main

import (
	"os"

	"github.com/skepdev/skep/host/room"
)

func main() { os.Exit(room.Main()) }
