package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/api/prpc"
	"github.com/skepdev/skep/api/skeppb"
	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/client"
)

// exchange is one recorded request of an existing bot or client.
type exchange struct {
	Method  string            `json:"method"`
	Path    string            `json:"path"`
	Headers map[string]string `json:"headers"`
	Request json.RawMessage   `json:"request"`
}

func recorded(t *testing.T, pattern string) map[string]exchange {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", "api", "testdata", "captures", pattern))
	if err != nil || len(files) == 0 {
		t.Fatalf("no captures match %s: %v", pattern, err)
	}
	out := map[string]exchange{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var e exchange
		if err := json.Unmarshal(b, &e); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		out[strings.TrimSuffix(filepath.Base(f), ".json")] = e
	}
	return out
}

// send replays e as it was recorded, with its body and headers.
func (f *fleet) send(e exchange, body []byte) *http.Response {
	f.t.Helper()
	req, err := http.NewRequestWithContext(f.t.Context(), e.Method, f.url+e.Path, bytes.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	for k, v := range e.Headers {
		if k != "Content-Length" && k != "Host" && k != "Accept-Encoding" {
			req.Header.Set(k, v)
		}
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { res.Body.Close() })
	return res
}

// TestRecordedBotRequests sends what an existing bot really sent, as it
// stands, in the order of its life, and looks at what matters to that bot.
func TestRecordedBotRequests(t *testing.T) {
	all := recorded(t, "bot_*.json")
	f := serve(t, nil)
	call := func(name string) (int, map[string]any, string) {
		t.Helper()
		e, ok := all[name]
		if !ok {
			t.Fatalf("no capture %s", name)
		}
		delete(all, name)
		res := f.send(e, e.Request)
		var buf bytes.Buffer
		if _, err := buf.ReadFrom(res.Body); err != nil {
			t.Fatal(err)
		}
		var ans map[string]any
		if res.Header.Get("Content-Type") == "application/json; charset=utf-8" {
			if err := json.Unmarshal(buf.Bytes(), &ans); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		return res.StatusCode, ans, buf.String()
	}
	ok := func(name string) map[string]any {
		t.Helper()
		code, ans, text := call(name)
		if code != 200 {
			t.Errorf("%s: %d %s", name, code, text)
		}
		return ans
	}
	if code, _, text := call("bot_server_ping"); code != 200 || text != "Server up" {
		t.Errorf("ping: %d %q", code, text)
	}
	if ans := ok("bot_handshake"); ans["session"] == "" || ans["bot_version"] == "" || ans["bot_config_name"] != "bot_config.py" {
		t.Errorf("handshake: %v", ans)
	}
	for _, name := range []string{"bot_poll_sleep", "bot_poll_update"} {
		if ans := ok(name); ans["cmd"] != "sleep" || ans["duration"] == nil {
			t.Errorf("%s: %v", name, ans) // a bot that is not ours is never told to update
		}
	}
	f.newTask(task("t"))
	ans := ok("bot_poll_run")
	m, _ := ans["manifest"].(map[string]any)
	if ans["cmd"] != "run" || m == nil {
		t.Fatalf("poll: %v", ans)
	}
	for _, field := range []string{ // spec bot.md §3.3
		"task_id", "bot_id", "bot_dimensions", "dimensions", "hard_timeout", "grace_period", "io_timeout", "command", "env", "env_prefixes",
		"relative_cwd", "caches", "cas_input_root", "cipd_input", "outputs", "secret_bytes", "realm", "resultdb", "service_accounts",
		"bot_authenticated_as", "containment", "host",
	} {
		if _, there := m[field]; !there {
			t.Errorf("the manifest has no %s", field)
		}
	}
	for _, name := range []string{
		"bot_task_update_start", "bot_task_update_output", "bot_task_update_muststop", "bot_task_update_terminate",
		"bot_task_update_final", "bot_task_update_final_cas", "bot_task_update_final_cipd", "bot_task_update_final_cipd_killed",
	} {
		if ans := ok(name); len(ans) == 0 { // an empty object is a failure to the bot
			t.Errorf("%s: empty answer", name)
		}
	}
	for _, name := range []string{"bot_task_error_missing_cas", "bot_task_error_missing_cipd", "bot_event_bot_shutdown"} {
		if ans := ok(name); len(ans) != 0 { // more would crash the bot
			t.Errorf("%s: %v", name, ans)
		}
	}
	for _, name := range []string{"bot_oauth_token", "bot_id_token"} { // for tasks that this bot does not run
		if code, ans, _ := call(name); code != 400 || ans["error"] == "" {
			t.Errorf("%s: %d %v", name, code, ans)
		}
	}
	for name := range all {
		t.Errorf("capture %s was not replayed", name)
	}
}

// TestRecordedUpdatesOfARealTask sends the recorded updates for a task that
// the bot holds, so that they are stored and not only tolerated.
func TestRecordedUpdatesOfARealTask(t *testing.T) {
	for _, final := range []string{"bot_task_update_final", "bot_task_update_final_cas", "bot_task_update_final_cipd", "bot_task_error_missing_cas", "bot_task_error_missing_cipd"} {
		t.Run(final, func(t *testing.T) {
			all := recorded(t, "bot_*.json")
			f := serve(t, nil)
			e := all["bot_handshake"]
			f.send(e, e.Request)
			id := f.newTask(task("t"))
			e = all["bot_poll_run"]
			f.send(e, e.Request)
			for _, name := range []string{"bot_task_update_start", "bot_task_update_output", final} {
				e := all[name]
				var body map[string]any
				if err := json.Unmarshal(e.Request, &body); err != nil {
					t.Fatal(err)
				}
				body["task_id"] = runOf(id)
				b, err := json.Marshal(body)
				if err != nil {
					t.Fatal(err)
				}
				if res := f.send(e, b); res.StatusCode != 200 {
					t.Fatalf("%s: %d", name, res.StatusCode)
				}
			}
			r := f.result(id)
			want := "COMPLETED"
			if strings.Contains(final, "error") {
				want = "CLIENT_ERROR"
			}
			switch {
			case r.State.String() != want:
				t.Errorf("state %s, want %s", r.State, want)
			case final == "bot_task_update_final_cas" && (r.CasOutputRoot == nil || r.PerformanceStats.GetIsolatedUpload().GetNumItemsHot() == 0):
				t.Errorf("result: %v", r)
			case final == "bot_task_update_final_cipd" && r.CipdPins == nil:
				t.Errorf("result: %v", r)
			case final == "bot_task_error_missing_cas" && len(r.MissingCas) != 1:
				t.Errorf("result: %v", r)
			case final == "bot_task_error_missing_cipd" && len(r.MissingCipd) != 1:
				t.Errorf("result: %v", r)
			}
		})
	}
}

// TestRecordedClientRequests sends what an existing client sent, in binary as
// it did, against a server that has a bot and a task.
func TestRecordedClientRequests(t *testing.T) {
	for name, e := range recorded(t, "cli_*.json") {
		t.Run(name, func(t *testing.T) {
			f := serve(t, nil)
			for _, name := range []string{"host1--bot", "nobot"} {
				f.bot(name).poll("k", 0)
			}
			id := f.newTask(task("t"))
			parts := strings.Split(strings.TrimPrefix(e.Path, "/prpc/"), "/")
			if strings.HasPrefix(parts[0], "discovery.") {
				if res := f.send(e, nil); res.StatusCode != 200 || res.Header.Get("X-Prpc-Grpc-Code") != "0" {
					t.Errorf("discovery: %d", res.StatusCode)
				}
				return
			}
			desc, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(parts[0] + "." + parts[1]))
			if err != nil {
				t.Fatal(err)
			}
			msg := dynamicpb.NewMessage(desc.(protoreflect.MethodDescriptor).Input())
			// The recorded ids are those of another server; ours has one task.
			text := string(e.Request)
			for _, old := range []string{"5a00000000000110", "5a00000000000111", "5a00000000000210", "5a00000000000310"} {
				text = strings.ReplaceAll(text, old, id)
			}
			if err := protojson.Unmarshal([]byte(text), msg); err != nil {
				t.Fatal(err)
			}
			body, err := proto.Marshal(msg)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(e.Headers["Content-Type"], "json") {
				body = e.Request
			}
			res := f.send(e, body)
			var buf bytes.Buffer
			_, _ = buf.ReadFrom(res.Body)
			if res.StatusCode != 200 {
				t.Errorf("%s: %d %s (request %s)", e.Path, res.StatusCode, buf.String(), text)
			}
		})
	}
}

// TestBadBotInput sends what no bot should and looks that the answer names
// the field, and that nothing changed.
func TestBadBotInput(t *testing.T) {
	f := serve(t, nil)
	b := f.bot("b1")
	id := f.newTask(task("t"))
	if ans := b.poll("k1", 5); ans["cmd"] != "run" {
		t.Fatalf("poll: %v", ans)
	}
	run := runOf(id)
	before := f.result(id)
	up := func(more string) string {
		return fmt.Sprintf(`{"id":"b1","task_id":%q,"session":%q,%s}`, run, b.session, more)
	}
	poll := func(more string) string {
		return fmt.Sprintf(`{"dimensions":{"id":["b1"]},"state":{},"version":"v","session":%q,%s}`, b.session, more)
	}
	cases := []struct {
		name, path, body string
		code             int
		field            string
	}{
		{"not JSON", botapi.PathPoll, `{`, 400, "body"},
		{"an array", botapi.PathPoll, `[]`, 400, "body"},
		{"wrong type of a string", botapi.PathPoll, poll(`"request_uuid":7`), 400, "request_uuid"},
		{"odd request_uuid", botapi.PathPoll, poll(`"request_uuid":"a b"`), 400, "request_uuid"},
		{"negative wait", botapi.PathPoll, poll(`"wait":-1`), 400, "wait"},
		{"wrong type of dimensions", botapi.PathPoll, `{"dimensions":{"id":"b1"}}`, 400, "dimensions"},
		{"nobody", botapi.PathPoll, `{"dimensions":{},"state":{}}`, 400, "id"},
		{"invalid UTF-8", botapi.PathPoll, "{\"version\":\"\xff\"}", 400, "body"},
		{"odd session_id", botapi.PathHandshake, `{"dimensions":{"id":["b2"]},"session_id":"Ä"}`, 400, "session_id"},
		{"unknown event", botapi.PathEvent, poll(`"event":"bot_party"`), 400, "event"},
		{"session of another bot", botapi.PathTaskUpdate, strings.Replace(up(`"exit_code":0,"duration":1`), `"b1"`, `"b2"`, 1), 403, ""},
		{"no task", botapi.PathTaskUpdate, `{"id":"b1"}`, 400, "task_id"},
		{"odd task", botapi.PathTaskUpdate, `{"id":"b1","task_id":"zz"}`, 400, "task_id"},
		{"negative offset", botapi.PathTaskUpdate, up(`"output":"eA==","output_chunk_start":-1`), 400, "output_chunk_start"},
		{"offset that overflows", botapi.PathTaskUpdate, up(`"output":"eA==","output_chunk_start":9223372036854775807`), 400, "output_chunk_start"},
		{"offset beyond 64 bits", botapi.PathTaskUpdate, up(`"output":"eA==","output_chunk_start":92233720368547758070`), 400, "output_chunk_start"},
		{"output that is not base64", botapi.PathTaskUpdate, up(`"output":"%"`), 400, "output"},
		{"negative cost", botapi.PathTaskUpdate, up(`"cost_usd":-1`), 400, "cost_usd"},
		{"cost beyond a float", botapi.PathTaskUpdate, up(`"cost_usd":1e39`), 400, "cost_usd"},
		{"negative duration", botapi.PathTaskUpdate, up(`"exit_code":0,"duration":-1`), 400, "duration"},
		{"exit code without duration", botapi.PathTaskUpdate, up(`"exit_code":0`), 400, "duration"},
		{"overhead without duration", botapi.PathTaskUpdate, up(`"bot_overhead":1`), 400, "bot_overhead"},
		{"broken statistics", botapi.PathTaskUpdate, up(`"exit_code":0,"duration":1,"bot_overhead":1,"isolated_stats":{"download":{"items_cold":"eA=="}}`), 400, "isolated_stats.download"},
		{"broken digest", botapi.PathTaskError, up(`"message":"m","client_error":{"missing_cas":[{"digest":"x"}]}`), 400, "client_error.missing_cas[0].digest"},
		{"token of nobody", botapi.PathOAuthToken, up(`"account_id":"other","scopes":["a"]`), 400, "account_id"},
		{"unknown path", "/swarming/api/v1/bot/nothing", `{}`, 404, ""},
		{"too much", botapi.PathPoll, `"` + strings.Repeat("x", maxDescription+1) + `"`, 413, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			code, ans := f.post(c.path, []byte(c.body))
			field, _ := ans["field"].(string)
			if code != c.code || ans["error"] == nil || ans["reason"] == nil || field != c.field {
				t.Errorf("got %d %v, want %d about %q", code, ans, c.code, c.field)
			}
		})
	}
	if after := f.result(id); !proto.Equal(before, after) {
		t.Errorf("bad input changed the task:\n%v\n%v", before, after)
	}
	if code, _ := f.post(botapi.PathPoll, []byte(`{}`), "Content-Type", "text/plain"); code != 400 {
		t.Errorf("wrong content type: %d", code)
	}
}

