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
	token, err := readBotToken(filepath.Join(s.stateDir, crewTokenFile))
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
	return token, registerBotToken(ctx, s.store, token, "skep-up-"+hostName(), hostName()+"--*")
}

// readBotToken returns "" where there is none.
func readBotToken(path string) (string, error) {
	b, err := os.ReadFile(path)
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

// registerBotToken stores the token's hash unless it is there already.
func registerBotToken(ctx context.Context, st *store.Store, token, name string, bots ...string) error {
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
		return tx.AddToken(store.Token{ID: id, Hash: hash[:], Name: name, Scope: server.ScopeBot, Bots: bots})
	})
}

// registerBotTokens stores the tokens of all bots that were started from this
// state directory.
func registerBotTokens(ctx context.Context, st *store.Store, stateDir string) error {
	crew, err := readBotToken(filepath.Join(stateDir, crewTokenFile))
	if err == nil && crew != "" {
		err = registerBotToken(ctx, st, crew, "skep-up-"+hostName(), hostName()+"--*")
	}
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(filepath.Join(stateDir, machineTokenDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		token, err := readBotToken(filepath.Join(stateDir, machineTokenDir, e.Name()))
		if err == nil && token != "" {
			err = registerMachineToken(ctx, st, token, e.Name())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// machineTokenDir holds, in the state directory, the tokens of the bots of
// machines that are processes of this host, by the machine's id.
const machineTokenDir = "machine-tokens"

// machineToken returns the token of the bots of a machine, each of which has
// the machine's id in its own. As crewToken it is made before it is needed;
// closed says that it is.
func machineToken(ctx context.Context, st *store.Store, stateDir, vm string, closed bool) (string, error) {
	path := filepath.Join(stateDir, machineTokenDir, vm)
	token, err := readBotToken(path)
	if err != nil {
		return "", err
	}
	if token == "" {
		token = newCrewToken()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return "", err
		}
		if err := atomicfile.Write(path, []byte(token+"\n"), 0o600); err != nil {
			return "", err
		}
	}
	if !closed {
		return token, nil
	}
	return token, registerMachineToken(ctx, st, token, vm)
}

func registerMachineToken(ctx context.Context, st *store.Store, token, vm string) error {
	return registerBotToken(ctx, st, token, "skep-machine-"+vm, vm, vm+"-*")
}
