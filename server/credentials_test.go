package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/botapi"
	skepbot "github.com/skepdev/skep/bot"
	"github.com/skepdev/skep/client"
)

// certificate makes one for name, signed by the CA that is returned.
func certificate(t *testing.T, dir, name string) (ca *x509.Certificate) {
	t.Helper()
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	sign := func(c, parent *x509.Certificate, pub, priv any) *x509.Certificate {
		c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, c, parent, pub, priv)
		if err != nil {
			t.Fatal(err)
		}
		out, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	caKey, own := key(), key()
	root := &x509.Certificate{Subject: pkix.Name{CommonName: "a CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	ca = sign(root, root, &caKey.PublicKey, caKey)
	leaf := sign(&x509.Certificate{Subject: pkix.Name{CommonName: name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, ca, &own.PublicKey, caKey)
	der, err := x509.MarshalPKCS8PrivateKey(own)
	if err != nil {
		t.Fatal(err)
	}
	for file, b := range map[string]*pem.Block{skepbot.ClientCertFile: {Type: "CERTIFICATE", Bytes: leaf.Raw}, skepbot.ClientKeyFile: {Type: "PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return ca
}

// A bot presents what its group requires: a token, its client certificate, the
// identity of its VM, its address; and none of them passes for another.
func TestEachCredentialThatABotPresents(t *testing.T) {
	certDir := t.TempDir()
	ca := certificate(t, certDir, "b1.lab.example")
	vm := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Metadata-Flavor", "Google")
		payload := fmt.Sprintf(`{"exp":%d,"aud":%q}`, time.Now().Add(time.Hour).Unix(), r.FormValue("audience"))
		fmt.Fprintf(w, "h.%s.s", base64.RawURLEncoding.EncodeToString([]byte(payload)))
	}))
	defer vm.Close()
	verify := func(_ context.Context, token string) (CloudVM, error) {
		payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
		if err != nil || !strings.Contains(string(payload), `"aud":"https://127.0.0.1:`) {
			return CloudVM{}, errors.New("bad token")
		}
		return CloudVM{Project: "lab", Zone: "us-central1-a", Name: "b1"}, nil
	}
	kinds := map[string]Credential{
		"token":       {Name: "require_token", Token: &Names{}},
		"certificate": {Name: "require_client_certificate", Certificate: &Names{}},
		"vm":          {Name: "require_gce_vm_token", Project: "lab", VM: verify},
		"address":     {Name: "ip_network", Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}},
		"elsewhere":   {Name: "ip_network", Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}},
	}
	for want, cr := range kinds {
		group := &GroupRules{Credentials: []Credential{cr}, Dimensions: map[string][]string{"pool": {"default"}}, Script: func(bool) Script { return Script{} }}
		rules := &Rules{Group: func(skep.BotID) *GroupRules { return group }}
		srv, st := start(t, func(o *Options) { o.Open, o.Rules = false, func() *Rules { return rules } })
		hs := httptest.NewUnstartedServer(srv)
		hs.TLS = &tls.Config{ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: x509.NewCertPool()}
		hs.TLS.ClientCAs.AddCert(ca)
		hs.StartTLS()
		t.Cleanup(func() { srv.Drain(); hs.Close() })
		token, _, err := CreateToken(t.Context(), st, NewToken{Name: "b1", Scope: ScopeBot, Bots: []string{"b1"}})
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AddCert(hs.Certificate())
		for have := range kinds {
			if have == "elsewhere" {
				continue
			}
			opt := botapi.Options{Server: hs.URL, BotID: "b1", RootCAs: roots}
			auth := skepbot.NewAuth(nil, func() string {
				if have == "token" {
					return token
				}
				return ""
			})
			switch have {
			case "certificate":
				c, err := skepbot.OpenClientCert(certDir)
				if err != nil {
					t.Fatal(err)
				}
				opt.Certificate = c.Certificate
			case "vm":
				auth.WithVM(skepbot.NewVMIdentity(strings.TrimPrefix(vm.URL, "http://"), hs.URL))
			}
			opt.Headers = auth.Headers
			c, err := botapi.NewClient(opt)
			if err != nil {
				t.Fatal(err)
			}
			me := botapi.Attributes{Dimensions: map[string][]string{"id": {"b1"}}, State: []byte(`{}`), Version: "v"}
			_, err = c.Handshake(t.Context(), &botapi.HandshakeRequest{Attributes: me, SessionID: "s1"})
			if may := want == have || want == "address"; (err == nil) != may {
				t.Errorf("%s is required, the bot brings %s: %v", want, have, err)
			}
			if err == nil {
				if _, _, err := c.Poll(t.Context(), &botapi.PollRequest{Attributes: me, RequestUUID: "k"}); err != nil {
					t.Errorf("%s: poll: %v", want, err)
				}
			}
		}
	}
}

// The storage takes the session of a bot that needs no token while it has a
// task in hand; the session of one that needs a token is not enough, but for the
// end of a task that began under other rules.
func TestSessionForTheStorage(t *testing.T) {
	network := Credential{Name: "ip_network", Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	token := Credential{Name: "require_token", Token: &Names{}}
	group := &GroupRules{
		Credentials: []Credential{network}, Auth: [8]byte{1}, Pools: []string{"default"},
		Dimensions: map[string][]string{"pool": {"default"}}, Script: func(bool) Script { return Script{} },
	}
	rules := &Rules{Group: func(skep.BotID) *GroupRules { return group }}
	f := serve(t, func(o *Options) { o.Open, o.Rules = false, func() *Rules { return rules } })
	srv := f.server
	admits := func(text string) bool {
		t.Helper()
		if err := srv.AdmitCAS(t.Context(), "127.0.0.1", "Bearer "+text); err == nil {
			t.Error("a session passes for a token")
		}
		return srv.AdmitCAS(t.Context(), "127.0.0.1", botapi.SessionScheme+text) == nil
	}
	c, err := botapi.NewClient(botapi.Options{Server: f.url, BotID: "b1"})
	if err != nil {
		t.Fatal(err)
	}
	me := botapi.Attributes{Dimensions: map[string][]string{"id": {"b1"}, "os": {"Linux"}}, State: []byte(`{}`), Version: "v"}
	if _, err := c.Handshake(t.Context(), &botapi.HandshakeRequest{Attributes: me, SessionID: "s1"}); err != nil {
		t.Fatal(err)
	}
	if admits(c.Session()) {
		t.Error("an idle bot's session is admitted")
	}
	if f.client, err = client.New(client.Options{Server: f.url, Token: f.token(NewToken{Name: "a", Scope: ScopeAdmin})}); err != nil {
		t.Fatal(err)
	}
	f.newTask(task("t"))
	ans, _, err := c.Poll(t.Context(), &botapi.PollRequest{Attributes: me, RequestUUID: "k"})
	if err != nil || ans.Manifest == nil {
		t.Fatalf("%+v, %v", ans, err)
	}
	sess, ok := srv.sessions.open(c.Session())
	if !ok {
		t.Fatal("no session")
	}
	other := &sessions{key: []byte("another fleet's"), now: time.Now}
	late := &sessions{key: srv.sessions.key, now: func() time.Time { return time.Now().Add(-2 * sessionLife) }}
	for _, tt := range []struct {
		name        string
		credentials []Credential
		auth        byte
		text        string
		may         bool
	}{
		{"by its address", []Credential{network}, 1, c.Session(), true},
		{"by a token or its address", []Credential{token, network}, 1, c.Session(), true},
		{"by a token", []Credential{token}, 1, c.Session(), false},
		{"by a token since its task began", []Credential{token}, 2, c.Session(), true},
		{"of another fleet", []Credential{network}, 1, other.seal(sess, 0), false},
		{"expired", []Credential{network}, 1, late.seal(sess, 0), false},
		{"of another process", []Credential{network}, 1, srv.sessions.seal(session{bot: "b1", process: "s0", auth: [8]byte{1}}, 0), false},
		{"of another bot", []Credential{network}, 1, srv.sessions.seal(session{bot: "b2", process: "s1", auth: [8]byte{1}}, 0), false},
	} {
		group.Credentials, group.Auth = tt.credentials, [8]byte{tt.auth}
		if got := admits(tt.text); got != tt.may {
			t.Errorf("%s: admitted %v, want %v", tt.name, got, tt.may)
		}
	}
	group.Credentials, group.Auth = []Credential{network}, [8]byte{1}
	code, secs := int64(0), 1.0
	if _, err := c.TaskUpdate(t.Context(), &botapi.TaskUpdate{TaskID: ans.Manifest.TaskID, ExitCode: &code, Duration: &secs}); err != nil {
		t.Fatal(err)
	}
	if admits(c.Session()) {
		t.Error("a session is admitted after its task")
	}
}

// A key that others may read is not used, and new files are, without a restart.
func TestClientCertificateFiles(t *testing.T) {
	dir := t.TempDir()
	if c, err := skepbot.OpenClientCert(dir); c != nil || err != nil {
		t.Fatal(c, err)
	}
	certificate(t, dir, "one")
	key := filepath.Join(dir, skepbot.ClientKeyFile)
	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := skepbot.OpenClientCert(dir); skep.KindOf(err) != skep.Precondition {
		t.Errorf("a key that others may read: %v", err)
	}
	if err := os.Chmod(key, 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := skepbot.OpenClientCert(dir)
	if err != nil {
		t.Fatal(err)
	}
	name := func() string {
		t.Helper()
		pair, err := c.Certificate()
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(pair.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		return leaf.Subject.CommonName
	}
	if got := name(); got != "one" {
		t.Error(got)
	}
	certificate(t, dir, "two")
	for _, file := range []string{skepbot.ClientCertFile, skepbot.ClientKeyFile} {
		if err := os.Chtimes(filepath.Join(dir, file), time.Time{}, time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	if got := name(); got != "two" {
		t.Errorf("after a renewal the bot shows %s", got)
	}
	if err := os.WriteFile(key, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(key, time.Time{}, time.Now().Add(2*time.Minute)); err != nil {
		t.Fatal(err)
	}
	if got := name(); got != "two" {
		t.Errorf("with a broken file the bot shows %s", got)
	}
}
