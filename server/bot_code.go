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
	b, err := s.code(r, botOf(r), p)
	if err != nil {
		return err
	}
	w.Header().Set("Cache-Control", "no-store")
	http.Redirect(w, r, botapi.PathBotCode+b.Digest, http.StatusFound)
	return nil
}

// botOf is the bot that code is asked for, "" when that is not said.
func botOf(r *http.Request) skep.BotID {
	return skep.BotID(firstOf(r.URL.Query().Get("bot_id"), r.Header.Get(botapi.HeaderBotID)))
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
	h.Set("Vary", "Accept-Encoding")
	defer sending(w, b.Size())()
	// Ranges are of the plain bytes, so that a download goes on where it stopped.
	// The two encodings are two representations: each has its own tag, or a cache
	// would continue one with the other.
	if r.Header.Get("Range") == "" && acceptsGzip(r) {
		if z := b.Gzip(); z != nil {
			return sendGzip(w, r, z, `"`+b.Digest+`-gzip"`, `"`+b.Digest+`"`)
		}
	}
	h.Set("ETag", `"`+b.Digest+`"`)
	// The digest is of what is sent, with its coding: RFC 9530, section 3.
	h.Set("Repr-Digest", "sha-256=:"+base64.StdEncoding.EncodeToString(sum)+":")
	http.ServeContent(w, r, "", time.Time{}, b.Reader())
	return nil
}

// sendGzip sends packed bytes with a tag, or only says which the caller has
// already: these, or the plain ones.
func sendGzip(w http.ResponseWriter, r *http.Request, z []byte, tag, plain string) error {
	h := w.Header()
	for _, has := range []string{tag, plain} {
		if hasTag(r.Header.Values("If-None-Match"), has) {
			h.Set("ETag", has)
			h.Del("Content-Type")
			w.WriteHeader(http.StatusNotModified)
			return nil
		}
	}
	h.Set("ETag", tag)
	h.Set("Content-Encoding", "gzip")
	h.Set("Content-Length", fmt.Sprint(len(z)))
	if r.Method == http.MethodHead {
		return nil
	}
	_, err := w.Write(z)
	return err
}

// hasTag reports whether an If-None-Match names tag; weak tags count as strong
// ones there.
func hasTag(list []string, tag string) bool {
	for part := range strings.SplitSeq(strings.Join(list, ","), ",") {
		if part = strings.TrimSpace(part); part == "*" || strings.TrimPrefix(part, "W/") == tag {
			return true
		}
	}
	return false
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
// the query, who may make bots, a bot with its own credential, and a machine
// that brings what bots.cfg wants of its bot. spec bot.md
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
	c, ru, id := callerOf(r.Context()), s.rules(), botOf(r)
	switch {
	case c.can(permCreateBot), c.scope == ScopeBot, c.scope == ScopeBootstrap, c.scope == ScopeDrone:
		return r, nil
	case ru.Group != nil && id != "" && s.admitByGroup(r, ru, c, id) == nil: // a machine with what bots.cfg wants of its bot
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
