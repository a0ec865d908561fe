package exec

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/skepdev/skep/internal/need"
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/provider/providertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func needShell(t *testing.T) {
	t.Helper()
	if runtime.GOOS == "windows" {
		need.Skip(t, "sh", "plug-ins of these tests are shell scripts")
	}
}

// boards is the example's shelf.
func boards(t *testing.T, names ...string) (*Provider, string) {
	t.Helper()
	needShell(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "boards"), []byte(strings.Join(names, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	script, err := filepath.Abs("../../examples/provider-exec/boards.sh")
	if err != nil {
		t.Fatal(err)
	}
	p, err := New(Options{Command: []string{"sh", script, dir}})
	if err != nil {
		t.Fatal(err)
	}
	return p, dir
}

// TestSuite holds that the example is a Provider.
func TestSuite(t *testing.T) {
	providertest.Run(t, providertest.Suite{Fresh: func(t *testing.T) providertest.Subject {
		p, _ := boards(t, "b1", "b2", "b3", "b4")
		return providertest.Subject{Provider: p, Bad: provider.Order{Name: "Bad Name"}}
	}})
}

func TestExampleRunsOut(t *testing.T) {
	p, dir := boards(t, "b1", "b2")
	start := "#!/bin/sh\necho \"$@\" >>" + dir + "/started\n"
	if err := os.WriteFile(filepath.Join(dir, "start"), []byte(start), 0o700); err != nil {
		t.Fatal(err)
	}
	order := func(n int) provider.Order {
		return provider.Order{RequestID: fmt.Sprint("r", n), Name: fmt.Sprint("vm-", n), Server: "http://skep"}
	}
	for n := range 2 {
		if done, err := p.Create(t.Context(), order(n)); !done || err != nil {
			t.Fatal(done, err)
		}
	}
	_, err := p.Create(t.Context(), order(2))
	wantError(t, err, provider.Exhausted, "no_board")
	if done, err := p.Delete(t.Context(), provider.Ref{Name: "vm-0"}, "d"); !done || err != nil {
		t.Fatal(done, err)
	}
	if done, err := p.Create(t.Context(), order(2)); !done || err != nil {
		t.Fatal(done, err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "started"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("b1 vm-0 http://skep\nb2 vm-1 http://skep\nb1 vm-2 http://skep\n", string(got)); diff != "" {
		t.Error(diff)
	}
}

// TestExampleTellsOfTheDead holds that a board that does not run is told as
// one that has ended.
func TestExampleTellsOfTheDead(t *testing.T) {
	p, dir := boards(t, "b1")
	alive := "#!/bin/sh\n[ -e " + dir + "/alive-$1-$2 ]\n"
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "alive"), []byte(alive), 0o700), os.WriteFile(filepath.Join(dir, "alive-b1-vm"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if done, err := p.Create(t.Context(), provider.Order{RequestID: "r", Name: "vm", Server: "http://skep"}); !done || err != nil {
		t.Fatal(done, err)
	}
	for _, ended := range []bool{false, true} {
		in, err := p.Get(t.Context(), provider.Ref{Name: "vm"})
		if err != nil || in.Ended != ended {
			t.Errorf("%+v, %v, want it to have ended: %v", in, err, ended)
		}
		page, _, err := p.List(t.Context(), provider.Scope{}, "")
		if err != nil || len(page) != 1 || page[0].Ended != ended {
			t.Errorf("%+v, %v, want it to have ended: %v", page, err, ended)
		}
		_ = os.Remove(filepath.Join(dir, "alive-b1-vm"))
	}
}

func wantError(t *testing.T, err error, class provider.Class, reason string) {
	t.Helper()
	var e *provider.Error
	if !errors.As(err, &e) {
		t.Fatalf("error is %v, want %s", err, class)
	}
	if e.Class != class || e.Reason != reason {
		t.Errorf("error is %v, want %s (%s)", e, class, reason)
	}
}

// script is a Provider of a shell script; $1 is the verb.
func script(t *testing.T, text string) *Provider {
	t.Helper()
	needShell(t)
	path := filepath.Join(t.TempDir(), "plugin")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := New(Options{Command: []string{"sh", path}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestBadPrograms(t *testing.T) {
	tests := map[string]struct {
		script, reason string
		class          provider.Class
	}{
		"says nothing":            {":", "answer", provider.Transient},
		"says rubbish":            {"echo hello", "answer", provider.Transient},
		"says two things":         {`echo '{"done":true}{}'`, "answer", provider.Transient},
		"unknown word":            {`echo '{"done":true,"colour":1}'`, "answer", provider.Transient},
		"does not say done":       {`echo '{}'`, "answer", provider.Transient},
		"fails":                   {`echo "no power" >&2; exit 3`, "exit 3", provider.Transient},
		"done and failed":         {`echo '{"done":true}'; exit 1`, "exit 1", provider.Transient},
		"killed":                  {`kill -9 $$`, "exit -9", provider.Transient},
		"endless output":          {`yes`, "timeout", provider.Transient},
		"much output":             {`head -c 9000000 /dev/zero`, "output", provider.Transient},
		"refuses":                 {`echo '{"error":{"class":"quota","reason":"full","text":"rack is full"}}'`, "full", provider.Quota},
		"refuses and fails":       {`echo '{"error":{"class":"permission","reason":"key"}}'; exit 1`, "key", provider.Permission},
		"a class of its own":      {`echo '{"error":{"class":"mood"}}'`, "transient", provider.Transient},
		"reads no question":       {`exec 0<&-; sleep 0; echo '{"error":{"class":"invalid","reason":"deaf"}}'`, "deaf", provider.Invalid},
		"leaves a child that has": {`sleep 60 & echo '{"error":{"class":"invalid","reason":"child"}}'`, "child", provider.Invalid},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := script(t, tt.script)
			if tt.reason == "timeout" {
				p.o.Timeout = 200 * time.Millisecond
			}
			done, err := p.Create(t.Context(), provider.Order{Name: "vm", Attributes: provider.Attributes{Metadata: []provider.Metadata{{Key: "k", Value: strings.Repeat("x", 200_000)}}}})
			if done {
				t.Error("done")
			}
			wantError(t, err, tt.class, tt.reason)
		})
	}
}

func TestNoProgram(t *testing.T) {
	p, err := New(Options{Command: []string{filepath.Join(t.TempDir(), "none")}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.Create(t.Context(), provider.Order{Name: "vm"})
	wantError(t, err, provider.Invalid, "command")
	if _, err := New(Options{}); err == nil {
		t.Error("a Provider without a command")
	}
}

// TestQuestion holds what the program is told, and that it is told no more.
func TestQuestion(t *testing.T) {
	t.Setenv("SECRET_OF_SERVER", "hush")
	dir := t.TempDir()
	p := script(t, `cat >`+dir+`/stdin; env >`+dir+`/env; echo '{"done":false}'`)
	done, err := p.Create(t.Context(), provider.Order{
		RequestID: "id", Name: "vm", Zone: "z", Server: "http://skep", Device: "dut", Labels: map[string]string{"a": "<b&c>"},
		Attributes: provider.Attributes{Project: "p", Pools: []string{"ci", "lab"}, Extra: map[string]string{"rack": "3"}},
	})
	if done || err != nil {
		t.Fatal(done, err)
	}
	in, err := os.ReadFile(filepath.Join(dir, "stdin"))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"version":1,"verb":"create","request_id":"id","project":"p","zone":"z","name":"vm","labels":{"a":"<b&c>"},"attributes":{"project":"p","pools":["ci","lab"],"extra":{"rack":"3"}},"server":"http://skep","device":"dut"}` + "\n"
	if diff := cmp.Diff(want, string(in)); diff != "" {
		t.Error(diff)
	}
	env, err := os.ReadFile(filepath.Join(dir, "env"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(env), "hush") {
		t.Error("the program sees the server's environment")
	}
	for _, line := range []string{"SKEP_VERB=create", "SKEP_NAME=vm", "SKEP_REQUEST_ID=id", `SKEP_LABELS={"a":"<b&c>"}`, "SKEP_SERVER=http://skep", "SKEP_BOT_POOLS=ci,lab"} {
		if !strings.Contains("\n"+string(env), "\n"+line+"\n") {
			t.Errorf("environment has no %s", line)
		}
	}
}

// TestWhatLetsABotIn holds that the program is told a token for bots of the
// servers that are ours, the same until the machine is there, and nowhere else
// than on its standard input.
func TestWhatLetsABotIn(t *testing.T) {
	dir := t.TempDir()
	p := script(t, `cat >`+dir+`/asked; { env; echo "$@"; } >>`+dir+`/seen; [ -e `+dir+`/there ] && echo '{"done":true}' || echo '{"done":false}'`)
	made := 0
	p.o.Servers, p.o.CAFile = []string{"https://ours"}, "/ca.pem"
	p.o.Token = func(_ context.Context, bot string) (string, error) {
		made++
		return fmt.Sprintf("token-%d-of-%s", made, bot), nil
	}
	asked := func() (q struct {
		CA    string `json:"ca_file"`
		Token string `json:"bootstrap_token"`
	},
	) {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(dir, "asked"))
		if err = errors.Join(err, json.Unmarshal(text, &q), os.Remove(filepath.Join(dir, "asked"))); err != nil {
			t.Fatal(err)
		}
		return q
	}
	for _, tt := range []struct {
		server, request string
		there           bool
		token           string
	}{
		{"https://theirs", "a", false, ""},
		{"https://ours", "a", false, "token-1-of-vm"},
		{"https://ours", "a", false, "token-1-of-vm"},
		{"https://ours", "b", false, "token-2-of-vm"},
		{"https://ours", "b", true, "token-2-of-vm"},
		{"https://ours", "b", true, "token-3-of-vm"}, // nobody remembers what was told
	} {
		if tt.there {
			if err := os.WriteFile(filepath.Join(dir, "there"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		done, err := p.Create(t.Context(), provider.Order{RequestID: tt.request, Name: "vm", Server: tt.server})
		if done != tt.there || err != nil {
			t.Fatal(done, err)
		}
		if q := asked(); q.Token != tt.token || (q.CA != "") != (tt.token != "") {
			t.Errorf("%s, request %s: told %+v, want %q", tt.server, tt.request, q, tt.token)
		}
	}
	if len(p.entry) > 0 {
		t.Errorf("tokens are kept: %v", p.entry)
	}
	if seen, err := os.ReadFile(filepath.Join(dir, "seen")); err != nil || bytes.Contains(seen, []byte("token-")) {
		t.Errorf("the environment says it (%v): %s", err, seen)
	}
	p.o.Token = func(context.Context, string) (string, error) { return "", errors.New("the store is away") }
	_, err := p.Create(t.Context(), provider.Order{RequestID: "c", Name: "vm", Server: "https://ours"})
	wantError(t, err, provider.Transient, "token")
}

// TestOneNameAtATime holds that calls about a name do not overlap, and those
// about others do.
func TestOneNameAtATime(t *testing.T) {
	dir := t.TempDir()
	// Each machine's directory is made and removed; overlapping calls fail at it. Machine a waits for b.
	p := script(t, `d=`+dir+`/$SKEP_NAME; mkdir $d || exit 1
		if [ $SKEP_NAME = a ]; then while [ ! -e `+dir+`/b.was ]; do sleep 0.01; done; else : >$d.was; fi
		rmdir $d; echo '{"done":true}'`)
	var wg sync.WaitGroup
	for _, name := range []string{"a", "a", "a", "b", "b"} {
		wg.Go(func() {
			if _, err := p.Create(t.Context(), provider.Order{Name: name}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(p.busy) != 0 {
		t.Errorf("names left: %v", p.busy)
	}
}

// TestCancelled holds that who gives up waits for no program.
func TestCancelled(t *testing.T) {
	dir := t.TempDir()
	p := script(t, `: >`+dir+`/began; exec sleep 600`)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for {
			if _, err := os.Stat(filepath.Join(dir, "began")); err == nil {
				cancel()
				return
			}
			runtime.Gosched()
		}
	}()
	if _, err := p.Create(ctx, provider.Order{Name: "vm"}); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v, want context.Canceled", err)
	}
}

// FuzzAnswer holds that whatever a program writes is understood in whole or
// refused with a class.
func FuzzAnswer(f *testing.F) {
	verbs := []string{"create", "get", "delete", "list"}
	for _, text := range []string{
		`{"done":true}`, `{"done":false,"error":null}`, `{"error":{"class":"quota","reason":"r","text":"t"}}`, `{"error":{}}`,
		`{"instance":{"name":"vm","url":"u","created":"2026-01-02T03:04:05Z","labels":{"a":"b"},"networks":[{"internal":"10.0.0.1","external":["x"]}]}}`,
		`{"instances":[{"name":"vm","url":"u"}],"next":"2"}`, `{"instances":[{}]}`, `[]`, `null`, `{"instance":null}`, ``, `{"done":1}`, `{"next":"\ud800"}`,
	} {
		for verb := range verbs {
			f.Add(uint8(verb), []byte(text))
		}
	}
	f.Fuzz(func(t *testing.T, n uint8, text []byte) {
		verb := verbs[int(n)%len(verbs)]
		a, err := decode(verb, "vm", text)
		if err != nil {
			var e *provider.Error
			if !errors.As(err, &e) || e.Class == "" || e.Reason == "" || e.Text == "" || len(e.Text) > 2*maxText+200 {
				t.Fatalf("error is %#v", err)
			}
			return
		}
		switch verb {
		case "get":
			if i := a.Instance.noun(provider.Scope{}); i.Ref.Name != "vm" || i.URL == "" {
				t.Fatalf("instance is %+v", i)
			}
		case "create", "delete":
			_ = *a.Done
		case "list":
			for _, i := range a.Instances {
				if i.noun(provider.Scope{}).URL == "" {
					t.Fatalf("instance is %+v", i)
				}
			}
		}
		if _, err := json.Marshal(a); err != nil {
			t.Fatal(err)
		}
	})
}
