package bot

import (
	"time"

	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/internal/backoff"
)

// handshake opens a session and repeats that until it works. Its error says
// that the bot was told to end meanwhile. spec bot.md §2.6.
func (b *Bot) handshake() error {
	pause := backoff.Exponential{Min: 100 * time.Millisecond, Max: 20 * time.Second}
	for {
		res, err := b.cfg.Client.Handshake(b.idle, &botapi.HandshakeRequest{Attributes: b.attributes(), SessionID: b.session})
		if err == nil {
			b.connected(res)
			return nil
		}
		if b.idle.Err() != nil {
			return b.idle.Err()
		}
		b.log.Warn("handshake", "err", err)
		if err := pause.Sleep(b.idle, retryAfter(err)); err != nil {
			return err
		}
	}
}

func (b *Bot) connected(res *botapi.HandshakeResponse) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.assigned = res.BotGroupCfg.Dimensions
	b.hooks = hooksID{Name: res.BotConfigName, Revision: res.BotConfigRev}
	b.log.Info("connected", "server", b.cfg.Server, "server_version", res.ServerVersion, "expected_version", res.BotVersion)
}