// TestDoor: a web page must not reach a loopback server through a user's
// browser.
func TestDoor(t *testing.T) {
	f := serve(t, func(o *Options) { o.URLs = []string{"https://fleet.example.com", "http://localhost:9000"} })
	for _, c := range []struct {
		name   string
		header []string
		code   int
	}{
		{"plain", nil, 200},
		{"own origin", []string{"Origin", f.url}, 200},
		{"foreign origin", []string{"Origin", "http://evil.example"}, 403},
		{"opaque origin", []string{"Origin", "null"}, 403},
		{"another loopback port", []string{"Origin", "http://127.0.0.1:1"}, 403},
		{"rebound name", []string{"Host", "evil.example"}, 403},
		{"a loopback name", []string{"Host", strings.Replace(strings.TrimPrefix(f.url, "http://"), "127.0.0.1", "localhost", 1)}, 200},
		{"a loopback name with another port", []string{"Host", "localhost:1"}, 403},
		{"a loopback name without its port", []string{"Host", "127.0.0.1"}, 403},
		{"an address of one's own by a forwarded port", []string{"Host", "localhost:9000"}, 200},
		{"public name", []string{"Host", "fleet.example.com"}, 200},
		{"public name with a foreign port", []string{"Host", "fleet.example.com:8443"}, 403},
		{"cross site without origin", []string{"Sec-Fetch-Site", "cross-site"}, 403},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, ans := f.post(botapi.PathHandshake, map[string]any{"dimensions": map[string]any{"id": []string{"x"}}, "state": map[string]any{}, "version": "v"}, c.header...)
			if code != c.code {
				t.Errorf("got %d %v, want %d", code, ans, c.code)
			}
		})
	}
}

