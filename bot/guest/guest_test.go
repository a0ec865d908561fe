package guest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/bot"
	"github.com/skepdev/skep/bot/code"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cloud is a metadata server, a provider and a server of bots.
type cloud struct {
	t    testing.TB
	http *httptest.Server
	code []byte

	mu         sync.Mutex
	attributes map[string]string
	swarming   string  // what Instances.Get says
	failing    float64 // share of answers that are none
	breaks     int     // after how many bytes of code the connection does; -1 = never
	rng        *rand.Rand
	tokens     int   // identities that were signed
	sent       int64 // bytes of code
	noRanges   bool
}

func newCloud(t testing.TB) *cloud {
	c := &cloud{t: t, attributes: map[string]string{}, breaks: -1, rng: rand.New(rand.NewPCG(1, 2))}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /computeMetadata/v1/instance/name", c.metadata(func(*http.Request) string { return "bots-0-ab12" }))
	mux.HandleFunc("GET /computeMetadata/v1/instance/attributes/{key}", c.metadata(func(r *http.Request) string { return c.attributes[r.PathValue("key")] }))
	mux.HandleFunc("GET /computeMetadata/v1/instance/service-accounts/{account}/identity", c.metadata(func(r *http.Request) string {
		if r.FormValue("format") != "full" || r.PathValue("account") != "signer" {
			t.Errorf("asked %s", r.URL)
		}
		c.tokens++
		payload := fmt.Sprintf(`{"exp":%d,"aud":%q}`, time.Now().Add(time.Hour).Unix(), r.FormValue("audience"))
		return "h." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".s"
	}))
	mux.HandleFunc("POST /prpc/instances.Instances/Get", c.asVM(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if string(body) != `{"hostname":"bots-0-ab12"}` || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("asked %s", body)
		}
		fmt.Fprintf(w, ")]}'\n{\"hostname\":\"bots-0-ab12\",\"swarming\":%q}", c.swarming)
	}))
	mux.HandleFunc("GET /bot_code", c.asVM(func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("os") != "linux" || r.FormValue("arch") != "amd64" || r.FormValue("bot_id") != "bots-0-ab12" {
			t.Errorf("asked %s", r.URL)
		}
		http.Redirect(w, r, botapi.PathBotCode+c.digest(), http.StatusFound)
	}))
	mux.HandleFunc("GET "+botapi.PathBotCode+"{digest}", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(bot.HeaderVMToken) != "" {
			t.Error("the token is sent where nobody needs it")
		}
		if c.fails() {
			http.Error(w, "out of order", http.StatusServiceUnavailable)
			return
		}
		if r.PathValue("digest") != c.digest() {
			http.Error(w, "unknown code", http.StatusForbidden)
			return
		}
		if c.noRanges {
			r.Header.Del("Range")
		}
		w.Header().Set("ETag", `"`+c.digest()+`"`)
		http.ServeContent(&breaking{ResponseWriter: w, c: c}, r, "", time.Time{}, bytes.NewReader(c.code))
	})
	c.http = httptest.NewServer(mux)
	c.http.Config.ErrorLog = nil
	t.Cleanup(c.http.Close)
	c.attributes[attributeProvider] = c.http.URL
	c.attributes[attributeServer] = c.http.URL
	c.newCode(1 << 10)
	return c
}

func (c *cloud) newCode(size int) {
	exe := make([]byte, size)
	copy(exe, "\x7fELF\x02\x01")
	exe[18] = 62 // amd64
	for i := 20; i < size; i++ {
		exe[i] = byte(c.rng.Uint32())
	}
	var b bytes.Buffer
	if err := code.Compose(&b, exe, code.Config{Server: c.http.URL}); err != nil {
		c.t.Fatal(err)
	}
	c.code = b.Bytes()
}

func (c *cloud) digest() string {
	sum := sha256.Sum256(c.code)
	return hex.EncodeToString(sum[:])
}

func (c *cloud) fails() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rng.Float64() < c.failing
}

