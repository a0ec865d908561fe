// Command skep-bot is a bot: see package botcli.
package main

import (
	"os"

	"github.com/skepdev/skep/botcli"
)

func main() { os.Exit(botcli.Main()) }
