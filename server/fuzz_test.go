package server

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/rollout"
)

// FuzzToken: a text is a token of ours in one way only, and one that nobody
// made lets nobody in.
func FuzzToken(f *testing.F) {
	srv, st := start(f, nil)
	made, _, err := CreateToken(f.Context(), st, NewToken{Name: "ann", Scope: ScopeAdmin})
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{
		made, strings.ToUpper(made), made + "x", made[:len(made)-1], "skep_", "skep_0123456789ab_", "",
		"skep_0123456789ab_" + strings.Repeat("'", 43), "skep_01234\n6789ab_" + strings.Repeat("a", 43),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, token string) {
		id, ok := TokenID(token)
		if ok != (id != "") {
			t.Fatalf("id %q, %v", id, ok)
		}
		if ok && (!strings.HasPrefix(token, tokenPrefix+id+"_") || strings.ContainsAny(token, "'\"\\$`\n\r \x00")) {
			t.Errorf("%q is taken for a token", token)
		}
		got, err := srv.tokens.find(t.Context(), token)
		if err != nil {
			t.Fatal(err)
		}
		if (got != nil) != (token == made) {
			t.Errorf("%q lets in %+v", token, got)
		}
	})
}

// FuzzSession: no text but one that the fleet sealed is a session, and what
// was sealed comes back.
func FuzzSession(f *testing.F) {
	ss := &sessions{key: []byte("key"), now: func() time.Time { return time.Unix(1_700_000_000, 0) }}
	other := &sessions{key: []byte("another"), now: ss.now}
	good := ss.seal(session{bot: "b1", process: "p/1"}, 0)
	f.Add(good, "b1", "p/1")
	f.Add(good[:len(good)-4], "b", "")
	f.Add("AQ==", "", "\x00")
	f.Add(good[:9]+"\r\n"+good[9:], "", "")
	f.Add(other.seal(session{bot: "b1"}, 0), strings.Repeat("b", 300), "ä")
	f.Fuzz(func(t *testing.T, text, bot, process string) {
		if s, ok := ss.open(text); ok && text != good {
			t.Errorf("%q is a session of %q", text, s.bot)
		}
		in := session{bot: skep.BotID(bot), process: process}
		sealed := ss.seal(in, 0)
		out, ok := ss.open(sealed)
		if !ok || out.bot != in.bot || out.process != in.process || ss.expired(out) {
			t.Errorf("%+v came back as %+v, %v", in, out, ok)
		}
		if _, ok := other.open(sealed); ok {
			t.Error("another fleet takes it")
		}
	})
}

