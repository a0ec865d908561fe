package runner

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skepdev/skep/api/botapi"
)

// tokenCaller is what the token server needs of botapi.Client.
type tokenCaller interface {
	Token(ctx context.Context, path string, req *botapi.TokenRequest) (*botapi.TokenResponse, error)
}

// tokenServer gives the task tokens of its accounts over loopback HTTP, as
// LUCI_CONTEXT's local_auth tells it. spec bot.md §4.6.
type tokenServer struct {
	api      tokenCaller
	task     string
	accounts map[string]string // id → "bot" or e-mail
	botEmail string            // of account "bot"; "" = unknown
	headers  func() map[string]string
	log      *slog.Logger
	now      func() time.Time

	secret string
	http   *http.Server
	port   int

	mu    sync.Mutex
	cache map[string]*cachedToken
}

// cachedToken is one answer; its lock serialises those who want the same.
type cachedToken struct {
	sync.Mutex
	token  string
	expiry int64        // Unix seconds
	fatal  *tokenAnswer // for the life of the task
}

// tokenAnswer is the body of both methods' answers.
type tokenAnswer struct {
	AccessToken  string `json:"access_token,omitempty"`
	IDToken      string `json:"id_token,omitempty"`
	Expiry       int64  `json:"expiry,omitempty"`
	ErrorCode    int    `json:"error_code,omitempty"`
	ErrorMessage string `json:"error_message,omitempty"`
}

// Error codes of tokenAnswer.
const (
	codeNoAccount   = 1 // no such account on this task
	codeNoOAuth     = 2 // the bot does not use OAuth
	codeRefused     = 4 // the server does not mint it
	codeNoIDForBot  = 5 // account bot has no ID tokens
	tokenMargin     = 3 * time.Minute
	botTokenLife    = 240 * time.Second // assumed, when unknown
	tokenRetryAfter = 20 * time.Second  // patience with one call of the task
)

const tokenPath = "/rpc/LuciLocalAuthService."

// accountsOf lists the accounts that a task may use.
func accountsOf(m *botapi.Manifest) map[string]string {
	accounts := map[string]string{}
	for id, a := range map[string]string{
		"system": m.ServiceAccounts.System.ServiceAccount,
		"task":   m.ServiceAccounts.Task.ServiceAccount,
	} {
		if a != "" && a != "none" {
			accounts[id] = a
		}
	}
	return accounts
}

// start listens and returns the section of LUCI_CONTEXT.
func (s *tokenServer) start() (*localAuth, error) {
	raw := make([]byte, 48)
	_, _ = rand.Read(raw) // never fails
	s.secret = base64.StdEncoding.EncodeToString(raw)
	s.cache = map[string]*cachedToken{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s.port = l.Addr().(*net.TCPAddr).Port
	s.http = &http.Server{Handler: s, ReadTimeout: time.Minute, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn)}
	go func() { _ = s.http.Serve(l) }()
	auth := &localAuth{RPCPort: s.port, Secret: s.secret, Accounts: []localAccount{}}
	for _, id := range []string{"system", "task"} {
		if a, ok := s.accounts[id]; ok {
			auth.Accounts = append(auth.Accounts, localAccount{ID: id, Email: s.email(a)})
		}
	}
	if _, ok := s.accounts["task"]; ok {
		auth.DefaultAccountID = "task"
	}
	return auth, nil
}

func (s *tokenServer) email(account string) string {
	switch {
	case account != "bot":
		return account
	case s.botEmail != "":
		return s.botEmail
	default:
		return "-"
	}
}

func (s *tokenServer) close() { _ = s.http.Close() }

