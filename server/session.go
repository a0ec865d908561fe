package server

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"hash"
	"strings"
	"sync"
	"time"

	"github.com/skepdev/skep"
)

// sessionLife is how long a bot session lasts without being renewed.
const sessionLife = time.Hour

// session is what the opaque text says that a bot echoes with every call. It
// binds the call to the bot that shook hands. spec bot.md §2.4.
type session struct {
	bot     skep.BotID
	process string // session id of the bot's process
	expiry  time.Time

	shake [8]byte // Rules.shake of the handshake
	auth  [8]byte // Rules.auth of the handshake
}

type sessions struct {
	key []byte
	now func() time.Time

	hashes sync.Pool // of HMACs with key: making one costs more than using it
}

// seal returns the session as text, valid for life and at least sessionLife.
func (ss *sessions) seal(s session, life time.Duration) string {
	b := append([]byte{2}, s.shake[:]...)
	b = append(b, s.auth[:]...)
	b = binary.AppendVarint(b, ss.now().Add(max(life, sessionLife)).Unix())
	b = binary.AppendUvarint(b, uint64(len(s.bot)))
	b = append(b, s.bot...)
	b = append(b, s.process...)
	return base64.StdEncoding.EncodeToString(append(b, ss.mac(b)...))
}

func (ss *sessions) mac(b []byte) []byte {
	m, ok := ss.hashes.Get().(hash.Hash)
	if !ok {
		m = hmac.New(sha256.New, ss.key)
	}
	defer ss.hashes.Put(m)
	m.Reset()
	m.Write([]byte("swarming.Session"))
	m.Write(b)
	return m.Sum(nil)
}

// renew returns a session for the bot of s that is valid for life, and nearly
// sessionLife at least: text, which s was read from, if it lasts that long.
func (ss *sessions) renew(s session, text string, life time.Duration) string {
	life = max(life, sessionLife-sessionLife/20)
	if s.expiry.Sub(ss.now()) >= life {
		return text
	}
	return ss.seal(s, life+life/20) // enough for some calls to come
}

// open reads a session that one of this fleet's servers sealed, expired or
// not. ok is false for any other text.
func (ss *sessions) open(text string) (s session, ok bool) {
	if strings.ContainsAny(text, "\r\n") { // which the decoder skips: one session, one text
		return s, false
	}
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(b) < 1+sha256.Size || b[0] != 1 && b[0] != 2 {
		return s, false
	}
	b, mac := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if !hmac.Equal(mac, ss.mac(b)) {
		return s, false
	}
	if b[0] == 2 { // 1 was sealed by a server that knew no rules
		if len(b) < 17 {
			return s, false
		}
		s.shake, s.auth = [8]byte(b[1:9]), [8]byte(b[9:17])
		b = b[16:]
	}
	b = b[1:]
	expiry, n := binary.Varint(b)
	if n <= 0 {
		return s, false
	}
	b = b[n:]
	size, n := binary.Uvarint(b)
	if n <= 0 || size > uint64(len(b)-n) {
		return s, false
	}
	b = b[n:]
	s.bot, s.process, s.expiry = skep.BotID(b[:size]), string(b[size:]), time.Unix(expiry, 0)
	return s, true
}

func (ss *sessions) expired(s session) bool { return ss.now().After(s.expiry) }
