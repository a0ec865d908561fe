// Package hookscript is the Starlark that hook scripts are written in: its
// syntax and the names that every script finds. It runs nothing, so that who
// only hands scripts on can tell a mistake from a script.
package hookscript

import (
	"errors"
	"slices"

	"go.starlark.net/resolve"
	"go.starlark.net/starlark"
	"go.starlark.net/syntax"
)

// Options are Starlark with sets and statements at top level, and without
// while and recursion.
var Options = &syntax.FileOptions{Set: true, TopLevelControl: true}

// Names are those of the library, beside the language's own.
var Names = []string{"env", "exists", "json", "list_dir", "platform", "re", "read_file", "run", "struct", "time"}

// Fault is a mistake in a script.
type Fault struct {
	Line int // from 1
	Text string
}

// Check returns the mistakes that can be told without running a script: of
// syntax only the first one, of names all. The parser bounds nesting, and so
// what any text costs.
func Check(name, source string) []Fault {
	f, err := Options.Parse(name, source, 0)
	if e, ok := errors.AsType[syntax.Error](err); ok {
		return []Fault{{int(e.Pos.Line), e.Msg}}
	}
	if err != nil {
		return []Fault{{0, err.Error()}}
	}
	var faults []Fault
	for _, stmt := range f.Stmts {
		if load, ok := stmt.(*syntax.LoadStmt); ok {
			faults = append(faults, Fault{int(load.Load.Line), "there is no load: a script stands alone"})
		}
	}
	err = resolve.File(f, func(name string) bool { return slices.Contains(Names, name) }, starlark.Universe.Has)
	if list, ok := errors.AsType[resolve.ErrorList](err); ok {
		for _, e := range list {
			faults = append(faults, Fault{int(e.Pos.Line), e.Msg})
		}
	} else if err != nil {
		faults = append(faults, Fault{0, err.Error()})
	}
	return faults
}
