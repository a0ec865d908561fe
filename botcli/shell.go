package botcli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"github.com/skepdev/skep/bot"
	"github.com/skepdev/skep/bot/hook"
	"github.com/skepdev/skep/bot/hook/script"
)

// shell is a Starlark prompt in the bot that runs in this directory. With
// arguments these are its program, else standard input is, as a whole when it
// is no terminal. Exit code 1 says that a statement failed.
func shell(e Env) int {
	if _, err := openSite(); err != nil {
		return fail(e, err)
	}
	c, err := net.Dial("unix", bot.SocketFile)
	if err != nil {
		return fail(e, fmt.Errorf("no bot answers in this directory: %w", err))
	}
	defer c.Close()
	v := &visitor{Env: e, conn: c, answers: bufio.NewReader(c)}
	switch {
	case len(e.Args) > 0:
		return v.ask(strings.Join(e.Args, " "))
	case isTerminal(e.Stdin):
		return v.prompt()
	}
	text, err := io.ReadAll(io.LimitReader(e.Stdin, hook.MaxScript+1))
	if err != nil {
		return fail(e, err)
	}
	return v.ask(string(text))
}

type visitor struct {
	Env
	conn    io.Writer
	answers *bufio.Reader
}

// prompt reads a statement, has it run, and so on until the input ends.
func (v *visitor) prompt() int {
	in := bufio.NewReader(v.Stdin)
	fmt.Fprintln(v.Stderr, "help() lists what there is; Ctrl-D leaves")
	for {
		sign, eof := ">>> ", false
		text, _ := script.ReadStatement(func() (string, error) {
			fmt.Fprint(v.Stderr, sign)
			sign = "... "
			line, err := in.ReadString('\n')
			if eof = err != nil; eof && line != "" {
				return line + "\n", nil
			}
			return line, err
		})
		// Whatever is wrong with it is the bot's to tell.
		if strings.TrimSpace(text) != "" && v.ask(text) == codeGone {
			return 1
		}
		if eof {
			fmt.Fprintln(v.Stderr)
			return 0
		}
	}
}

// codeGone is visitor.ask's, when there is nobody to ask any more.
const codeGone = 2

// ask has a program run and prints what comes of it.
func (v *visitor) ask(source string) int {
	_ = hook.WriteFrame(v.conn, bot.Visit{Source: source}) // one that we are refused with may be there to read
	for {
		var r bot.Reply
		if err := hook.ReadFrame(v.answers, &r); err != nil {
			fail(v.Env, fmt.Errorf("the bot answers no more: %w", err))
			return codeGone
		}
		if !r.Error {
			fmt.Fprint(v.Stdout, r.Text)
		}
		if r.Done {
			if !r.Error {
				return 0
			}
			return fail(v.Env, errors.New(r.Text))
		}
	}
}

// isTerminal reports whether a person may type there.
func isTerminal(r io.Reader) bool {
	f, ok := r.(*os.File)
	if !ok {
		return false
	}
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}