// TestRefusalsOfRPCsArePRPC: an answer without its code header is none to a
// client. Nobody without a token makes the server read a body.
func TestRefusalsOfRPCsArePRPC(t *testing.T) {
	f := serve(t, func(o *Options) { o.Open = false })
	call := func(header ...string) *http.Response {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, f.url+"/prpc/swarming.v2.Tasks/GetResult", strings.NewReader("not a message"))
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			if header[i] == "Host" {
				req.Host = header[i+1]
			}
			req.Header.Set(header[i], header[i+1])
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { res.Body.Close() })
		return res
	}
	for _, c := range []struct {
		name   string
		header []string
		http   int
		code   string
	}{
		{"no token", nil, 401, "16"},
		{"unknown token", []string{"Authorization", "Bearer x"}, 401, "16"},
		{"foreign host", []string{"Host", "evil.example"}, 403, "7"},
	} {
		if res := call(c.header...); res.StatusCode != c.http || res.Header.Get("X-Prpc-Grpc-Code") != c.code {
			t.Errorf("%s: %d, code %q", c.name, res.StatusCode, res.Header.Get("X-Prpc-Grpc-Code"))
		}
	}
}

// TestScopes: what each scope may do. decisions.md 9.
func TestScopes(t *testing.T) {
	f := serve(t, func(o *Options) { o.Open = false })
	tokens := map[string]string{}
	for _, n := range []NewToken{
		{Name: "root", Scope: ScopeAdmin}, {Name: "ann", Scope: ScopeUser}, {Name: "bob", Scope: ScopeUser}, {Name: "lab", Scope: ScopeBot, Bots: []string{"lab1-*"}},
	} {
		text, _, err := CreateToken(t.Context(), f.store, n)
		if err != nil {
			t.Fatal(err)
		}
		tokens[n.Name] = text
	}
	if _, _, err := CreateToken(t.Context(), f.store, NewToken{Name: "ann", Scope: ScopeUser}); skep.KindOf(err) != skep.Conflict {
		t.Errorf("a second ann: %v", err)
	}
	as := func(name string) *client.Client {
		c, err := client.New(client.Options{Server: f.url, Token: tokens[name], Retry: prpc.Retry{Times: -1}})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	made, err := as("ann").NewTask(t.Context(), task("t"))
	if err != nil || made.Request.Authenticated != "user:ann" {
		t.Fatalf("a user makes a task: %v %v", made, err)
	}
	if _, err := as("bob").GetResult(t.Context(), &pb.TaskIdWithPerfRequest{TaskId: made.TaskId}); err != nil {
		t.Errorf("a user reads: %v", err)
	}
	if _, err := as("bob").CancelTask(t.Context(), &pb.TaskCancelRequest{TaskId: made.TaskId}); skep.KindOf(err) != skep.Denied {
		t.Errorf("a user cancels another's task: %v", err)
	}
	if _, err := as("ann").DeleteBot(t.Context(), &pb.BotRequest{BotId: "x"}); skep.KindOf(err) != skep.Denied {
		t.Errorf("a user deletes a bot: %v", err)
	}
	if _, err := as("lab").NewTask(t.Context(), task("t")); skep.KindOf(err) != skep.Denied {
		t.Errorf("a bot makes a task: %v", err)
	}
	shake := func(token, id string) int {
		code, _ := f.post(botapi.PathHandshake, map[string]any{"dimensions": map[string]any{"id": []string{id}}, "state": map[string]any{}, "version": "v"},
			"Authorization", "Bearer "+token)
		return code
	}
	for _, c := range []struct {
		token, id string
		code      int
	}{
		{tokens["lab"], "lab1-3", 200}, {tokens["lab"], "lab2-1", 403}, {tokens["ann"], "lab1-3", 403}, {"nothing", "lab1-3", 401}, {tokens["root"], "any", 200},
	} {
		if got := shake(c.token, c.id); got != c.code {
			t.Errorf("bot %s: %d, want %d", c.id, got, c.code)
		}
	}
	if c, err := as("ann").CancelTask(t.Context(), &pb.TaskCancelRequest{TaskId: made.TaskId}); err != nil || !c.Canceled {
		t.Errorf("a user cancels her own task: %v %v", c, err)
	}
}

// TestWhatWouldBeLostIsRefused: nothing that is asked for is dropped silently.
func TestWhatWouldBeLostIsRefused(t *testing.T) {
	f := serve(t, nil)
	for name, change := range map[string]func(*pb.NewTaskRequest){
		"pubsub":   func(r *pb.NewTaskRequest) { r.PubsubTopic = "projects/abcdef/topics/topic" },
		"resultdb": func(r *pb.NewTaskRequest) { r.Resultdb = &pb.ResultDBCfg{Enable: true} },
	} {
		req := task("t")
		change(req)
		if _, err := f.client.NewTask(t.Context(), req); skep.KindOf(err) != skep.Precondition || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzBotAPI throws bytes at every endpoint: whatever comes, the answer is
// JSON, never a 5xx.
func FuzzBotAPI(f *testing.F) {
	paths := []string{
		botapi.PathHandshake, botapi.PathPoll, botapi.PathClaim, botapi.PathEvent, botapi.PathTaskUpdate, botapi.PathTaskError,
		botapi.PathOAuthToken, botapi.PathIDToken,
	}
	f.Add(uint8(0), []byte(`{"dimensions":{"id":["b"]},"state":{},"version":"v","session_id":"s"}`))
	f.Add(uint8(1), []byte(`{"dimensions":{"id":["b"]},"state":{"maintenance":"x"},"version":"v","request_uuid":"u"}`))
	f.Add(uint8(4), []byte(`{"id":"b","task_id":"5a00000000000111","output":"eA==","output_chunk_start":3,"cost_usd":1}`))
	f.Add(uint8(4), []byte(`{"id":"b","task_id":"5a00000000000111","exit_code":0,"duration":1,"isolated_stats":{},"bot_overhead":1}`))
	f.Add(uint8(5), []byte(`{"id":"b","task_id":"5a00000000000111","message":"m","client_error":{"missing_cas":[{"digest":"a/1"}]}}`))
	f.Add(uint8(6), []byte(`{"id":"b","account_id":"task","task_id":"5a00000000000111","scopes":["s"]}`))
	srv := handler(f)
	f.Fuzz(func(t *testing.T, which uint8, body []byte) {
		if bytes.Contains(body, []byte("wait")) {
			return // it would be honoured
		}
		req := httptest.NewRequest(http.MethodPost, paths[int(which)%len(paths)], bytes.NewReader(body))
		req.Host = "127.0.0.1:1"
		req.Header.Set("Content-Type", "application/json; charset=utf-8")
		w := httptest.NewRecorder()
		srv.ServeHTTP(w, req)
		if w.Code >= 500 || !json.Valid(w.Body.Bytes()) {
			t.Errorf("%s: %d %s", req.URL.Path, w.Code, w.Body)
		}
	})
}

// FuzzRPC throws messages at every method: whatever comes is taken or refused
// with a reason, never a fault of the server.
func FuzzRPC(f *testing.F) {
	var paths []string
	for _, services := range []protoreflect.ServiceDescriptors{pb.File_swarmingpb_services_proto.Services(), skeppb.File_skeppb_tasks_proto.Services()} {
		for i := range services.Len() {
			for j := range services.Get(i).Methods().Len() {
				m := services.Get(i).Methods().Get(j)
				paths = append(paths, "/prpc/"+string(services.Get(i).FullName())+"/"+string(m.Name()))
			}
		}
	}
	seed, err := proto.Marshal(task("t"))
	if err != nil {
		f.Fatal(err)
	}
	for i := range paths {
		f.Add(uint8(i), []byte{})
		f.Add(uint8(i), seed)
		f.Add(uint8(i), []byte("\x0a\x105a00000000000110\x10\x01")) // a task id and a number
	}
	srv := handler(f)
	f.Fuzz(func(t *testing.T, which uint8, body []byte) {
		req := httptest.NewRequest(http.MethodPost, paths[int(which)%len(paths)], bytes.NewReader(body))
		req.Host = "127.0.0.1:1"
		req.Header.Set("Content-Type", "application/prpc; encoding=binary")
		w := httptest.NewRecorder()
		srv.ServeHTTP(w, req)
		if w.Code >= 500 || w.Header().Get("X-Prpc-Grpc-Code") == "" {
			t.Errorf("%s: %d %s", req.URL.Path, w.Code, w.Body)
		}
	})
}