// FuzzHandshake sends what a stranger with a bootstrap token may: whatever it
// is, no bot comes of it but one that the token is for, and none without a
// credential of its own.
func FuzzHandshake(f *testing.F) {
	srv, st := start(f, func(o *Options) { o.Open = false })
	boot, _, err := CreateToken(f.Context(), st, NewToken{Name: "lab", Scope: ScopeBootstrap, Bots: []string{"lab-*"}, Uses: 1 << 30, Life: time.Hour})
	if err != nil {
		f.Fatal(err)
	}
	hash := strings.Repeat("ab", 32)
	f.Add([]byte(`{"dimensions":{"id":["lab-1"]},"state":{},"version":"v","session_id":"s","credential":{"id":"0123456789ab","hash":"` + hash + `"}}`))
	f.Add([]byte(`{"dimensions":{"id":["lab-1"]},"state":{},"version":"v","session_id":"s"}`))
	f.Add([]byte(`{"dimensions":{"id":["other"]},"state":{"skep":{"os":"linux","arch":"amd64","url":"x"}},"version":"v","session_id":"s","credential":{"id":"0123456789ab","hash":"` + hash + `"}}`))
	f.Add([]byte(`{"dimensions":{"id":["lab-1","other"]},"credential":{"id":"","hash":""}}`))
	f.Add([]byte(`{"dimensions":{"id":["lab-*"]},"credential":{"id":"ZZ23456789ab","hash":"00"}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		req := httptest.NewRequest(http.MethodPost, botapi.PathHandshake, bytes.NewReader(body))
		req.Host = "127.0.0.1:1"
		req.Header.Set("Content-Type", "application/json; charset=utf-8")
		req.Header.Set("Authorization", "Bearer "+boot)
		w := httptest.NewRecorder()
		srv.ServeHTTP(w, req)
		if w.Code >= 500 || !json.Valid(w.Body.Bytes()) {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		if w.Code != http.StatusOK {
			return
		}
		var res botapi.HandshakeResponse
		if err := json.Unmarshal(w.Body.Bytes(), &res); err != nil {
			t.Fatal(err)
		}
		s, ok := srv.sessions.open(res.Session)
		if !ok || !strings.HasPrefix(string(s.bot), "lab-") || res.Credential == nil {
			t.Errorf("%s became bot %q: %s", body, s.bot, w.Body)
		}
	})
}

// FuzzCodeQuery asks for bot code and for bootstrap scripts with any query.
// What is answered is code that the fleet has, or a script in which nothing
// that was asked stands outside of quotes.
func FuzzCodeQuery(f *testing.F) {
	exe := []byte("\x7fELF, nearly")
	srv, _ := start(f, func(o *Options) {
		k, err := rollout.New(f.Context(), rollout.Options{Store: o.Store, URLs: []string{"http://127.0.0.1:1"}})
		if err != nil {
			f.Fatal(err)
		}
		sum := sha256.Sum256(exe)
		h := hex.EncodeToString(sum[:])
		r := &rollout.Release{Exes: map[string]string{"linux/amd64": h, "windows/amd64": h}}
		if err := k.Offer(f.Context(), r, func(string) ([]byte, error) { return exe, nil }, false); err != nil {
			f.Fatal(err)
		}
		o.Code = k
	})
	for _, q := range []string{
		"", "os=windows&arch=amd64", "os=plan9", "os=linux%2famd64&arch=", "bot_id=a%00b&os=linux&arch=amd64", "tok=x", "os=..%2f..&arch=%zz",
		"tok=skep_0123456789ab_" + strings.Repeat("a", 43), "shell=ps1&tok=skep_0123456789ab_" + strings.Repeat("a", 43), "shell=ps1", "tok=%27;id;%27",
	} {
		f.Add(q)
	}
	f.Fuzz(func(t *testing.T, query string) {
		get := func(path, query string) *httptest.ResponseRecorder {
			req := httptest.NewRequest(http.MethodGet, path, nil)
			req.URL.RawQuery = query
			req.Host = "127.0.0.1:1"
			w := httptest.NewRecorder()
			srv.ServeHTTP(w, req)
			if w.Code >= 500 {
				t.Errorf("%s?%s: %d %s", path, query, w.Code, w.Body)
			}
			return w
		}
		w := get("/bot_code", query)
		switch w.Code {
		case http.StatusFound:
			to := w.Header().Get("Location")
			if got := get(to, ""); got.Code != http.StatusOK || !bytes.HasPrefix(got.Body.Bytes(), exe) || path.Dir(to)+"/" != botapi.PathBotCode {
				t.Errorf("%s leads to %s: %d", query, to, got.Code)
			}
		case http.StatusOK:
			t.Errorf("%s is answered with %q", query, w.Body)
		}
		w = get("/bootstrap", query)
		if w.Code != http.StatusOK {
			return
		}
		if q, err := url.ParseQuery(query); err == nil && q.Get("tok") != "" {
			if _, ok := TokenID(q.Get("tok")); !ok || strings.Count(w.Body.String(), q.Get("tok")) != 1 || !strings.Contains(w.Body.String(), "'"+q.Get("tok")+"'") {
				t.Errorf("%s: the token stands wrongly in %s", query, w.Body)
			}
		}
	})
}
