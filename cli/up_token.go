package cli

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/skepdev/skep/internal/atomicfile"
	"github.com/skepdev/skep/server"
	"github.com/skepdev/skep/store"
)

// crewTokenFile holds, in the state directory, the token of skep up's bots.
// They have it from the first start, although an open server asks for none:
// the first token that a user makes closes the server, and then this one is
// registered too, so that bots and their tasks go on.
const crewTokenFile = "bot.token"

// crewToken returns the token of the bots. It is made once; a new one takes
// the place of one that was revoked.
func crewToken(ctx context.Context, s *service) (string, error) {
	token, err := readCrewToken(s.stateDir)
	if err != nil {
		return "", err
	}
	known, err := s.store.Tokens(ctx)
	if err != nil {
		return "", err
	}
	id, _ := server.TokenID(token)
	for _, t := range known {
		if t.ID == id && !isValid(t, time.Now()) {
			token = ""
		}
	}
	if token == "" {
		token = newCrewToken()
		if err := atomicfile.Write(filepath.Join(s.stateDir, crewTokenFile), []byte(token+"\n"), 0o600); err != nil {
			return "", err
		}
	}
	if s.isOpen(ctx) {
		return token, nil
	}
	return token, registerCrewToken(ctx, s.store, token)
}

// readCrewToken returns "" where there is none.
func readCrewToken(stateDir string) (string, error) {
	b, err := os.ReadFile(filepath.Join(stateDir, crewTokenFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	token := strings.TrimSpace(string(b))
	if _, ok := server.TokenID(token); !ok {
		return "", nil
	}
	return token, nil
}

// newCrewToken makes a token as server.CreateToken does, without storing it.
func newCrewToken() string {
	var id [6]byte
	var secret [32]byte
	rand.Read(id[:]) // never fails
	rand.Read(secret[:])
	return "skep_" + hex.EncodeToString(id[:]) + "_" + base64.RawURLEncoding.EncodeToString(secret[:])
}

// registerCrewToken stores the token's hash unless it is there already.
func registerCrewToken(ctx context.Context, st *store.Store, token string) error {
	id, _ := server.TokenID(token)
	known, err := st.Tokens(ctx)
	if err != nil {
		return err
	}
	for _, t := range known {
		if t.ID == id {
			return nil
		}
	}
	hash := sha256.Sum256([]byte(token))
	return st.Update(ctx, func(tx *store.Tx) error {
		return tx.AddToken(store.Token{
			ID: id, Hash: hash[:], Name: "skep-up-" + hostName(), Scope: server.ScopeBot, Bots: []string{hostName() + "--*"},
		})
	})
}
