package cli

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

// outputFlags are the format on stdout and, where the existing client has it,
// the file for JSON.
type outputFlags struct {
	format   string // "table", "json", or "" for the command's default
	jsonPath string // "" no file, "-" stdout
}

// register adds -o, and the flags of the existing client for a JSON file:
// jsonFlags are its names ("json-output", "json").
func (o *outputFlags) register(cmd *cobra.Command, jsonFlags ...string) {
	cmd.Flags().VarP(newChoice(&o.format, "", "table", "json"), "format", "o", "print `table|json` to stdout")
	registerPath(cmd, &o.jsonPath, "write JSON to `FILE`, - for stdout", jsonFlags...)
}

// registerPath gives one string flag several names.
func registerPath(cmd *cobra.Command, path *string, usage string, names ...string) {
	for i, name := range names {
		cmd.Flags().StringVar(path, name, "", usage)
		if i > 0 {
			_ = cmd.Flags().MarkHidden(name)
		}
	}
}

// emit writes what the flags ask for: JSON to the file, JSON or a table to
// stdout. def is the format on stdout when neither -o nor a file was given.
func (o *outputFlags) emit(w io.Writer, def string, json func() (any, error), table func(*tableWriter)) error {
	format := o.format
	if format == "" && o.jsonPath == "" {
		format = def
	}
	if o.jsonPath == "-" && format == "" {
		format = "json"
	}
	if o.jsonPath != "" && o.jsonPath != "-" || format == "json" {
		v, err := json()
		if err != nil {
			return err
		}
		if o.jsonPath != "" && o.jsonPath != "-" {
			if err := writeJSON(w, o.jsonPath, v); err != nil {
				return err
			}
		}
		if format == "json" {
			return writeJSON(w, "-", v)
		}
	}
	if format == "table" {
		t := newTable(w)
		table(t)
		return t.flush()
	}
	return nil
}

// tableWriter aligns columns for people.
type tableWriter struct{ w *tabwriter.Writer }

func newTable(w io.Writer) *tableWriter {
	return &tableWriter{w: tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
}

// row writes one line; an empty cell is shown as "-".
func (t *tableWriter) row(cells ...string) {
	for i, c := range cells {
		if c == "" {
			cells[i] = "-"
		}
		cells[i] = strings.Map(printable, cells[i])
	}
	fmt.Fprintln(t.w, strings.Join(cells, "\t"))
}

// field writes one line of a "name  value" list, and nothing for no value.
func (t *tableWriter) field(name, value string) {
	if value != "" {
		t.row(name, value)
	}
}

func (t *tableWriter) flush() error { return t.w.Flush() }

// printable keeps control characters, which a task's name may hold, from the
// terminal.
func printable(r rune) rune {
	if r < ' ' || r == 0x7f {
		return ' '
	}
	return r
}
