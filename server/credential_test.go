package server

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/api/prpc"
	"github.com/skepdev/skep/client"
	"github.com/skepdev/skep/rollout"
	"github.com/skepdev/skep/store"
)

// guarded is a server that wants tokens, and hands out code.
func guarded(t *testing.T) (f *fleet, admin string) {
	t.Helper()
	f = serve(t, func(o *Options) {
		o.Open = false
		k, err := rollout.New(t.Context(), rollout.Options{Store: o.Store, URLs: []string{"https://h:1"}})
		if err != nil {
			t.Fatal(err)
		}
		exe := []byte("an executable")
		sum := sha256.Sum256(exe)
		r := &rollout.Release{Exes: map[string]string{runtime.GOOS + "/" + runtime.GOARCH: hex.EncodeToString(sum[:])}}
		if err := k.Offer(t.Context(), r, func(string) ([]byte, error) { return exe, nil }, false); err != nil {
			t.Fatal(err)
		}
		o.Code = k
	})
	return f, f.token(NewToken{Name: "root", Scope: ScopeAdmin})
}

func (f *fleet) token(n NewToken) string {
	f.t.Helper()
	text, _, err := CreateToken(f.t.Context(), f.store, n)
	if err != nil {
		f.t.Fatal(err)
	}
	return text
}

// own is a credential as a bot makes it: what it shows later, and what it asks
// for now.
func own(n int) (text string, ask *botapi.CredentialRequest) {
	id := fmt.Sprintf("%012x", n)
	text = "skep_" + id + "_" + strings.Repeat("x", 43)
	sum := sha256.Sum256([]byte(text))
	return text, &botapi.CredentialRequest{ID: id, Hash: hex.EncodeToString(sum[:])}
}

func (f *fleet) shake(id, token string, ask *botapi.CredentialRequest) (int, map[string]any) {
	f.t.Helper()
	return f.post(botapi.PathHandshake, map[string]any{
		"dimensions": map[string]any{"id": []string{id}, "pool": []string{"default"}}, "state": map[string]any{}, "version": "v", "session_id": "s1", "credential": ask,
	}, "Authorization", "Bearer "+token)
}

func (f *fleet) pollAs(id, token string) int {
	f.t.Helper()
	code, _ := f.post(botapi.PathPoll, map[string]any{
		"dimensions": map[string]any{"id": []string{id}, "pool": []string{"default"}}, "state": map[string]any{}, "version": "v", "request_uuid": "k",
	}, "Authorization", "Bearer "+token)
	return code
}

// A token that GetToken makes is one and the same for the script, the code, and
// the handshake that buys a credential.
func TestGetTokenBootstrapAndCodeAgree(t *testing.T) {
	f, admin := guarded(t)
	get := func(path string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, res.Header.Get("Location") + string(body)
	}
	mint := func(token string) (string, error) {
		c, err := client.New(client.Options{Server: f.url, Token: token, Retry: prpc.Retry{Times: -1}})
		if err != nil {
			t.Fatal(err)
		}
		b, err := c.GetToken(t.Context())
		return b.GetBootstrapToken(), err
	}
	tok, err := mint(admin)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := mint(f.token(NewToken{Name: "ann", Scope: ScopeUser})); skep.KindOf(err) != skep.Denied {
		t.Errorf("GetToken of a user: %v, want Denied", err)
	}
	code, script := get("/bootstrap?tok=" + tok)
	if code != http.StatusOK || !strings.Contains(script, quoteSh(tok)) {
		t.Errorf("/bootstrap: %d", code)
	}
	code, where := get("/bot_code?tok=" + tok)
	if code != http.StatusFound || strings.Contains(where, tok) {
		t.Errorf("/bot_code: %d %s", code, where)
	}
	digest := strings.TrimPrefix(where, botapi.PathBotCode)[:64]
	if !strings.Contains(script, digest) {
		t.Error("the script promises other code than /bot_code hands out")
	}
	if code, body := get(botapi.PathBotCode + digest); code != http.StatusOK || !strings.HasPrefix(body, "an executable") {
		t.Errorf("the code: %d", code)
	}
	unknown, _ := own(99)
	for _, bad := range []string{unknown, "x", ""} {
		for _, path := range []string{"/bootstrap?tok=", "/bot_code?tok="} {
			if code, body := get(path + bad); code/100 != 4 || bad != "" && bad != "x" && strings.Contains(body, bad) {
				t.Errorf("%s%s: %d", path, bad, code)
			}
		}
	}
	text, ask := own(1)
	if code, ans := f.shake("b1", tok, ask); code != http.StatusOK {
		t.Fatalf("the handshake: %d %v", code, ans)
	}
	if code := f.pollAs("b1", text); code != http.StatusOK {
		t.Errorf("a poll with what it bought: %d", code)
	}
	if code := f.pollAs("b1", tok); code != http.StatusForbidden {
		t.Errorf("a poll with the bootstrap token: %d, want 403", code)
	}
}

