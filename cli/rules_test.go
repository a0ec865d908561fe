package cli

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/api/prpc"
	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/client"
	"github.com/skepdev/skep/scheduler"
	"github.com/skepdev/skep/server"
	"github.com/skepdev/skep/store"
)

// configured is a server that follows a configuration directory.
type configured struct {
	t      *testing.T
	dir    string
	url    string
	fleet  *fleetConfig
	store  *store.Store
	roots  *x509.CertPool
	tokens map[string]string
}

// authority signs certificates of a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "clients"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

func (a *authority) client(t *testing.T, name string) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func writeConfig(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path+"~", []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+"~", path); err != nil {
			t.Fatal(err)
		}
	}
}

// serveConfig starts a server over files. clients is who signs certificates of
// bots; tokens are names with their scope.
func serveConfig(t *testing.T, files map[string]string, clients *authority, tokens map[string]string) *configured {
	t.Helper()
	c := &configured{t: t, dir: t.TempDir(), tokens: map[string]string{}}
	writeConfig(t, c.dir, files)
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError}))
	var err error
	if c.store, err = store.Open(t.Context(), filepath.Join(t.TempDir(), "skep.db"), store.Options{}); err != nil {
		t.Fatal(err)
	}
	if c.fleet, err = openConfig(c.dir, t.TempDir(), []string{"https://skep.test"}, log); err != nil {
		t.Fatal(err)
	}
	sched := scheduler.New(c.store, scheduler.Options{Log: log, Version: "test"})
	if err := sched.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, scope := range tokens {
		n := server.NewToken{Name: name, Scope: scope}
		if scope == server.ScopeBot {
			n.Bots = []string{"*"}
		}
		if c.tokens[name], _, err = server.CreateToken(t.Context(), c.store, n); err != nil {
			t.Fatal(err)
		}
	}
	srv, err := server.New(t.Context(), server.Options{Store: c.store, Scheduler: sched, Log: log, Version: "test", Open: true, Rules: c.fleet.current, CASInstance: defaultCASInstance, LookEvery: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	hs := httptest.NewUnstartedServer(srv)
	d := &door{}
	if clients != nil {
		d.clients = x509.NewCertPool()
		d.clients.AddCert(clients.cert)
	}
	hs.TLS = &tls.Config{}
	d.askClients(hs.TLS)
	hs.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	hs.StartTLS()
	c.url, c.roots = hs.URL, x509.NewCertPool()
	c.roots.AddCert(hs.Certificate())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{}, 3)
	go func() { _ = sched.Run(ctx); done <- struct{}{} }()
	go func() { _ = srv.Run(ctx); done <- struct{}{} }()
	go func() { _ = c.fleet.run(ctx, sched.EndWaits); done <- struct{}{} }()
	t.Cleanup(func() {
		srv.Drain()
		hs.Close()
		cancel()
		<-done
		<-done
		<-done
		_ = c.store.Close()
	})
	return c
}

// change replaces files and waits until the server follows them.
func (c *configured) change(files map[string]string) {
	c.t.Helper()
	old := c.fleet.store.Snapshot().Digest()
	news, stop := c.fleet.store.Subscribe()
	defer stop()
	writeConfig(c.t, c.dir, files)
	late := time.After(2 * time.Minute)
	for c.fleet.store.Snapshot().Digest() == old && len(c.fleet.store.Refusals()) == 0 {
		select {
		case <-news:
		case <-late:
			c.t.Fatal("the change is not seen")
		}
	}
}

type botCall struct {
	path   string
	body   map[string]any
	token  string
	header [2]string
	cert   *tls.Certificate
}

func (c *configured) call(b botCall) (int, map[string]any) {
	c.t.Helper()
	body, err := json.Marshal(b.body)
	if err != nil {
		c.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodPost, c.url+b.path, bytes.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json; charset=utf-8")
	if b.token != "" {
		req.Header.Set("Authorization", "Bearer "+b.token)
	}
	if b.header[0] != "" {
		req.Header.Set(b.header[0], b.header[1])
	}
	tc := &tls.Config{RootCAs: c.roots}
	if b.cert != nil {
		tc.Certificates = []tls.Certificate{*b.cert}
	}
	tr := &http.Transport{TLSClientConfig: tc}
	defer tr.CloseIdleConnections()
	res, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return 0, map[string]any{"error": err.Error()}
	}
	defer res.Body.Close()
	out := map[string]any{}
	_ = json.NewDecoder(res.Body).Decode(&out)
	return res.StatusCode, out
}

