package botcli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
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