func (c *cloud) metadata(say func(*http.Request) string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Metadata-Flavor", "Google")
		if r.Header.Get("Metadata-Flavor") != "Google" {
			c.t.Error("asked without the flavor")
		}
		if c.fails() {
			http.Error(w, "out of order", http.StatusServiceUnavailable)
			return
		}
		c.mu.Lock()
		text := say(r)
		c.mu.Unlock()
		if text == "" {
			http.NotFound(w, r)
			return
		}
		fmt.Fprintln(w, text)
	}
}

// asVM wants the identity of the machine, made for this server.
func (c *cloud) asVM(do http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		parts := strings.Split(r.Header.Get(bot.HeaderVMToken), ".")
		if len(parts) != 3 {
			http.Error(w, "no identity", http.StatusUnauthorized)
			return
		}
		payload, _ := base64.RawURLEncoding.DecodeString(parts[1])
		if !strings.Contains(string(payload), `"aud":"http://`+r.Host+`"`) {
			http.Error(w, "another audience", http.StatusUnauthorized)
			return
		}
		if c.fails() {
			http.Error(w, "out of order", http.StatusServiceUnavailable)
			return
		}
		do(w, r)
	}
}

// breaking counts what is sent, and ends the connection when it is to.
type breaking struct {
	http.ResponseWriter
	c *cloud
}

