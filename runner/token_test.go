package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skepdev/skep/api/botapi"
)

// fakeMint answers as the test says and counts.
type fakeMint struct {
	mu    sync.Mutex
	calls []botapi.TokenRequest
	f     func(path string, r *botapi.TokenRequest) (*botapi.TokenResponse, error)
}

func (m *fakeMint) Token(_ context.Context, path string, r *botapi.TokenRequest) (*botapi.TokenResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls = append(m.calls, *r)
	return m.f(path, r)
}

func TestTokenServer(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	mint := &fakeMint{}
	s := &tokenServer{
		api: mint, task: "ab1", accounts: map[string]string{"system": "bot", "task": "t@example.com"},
		headers: func() map[string]string { return map[string]string{"authorization": "Bearer bot-token"} },
		log:     testLog(t), now: func() time.Time { return now },
	}
	auth, err := s.start()
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if got := fmt.Sprintf("%v %s", auth.Accounts, auth.DefaultAccountID); got != "[{system -} {task t@example.com}] task" {
		t.Errorf("local_auth %s", got)
	}
	call := func(method, body string) string {
		t.Helper()
		res, err := http.Post(fmt.Sprintf("http://127.0.0.1:%d/rpc/LuciLocalAuthService.%s", auth.RPCPort, method), "application/json",
			strings.NewReader(strings.ReplaceAll(body, "SECRET", auth.Secret)))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		return fmt.Sprintf("%d %s", res.StatusCode, strings.TrimSpace(string(b)))
	}
	minted := 0
	mint.f = func(path string, r *botapi.TokenRequest) (*botapi.TokenResponse, error) {
		minted++
		return &botapi.TokenResponse{
			ServiceAccount: "t@example.com", AccessToken: fmt.Sprintf("%s%v%d", path[len(path)-11:], r.Scopes, minted),
			IDToken: fmt.Sprintf("id-%s-%d", r.Audience, minted), Expiry: now.Unix() + 3600,
		}, nil
	}
	const oauth = `{"account_id":"task","scopes":["b","a","b"],"secret":"SECRET"}`
	for _, tt := range []struct{ name, method, body, want string }{
		{"minted", "GetOAuthToken", oauth, `200 {"access_token":"oauth_token[a b]1","expiry":1003600}`},
		{"cached, scopes in another order", "GetOAuthToken", `{"account_id":"task","scopes":["a","b"],"secret":"SECRET"}`, `200 {"access_token":"oauth_token[a b]1","expiry":1003600}`},
		{"other scopes", "GetOAuthToken", `{"account_id":"task","scopes":["a"],"secret":"SECRET"}`, `200 {"access_token":"oauth_token[a]2","expiry":1003600}`},
		{"id token", "GetIDToken", `{"account_id":"task","audience":"x","secret":"SECRET"}`, `200 {"id_token":"id-x-3","expiry":1003600}`},
		{"bot's own", "GetOAuthToken", `{"account_id":"system","scopes":["a"],"secret":"SECRET"}`, `200 {"access_token":"bot-token","expiry":1000240}`},
		{"bot's id token", "GetIDToken", `{"account_id":"system","audience":"x","secret":"SECRET"}`, `200 {"error_code":5,"error_message":"account bot has no ID tokens"}`},
		{"wrong secret", "GetOAuthToken", `{"account_id":"task","scopes":["a"],"secret":"x"}`, "403 wrong secret"},
		{"unknown account", "GetOAuthToken", `{"account_id":"other","scopes":["a"],"secret":"SECRET"}`, "404 there is no such account on this task"},
		{"unknown method", "Other", `{}`, "404 there is no such method"},
		{"malformed", "GetOAuthToken", `{`, "400 the request needs account_id, secret, and scopes or audience"},
	} {
		if got := call(tt.method, tt.body); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
	now = now.Add(3600*time.Second - tokenMargin + time.Second)
	if got := call("GetOAuthToken", oauth); got != `200 {"access_token":"oauth_token[a b]4","expiry":1007021}` {
		t.Errorf("near its end: %s", got)
	}
	mint.f = func(string, *botapi.TokenRequest) (*botapi.TokenResponse, error) { return nil, errors.New("down") }
	if got := call("GetIDToken", `{"account_id":"task","audience":"y","secret":"SECRET"}`); !strings.HasPrefix(got, "500 ") {
		t.Errorf("server down: %s", got)
	}
	mint.f = func(string, *botapi.TokenRequest) (*botapi.TokenResponse, error) {
		return nil, &botapi.Error{Status: 400, Text: "no"}
	}
	for range 2 {
		if got := call("GetIDToken", `{"account_id":"task","audience":"y","secret":"SECRET"}`); !strings.Contains(got, `"error_code":4`) {
			t.Errorf("refused: %s", got)
		}
	}
	if n := len(mint.calls); n != 6 {
		t.Errorf("%d calls of the server, want 6: a refusal is final", n)
	}
	for _, c := range mint.calls {
		if c.TaskID != "ab1" || c.AccountID != "task" {
			t.Errorf("call %+v", c)
		}
	}
}

// TestATokenOfTheFleetStaysWithTheBot: a task with account bot must not get
// what lets it act as the bot. decisions.md 9 and 11.
func TestATokenOfTheFleetStaysWithTheBot(t *testing.T) {
	for token, want := range map[string]int{"skep_0123_secret": codeNoOAuth, "ya29.other": 0} {
		s := &tokenServer{now: time.Now, headers: func() map[string]string { return map[string]string{"Authorization": "Bearer " + token} }}
		a := s.botToken(false)
		if a.ErrorCode != want || (want != 0 && a.AccessToken != "") {
			t.Errorf("%s: %+v", token, a)
		}
	}
}
