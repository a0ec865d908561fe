package botcli

import (
	"context"
	"errors"
	"log/slog"
	"os"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/bot/code"
	"github.com/skepdev/skep/bot/hook"
)

// hooks returns the host of this bot's hooks; nothing runs yet.
func (s *site) hooks(log *slog.Logger) (*hook.Host, error) {
	base, err := s.baseScript()
	if err != nil {
		return nil, err
	}
	return hook.NewHost(hook.Options{Exe: s.exe, Dir: s.dir, Base: base, Log: log}), nil
}

// baseScript is the fleet's script in the bot's zip. The built-in one, without
// it, defines no hook: what it would say is package platform.
func (s *site) baseScript() (*hook.Script, error) {
	data, err := code.ReadFile(s.exe, code.HooksName)
	if skep.KindOf(err) == skep.NotFound || errors.Is(err, code.ErrBare) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &hook.Script{Name: "bot_config.star", Source: string(data)}, nil
}

// envExternalSetup "1" says that somebody else sets the machine up.
const envExternalSetup = "SWARMING_EXTERNAL_BOT_SETUP"

func maySetUp() bool { return os.Getenv(envExternalSetup) != "1" }

// runSetup calls setup_bot alone. called says that there is such a hook, ready
// that the host need not be restarted first.
func (s *site) runSetup(log *slog.Logger, version string) (called, ready bool, err error) {
	h, err := s.hooks(log)
	if err != nil {
		return false, false, err
	}
	defer h.Close()
	if err := h.Load(context.Background(), nil); err != nil {
		return false, false, err
	}
	out, err := h.Call(context.Background(), hook.Call{Hook: hook.SetupBot, Bot: hook.Bot{
		ID: botID(), Server: s.config.Server, Version: version, BaseDir: s.dir,
	}})
	for _, a := range out.Actions {
		log.Info("setup_bot", "action", a.Kind, "text", a.Text)
	}
	return out.Called, string(out.Value) != "false", err
}
