package bot

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/internal/atomicfile"
)

// Files of a bot's credential.
const (
	CredentialFile = "credential.json"
	BootstrapFile  = "bootstrap.tok"
)

const (
	renewBefore = 30 * 24 * time.Hour // a credential is renewed so long before its end
	renewEvery  = time.Hour           // between tries
)

// Credential is what a bot shows to its server: the token that it was started
// with, or one of its own, which a bootstrap token bought. Its own lies in one
// file that is bound to bot and directory. Its methods may be called at once by
// many. decisions.md 10.
type Credential struct {
	dir, id   string
	given     string // SKEP_BOT_TOKEN
	bootstrap string // buys the first one

	mu    sync.Mutex
	own   ownCredential
	tried time.Time // to renew it
}

type ownCredential struct {
	Bot     string `json:"bot"`
	Dir     string `json:"dir"`
	Token   string `json:"token,omitempty"`
	Expires int64  `json:"expires,omitempty"` // Unix seconds
	Next    string `json:"next,omitempty"`    // asked for, and not known to be accepted
}

// OpenCredential reads the credential of a bot. given and bootstrap are tokens
// that it was started with, "" when there was none; bootstrap, when empty, is
// read from BootstrapFile.
func OpenCredential(dir, id, given, bootstrap string) (*Credential, error) {
	c := &Credential{dir: dir, id: id, given: given, bootstrap: bootstrap}
	data, err := os.ReadFile(filepath.Join(dir, CredentialFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case json.Unmarshal(data, &c.own) != nil || c.own.Bot != id || c.own.Dir != dir:
		c.own = ownCredential{} // another bot's, or brought here from elsewhere
	}
	if c.bootstrap == "" {
		data, err := os.ReadFile(filepath.Join(dir, BootstrapFile))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		c.bootstrap = strings.TrimSpace(string(data))
	}
	return c, nil
}

// Token returns what the next call shows, "" = nothing.
func (c *Credential) Token() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.own.Token != "":
		return c.own.Token
	case c.given != "":
		return c.given
	default:
		return c.bootstrap
	}
}

// Due reports whether it is time to renew the bot's own credential; after
// that not again for an hour.
func (c *Credential) Due(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ends(now) || now.Sub(c.tried) < renewEvery {
		return false
	}
	c.tried = now
	return true
}

func (c *Credential) ends(now time.Time) bool {
	return c.own.Token != "" && now.Add(renewBefore).Unix() > c.own.Expires
}

// Request returns what the next handshake asks for, nil when the bot has what
// it needs. The token is on the disk before anybody hears of it, so that the
// same one is asked for after a crash.
func (c *Credential) Request(now time.Time) (*botapi.CredentialRequest, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	first := c.own.Token == "" && c.given == "" && c.bootstrap != ""
	if !first && !c.ends(now) {
		return nil, nil
	}
	if c.own.Next == "" {
		own := c.own
		own.Bot, own.Dir, own.Next = c.id, c.dir, newToken()
		if err := c.save(own); err != nil {
			return nil, fmt.Errorf("keep a new credential: %w", err)
		}
	}
	sum := sha256.Sum256([]byte(c.own.Next))
	return &botapi.CredentialRequest{ID: tokenID(c.own.Next), Hash: hex.EncodeToString(sum[:])}, nil
}

// Refused is told that the server does not take what the bot shows. It reports
// whether there is something else to show: a bootstrap token, when the bot's
// own credential was revoked or has expired while the bot was away.
func (c *Credential) Refused() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.own.Token == "" || c.bootstrap == "" {
		return false
	}
	c.own = ownCredential{} // the file stays until there is another
	return true
}

// Accept takes the server's answer to Request.
func (c *Credential) Accept(a *botapi.Credential) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a != nil && c.own.Next != "" && a.ID == tokenID(c.own.Next) {
		own := c.own
		own.Token, own.Next, own.Expires = own.Next, "", a.Expires
		if err := c.save(own); err != nil {
			return fmt.Errorf("keep the credential: %w", err)
		}
	}
	if c.own.Token == "" || c.bootstrap == "" {
		return nil
	}
	c.bootstrap = "" // the bot's own was taken; nothing is left to buy
	if err := os.Remove(filepath.Join(c.dir, BootstrapFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the bootstrap token: %w", err)
	}
	return nil
}

func (c *Credential) save(own ownCredential) error {
	data, err := json.Marshal(own)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(filepath.Join(c.dir, CredentialFile), data, 0o600); err != nil {
		return err
	}
	c.own = own
	return nil
}

// newToken makes a token in the form of the server's: skep_ID_SECRET.
func newToken() string {
	var raw [6 + 32]byte
	_, _ = rand.Read(raw[:]) // never fails
	return "skep_" + hex.EncodeToString(raw[:6]) + "_" + base64.RawURLEncoding.EncodeToString(raw[6:])
}

func tokenID(token string) string {
	_, rest, _ := strings.Cut(token, "_")
	id, _, _ := strings.Cut(rest, "_")
	return id
}
