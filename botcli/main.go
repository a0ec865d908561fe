// Package botcli is the command line of skep-bot, the one executable of a
// bot's machine. It wires packages bot and runner. spec bot.md §1.2, §1.3.
package botcli

import (
	"fmt"
	"io"
	"os"

	"github.com/skepdev/skep/internal/proc"
	"github.com/skepdev/skep/runner"
)

// Env is the world that a command may touch.
type Env struct {
	Args   []string // without the program's name
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
}

// command is one subcommand; run returns the exit code.
type command struct {
	name, help string
	run        func(Env) int
}

// commands is everything skep-bot can do; the first is what it does without an
// argument.
var commands = []command{
	{"start_slave", "set the machine up, then run as start_bot", startSlave},
	{"start_bot", "the bot: connect to the server and run tasks", startBot},
	{"task_runner", "(internal) run one task", func(e Env) int { return runner.TaskRunnerMain(e.Args) }},
	{"run_isolated", "(internal) run one command in a prepared directory", func(e Env) int { return runner.RunIsolatedMain(e.Args) }},
	{"guard", "(internal) watch over an update", guard},
	{"hook_host", "(internal) run hooks", hookHost},
	{"attributes", "print dimensions, state and version as JSON", printAttributes},
	{"config", "print the embedded configuration", printConfig},
	{"version", "print this bot's digest", printVersion},
	{"server", "print the server's URL", printServer},
	{"is_fine", "check that this executable works and reaches its server", isFine},
	{"setup", "set the machine up without running", setup},
	{"reboot", "restart the host", reboot},
	{"shell", "a Starlark prompt in the bot that runs in this directory", shell},
	{"service", "(Windows) keep the bot running for the service manager", runService},
	{"bootstrap-vm", "prepare a new virtual machine", bootstrapVM},
	{"container", "the first process of a container: fetch the bot and run it", inContainer},
}

// Main runs the subcommand that os.Args names and returns the exit code.
func Main() int {
	if len(os.Args) < 2 || os.Args[1] == "start_slave" || os.Args[1] == "start_bot" {
		proc.Calm()
	}
	return Run(Env{Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr})
}

// Run is Main with the world passed in.
func Run(e Env) int {
	name := commands[0].name
	if len(e.Args) > 0 {
		name, e.Args = e.Args[0], e.Args[1:]
	}
	switch name {
	case "help", "-h", "--help":
		usage(e.Stdout)
		return 0
	}
	for _, c := range commands {
		if c.name == name {
			return c.run(e)
		}
	}
	fmt.Fprintf(e.Stderr, "skep-bot: there is no subcommand %q\n", name)
	usage(e.Stderr)
	return 1
}

func usage(w io.Writer) {
	fmt.Fprintln(w, "usage: skep-bot [subcommand]")
	for _, c := range commands {
		fmt.Fprintf(w, "  %-13s %s\n", c.name, c.help)
	}
}

// fail tells a person what is wrong and returns exit code 1.
func fail(e Env, err error) int {
	fmt.Fprintf(e.Stderr, "skep-bot: %v\n", err)
	return 1
}