// ServeHTTP implements http.Handler.
func (s *tokenServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	method, ok := strings.CutPrefix(r.URL.Path, tokenPath)
	switch {
	case !ok, method != "GetOAuthToken" && method != "GetIDToken":
		http.Error(w, "there is no such method", http.StatusNotFound)
		return
	case r.Method != http.MethodPost:
		http.Error(w, "use POST", http.StatusMethodNotAllowed)
		return
	case !strings.HasPrefix(r.Header.Get("Content-Type"), "application/json"), r.ContentLength < 0:
		http.Error(w, "want Content-Type: application/json and a Content-Length", http.StatusBadRequest)
		return
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, 64<<10))
	var req struct {
		AccountID string   `json:"account_id"`
		Scopes    []string `json:"scopes"`
		Audience  string   `json:"audience"`
		Secret    string   `json:"secret"`
	}
	if err == nil {
		err = json.Unmarshal(body, &req)
	}
	isID := method == "GetIDToken"
	switch {
	case err != nil, req.AccountID == "", isID && req.Audience == "", !isID && len(req.Scopes) == 0:
		http.Error(w, "the request needs account_id, secret, and scopes or audience", http.StatusBadRequest)
		return
	case subtle.ConstantTimeCompare([]byte(req.Secret), []byte(s.secret)) != 1:
		http.Error(w, "wrong secret", http.StatusForbidden)
		return
	}
	account, ok := s.accounts[req.AccountID]
	if !ok {
		http.Error(w, "there is no such account on this task", http.StatusNotFound)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), tokenRetryAfter)
	defer cancel()
	answer, err := s.token(ctx, isID, account, &botapi.TokenRequest{
		AccountID: req.AccountID, TaskID: s.task, Scopes: sortedSet(req.Scopes), Audience: req.Audience,
	})
	if err != nil {
		s.log.Warn("token not minted", "task", s.task, "account", req.AccountID, "err", err)
		http.Error(w, "the server cannot mint it now", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer)
}

func sortedSet(s []string) []string {
	s = slices.Clone(s)
	slices.Sort(s)
	return slices.Compact(s)
}

// token returns a token, or a final refusal as answer, or a transient error.
func (s *tokenServer) token(ctx context.Context, isID bool, account string, req *botapi.TokenRequest) (*tokenAnswer, error) {
	if account == "bot" {
		return s.botToken(isID), nil
	}
	path, key := botapi.PathOAuthToken, "oauth\x00"+req.AccountID+"\x00"+strings.Join(req.Scopes, "\x00")
	if isID {
		path, key = botapi.PathIDToken, "id\x00"+req.AccountID+"\x00"+req.Audience
		req.Scopes = nil
	} else {
		req.Audience = ""
	}
	s.mu.Lock()
	c := s.cache[key]
	if c == nil {
		c = &cachedToken{}
		s.cache[key] = c
	}
	s.mu.Unlock()
	c.Lock()
	defer c.Unlock()
	if c.fatal != nil {
		return c.fatal, nil
	}
	if c.token == "" || time.Unix(c.expiry, 0).Sub(s.now()) < tokenMargin {
		res, err := s.api.Token(ctx, path, req)
		switch {
		case botapi.StatusOf(err) == http.StatusBadRequest:
			c.fatal = &tokenAnswer{ErrorCode: codeRefused, ErrorMessage: err.Error()}
			return c.fatal, nil
		case err != nil:
			return nil, err
		case res.ServiceAccount == "bot":
			return s.botToken(isID), nil
		case res.ServiceAccount == "none":
			c.fatal = &tokenAnswer{ErrorCode: codeNoAccount, ErrorMessage: "the task has no such account"}
			return c.fatal, nil
		}
		c.token, c.expiry = res.AccessToken, res.Expiry
		if isID {
			c.token = res.IDToken
		}
	}
	if isID {
		return &tokenAnswer{IDToken: c.token, Expiry: c.expiry}, nil
	}
	return &tokenAnswer{AccessToken: c.token, Expiry: c.expiry}, nil
}

// fleetToken begins every token of a skep server. It opens more than one task:
// whoever has it can act as the bot.
const fleetToken = "skep_"

// botToken is the bearer token that the bot itself uses, if it is one that
// others may have too: a token of the fleet is the bot's secret. decisions.md
// 9 and 11.
func (s *tokenServer) botToken(isID bool) *tokenAnswer {
	if isID {
		return &tokenAnswer{ErrorCode: codeNoIDForBot, ErrorMessage: "account bot has no ID tokens"}
	}
	for k, v := range s.headers() {
		token, ok := strings.CutPrefix(v, "Bearer ")
		if ok && strings.EqualFold(k, "Authorization") && !strings.HasPrefix(token, fleetToken) {
			return &tokenAnswer{AccessToken: token, Expiry: s.now().Add(botTokenLife).Unix()}
		}
	}
	return &tokenAnswer{ErrorCode: codeNoOAuth, ErrorMessage: "the bot has no OAuth token that a task may use"}
}