func about(id string, dims map[string][]string) map[string]any {
	d := map[string][]string{"id": {id}}
	for k, v := range dims {
		d[k] = v
	}
	return map[string]any{"dimensions": d, "state": map[string]any{"skep": map[string]any{"os": "linux", "isolation": "none"}}, "version": "v1"}
}

func (c *configured) client(token string) *client.Client {
	cl, err := client.New(client.Options{Server: c.url, Token: c.tokens[token], RootCAs: c.roots, Retry: prpc.Retry{Times: -1}})
	if err != nil {
		c.t.Fatal(err)
	}
	return cl
}

func TestBotCredentials(t *testing.T) {
	signer := newAuthority(t)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"keys":[{"kty":"RSA","alg":"RS256","kid":"k","n":%q,"e":%q}]}`, b64(key.N.Bytes()), b64(big.NewInt(int64(key.E)).Bytes()))
	}))
	defer keys.Close()
	vm := func(project, instance, audience string) [2]string {
		claims, _ := json.Marshal(map[string]any{
			"iss": "https://accounts.google.com", "aud": audience, "sub": "1", "exp": time.Now().Add(time.Hour).Unix(), "iat": time.Now().Unix(),
			"google": map[string]any{"compute_engine": map[string]any{"project_id": project, "instance_name": instance}},
		})
		text := b64([]byte(`{"alg":"RS256","kid":"k"}`)) + "." + b64(claims)
		sum := sha256.Sum256([]byte(text))
		sig, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		return [2]string{"X-Luci-Gce-Vm-Token", text + "." + b64(sig)}
	}
	c := serveConfig(t, map[string]string{"bots.cfg": `
