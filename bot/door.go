package bot

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/skepdev/skep/bot/hook"
	"github.com/skepdev/skep/internal/peercred"
	"github.com/skepdev/skep/internal/proc"
)

// SocketFile is where `skep-bot shell` comes in, in the bot's directory. The
// path is used relative to that, since a socket's may be only about 100 bytes
// long.
const SocketFile = "swarming.sock"

const (
	maxVisitors = 2 // each has a hook host
	maxVisit    = time.Hour
	replyLimit  = 10 * time.Second // a visitor takes what it is sent, or is left
)

// Visit is one request at the door: statements to run. Both directions carry
// frames of package hook.
type Visit struct {
	Source string `json:"source"`
}

// Reply is text for the visitor, and with Done the end of the answer to a
// Visit.
type Reply struct {
	Text  string `json:"text,omitempty"`
	Done  bool   `json:"done,omitempty"`
	Error bool   `json:"error,omitempty"` // Text says what went wrong
}

// visited are Hooks in which a person can try things.
type visited interface{ Visit() *hook.Host }

// OpenDoor lets a person in through the socket SocketFile in the working
// directory, for `skep-bot shell`, until ctx ends. The socket is the bot's
// user's, and who comes in must be that user or root. No task may: where tasks
// are this very user (isolation "none"), only root may come in. ADR 44.
func (b *Bot) OpenDoor(ctx context.Context) error {
	_ = os.Remove(SocketFile) // of a bot that was killed; the lock says that there is no other
	l, err := net.Listen("unix", SocketFile)
	if err != nil {
		return err
	}
	_ = os.Chmod(SocketFile, 0o600)
	context.AfterFunc(ctx, func() { _ = l.Close() })
	places := make(chan struct{}, maxVisitors)
	go func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil { // no descriptor is free, say
				b.log.Warn("skep-bot shell", "err", err)
				time.Sleep(time.Second)
				continue
			}
			go b.contain(func() { b.receive(ctx, c, places) })
		}
	}()
	return nil
}

// receive lets one visitor in, or says why not.
func (b *Bot) receive(ctx context.Context, c net.Conn, places chan struct{}) {
	defer c.Close()
	kind, _ := b.cfg.Runner.Isolation()
	if err := mayVisit(c, kind); err != nil {
		b.log.Warn("skep-bot shell: refused", "err", err)
		_ = b.reply(c, Reply{Text: err.Error(), Done: true, Error: true})
		return
	}
	hooks, ok := b.cfg.Hooks.(visited)
	if !ok {
		_ = b.reply(c, Reply{Text: "this bot has no hook host", Done: true, Error: true})
		return
	}
	select {
	case places <- struct{}{}: // perhaps when one who just left is gone for good
		defer func() { <-places }()
	case <-ctx.Done():
		return
	case <-time.After(replyLimit):
		_ = b.reply(c, Reply{Text: fmt.Sprintf("%d others use the shell of this bot", maxVisitors), Done: true, Error: true})
		return
	}
	ctx, leave := context.WithTimeout(ctx, maxVisit)
	defer leave()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	host := hooks.Visit()
	defer host.Close()
	b.converse(ctx, leave, c, host)
}

// mayVisit says why the process behind a connection must not come in.
func mayVisit(c net.Conn, isolation string) error {
	cred, err := peercred.Of(c)
	if err != nil {
		return fmt.Errorf("who asks is not known: %w", err)
	}
	return mayUserVisit(cred.UID, os.Geteuid(), isolation)
}

func mayUserVisit(uid, own int, isolation string) error {
	switch {
	case uid != own && uid != 0:
		return fmt.Errorf("this is for the bot's own user (uid %d) and root, not for uid %d", own, uid)
	case isolation == proc.IsolationNone && own == 0:
		return errors.New("tasks of this bot are root (isolation is none), so nobody can be told from a task")
	case isolation == proc.IsolationNone && uid != 0:
		return errors.New("tasks of this bot have its own user (isolation is none): only root may come in")
	}
	return nil
}

// converse answers one visitor. One that goes away ends what it began.
func (b *Bot) converse(ctx context.Context, leave func(), c net.Conn, host *hook.Host) {
	visits := make(chan Visit)
	go func() {
		defer leave()
		r := bufio.NewReader(c)
		for {
			var v Visit
			if hook.ReadFrame(r, &v) != nil {
				return
			}
			select {
			case visits <- v:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case v := <-visits:
			then, err := b.eval(ctx, c, host, v.Source)
			end := Reply{Done: true}
			if err != nil {
				end.Text, end.Error = err.Error(), true
				if e, ok := errors.AsType[*hook.Error](err); ok {
					end.Text = e.Text
				}
			}
			err = b.reply(c, end)
			then()
			if err != nil {
				return
			}
		}
	}
}

// eval runs statements. then is what to do when the visitor has the answer:
// ending the bot ends the conversation.
func (b *Bot) eval(ctx context.Context, c net.Conn, host *hook.Host, source string) (then func(), err error) {
	then = func() {}
	b.log.Info("skep-bot shell", "source", clip(source, 1000))
	status, err := json.Marshal(b.Status())
	if err != nil {
		return then, err
	}
	err = host.Eval(ctx, source, b.describe(), status, func(a hook.Action) {
		text := ""
		switch a.Kind {
		case hook.ActionDrain:
			text, then = "draining", func() { b.Drain(a.Text) }
		case hook.ActionStop:
			text, then = "stopping", func() { b.Stop(a.Text) }
		default:
			text = b.comply(a)
		}
		if text != "" {
			_ = b.reply(c, Reply{Text: text + "\n"})
		}
	})
	return then, err
}

// comply does what a person, or a hook, may ask for and returns what to tell.
func (b *Bot) comply(a hook.Action) string {
	switch a.Kind {
	case hook.ActionPrint:
		return a.Text
	case hook.ActionStacks:
		return string(Stacks())
	case hook.ActionBundle:
		path, err := b.Bundle()
		if err != nil {
			return "no bundle: " + err.Error()
		}
		return path
	}
	b.grant("shell", a)
	return ""
}

func (b *Bot) reply(c net.Conn, r Reply) error {
	_ = c.SetWriteDeadline(time.Now().Add(replyLimit))
	return hook.WriteFrame(c, r)
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}
