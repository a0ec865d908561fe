package bot

import (
	"errors"
	"net/http"
	"time"

	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/bot/hook"
	"github.com/skepdev/skep/internal/backoff"
)

// handshake opens a session and repeats that until it works. Its error says
// that the bot was told to end meanwhile. spec bot.md §2.6.
func (b *Bot) handshake() error {
	pause := backoff.Exponential{Min: 100 * time.Millisecond, Max: 20 * time.Second}
	for {
		res, err := b.shake()
		if err == nil {
			b.connected(res)
			b.inject(res)
			b.hook(b.idle, hook.OnHandshake)
			return nil
		}
		if b.idle.Err() != nil {
			return b.idle.Err()
		}
		b.log.Warn("handshake", "err", err)
		if e, ok := errors.AsType[*botapi.Error](err); ok && e.Status == http.StatusUnauthorized && b.cfg.Credential != nil && b.cfg.Credential.Refused() {
			b.log.Warn("the server does not take this bot's credential; buying another with the bootstrap token")
			continue
		}
		if err := pause.Sleep(b.idle, retryAfter(err)); err != nil {
			return err
		}
	}
}

// renewCredential shakes hands for a new credential when the bot's own one
// comes to its end. It is called between tasks.
func (b *Bot) renewCredential() {
	if b.cfg.Credential == nil || !b.cfg.Credential.Due(b.cfg.Now()) {
		return
	}
	if res, err := b.shake(); err != nil {
		b.log.Warn("renew the credential", "err", err)
	} else {
		b.connected(res)
	}
}

// shake is one handshake, which also asks for a credential where the bot needs
// one.
func (b *Bot) shake() (*botapi.HandshakeResponse, error) {
	req := &botapi.HandshakeRequest{Attributes: b.attributes(), SessionID: b.session}
	if b.cfg.Credential == nil {
		return b.cfg.Client.Handshake(b.idle, req)
	}
	var err error
	if req.Credential, err = b.cfg.Credential.Request(b.cfg.Now()); err != nil {
		return nil, err
	}
	res, err := b.cfg.Client.Handshake(b.idle, req)
	if err != nil {
		return nil, err
	}
	return res, b.cfg.Credential.Accept(res.Credential)
}

func (b *Bot) connected(res *botapi.HandshakeResponse) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.assigned = res.BotGroupCfg.Dimensions
	b.hooks = hooksID{Name: res.BotConfigName, Revision: res.BotConfigRev}
	b.ladder = nil
	if res.Skep != nil {
		for _, r := range res.Skep.Recovery {
			b.ladder = append(b.ladder, hook.Rung(r))
		}
	}
	b.log.Info("connected", "server", b.cfg.Server, "server_version", res.ServerVersion, "expected_version", res.BotVersion)
}
