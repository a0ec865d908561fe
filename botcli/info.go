package botcli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/bot"
	"github.com/skepdev/skep/bot/code"
	"github.com/skepdev/skep/bot/platform"
	"github.com/skepdev/skep/internal/backoff"
	"github.com/skepdev/skep/internal/logfile"
)

func printAttributes(e Env) int {
	s, err := openSite()
	if err != nil {
		return fail(e, err)
	}
	version, err := code.Version(s.exe)
	if err != nil {
		return fail(e, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	m := platform.New(ctx, platform.Options{BotID: botID(), Dir: s.dir, Output: output})
	<-m.Ready()
	state := m.State()
	state["sleep_streak"] = 0
	out, err := json.MarshalIndent(map[string]any{"dimensions": m.Dimensions(), "state": state, "version": version}, "", "  ")
	if err != nil {
		return fail(e, err)
	}
	fmt.Fprintln(e.Stdout, string(out))
	return 0
}

func printConfig(e Env) int {
	s, err := openSite()
	if err != nil {
		return fail(e, err)
	}
	data, err := code.ReadFile(s.exe, code.ConfigName)
	if err != nil {
		return fail(e, err)
	}
	fmt.Fprintln(e.Stdout, strings.TrimSpace(string(data)))
	return 0
}

func printServer(e Env) int {
	s, err := openSite()
	if err != nil {
		return fail(e, err)
	}
	fmt.Fprintln(e.Stdout, s.config.Server)
	return 0
}

// printVersion also serves a bare executable: its digest is what a release
// lists.
func printVersion(e Env) int {
	exe, err := os.Executable()
	if err != nil {
		return fail(e, err)
	}
	v, err := code.Version(exe)
	if err != nil {
		return fail(e, err)
	}
	fmt.Fprintln(e.Stdout, v)
	return 0
}

// isFine checks everything up to the first answer of the server. It gives up
// after 30 s. spec bot.md §1.3.
func isFine(e Env) int {
	s, err := openSite()
	if err != nil {
		return fail(e, err)
	}
	roots, err := s.roots()
	if err != nil {
		return fail(e, err)
	}
	c, err := botapi.NewClient(botapi.Options{Server: s.config.Server, BotID: botID(), RootCAs: roots})
	if err != nil {
		return fail(e, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var pause backoff.Exponential
	for {
		err := c.Ping(ctx)
		if err == nil {
			return 0
		}
		if !botapi.IsTransient(err) || pause.Sleep(ctx, 0) != nil {
			return fail(e, err)
		}
	}
}

// setup runs the hook setup_bot and does nothing else. Exit code 1 says that it
// failed or wants the host to restart first.
func setup(e Env) int {
	s, err := openSite()
	if err != nil {
		return fail(e, err)
	}
	logs, err := logfile.Open(filepath.Join(s.dir, "logs", "bot_config.log"))
	if err != nil {
		return fail(e, err)
	}
	defer logs.Close()
	version, err := code.Version(s.exe)
	if err != nil {
		return fail(e, err)
	}
	log := logfile.New(logs)
	called, ready, err := s.runSetup(log, version)
	switch {
	case err != nil:
		return fail(e, err)
	case !called:
		log.Info("setup: there is no setup_bot hook, nothing to do")
	case !ready:
		return fail(e, errors.New("setup_bot wants the host to restart"))
	}
	return 0
}

func reboot(e Env) int {
	s, err := openSite()
	if err != nil {
		return fail(e, err)
	}
	if !s.mayReboot() {
		return fail(e, errors.New("this bot is configured never to restart its host"))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	h := &bot.Host{Output: output, Log: slog.New(logfile.NewHandler(e.Stderr, slog.LevelInfo))}
	if err := h.Reboot(ctx, "skep-bot reboot"); err != nil && ctx.Err() == nil {
		return fail(e, err)
	}
	return 0
}

// shell talks to the bot of this directory: with arguments one command, else
// lines from standard input.
func shell(e Env) int {
	if _, err := openSite(); err != nil {
		return fail(e, err)
	}
	c, err := net.Dial("unix", bot.SocketFile)
	if err != nil {
		return fail(e, fmt.Errorf("no bot answers in this directory: %w", err))
	}
	defer c.Close()
	answers := bufio.NewReader(c)
	if len(e.Args) > 0 {
		return ask(e, c, answers, strings.Join(e.Args, " "))
	}
	in := bufio.NewScanner(e.Stdin)
	for in.Scan() {
		if ask(e, c, answers, in.Text()) != 0 {
			return 1
		}
	}
	return 0
}

// ask sends a line and prints the answer, which an empty line ends.
func ask(e Env, c io.Writer, answers *bufio.Reader, line string) int {
	if _, err := fmt.Fprintln(c, line); err != nil {
		return fail(e, err)
	}
	code := 0
	for first := true; ; first = false {
		s, err := answers.ReadString('\n')
		if s == "\n" {
			return code
		}
		if first && strings.HasPrefix(s, "error:") {
			code = 1
		}
		fmt.Fprint(e.Stdout, s)
		if err == io.EOF {
			return code
		}
		if err != nil {
			return fail(e, err)
		}
	}
}

func bootstrapVM(e Env) int {
	return fail(e, errors.New("bootstrap-vm comes with the machine provider; start a bot with start_bot"))
}
