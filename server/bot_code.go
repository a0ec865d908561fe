package server

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/rollout"
)

// botCode sends whoever may have bot code to the one that is right for them.
// Its query may say os, arch and bot_id; the platform of this server is the
// default. spec bot.md §2.13.
func (s *Server) botCode(w http.ResponseWriter, r *http.Request) error {
	r, err := s.mayHaveCode(r)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	p := rollout.Platform{OS: firstOf(q.Get("os"), runtime.GOOS), Arch: firstOf(q.Get("arch"), runtime.GOARCH)}
	b, err := s.code(r, skep.BotID(firstOf(q.Get("bot_id"), r.Header.Get(botapi.HeaderBotID))), p)
	if err != nil {
		return err
	}
	w.Header().Set("Cache-Control", "no-store")
	http.Redirect(w, r, botapi.PathBotCode+b.Digest, http.StatusFound)
	return nil
}

func (s *Server) code(r *http.Request, bot skep.BotID, p rollout.Platform) (*rollout.Build, error) {
	if s.o.Code == nil {
		return nil, skep.Errorf(skep.Unavailable, "this server has no bot code to hand out; start it with --bot-dir")
	}
	return s.o.Code.Code(r.Context(), bot, p, s.hostOf(r))
}

// botCodeVersion serves the code with a digest to everybody: it holds no
// secret. It never changes under its name.
func (s *Server) botCodeVersion(w http.ResponseWriter, r *http.Request) error {
	if s.o.Code == nil {
		return s.botCode(w, r)
	}
	b, err := s.o.Code.WithDigest(r.Context(), r.PathValue("digest"))
	if err != nil {
		return err
	}
	if b == nil {
		return s.botCode(w, r)
	}
	if r.URL.RawQuery != "" {
		http.Redirect(w, r, botapi.PathBotCode+b.Digest, http.StatusFound)
		return nil
	}
	sum, err := hex.DecodeString(b.Digest)
	if err != nil {
		return err
	}
	name := "swarming_bot.zip"
	if b.OS == "windows" {
		name = "swarming_bot.exe"
	}
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", name))
	h.Set("Cache-Control", "public, max-age=31536000, immutable")
	h.Set("ETag", `"`+b.Digest+`"`)
	h.Set("Repr-Digest", "sha-256=:"+base64.StdEncoding.EncodeToString(sum)+":")
	h.Set("Vary", "Accept-Encoding")
	defer sending(w, b.Size())()
	// Ranges are of the plain bytes, so that a download goes on where it stopped.
	if r.Header.Get("Range") == "" && acceptsGzip(r) {
		if z := b.Gzip(); z != nil {
			h.Set("Content-Encoding", "gzip")
			h.Set("Content-Length", fmt.Sprint(len(z)))
			if r.Method == http.MethodHead {
				return nil
			}
			_, err := w.Write(z)
			return err
		}
	}
	http.ServeContent(w, r, "", time.Time{}, b.Reader())
	return nil
}

func acceptsGzip(r *http.Request) bool {
	for part := range strings.SplitSeq(r.Header.Get("Accept-Encoding"), ",") {
		name, q, _ := strings.Cut(strings.TrimSpace(part), ";")
		if name == "gzip" && strings.TrimSpace(q) != "q=0" {
			return true
		}
	}
	return false
}

// mayHaveCode lets in, by the first that fits, who has a bootstrap token in
// the query, who may make bots, and a bot with its own credential. spec bot.md
// §2.13.
func (s *Server) mayHaveCode(r *http.Request) (*http.Request, error) {
	if tok := r.URL.Query().Get("tok"); tok != "" {
		t, err := s.tokens.find(r.Context(), tok)
		if err != nil {
			return r, err
		}
		if t != nil && t.Scope == ScopeBootstrap {
			return r, nil
		}
	}
	r, err := s.identify(r)
	if err != nil {
		return r, err
	}
	switch c := callerOf(r.Context()); {
	case c.can(permCreateBot), c.scope == ScopeBot, c.scope == ScopeBootstrap, c.scope == ScopeDrone:
		return r, nil
	default:
		return r, skep.Errorf(skep.Denied, "bot code is for bots and who makes them: bring a bootstrap token as tok= (skep token create --bootstrap)")
	}
}

// ours is what a skep-bot says of itself in its state. decisions.md 21.
type ours struct {
	OS   string `json:"os"`
	Arch string `json:"arch"`
	URL  string `json:"url"`
}

// expected returns the digest of the code that a skep-bot should run; "" for
// any other bot, and when what it runs will do.
func (s *Server) expected(r *http.Request, b *skep.Bot, st *botState, handshake bool) (string, error) {
	var o ours
	if s.o.Code == nil || len(st.Skep) == 0 || json.Unmarshal(st.Skep, &o) != nil || o.OS == "" || o.Arch == "" {
		return "", nil //nolint:nilerr // what it says of itself cannot be read: another bot
	}
	if u, err := url.Parse(o.URL); err != nil || u.Host == "" {
		o.URL = ""
	}
	return s.o.Code.Expected(r.Context(), rollout.Contact{
		Bot: b.ID, Version: b.Version, Platform: rollout.Platform{OS: o.OS, Arch: o.Arch}, URL: o.URL,
		Handshake: handshake, Ill: b.Quarantined != "",
	})
}
