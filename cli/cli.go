// Package cli is the command line of skep: one file per subcommand, which
// holds its flags, its printing and its wiring, and nothing else. Rules:
// spec/cli-and-ui.md Part A for the verbs that the existing client has,
// design.md "The command line" for the others.
//
// Exit codes: 0 the command did its work, 1 it did not, 130 it was
// interrupted. skep run alone has more; see newRunCommand.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/host/room"
	"github.com/skepdev/skep/internal/proc"
)

// Env is the world a command may touch.
type Env struct {
	Program        string              // as the user called it; "" = skep
	Args           []string            // without the program's name
	Stdin          io.Reader           //
	Stdout, Stderr io.Writer           //
	Getenv         func(string) string // as os.Getenv
	Environ        func() []string     // as os.Environ
	Interrupts     <-chan os.Signal    // SIGINT and SIGTERM; nil when nobody can interrupt
}

// Main runs skep in the world of this process and returns its exit code.
func Main() int {
	if len(os.Args) > 1 && os.Args[1] == room.Word {
		return room.Main() // the first process of a container: nothing more than it needs
	}
	if len(os.Args) > 1 && (os.Args[1] == "server" || os.Args[1] == "up") {
		proc.Calm()
	}
	interrupts := make(chan os.Signal, 4)
	signal.Notify(interrupts, os.Interrupt, syscall.SIGTERM)
	return Run(context.Background(), Env{
		Program: os.Args[0], Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Getenv: os.Getenv, Environ: os.Environ, Interrupts: interrupts,
	})
}

// Run runs one command line and returns its exit code. An error that reaches
// it is one line on Stderr that says what to do.
func Run(ctx context.Context, env Env) int {
	root := newRootCommand(&env)
	root.SetArgs(normalizeArgs(root, env.Args))
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var exit *exitError
	if !errors.As(err, &exit) {
		exit = &exitError{code: 1, err: err}
	}
	if exit.err != nil {
		fmt.Fprintln(env.Stderr, "skep:", oneLine(exit.err.Error()+hint(exit.err)))
	}
	return exit.code
}

// exitError ends a command with a code of its own; a nil err prints nothing.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return fmt.Sprintf("exit %d: %v", e.code, e.err) }
func (e *exitError) Unwrap() error { return e.err }

// errInterrupted is what a command returns when Ctrl-C ended it.
var errInterrupted = &exitError{code: 130, err: errors.New("interrupted")}

// oneLine keeps the promise of one line per error: cobra and servers may
// answer with several.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}

func newRootCommand(env *Env) *cobra.Command {
	root := &cobra.Command{
		Use:           "skep",
		Short:         "Hand tasks to a fleet of bots, and keep the fleet alive",
		Long:          "skep hands tasks to a fleet of bots, and keeps the fleet itself alive.\n\nStart a whole fleet on this machine with `skep up`, then run something on it:\n\n  skep run -- sh -c 'echo hi; exit 3'",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("unknown command %q; skep --help lists the commands", args[0])
			}
			return cmd.Help()
		},
	}
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	root.SetFlagErrorFunc(flagError)
	root.AddGroup(
		&cobra.Group{ID: groupTasks, Title: "Tasks:"},
		&cobra.Group{ID: groupBots, Title: "Bots:"},
		&cobra.Group{ID: groupHosts, Title: "Hosts:"},
		&cobra.Group{ID: groupServer, Title: "Servers:"},
	)
	for id, cmds := range map[string][]*cobra.Command{
		groupTasks: {
			newRunCommand(env), newTriggerCommand(env), newSpawnTasksCommand(env), newCollectCommand(env),
			newCancelCommand(env), newCancelTasksCommand(env), newTasksCommand(env), newTaskCommand(env),
			newRequestShowCommand(env), newReproduceCommand(env), newCASCommand(env),
		},
		groupBots: {
			newBotsCommand(env), newBotCommand(env), newBotTasksCommand(env), newTerminateCommand(env), newDeleteBotsCommand(env),
		},
		groupHosts:  {withReasons(newHostCommand(env)), withReasons(newPoolCommand(env)), withReasons(newDroneCommand(env)), newDronesCommand(env), newDutsCommand(env)},
		groupServer: {newUpCommand(env), newServerCommand(env), newTokenCommand(env), newConfigCommand(env), newProviderCommand(env), newBenchCommand(env)},
		"":          {newVersionCommand(env), newHookHostCommand()},
	} {
		for _, cmd := range cmds {
			cmd.GroupID = id
			root.AddCommand(cmd)
		}
	}
	return root
}

const (
	groupTasks  = "tasks"
	groupBots   = "bots"
	groupHosts  = "hosts"
	groupServer = "server"
)

// flagError adds to cobra's text, which names the flag, where to look.
func flagError(cmd *cobra.Command, err error) error {
	return skep.Errorf(skep.Invalid, "%w; %s --help lists the flags", err, cmd.CommandPath())
}

// usageErrorf is a command line that cannot be: the text names the flag or
// argument.
func usageErrorf(cmd *cobra.Command, format string, args ...any) error {
	return flagError(cmd, fmt.Errorf(format, args...))
}

// action makes a cobra RunE of a function that ends when the user interrupts.
// Commands that stage their end (run, up, server) read env.Interrupts
// themselves and do not use it.
func (env *Env) action(do func(ctx context.Context, cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		ctx, cancel := context.WithCancel(cmd.Context())
		defer cancel()
		interrupted := make(chan struct{})
		go func() {
			select {
			case <-env.Interrupts:
				close(interrupted)
				cancel()
			case <-ctx.Done():
			}
		}()
		err := do(ctx, cmd, args)
		select {
		case <-interrupted:
			if exit := (*exitError)(nil); err != nil && !errors.As(err, &exit) {
				return errInterrupted
			}
		default:
		}
		return err
	}
}

// exactly is cobra.ExactArgs with words for what is missing.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != len(names) {
			return usageErrorf(cmd, "%s takes %s, got %d arguments", cmd.CommandPath(), strings.Join(names, " and "), len(args))
		}
		return nil
	}
}

// noArgs refuses arguments by name.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageErrorf(cmd, "%s takes no argument, got %q", cmd.CommandPath(), args[0])
	}
	return nil
}

// group is a command that only has subcommands.
func group(name, short string) *cobra.Command {
	return &cobra.Command{
		Use:   name,
		Short: short,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("unknown command %q; %s --help lists the commands", args[0], cmd.CommandPath())
			}
			return cmd.Help()
		},
	}
}
