package script

import (
	"maps"
	"time"

	"go.starlark.net/starlark"
	"go.starlark.net/syntax"

	"github.com/skepdev/skep/bot/hook"
	"github.com/skepdev/skep/internal/hookscript"
)

// shellName is how error texts call what a person wrote.
const shellName = "<shell>"

// shell is what a person has defined so far, over the library, what the scripts
// define, and the words that only a person may say.
type shell struct {
	globals starlark.StringDict
	bot     *botValue // one for all evaluations: it may have been kept in a variable
}

func (h *host) newShell() *shell {
	s := &shell{globals: library(), bot: newBot(nil, &hook.Bot{})}
	maps.Copy(s.globals, h.scripts.base)
	maps.Copy(s.globals, h.scripts.injected)
	s.globals["stacks"] = request("stacks", hook.ActionStacks)
	s.globals["bundle"] = request("bundle", hook.ActionBundle)
	s.globals["drain"] = requestWhy("drain", hook.ActionDrain)
	s.globals["stop"] = requestWhy("stop", hook.ActionStop)
	s.globals["help"] = starlark.NewBuiltin("help", help)
	s.globals["bot"] = s.bot
	return s
}

// eval runs statements one by one, as a prompt would: the value of an
// expression is shown. A fault ends it; what was done before stays.
func (h *host) eval(req hook.Request) *hook.Answer {
	if h.shell == nil {
		h.shell = h.newShell()
	}
	r := h.newRun(req.ID, "shell", time.Duration(req.Eval.LimitMS)*time.Millisecond)
	defer r.close()
	r.may = hook.MaxShow
	s := h.shell
	s.bot.run, s.bot.info = r, &req.Eval.Bot
	status := req.Eval.Status
	s.globals["status"] = starlark.NewBuiltin("status", func(_ *starlark.Thread, fn *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
		if err := starlark.UnpackArgs(fn.Name(), args, kwargs); err != nil {
			return nil, err
		}
		return stateOf(status)
	})
	f, err := hookscript.Options.Parse(shellName, req.Eval.Source, 0)
	for i := 0; err == nil && i < len(f.Stmts); i++ {
		err = r.do(f, f.Stmts[i], s.globals)
	}
	if err != nil {
		return &hook.Answer{Error: r.failure(err)}
	}
	return &hook.Answer{}
}

func (r *run) do(f *syntax.File, stmt syntax.Stmt, globals starlark.StringDict) error {
	e, ok := stmt.(*syntax.ExprStmt)
	if !ok {
		return starlark.ExecREPLChunk(&syntax.File{Path: f.Path, Options: f.Options, Stmts: []syntax.Stmt{stmt}}, r.thread, globals)
	}
	v, err := starlark.EvalExprOptions(f.Options, r.thread, e.X, globals)
	if err == nil && v != starlark.None {
		globals["_"] = v
		r.print(v.String())
	}
	return err
}

func request(name, kind string) starlark.Value {
	return starlark.NewBuiltin(name, func(t *starlark.Thread, fn *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
		if err := starlark.UnpackArgs(fn.Name(), args, kwargs); err != nil {
			return nil, err
		}
		return starlark.None, runOf(t).act(hook.Action{Kind: kind})
	})
}

func requestWhy(name, kind string) starlark.Value {
	return starlark.NewBuiltin(name, func(t *starlark.Thread, fn *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
		why := "asked to by skep-bot shell"
		if err := starlark.UnpackArgs(fn.Name(), args, kwargs, "why?", &why); err != nil {
			return nil, err
		}
		return starlark.None, runOf(t).act(hook.Action{Kind: kind, Text: why})
	})
}

const helpText = `bot is the value that hooks get: bot.id, bot.dimensions, bot.state, bot.post_error("…"), bot.bot_restart("…"), …
status()      how the bot is, as a dict       stacks()      what its goroutines do
drain("why")  finish the task, then end       bundle()      write a diagnostic bundle, and say where
stop("why")   cancel the task, and end        run(["df"])   run a command; the rest of the hooks' library is here too
What the hook scripts define can be called, as get_dimensions(bot).`

func help(t *starlark.Thread, fn *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	var about starlark.Value
	if err := starlark.UnpackArgs(fn.Name(), args, kwargs, "about?", &about); err != nil {
		return nil, err
	}
	runOf(t).print(helpText)
	return starlark.None, nil
}

// ReadStatement reads one statement from a person, line by line, as a prompt
// does: a compound one ends with an empty line. It returns its text, which is
// whole unless err tells of a fault in it or of readline.
func ReadStatement(readline func() (string, error)) (string, error) {
	var text []byte
	_, err := hookscript.Options.ParseCompoundStmt(shellName, func() ([]byte, error) {
		line, err := readline()
		text = append(text, line...)
		return []byte(line), err
	})
	return string(text), err
}
