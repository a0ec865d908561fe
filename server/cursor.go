package server

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"

	"github.com/skepdev/skep"
)

// Kinds of cursors: one of another method is refused. spec api-v2.md §1.4.
const (
	cursorBotEvents    = 1
	cursorBotTasks     = 2
	cursorBots         = 3
	cursorTasks        = 4
	cursorTaskRequests = 5
	cursorCancelTasks  = 6
	cursorMachinePools = 7
	cursorMachines     = 8
	cursorProjects     = 9
)

// cursor says where the next page begins. It carries no filters.
type cursor struct {
	Kind int         `json:"k"`
	Task skep.TaskID `json:"t,omitempty"` // last task seen
	Key  int64       `json:"s,omitempty"` // its sort value, or the last event
	Bot  skep.BotID  `json:"b,omitempty"` // last bot seen
	Name string      `json:"n,omitempty"` // last machine, or pool of machines, or project
}

// cursors makes cursors opaque: clients cannot build on what is inside.
type cursors struct{ aead cipher.AEAD }

func newCursors(key []byte) (cursors, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return cursors{}, err
	}
	aead, err := cipher.NewGCM(block)
	return cursors{aead}, err
}

var cursorContext = []byte("swarming-cursor")

func (cs *cursors) seal(c cursor) string {
	b, err := json.Marshal(c)
	if err != nil {
		panic(err) // numbers and a string always encode
	}
	nonce := make([]byte, cs.aead.NonceSize(), 128)
	_, _ = rand.Read(nonce)
	return base64.RawURLEncoding.EncodeToString(cs.aead.Seal(nonce, nonce, b, cursorContext))
}

// open reads a cursor of the given kind; "" is the first page.
func (cs *cursors) open(kind int, text string) (cursor, error) {
	bad := skep.Invalidf("cursor", "bad pagination cursor: pass on what the previous page of this method returned")
	if text == "" {
		return cursor{}, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(text)
	n := cs.aead.NonceSize()
	if err != nil || len(b) < n {
		return cursor{}, bad
	}
	b, err = cs.aead.Open(nil, b[:n], b[n:], cursorContext)
	if err != nil {
		return cursor{}, bad
	}
	var c cursor
	if err := json.Unmarshal(b, &c); err != nil || c.Kind != kind {
		return cursor{}, bad
	}
	return c, nil
}