bot_group { bot_id: "tok" auth { require_token { } } }
bot_group { bot_id: "tok2" auth { require_token { name: "special" } } }
bot_group { bot_id: "here" auth { ip_network: ["127.0.0.0/8", "::1"] } }
bot_group { bot_id: "there" auth { ip_network: "10.0.0.0/8" } }
bot_group { bot_id: "both" auth { require_token { } ip_network: "10.0.0.0/8" } }
bot_group { bot_id_prefix: "cert" auth { require_client_certificate { } } }
bot_group { bot_id: "named" auth { require_client_certificate { name: "shared" } } }
bot_group { bot_id: "vm1" auth { require_gce_vm_token { project: "p" jwks_url: "` + keys.URL + `" } } }
bot_group { bot_id: "either" auth { require_client_certificate { } } auth { require_token { } log_if_failed: true } }`},
		signer, map[string]string{"plain": server.ScopeBot, "special": server.ScopeBot, "ann": server.ScopeUser})
	plain, special, user := c.tokens["plain"], c.tokens["special"], c.tokens["ann"]
	for _, x := range []struct {
		name, bot string
		b         botCall
		want      int
		text      string
	}{
		{"a token", "tok", botCall{token: plain}, 200, ""},
		{"the host's id counts", "tok--1", botCall{token: plain}, 200, ""},
		{"no token", "tok", botCall{}, 401, "no token was sent"},
		{"a user's token", "tok", botCall{token: user}, 403, "scope user"},
		{"a token that does not exist", "tok", botCall{token: "skep_x"}, 401, ""},
		{"a token of the name", "tok2", botCall{token: special}, 200, ""},
		{"a token of another name", "tok2", botCall{token: plain}, 401, "of this name"},
		{"an address", "here", botCall{}, 200, ""},
		{"another address", "there", botCall{}, 401, "none of its networks"},
		{"a token from another address", "both", botCall{token: plain}, 401, "none of its networks"},
		{"a certificate", "cert1", botCall{cert: signer.client(t, "cert1")}, 200, ""},
		{"a certificate with a domain", "cert1--2", botCall{cert: signer.client(t, "cert1.lab")}, 200, ""},
		{"a certificate of another bot", "cert2", botCall{cert: signer.client(t, "cert1")}, 401, "another name"},
		{"a certificate of a longer name", "cert1", botCall{cert: signer.client(t, "cert11")}, 401, "another name"},
		{"a certificate of another authority", "cert1", botCall{cert: newAuthority(t).client(t, "cert1")}, 0, ""},
		{"no certificate", "cert1", botCall{token: plain}, 401, "no client certificate"},
		{"a shared certificate", "named", botCall{cert: signer.client(t, "shared")}, 200, ""},
		{"the bot's own where a shared one is wanted", "named", botCall{cert: signer.client(t, "named")}, 401, "another name"},
		{"a VM", "vm1", botCall{header: vm("p", "vm1", "https://skep.test")}, 200, ""},
		{"a VM of another project", "vm1", botCall{header: vm("q", "vm1", "https://skep.test")}, 401, "another project"},
		{"another VM", "vm1", botCall{header: vm("p", "vm2", "https://skep.test")}, 401, "another name"},
		{"a token for another server", "vm1", botCall{header: vm("p", "vm1", "https://evil.test")}, 401, "another audience"},
		{"no VM token", "vm1", botCall{}, 401, "X-Luci-Gce-Vm-Token"},
		{"the second method", "either", botCall{token: plain}, 200, ""},
		{"a bot that nobody knows", "stranger", botCall{token: plain}, 403, "in no group"},
	} {
		t.Run(x.name, func(t *testing.T) {
			for _, path := range []string{botapi.PathHandshake, botapi.PathPoll} {
				x.b.path, x.b.body = path, about(x.bot, nil)
				status, ans := c.call(x.b)
				if status != x.want {
					t.Errorf("%s: %d %v, want %d", path, status, ans, x.want)
				}
				text, _ := ans["error"].(string)
				if !strings.Contains(text, x.text) {
					t.Errorf("%s: %q does not say %q", path, text, x.text)
				}
				for _, secret := range []string{plain, special, user} {
					if strings.Contains(text, secret) {
						t.Errorf("%q holds a token", text)
					}
				}
			}
		})
	}
}

const someBots = `trusted_dimensions: ["pool", "secret"]
bot_group { bot_id: "b" auth { require_token {} } dimensions: ["pool:lab", "site:here", "os:Forced"] bot_config_script: "b.py" bot_config_script_star: "b.star" }
bot_group { bot_id: "other" auth { require_token {} } dimensions: "pool:strict" }`

const somePools = `pool { name: "lab" realm: "p:lab" default_task_realm: "p:lab" informational_dimension_re: "battery" }
pool { name: "strict" realm: "p:strict" refuse_isolation_none: true grant { to: "user:boss" role: ROLE_OPERATOR } grant { to: "user:look" role: ROLE_READER } }`

var someFiles = map[string]string{"bots.cfg": someBots, "pools.cfg": somePools, "scripts/b.py": "py", "scripts/b.star": "star = 1"}

func TestBotsFollowTheConfiguration(t *testing.T) {
	c := serveConfig(t, someFiles, nil, map[string]string{"bot": server.ScopeBot, "root": server.ScopeAdmin})
	said := about("b", map[string][]string{"os": {"Linux"}, "pool": {"strict"}, "secret": {"x"}, "cpu": {"arm"}})
	bot := func(path string, body map[string]any) (int, map[string]any) {
		return c.call(botCall{path: path, body: body, token: c.tokens["bot"]})
	}
	status, shake := bot(botapi.PathHandshake, said)
	if status != 200 {
		t.Fatal(shake)
	}
	want := map[string]any{"pool": []any{"lab"}, "site": []any{"here"}, "os": []any{"Forced"}}
	if diff := cmp.Diff(want, shake["bot_group_cfg"].(map[string]any)["dimensions"]); diff != "" {
		t.Errorf("assigned (-want +got)\n%s", diff)
	}
	if shake["bot_config"] != "star = 1" || shake["bot_config_name"] != "b.star" {
		t.Errorf("script %v %v", shake["bot_config_name"], shake["bot_config"])
	}
	foreign := about("b", nil)
	foreign["state"] = map[string]any{}
	if _, ans := bot(botapi.PathHandshake, foreign); ans["bot_config"] != "py" {
		t.Errorf("a foreign bot gets %v", ans["bot_config"])
	}

	said["session"] = shake["session"]
	for range 2 { // the second finds the dimensions known
		if _, ans := bot(botapi.PathPoll, said); ans["cmd"] != "sleep" || ans["quarantined"] != false {
			t.Fatal(ans)
		}
	}
	dims := func() map[string][]string {
		b, err := c.client("root").GetBot(t.Context(), &pb.BotRequest{BotId: "b"})
		if err != nil {
			t.Fatal(err)
		}
		out := map[string][]string{}
		for _, d := range b.Dimensions {
			out[d.Key] = d.Value
		}
		return out
	}
	if diff := cmp.Diff(map[string][]string{"id": {"b"}, "pool": {"lab"}, "site": {"here"}, "os": {"Forced"}, "cpu": {"arm"}}, dims()); diff != "" {
		t.Errorf("dimensions (-want +got)\n%s", diff)
	}

	// A change ends a wait, and then the bot starts anew.
	said["wait"] = 45
	type answer struct {
		status int
		ans    map[string]any
	}
	got := make(chan answer, 1)
	go func() { s, a := bot(botapi.PathPoll, said); got <- answer{s, a} }()
	began := time.Now()
	c.change(map[string]string{"bots.cfg": strings.Replace(someBots, `"os:Forced"`, `"gpu:none"`, 1)})
	a := <-got
	if cmd := a.ans["cmd"]; cmd != "sleep" && cmd != "bot_restart" {
		t.Error(a)
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("the wait ended after %v", took)
	}
	delete(said, "wait")
	if _, ans := bot(botapi.PathPoll, said); ans["cmd"] != "bot_restart" {
		t.Errorf("after the change: %v", ans)
	}
	_, shake = bot(botapi.PathHandshake, said)
	said["session"] = shake["session"]
	if _, ans := bot(botapi.PathPoll, said); ans["cmd"] != "sleep" {
		t.Error(ans)
	}
	if diff := cmp.Diff(map[string][]string{"id": {"b"}, "pool": {"lab"}, "site": {"here"}, "os": {"Linux"}, "gpu": {"none"}, "cpu": {"arm"}}, dims()); diff != "" {
		t.Errorf("dimensions after the change (-want +got)\n%s", diff)
	}

	// A pool can refuse bots that cannot hide their credential.
	other := about("other", nil)
	if _, ans := bot(botapi.PathPoll, other); ans["quarantined"] != true {
		t.Errorf("isolation=none: %v", ans)
	}

	// A task that runs when its bot leaves the configuration may finish.
	task, err := c.client("root").NewTask(t.Context(), newTaskIn("lab"))
	if err != nil {
		t.Fatal(err)
	}
	_, run := bot(botapi.PathPoll, said)
	if run["cmd"] != "run" {
		t.Fatal(run)
	}
	c.change(map[string]string{"bots.cfg": `bot_group { bot_id: "nobody" auth { require_token {} } }`})
	if status, ans := bot(botapi.PathPoll, said); status != 403 {
		t.Errorf("a bot that left polls: %d %v", status, ans)
	}
	update := map[string]any{
		"id": "b", "task_id": run["manifest"].(map[string]any)["task_id"], "session": run["session"], "exit_code": 0, "duration": 0.1, "output_chunk_start": 0, "output": "",
	}
	if status, ans := bot(botapi.PathTaskUpdate, update); status != 200 || ans["session"] != nil {
		t.Errorf("its task ends: %d %v", status, ans)
	}
	res, err := c.client("root").GetResult(t.Context(), &pb.TaskIdWithPerfRequest{TaskId: task.TaskId})
	if err != nil || res.State != pb.TaskState_COMPLETED {
		t.Errorf("%v %v", res.GetState(), err)
	}
	delete(update, "session")
	if status, _ := bot(botapi.PathTaskUpdate, update); status != 403 {
		t.Errorf("without a session: %d", status)
	}
}

// Bots that are no skep-bots come in as settings.cfg says, with and without
// pools.cfg, unless their pool says otherwise; a skep-bot always does.
func TestForeignBotsFollowTheConfiguration(t *testing.T) {
	listed, other := strings.Repeat("a", 64), strings.Repeat("b", 64)
	refuse := `foreign_bots { policy: POLICY_REFUSE }`
	list := `foreign_bots { policy: POLICY_LISTED allowed_digest: "` + listed + `" }`
	pool := func(more string) string { return `pool { name: "p" realm: "a:b" ` + more + ` }` }
	type want struct{ handshake, poll bool } // 200; and no quarantine
	for _, tc := range []struct {
		name          string
		files         map[string]string
		listed, other want
	}{
		{"nothing is said", nil, want{true, true}, want{true, true}},
		{"refused, every pool exists", map[string]string{"settings.cfg": refuse}, want{}, want{}},
		{"listed, every pool exists", map[string]string{"settings.cfg": list}, want{true, true}, want{true, false}},
		{"refused", map[string]string{"settings.cfg": refuse, "pools.cfg": pool("")}, want{}, want{}},
		{"refused by the pool", map[string]string{"pools.cfg": pool(refuse)}, want{}, want{}},
		{"allowed by the pool", map[string]string{"settings.cfg": refuse, "pools.cfg": pool(`foreign_bots { policy: POLICY_ALLOW }`)}, want{true, true}, want{true, true}},
		{"listed by the pool", map[string]string{"settings.cfg": refuse, "pools.cfg": pool(list)}, want{true, true}, want{true, false}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := serveConfig(t, tc.files, nil, nil)
			come := func(id, version string, dims map[string][]string, state map[string]any) want {
				bot := about(id, dims)
				bot["version"], bot["state"] = version, state
				status, shake := c.call(botCall{path: botapi.PathHandshake, body: bot})
				bot["session"] = shake["session"]
				code, ans := c.call(botCall{path: botapi.PathPoll, body: bot})
				if status == 200 && shake["bot_version"] != version || code == 200 && ans["cmd"] != "sleep" {
					t.Errorf("%s is told %v, %v", id, shake, ans)
				}
				return want{status == 200, code == 200 && ans["quarantined"] == false}
			}
			inPool := map[string][]string{"pool": {"p"}}
			if got := come("listed", listed, inPool, map[string]any{}); got != tc.listed {
				t.Errorf("a listed one: %+v, want %+v", got, tc.listed)
			}
			if got := come("other", other, inPool, map[string]any{}); got != tc.other {
				t.Errorf("another one: %+v, want %+v", got, tc.other)
			}
			if got := come("ours", other, inPool, map[string]any{"skep": map[string]any{"isolation": "user"}}); got != (want{true, true}) {
				t.Errorf("a skep-bot: %+v", got)
			}
			if _, ok := tc.files["pools.cfg"]; !ok {
				if got := come("nowhere", other, nil, map[string]any{}); got != tc.other {
					t.Errorf("one without a pool: %+v, want %+v", got, tc.other)
				}
			}
		})
	}
}

func newTaskIn(pool string, dims ...string) *pb.NewTaskRequest {
	d := []*pb.StringPair{{Key: "pool", Value: pool}}
	for i := 0; i+1 < len(dims); i += 2 {
		d = append(d, &pb.StringPair{Key: dims[i], Value: dims[i+1]})
	}
	return &pb.NewTaskRequest{Name: "t", Priority: 100, TaskSlices: []*pb.TaskSlice{{
		ExpirationSecs: 60, WaitForCapacity: true,
		Properties: &pb.TaskProperties{Command: []string{"true"}, Dimensions: d, ExecutionTimeoutSecs: 60, GracePeriodSecs: 30},
	}}}
}

func TestTasksFollowTheConfiguration(t *testing.T) {
	c := serveConfig(t, someFiles, nil, map[string]string{"ann": server.ScopeUser, "boss": server.ScopeUser, "look": server.ScopeUser, "root": server.ScopeAdmin})
	realm := func(r *pb.NewTaskRequest, name string) *pb.NewTaskRequest { r.Realm = name; return r }
	var inStrict string
	for _, x := range []struct {
		name, token string
		req         *pb.NewTaskRequest
		want        string // part of the error; or the realm of the task
	}{
		{"a pool without rights", "ann", newTaskIn("lab"), "p:lab"},
		{"a realm of one's own", "ann", realm(newTaskIn("lab"), "p:mine"), "p:mine"},
		{"a pool that does not exist", "ann", newTaskIn("none"), "there is no such pool"},
		{"nor for admins", "root", newTaskIn("none"), "there is no such pool"},
		{"a dimension that only informs", "ann", newTaskIn("lab", "battery", "9"), "only informs"},
		{"a pool of others", "ann", newTaskIn("strict"), "no permission swarming.pools.createTask in pool strict"},
		{"a reader", "look", newTaskIn("strict"), "no permission"},
		{"no realm and no default", "boss", newTaskIn("strict"), "realm: is required"},
		{"an operator", "boss", realm(newTaskIn("strict"), "p:x"), "p:x"},
		{"an admin", "root", realm(newTaskIn("strict"), "p:x"), "p:x"},
	} {
		t.Run(x.name, func(t *testing.T) {
			res, err := c.client(x.token).NewTask(t.Context(), x.req)
			switch {
			case err != nil && !strings.Contains(err.Error(), x.want):
				t.Errorf("%v, want %q", err, x.want)
			case err == nil && res.Request.Realm != x.want:
				t.Errorf("realm %q, want %q", res.Request.Realm, x.want)
			}
			if x.name == "an admin" && err == nil {
				inStrict = res.TaskId
			}
		})
	}
	if err := c.store.Update(t.Context(), func(tx *store.Tx) error {
		for _, pool := range []string{"lab", "strict"} {
			if err := tx.SaveBot(&skep.Bot{ID: skep.BotID("in-" + pool), Dimensions: skep.Dimensions{"id": {"in-" + pool}, "pool": {pool}}}); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for token, want := range map[string][4]bool{ // reads, cancels, lists the pool, lists all
		"ann": {false, false, false, false}, "look": {true, false, true, true}, "boss": {true, true, true, true}, "root": {true, true, true, true},
	} {
		cl := c.client(token)
		_, read := cl.GetResult(t.Context(), &pb.TaskIdWithPerfRequest{TaskId: inStrict})
		_, list := cl.ListTasks(t.Context(), &pb.TasksWithPerfRequest{Tags: []string{"pool:lab|strict"}})
		_, all := cl.ListTasks(t.Context(), &pb.TasksWithPerfRequest{})
		perms, err := cl.GetPermissions(t.Context(), &pb.PermissionsRequest{TaskId: inStrict, Tags: []string{"pool:strict"}})
		if err != nil {
			t.Fatal(err)
		}
		if got := [4]bool{read == nil, perms.CancelTask, list == nil, all == nil}; got != want {
			t.Errorf("%s: reads, cancels, lists, lists all: %v, want %v (%v)", token, got, want, list)
		}
		pools := []string{"lab"}
		if want[2] {
			pools = append(pools, "strict")
		}
		if diff := cmp.Diff(pools, perms.ListTasks); diff != "" {
			t.Errorf("%s (-want +got)\n%s", token, diff)
		}
		dims, err := cl.GetBotDimensions(t.Context(), &pb.BotsDimensionsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string][]string{}
		for _, d := range dims.BotsDimensions {
			seen[d.Key] = d.Value
		}
		if diff := cmp.Diff(map[string][]string{"pool": pools}, seen); diff != "" {
			t.Errorf("%s sees dimensions (-want +got)\n%s", token, diff)
		}
		if perms.CancelTasks != want[1] || perms.TerminateBot != (token == "root") {
			t.Errorf("%s: %v", token, perms)
		}
	}
}

func TestRefusalsAreSeen(t *testing.T) {
	c := serveConfig(t, someFiles, nil, map[string]string{"ann": server.ScopeUser})
	ready := func() string {
		cl := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: c.roots}}}
		defer cl.CloseIdleConnections()
		res, err := cl.Get(c.url + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != 200 {
			t.Fatal(res.Status, err)
		}
		return string(b)
	}
	digest := c.fleet.store.Snapshot().Digest()
	if diff := cmp.Diff("ok\nconfig "+digest+"\n", ready()); diff != "" {
		t.Error(diff)
	}
	c.change(map[string]string{"pools.cfg": "pool { nme: \"x\" }"})
	if text := ready(); !strings.Contains(text, "config "+digest) || !strings.Contains(text, "config refused: pools.cfg since ") {
		t.Error(text)
	}
	st, err := c.client("ann").GetConfig(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range st.Files {
		if (f.Name == "pools.cfg") != (len(f.Faults) == 3 && f.RefusedSince != nil) {
			t.Errorf("%v", f)
		}
	}
}