func (b *breaking) Write(p []byte) (int, error) {
	b.c.mu.Lock()
	left := b.c.breaks
	if left >= 0 && left <= len(p) {
		p, b.c.breaks = p[:left], -1
	} else if left >= 0 {
		b.c.breaks -= len(p)
		left = -1
	}
	b.c.sent += int64(len(p))
	b.c.mu.Unlock()
	n, err := b.ResponseWriter.Write(p)
	if left >= 0 {
		_ = http.NewResponseController(b.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, err
}

func (c *cloud) options(t testing.TB) (Options, *Service) {
	installed := &Service{}
	return Options{
		Dir: filepath.Join(t.TempDir(), "bot"), Provider: FromMetadata, Metadata: strings.TrimPrefix(c.http.URL, "http://"), Account: "signer",
		OS: "linux", Arch: "amd64", Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Install: func(_ context.Context, s Service) error { *installed = s; return nil },
	}, installed
}

func (c *cloud) check(t testing.TB, o Options, s *Service) {
	t.Helper()
	got, err := os.ReadFile(s.Exe)
	if err != nil || !bytes.Equal(got, c.code) {
		t.Errorf("%s is not the code: %v", s.Exe, err)
	}
	if want := (Service{Dir: o.Dir, Exe: filepath.Join(o.Dir, "swarming_bot"), Server: c.http.URL, Bot: "bots-0-ab12"}); *s != want {
		t.Errorf("installed %+v, want %+v", *s, want)
	}
	if info, err := os.Stat(s.Exe); err == nil && info.Mode().Perm() != 0o755 {
		t.Errorf("mode %v", info.Mode())
	}
	if left, _ := filepath.Glob(o.Dir + "*"); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

func TestRun(t *testing.T) {
	c := newCloud(t)
	for _, way := range []struct {
		name             string
		provider, server string
		swarming         string
	}{
		{"a provider that is the server", FromMetadata, "", ""},
		{"a provider that names it", FromMetadata, "https://not.asked.example.com", c.http.URL},
		{"a provider by its URL", c.http.URL + "/", "", ""},
		{"a server of the metadata", "", FromMetadata, ""},
	} {
		t.Run(way.name, func(t *testing.T) {
			o, s := c.options(t)
			o.Provider, o.Server, c.swarming = way.provider, way.server, way.swarming
			owned := map[string]bool{}
			o.Own = func(path string) error { owned[path] = true; return nil }
			c.tokens, c.sent = 0, 0
			if err := Run(t.Context(), o); err != nil {
				t.Fatal(err)
			}
			c.check(t, o, s)
			if c.tokens != 1 || !owned[o.Dir] || len(owned) != 2 {
				t.Errorf("%d identities, owned %v", c.tokens, owned)
			}
			// Another start of the machine fetches nothing.
			c.sent, *s = 0, Service{}
			if err := Run(t.Context(), o); err != nil || c.sent != 0 {
				t.Errorf("%v, %d bytes", err, c.sent)
			}
			c.check(t, o, s)
		})
	}
}

// TestAnyByte: a machine that is killed after any byte of the download, or
// whose disk has lost its end, becomes a bot when it is started again; nothing
// that is good is fetched twice.
func TestAnyByte(t *testing.T) {
	c := newCloud(t)
	c.newCode(64)
	for n := 0; n <= len(c.code)+1; n++ {
		o, s := c.options(t)
		o.Log = slog.New(slog.DiscardHandler)
		part := filepath.Join(o.Dir+stageSuffix, c.digest()+partSuffix)
		if err := os.MkdirAll(filepath.Dir(part), 0o700); err != nil {
			t.Fatal(err)
		}
		left := append(bytes.Clone(c.code), "more"...)[:n]
		torn := n%97 == 96
		if torn {
			left[n/2] ^= 1
		}
		if err := os.WriteFile(part, left, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(o.Dir+stageSuffix, "other.part"), left, 0o600); err != nil {
			t.Fatal(err)
		}
		c.sent = 0
		if err := Run(t.Context(), o); err != nil {
			t.Fatalf("%d bytes were there: %v", n, err)
		}
		c.check(t, o, s)
		if want := int64(len(c.code) - n); !torn && n < len(c.code) && c.sent != want {
			t.Errorf("%d bytes were there, %d were sent, want %d", n, c.sent, want)
		}
	}
}

// TestBrokenConnections: a download that breaks off goes on.
func TestBrokenConnections(t *testing.T) {
	c := newCloud(t)
	for _, noRanges := range []bool{false, true} {
		for n := 0; n < len(c.code); n += 37 {
			c.noRanges, c.breaks, c.sent = noRanges, n, 0
			g := &guest{Options: Options{Dir: filepath.Join(t.TempDir(), "bot"), OS: "linux", Arch: "amd64"}, ids: &bot.VMIdentities{Host: strings.TrimPrefix(c.http.URL, "http://"), Account: "signer"}, http: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
			if err := g.makeDir(); err != nil {
				t.Fatal(err)
			}
			if _, err := g.code(t.Context(), c.http.URL, "bots-0-ab12"); err == nil {
				t.Fatalf("it broke off after %d bytes and nobody noticed", n)
			}
			if _, err := g.code(t.Context(), c.http.URL, "bots-0-ab12"); err != nil {
				t.Fatalf("after %d bytes: %v", n, err)
			}
			if got, err := os.ReadFile(filepath.Join(g.Dir, "swarming_bot")); err != nil || !bytes.Equal(got, c.code) {
				t.Fatalf("after %d bytes: not the code, %v", n, err)
			}
			if !noRanges && c.sent > int64(len(c.code)) {
				t.Errorf("%d bytes were sent of %d", c.sent, len(c.code))
			}
		}
	}
}

// TestDamaged: what is in the bot's place and not whole is replaced, what the
// server knows stays. D9.
func TestDamaged(t *testing.T) {
	c := newCloud(t)
	for _, d := range []struct {
		name string
		was  []byte
	}{
		{"cut off", c.code[:len(c.code)-1]},
		{"another byte", append([]byte("X"), c.code[1:]...)},
		{"empty", nil},
	} {
		o, s := c.options(t)
		if err := errors.Join(os.MkdirAll(o.Dir, 0o755), os.WriteFile(filepath.Join(o.Dir, "swarming_bot"), d.was, 0o755)); err != nil {
			t.Fatal(err)
		}
		if err := Run(t.Context(), o); err != nil {
			t.Fatalf("%s: %v", d.name, err)
		}
		c.check(t, o, s)
	}
	// A link that somebody put there is replaced, not followed.
	o, s := c.options(t)
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	if err := errors.Join(os.MkdirAll(o.Dir, 0o755), os.WriteFile(elsewhere, c.code, 0o755), os.Symlink(elsewhere, filepath.Join(o.Dir, "swarming_bot"))); err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	c.check(t, o, s)
	if info, err := os.Lstat(s.Exe); err != nil || !info.Mode().IsRegular() {
		t.Errorf("%v %v", info, err)
	}
}

// TestFailures: one in five answers is none, and the machine becomes a bot.
func TestFailures(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for real servers")
	}
	c := newCloud(t)
	c.failing = 0.2
	for range 2 {
		c.mu.Lock()
		c.breaks = int(c.rng.Uint32()) % len(c.code)
		c.mu.Unlock()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute) // promise P26
		o, s := c.options(t)
		if err := Run(ctx, o); err != nil {
			t.Fatal(err)
		}
		cancel()
		c.check(t, o, s)
	}
}

// An attempt that the end of ctx cut short does not hide why there had to be
// another one.
func TestRefusalIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		g := &guest{Options: Options{Log: slog.New(slog.NewTextHandler(t.Output(), nil))}}
		tries := 0
		err := g.again(ctx, "ask", func(ctx context.Context) error {
			if tries++; tries < 3 {
				return errors.New("you are a stranger")
			}
			<-ctx.Done()
			return ctx.Err()
		})
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "you are a stranger") {
			t.Errorf("%v", err)
		}
	})
}