// A credential is bought once however often it is asked for, within the count,
// time and ids of the bootstrap token; and it is good for its bot alone.
func TestWhatABootstrapTokenBuys(t *testing.T) {
	f, _ := guarded(t)
	boot := f.token(NewToken{Name: "lab", Scope: ScopeBootstrap, Bots: []string{"lab-*"}, Uses: 2, Life: time.Hour})
	if code, _ := f.shake("lab-1", boot, nil); code != http.StatusBadRequest {
		t.Errorf("asking for nothing: %d, want 400", code)
	}
	for name, ask := range map[string]*botapi.CredentialRequest{
		"a short hash": {ID: strings.Repeat("a", 12), Hash: "abcd"}, "no hex": {ID: strings.Repeat("z", 12), Hash: strings.Repeat("a", 64)},
	} {
		if code, _ := f.shake("lab-1", boot, ask); code != http.StatusBadRequest {
			t.Errorf("%s: %d, want 400", name, code)
		}
	}
	one, askOne := own(1)
	for range 3 { // answers get lost
		code, ans := f.shake("lab-1", boot, askOne)
		if c, _ := ans["credential"].(map[string]any); code != http.StatusOK || c["id"] != askOne.ID {
			t.Fatalf("%d %v", code, ans)
		}
	}
	other := *askOne
	other.Hash = strings.Repeat("ab", 32)
	if code, _ := f.shake("lab-2", boot, &other); code != http.StatusConflict {
		t.Errorf("another credential with the same id: %d, want 409", code)
	}
	if code, _ := f.shake("lab-2", boot, askOne); code != http.StatusConflict {
		t.Errorf("another bot's credential: %d, want 409", code)
	}
	if code, _ := f.shake("elsewhere", boot, askOne); code != http.StatusForbidden {
		t.Errorf("a bot that the token is not for: %d, want 403", code)
	}
	_, askTwo := own(2)
	if code, _ := f.shake("lab-2", boot, askTwo); code != http.StatusOK {
		t.Errorf("the second bot: %d", code)
	}
	_, askThree := own(3)
	if code, _ := f.shake("lab-3", boot, askThree); code != http.StatusForbidden {
		t.Errorf("one bot too many: %d, want 403", code)
	}
	if code, _ := f.shake("lab-1", boot, askOne); code != http.StatusOK { // a repetition costs nothing
		t.Errorf("the first one again, when the token is used up: %d", code)
	}
	if a, b := f.pollAs("lab-1", one), f.pollAs("lab-2", one); a != http.StatusOK || b != http.StatusForbidden {
		t.Errorf("polls with the first credential: %d as its bot, %d as another", a, b)
	}
	// A token for many bots buys none: one of them would be free of it.
	many := f.token(NewToken{Name: "many", Scope: ScopeBot, Bots: []string{"lab-*"}})
	_, askFour := own(4)
	if code, ans := f.shake("lab-4", many, askFour); code != http.StatusOK || ans["credential"] != nil {
		t.Errorf("a token for many bots: %d %v", code, ans["credential"])
	}
}

// A bot replaces its credential by a new one; the old one goes on for an hour,
// as the answer may have been lost. A revoked one is refused at once.
func TestCredentialIsRenewedAndRevoked(t *testing.T) {
	f, _ := guarded(t)
	boot := f.token(NewToken{Name: "lab", Scope: ScopeBootstrap, Bots: []string{"b1"}, Uses: 1, Life: time.Hour})
	old, askOld := own(1)
	if code, _ := f.shake("b1", boot, askOld); code != http.StatusOK {
		t.Fatal(code)
	}
	fresh, askNew := own(2)
	for range 2 {
		if code, ans := f.shake("b1", old, askNew); code != http.StatusOK || ans["credential"] == nil {
			t.Fatalf("%d %v", code, ans)
		}
	}
	ends := map[string]time.Duration{}
	for _, id := range []string{askOld.ID, askNew.ID} {
		tk, found, err := f.store.Token(t.Context(), id)
		if err != nil || !found {
			t.Fatal(found, err)
		}
		ends[id] = time.Until(tk.ExpiresAt)
	}
	if d := ends[askOld.ID]; d > credentialOverlap || d < credentialOverlap/2 {
		t.Errorf("the old one ends in %v, want an hour", d)
	}
	if d := ends[askNew.ID]; d > credentialLife || d < credentialLife-time.Hour {
		t.Errorf("the new one ends in %v, want 90 days", d)
	}
	if a, b := f.pollAs("b1", old), f.pollAs("b1", fresh); a != http.StatusOK || b != http.StatusOK {
		t.Errorf("polls: %d with the old one, %d with the new one", a, b)
	}
	if err := f.store.Update(t.Context(), func(tx *store.Tx) error { return tx.RevokeToken(askNew.ID) }); err != nil {
		t.Fatal(err)
	}
	if err := f.server.tokens.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if code := f.pollAs("b1", fresh); code != http.StatusUnauthorized {
		t.Errorf("a poll with a revoked one: %d, want 401", code)
	}
	if code, _ := f.shake("b1", boot, askNew); code != http.StatusConflict && code != http.StatusForbidden {
		t.Errorf("a revoked credential was bought again: %d", code)
	}
}
