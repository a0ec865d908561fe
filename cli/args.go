package cli

import (
	"strings"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// normalizeArgs rewrites the long flags of old command lines, which have one
// dash (-json-output FILE), to two dashes. Only a name that the command knows
// is touched, never a flag's value, and nothing after "--" or after the first
// word of a command to run.
func normalizeArgs(root *cobra.Command, args []string) []string {
	out := make([]string, 0, len(args))
	cmd, positional := root, false
	cmd.InitDefaultHelpFlag()
	for i := 0; i < len(args); i++ {
		arg := args[i]
		switch {
		case arg == "--":
			return append(out, args[i:]...)
		case len(arg) < 2 || arg[0] != '-':
			if sub := childCommand(cmd, arg); sub != nil && !positional {
				cmd = sub
				cmd.InitDefaultHelpFlag()
			} else {
				positional = true
				if stopsAtArgument(cmd) {
					return append(out, args[i:]...)
				}
			}
			out = append(out, arg)
		default:
			name, _, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
			flag := lookupFlag(cmd, name)
			if flag != nil && !strings.HasPrefix(arg, "--") && len(name) > 1 {
				arg = "-" + arg
			}
			out = append(out, arg)
			if !strings.HasPrefix(arg, "--") {
				flag, hasValue = lastShorthand(cmd, name, hasValue)
			}
			if flag != nil && flag.NoOptDefVal == "" && !hasValue && i+1 < len(args) {
				i++
				out = append(out, args[i])
			}
		}
	}
	return out
}

// stopsAtArgument tells commands whose arguments are a command line: flags
// after its first word are not ours.
func stopsAtArgument(cmd *cobra.Command) bool { return cmd.Annotations[annotationStops] != "" }

// annotationStops marks such a command, which also calls
// Flags().SetInterspersed(false).
const annotationStops = "stops-at-argument"

func childCommand(cmd *cobra.Command, name string) *cobra.Command {
	for _, sub := range cmd.Commands() {
		if sub.Name() == name || sub.HasAlias(name) {
			return sub
		}
	}
	return nil
}

func lookupFlag(cmd *cobra.Command, name string) *pflag.Flag {
	if f := cmd.Flags().Lookup(name); f != nil {
		return f
	}
	return cmd.InheritedFlags().Lookup(name)
}

// lastShorthand finds, in a cluster of one-letter flags (-fd os=Linux), the
// flag that would take the next argument as its value.
func lastShorthand(cmd *cobra.Command, cluster string, hasValue bool) (*pflag.Flag, bool) {
	for i, c := range cluster {
		if c > unicode.MaxASCII {
			return nil, hasValue
		}
		flag := cmd.Flags().ShorthandLookup(string(c))
		if flag == nil {
			return nil, hasValue
		}
		if flag.NoOptDefVal == "" { // the rest of the cluster is its value
			return flag, hasValue || i+1 < len(cluster)
		}
	}
	return nil, hasValue
}
