package bot

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"
)

// doorHelp lists what `skep-bot shell` understands.
const doorHelp = "commands: status, stacks, bundle, drain, quit (stops the task), help\n"

// OpenDoor lets people in through the socket SocketFile in the working
// directory, for `skep-bot shell`, until ctx ends. Only the bot's own user may
// use it. The path is relative, since a socket's may be only about 100 bytes
// long.
func (b *Bot) OpenDoor(ctx context.Context) error {
	_ = os.Remove(SocketFile) // of a bot that was killed; the lock says that there is no other
	l, err := net.Listen("unix", SocketFile)
	if err != nil {
		return err
	}
	_ = os.Chmod(SocketFile, 0o600)
	context.AfterFunc(ctx, func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go b.talk(ctx, c)
		}
	}()
	return nil
}

// talk answers lines of one visitor. An answer ends with an empty line.
func (b *Bot) talk(ctx context.Context, c net.Conn) {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	sc := bufio.NewScanner(c)
	for {
		_ = c.SetDeadline(time.Now().Add(time.Hour))
		if !sc.Scan() {
			return
		}
		if _, err := io.WriteString(c, strings.TrimRight(b.Answer(sc.Text()), "\n")+"\n\n"); err != nil {
			return
		}
	}
}

// Answer obeys one line of a visitor and returns what to tell.
func (b *Bot) Answer(line string) string {
	switch cmd := strings.TrimSpace(line); cmd {
	case "status":
		data, err := json.MarshalIndent(b.Status(), "", "  ")
		if err != nil {
			return "error: " + err.Error()
		}
		return string(data)
	case "stacks":
		return strings.ReplaceAll(string(Stacks()), "\n\n", "\n")
	case "bundle":
		path, err := b.Bundle()
		if err != nil {
			return "error: " + err.Error()
		}
		return path
	case "drain":
		b.Drain("asked to by skep-bot shell")
		return "draining"
	case "quit":
		b.Stop("asked to by skep-bot shell")
		return "stopping"
	case "", "help":
		return doorHelp
	default:
		return fmt.Sprintf("error: unknown command %q; %s", cmd, doorHelp)
	}
}