func TestRefusals(t *testing.T) {
	c := newCloud(t)
	run := func(change func(*Options)) error {
		o, _ := c.options(t)
		change(&o)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		o.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Value.Any() == slog.LevelWarn { // refused once; it would ask again until ctx ends
				cancel()
			}
			return a
		}}))
		return Run(ctx, o)
	}
	for want, change := range map[string]func(*Options){
		"one of them is needed":         func(o *Options) { o.Provider = "" },
		"plain HTTP to another machine": func(o *Options) { o.Provider = "http://example.com" },
		"has no instance/attributes/provider": func(*Options) {
			c.mu.Lock()
			defer c.mu.Unlock()
			delete(c.attributes, attributeProvider)
		},
		"is not a directory": func(o *Options) {
			o.Provider, o.Dir = c.http.URL, filepath.Join(t.TempDir(), "link")
			if err := os.Symlink(t.TempDir(), o.Dir); err != nil {
				t.Fatal(err)
			}
		},
		"the manager is away": func(o *Options) {
			o.Provider, o.Install = c.http.URL, func(context.Context, Service) error { return errors.New("the manager is away") }
		},
	} {
		if err := run(change); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	for location, ok := range map[string]bool{
		botapi.PathBotCode + strings.Repeat("a", 64):                              true,
		"https://s.example.com" + botapi.PathBotCode + strings.Repeat("a", 64):    true,
		"https://evil.example.com" + botapi.PathBotCode + strings.Repeat("a", 64): false,
		"http://s.example.com" + botapi.PathBotCode + strings.Repeat("a", 64):     false,
		botapi.PathBotCode + "x": false, "": false, "/": false, botapi.PathBotCode + "../" + strings.Repeat("a", 64): false,
	} {
		if d, err := digestOf("https://s.example.com", location); (err == nil) != ok || ok && d != strings.Repeat("a", 64) {
			t.Errorf("%q: %q %v", location, d, err)
		}
	}
}

func TestParseRange(t *testing.T) {
	for text, want := range map[string][3]int64{
		"bytes 0-9/10": {0, 10, 1}, "bytes 5-9/10": {5, 10, 1}, "bytes 5-8/10": {}, "bytes 9-5/10": {}, "bytes */10": {}, "": {}, "bytes 0-9/*": {}, "bytes -1-9/10": {}, "bytes 0-9223372036854775807/1": {},
	} {
		start, size, ok := parseRange(text)
		if ok != (want[2] == 1) || ok && (start != want[0] || size != want[1]) {
			t.Errorf("%q: %d %d %v", text, start, size, ok)
		}
	}
}

func FuzzAnswers(f *testing.F) {
	f.Add(")]}'\n{\"swarming\":\"s.example.com\"}", "/swarming/api/v1/bot/bot_code/"+strings.Repeat("0", 64), "bytes 1-2/3")
	f.Add("{}", "https://s.example.com/", "bytes */4")
	f.Fuzz(func(t *testing.T, answer, location, span string) {
		if server, err := swarmingOf([]byte(answer), "https://p.example.com"); err == nil {
			if base, err := botapi.CheckServer(server); err != nil || base != server {
				t.Errorf("%q is no server: %v", server, err)
			}
		}
		if d, err := digestOf("https://s.example.com", location); err == nil && len(d) != 64 {
			t.Errorf("%q", d)
		}
		if start, size, ok := parseRange(span); ok && (start < 0 || start >= size) {
			t.Errorf("%q: %d of %d", span, start, size)
		}
	})
}
