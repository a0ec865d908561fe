// Command show runs the demonstrations that an issue asks for and judges
// them: `go run ./internal/show NAME`. It prints its figures and ends with 1
// when a bound is missed (decisions.md 33). SKEP_SHOW=short asks for a brief
// form.
package main

import (
	"fmt"
	"os"

	"github.com/skepdev/skep/internal/show/birth"
	"github.com/skepdev/skep/internal/show/cage"
	"github.com/skepdev/skep/internal/show/change"
	"github.com/skepdev/skep/internal/show/chaos"
	"github.com/skepdev/skep/internal/show/configs"
	"github.com/skepdev/skep/internal/show/content"
	"github.com/skepdev/skep/internal/show/floors"
	"github.com/skepdev/skep/internal/show/foreign"
	"github.com/skepdev/skep/internal/show/fresh"
	"github.com/skepdev/skep/internal/show/fuzz"
	"github.com/skepdev/skep/internal/show/gcesim"
	"github.com/skepdev/skep/internal/show/gostd"
	"github.com/skepdev/skep/internal/show/hooks"
	"github.com/skepdev/skep/internal/show/launcher"
	"github.com/skepdev/skep/internal/show/lies"
	"github.com/skepdev/skep/internal/show/machines"
	"github.com/skepdev/skep/internal/show/secrets"
	"github.com/skepdev/skep/internal/show/systemd"
	"github.com/skepdev/skep/internal/show/trouble"
	"github.com/skepdev/skep/internal/show/upgrade"
	"github.com/skepdev/skep/internal/show/warm"
	"github.com/skepdev/skep/internal/show/weeks"
)

func main() {
	if lies.Tattle() {
		os.Exit(1)
	}
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	if len(args) > 0 {
		switch args[0] {
		case "birth":
			return birth.Main(args[1:])
		case "cage":
			return cage.Main(args[1:])
		case "prisoner": // a bot of that
			return cage.Prisoner(args[1:])
		case "change":
			return change.Main(args[1:])
		case "chaos":
			return chaos.Main(args[1:])
		case "floors":
			return floors.Main(args[1:])
		case "foreign":
			return foreign.Main(args[1:])
		case "fresh":
			return fresh.Main(args[1:])
		case "fuzz":
			return fuzz.Main(args[1:])
		case "gcesim": // to play with; nothing is judged
			return gcesim.Main(args[1:])
		case "hooks":
			return hooks.Main(args[1:])
		case "gostd":
			return gostd.Main(args[1:])
		case "launcher":
			return launcher.Main(args[1:])
		case "secrets":
			return secrets.Main(args[1:])
		case "probe-secrets": // the task of that
			return secrets.Probe(args[1:])
		case "systemd":
			return systemd.Main(args[1:])
		case "trees", "share", "speed", "kills", "hostile", "soak":
			return content.Main(args[0], args[1:])
		case "machines":
			return machines.Main(args[1:])
		case "pool", "cleanroom":
			return warm.Main(args[0], args[1:])
		case "canary": // a task of that
			return warm.Canary(args[1:])
		case "trouble":
			return trouble.Main(args[1:])
		case "configs":
			return configs.Main(args[1:])
		case "weeks":
			return weeks.Main(args[1:])
		case "upgrade":
			return upgrade.Main(args[1:])
		case "lies":
			return lies.Main(args[1:])
		}
	}
	fmt.Fprintln(os.Stderr, "usage: show NAME; see the Makefile [flags]")
	return 2
}
