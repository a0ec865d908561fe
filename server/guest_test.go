package server

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/bot/code"
	"github.com/skepdev/skep/bot/guest"
	"github.com/skepdev/skep/rollout"
)

// TestBootstrapVM: a machine whose project and name bots.cfg lets in becomes a
// bot with nothing but the identity that its metadata server signs; others get
// no code.
func TestBootstrapVM(t *testing.T) {
	var server *httptest.Server
	verify := func(_ context.Context, token string) (CloudVM, error) {
		payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
		if err != nil || !strings.Contains(string(payload), fmt.Sprintf("%q", server.URL)) {
			return CloudVM{}, errors.New("the token is for another audience")
		}
		return CloudVM{Project: "lab", Zone: "us-central1-a", Name: "bots-0-ab12"}, nil
	}
	group := &GroupRules{Credentials: []Credential{{Name: "require_gce_vm_token", Project: "lab", VM: verify}}, Script: func(bool) Script { return Script{} }}
	rules := &Rules{Group: func(id skep.BotID) *GroupRules {
		if strings.HasPrefix(string(id), "bots-") {
			return group
		}
		return nil
	}}
	srv, _ := start(t, func(o *Options) {
		o.Open, o.Rules = false, func() *Rules { return rules }
		k, err := rollout.New(t.Context(), rollout.Options{Store: o.Store, URLs: []string{"https://h:1"}})
		if err != nil {
			t.Fatal(err)
		}
		exe := make([]byte, 100_000)
		copy(exe, "\x7fELF\x02\x01")
		exe[18] = 62
		sum := sha256.Sum256(exe)
		r := &rollout.Release{Exes: map[string]string{"linux/amd64": hex.EncodeToString(sum[:])}}
		if err := k.Offer(t.Context(), r, func(string) ([]byte, error) { return exe, nil }, false); err != nil {
			t.Fatal(err)
		}
		o.Code = k
	})
	server = httptest.NewTLSServer(srv)
	t.Cleanup(func() { srv.Drain(); server.Close() })
	name := "bots-0-ab12"
	metadata := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Metadata-Flavor", "Google")
		if r.URL.Path == "/computeMetadata/v1/instance/name" {
			fmt.Fprint(w, name)
			return
		}
		payload := fmt.Sprintf(`{"exp":%d,"aud":%q}`, time.Now().Add(time.Hour).Unix(), r.FormValue("audience"))
		fmt.Fprintf(w, "h.%s.s", base64.RawURLEncoding.EncodeToString([]byte(payload)))
	}))
	t.Cleanup(metadata.Close)
	o := guest.Options{
		Dir: filepath.Join(t.TempDir(), "bot"), Server: server.URL, Metadata: strings.TrimPrefix(metadata.URL, "http://"), OS: "linux", Arch: "amd64",
		Roots: x509.NewCertPool(), Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	o.Roots.AddCert(server.Certificate())
	var installed guest.Service
	o.Install = func(_ context.Context, s guest.Service) error { installed = s; return nil }
	if err := guest.Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if conf, err := code.Read(installed.Exe); err != nil || conf.Server != "https://h:1" || installed.Bot != name || installed.Server != server.URL {
		t.Errorf("%+v %+v %v", installed, conf, err)
	}
	for _, stranger := range []string{"bots-1-ab12", "other-0-ab12"} {
		name, o.Dir = stranger, filepath.Join(t.TempDir(), "bot")
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		o.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Value.Any() == slog.LevelWarn { // refused once; it would ask again until ctx ends
				cancel()
			}
			return a
		}}))
		if err := guest.Run(ctx, o); err == nil || !strings.Contains(err.Error(), "bot code is for bots and who makes them") {
			t.Errorf("%s: %v", stranger, err)
		}
		cancel()
	}
}

// TestCallingVM: a VM that calls is the one of the name that it says, in a
// project that bots.cfg has for it, or it is nobody.
func TestCallingVM(t *testing.T) {
	vm := CloudVM{Project: "lab", Zone: "us-central1-a", Name: "bots-0-ab12"}
	verify := func(_ context.Context, token string) (CloudVM, error) {
		if token != "good" {
			return CloudVM{}, errors.New("bad token")
		}
		return vm, nil
	}
	group := &GroupRules{Credentials: []Credential{{Token: &Names{}}, {Project: "other", VM: verify}, {Project: "lab", VM: verify}}}
	rules := &Rules{Group: func(id skep.BotID) *GroupRules {
		if strings.HasPrefix(string(id), "bots-") {
			return group
		}
		return nil
	}}
	srv, _ := start(t, func(o *Options) { o.Rules = func() *Rules { return rules } })
	for _, c := range []struct {
		name, token string
		ok          bool
	}{
		{"bots-0-ab12", "good", true}, {"bots-1-ab12", "good", false}, {"bots-0-ab12", "bad", false}, {"bots-0-ab12", "", false}, {"other-0-ab12", "good", false},
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", nil)
		if c.token != "" {
			r.Header.Set(headerVMToken, c.token)
		}
		r, err := srv.identify(r)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := srv.callingVM(r, c.name); ok != c.ok || ok && got != vm {
			t.Errorf("%+v: %+v %v", c, got, ok)
		}
	}
	rules.Group = nil
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", nil)
	r.Header.Set(headerVMToken, "good")
	if _, ok := srv.callingVM(r, "bots-0-ab12"); ok {
		t.Error("let in without bots.cfg")
	}
}
