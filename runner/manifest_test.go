package runner

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep/api/botapi"
)

// FuzzManifest: whatever a server sends, it is understood or refused with a
// sentence, and the limits bot_main takes from it are no nonsense.
func FuzzManifest(f *testing.F) {
	f.Add(warmManifest)
	f.Add(`{"task_id":7}`)
	f.Add(`{"task_id":"1","hard_timeout":1e400}`)
	f.Add(`null`)
	f.Fuzz(func(t *testing.T, raw string) {
		m, err := parseManifest(json.RawMessage(raw))
		if m == nil {
			t.Fatal("no manifest")
		}
		if err == nil && (m.TaskID == "" || m.HardTimeout < 0 || m.HardTimeout > maxSeconds) {
			t.Errorf("accepted %+v", m)
		}
		if err != nil && (strings.Contains(err.Error(), "\n") || err.Error() == "") {
			t.Errorf("error %q", err)
		}
		if l, _ := manifestLimits(json.RawMessage(raw)); l.lastDitch() < 0 || l.Grace < 0 {
			t.Errorf("limits %+v", l)
		}
		if _, err := taskContext(nil, m, "http://x", nil); err != nil {
			t.Error(err)
		}
	})
}

// TestCapturedManifest reads what an existing server sent.
func TestCapturedManifest(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "api", "testdata", "captures", "bot_poll_run.json"))
	if err != nil {
		t.Skip(err)
	}
	var capture struct {
		Response struct{ Manifest json.RawMessage }
	}
	if err := json.Unmarshal(b, &capture); err != nil {
		t.Fatal(err)
	}
	m, err := parseManifest(capture.Response.Manifest)
	if err != nil || m.TaskID != "5a00000000000111" {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestTaskServer(t *testing.T) {
	const own = "https://skep.example:8443"
	for host, want := range map[string]string{
		"":                                    own,
		"https://skep.example:8443":           own,
		"https://skep.example:8443/":          own,
		"https://skep.example":                own,
		"http://skep.example:8443":            own,
		"https://evil.example:8443":           own,
		"::bad":                               own,
		"https://u:p@skep.example:8443/x?y=z": own,
	} {
		if got := taskServer(host, own); got != want {
			t.Errorf("taskServer(%q) = %q, want %q", host, got, want)
		}
	}
}

func TestTaskContext(t *testing.T) {
	inherited := json.RawMessage(`{"local_auth":{"rpc_port":1},"deadline":{"soft_deadline":5},"realm":{"name":"old:r","x":1},"other":{"y":2}}`)
	secret := "c2VjcmV0"
	m := &botapi.Manifest{
		TaskID: "ab1", BotDimensions: map[string][]string{"os": {"b", "a"}, "id": {"z"}}, SecretBytes: &secret,
		Realm: &botapi.Realm{Name: "p:r"}, ResultDB: &botapi.ResultDB{Hostname: "rdb"},
	}
	ctx, err := taskContext(inherited, m, "https://s", &localAuth{RPCPort: 7, Secret: "x", Accounts: []localAccount{{"task", "a@b"}}, DefaultAccountID: "task"})
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.MarshalIndent(ctx, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	const want = `{
 "local_auth": {
  "rpc_port": 7,
  "secret": "x",
  "accounts": [
   {
    "id": "task",
    "email": "a@b"
   }
  ],
  "default_account_id": "task"
 },
 "other": {
  "y": 2
 },
 "realm": {
  "name": "p:r",
  "x": 1
 },
 "resultdb": {
  "current_invocation": {
   "name": "",
   "update_token": ""
  },
  "hostname": "rdb"
 },
 "swarming": {
  "secret_bytes": "c2VjcmV0",
  "task": {
   "bot_dimensions": [
    "id:z",
    "os:a",
    "os:b"
   ],
   "server": "https://s",
   "task_id": "ab0"
  }
 }
}`
	if diff := cmp.Diff(want, string(b)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAgentContext(t *testing.T) {
	// Fields 1 "bt", 3 "sbt" and an unknown varint 9.
	secret := "CgJidEgBGgNz\nYnQ="
	m := &botapi.Manifest{TaskID: "ab1", Command: []string{"x", agentPlaceholder}, SecretBytes: &secret}
	got, err := agentContext(m)
	if want := `{"secrets":{"buildToken":"bt","startBuildToken":"sbt"},"taskId":"ab0"}` + "\n"; err != nil || string(got) != want {
		t.Errorf("%s, %v; want %s", got, err, want)
	}
	m.Command = m.Command[:1]
	if got, err := agentContext(m); got != nil || err != nil {
		t.Errorf("unasked: %s, %v", got, err)
	}
}

func FuzzBuildSecrets(f *testing.F) {
	f.Add([]byte("\x0a\x02bt"))
	f.Add([]byte("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decodeBuildSecrets(b)
		n := 0
		for _, v := range got {
			n += len(v)
		}
		if err == nil && n > len(b) {
			t.Errorf("%d bytes out of %d", n, len(b))
		}
	})
}

func TestSummaryFile(t *testing.T) {
	got, err := json.Marshal([]Summary{{Session: "secret"}, {InternalError: "why", InternalErrorReported: true, IOTimeout: true}})
	const want = `[{"exit_code":null,"hard_timeout":false,"io_timeout":false,"internal_error_reported":false,"internal_error":null,"version":3},` +
		`{"exit_code":null,"hard_timeout":false,"io_timeout":true,"internal_error_reported":true,"internal_error":"why","version":3}]`
	if err != nil || string(got) != want {
		t.Errorf("%s, %v", got, err)
	}
}
