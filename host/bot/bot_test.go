package bot

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"go.uber.org/goleak"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/internal/need"
	"github.com/skepdev/skep/internal/proc"
	"github.com/skepdev/skep/reconcile"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("os/signal.signal_recv"))
}

// codeServer hands out one version of bot code, as /bot_code does.
type codeServer struct {
	*httptest.Server
	asked, downloads atomic.Int32
	code             []byte
	damage           atomic.Bool
	secret           string
}

func serveCode(t *testing.T, code string) *codeServer {
	s := &codeServer{code: []byte(code)}
	sum := sha256.Sum256(s.code)
	digest := hex.EncodeToString(sum[:])
	mux := http.NewServeMux()
	mux.HandleFunc("GET /bot_code", func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		if s.secret != "" && r.Header.Get("Authorization") != "Bearer "+s.secret {
			http.Error(w, "bring a token", http.StatusForbidden)
			return
		}
		http.Redirect(w, r, "/v/"+digest, http.StatusFound)
	})
	mux.HandleFunc("GET /v/{digest}", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("the token was sent where it is not needed")
		}
		s.downloads.Add(1)
		if s.damage.Load() {
			_, _ = w.Write(s.code[1:])
			return
		}
		_, _ = w.Write(s.code)
	})
	s.Server = httptest.NewServer(mux)
	t.Cleanup(s.Close)
	t.Cleanup(func() { s.Client().CloseIdleConnections() })
	return s
}

// workDir makes a directory for a bot.
func workDir(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// noCgroups skips what cannot be shown without them, or fails where
// SKEP_TEST_REQUIRE asks for them.
func noCgroups(t *testing.T) {
	t.Helper()
	need.Skip(t, "cgroup", "what a bot leaves cannot be found")
}

func needShell(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/bin/sh"); err != nil {
		t.Skip("no shell here")
	}
}

// said waits until the bot has written word to its log.
func said(t *testing.T, c Config, word string) string {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(time.Millisecond) {
		b, _ := os.ReadFile(c.LogFile())
		if bytes.Contains(b, []byte(word)) {
			return string(b)
		}
	}
	b, _ := os.ReadFile(c.LogFile())
	t.Fatalf("the bot did not say %q: %s", word, b)
	return ""
}

// patientBot hears a signal while it waits, not when a program that it runs has
// ended: two that come in that time would be one.
const patientBot = `#!/bin/sh
trap 'echo drains; terms=$((terms+1)); [ $terms -lt 2 ] || exit 3' TERM
echo "id $SWARMING_BOT_ID secret ${SKEP_TOKEN-none} extra $EXTRA"
echo up
sleep 1000 &
while :; do wait; done
`

func TestOneDownloadForAHundredBots(t *testing.T) {
	s := serveCode(t, "#!/bin/sh\necho ran $SWARMING_BOT_ID\n")
	s.secret = "s3cret"
	c := cache{dir: t.TempDir(), client: s.Client(), token: func() string { return s.secret }}
	to := t.TempDir()
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			path := filepath.Join(to, fmt.Sprint(i))
			if _, err := c.code(t.Context(), s.URL, fmt.Sprint("b", i), path); err != nil {
				t.Error(err)
			}
			if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, s.code) {
				t.Errorf("%s holds %q, %v", path, b, err)
			}
		})
	}
	wg.Wait()
	if n := s.downloads.Load(); n != 1 {
		t.Errorf("%d downloads for 100 bots", n)
	}
	// What was damaged on disk is noticed and fetched anew.
	files, _ := filepath.Glob(filepath.Join(c.dir, strings.Repeat("[0-9a-f]", 64)))
	if len(files) != 1 {
		t.Fatalf("the cache holds %v", files)
	}
	if err := os.WriteFile(files[0], []byte("#!/bin/sh\nevil\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(to, "again")
	if _, err := c.code(t.Context(), s.URL, "b", path); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(path); !bytes.Equal(b, s.code) || s.downloads.Load() != 2 {
		t.Errorf("after damage: %q, %d downloads", b, s.downloads.Load())
	}
}

func TestCodeThatIsNotWhatWasPromised(t *testing.T) {
	s := serveCode(t, "#!/bin/sh\n")
	s.damage.Store(true)
	c := cache{dir: t.TempDir(), client: s.Client(), token: func() string { return "" }}
	path := filepath.Join(t.TempDir(), "bot")
	_, err := c.code(t.Context(), s.URL, "b", path)
	if skep.KindOf(err) != skep.Unavailable || !strings.Contains(err.Error(), "it is not run") {
		t.Errorf("err = %v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("it was written all the same")
	}
	if parts, _ := filepath.Glob(filepath.Join(c.dir, ".part*")); len(parts) > 0 {
		t.Errorf("left: %v", parts)
	}
}

func TestServersWithoutVersions(t *testing.T) {
	const code = "#!/bin/sh\n"
	digest := func(b []byte) string {
		sum := sha256.Sum256(b)
		return "sha-256=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":"
	}
	// It packs for who takes that; a digest is of what it sends.
	packs := func(w http.ResponseWriter, r *http.Request) {
		text := []byte(code)
		if r.Header.Get("Accept-Encoding") != "identity" {
			var z bytes.Buffer
			zw := gzip.NewWriter(&z)
			_, _ = zw.Write(text)
			_ = zw.Close()
			text = z.Bytes()
			w.Header().Set("Content-Encoding", "gzip")
		}
		w.Header().Set("Repr-Digest", digest(text))
		_, _ = w.Write(text)
	}
	says := func(d string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if d != "" {
				w.Header().Set("Repr-Digest", d)
			}
			_, _ = io.WriteString(w, code)
		}
	}
	for name, tc := range map[string]struct {
		handler http.HandlerFunc
		ok      bool
	}{
		"no digest":       {says(""), true},
		"another digest":  {says(digest(nil)), false},
		"no SHA-256":      {says("sha-256=:AAAA:"), false},
		"digest, packing": {packs, true},
	} {
		s := httptest.NewServer(tc.handler)
		c := cache{dir: t.TempDir(), client: s.Client(), token: func() string { return "" }}
		path := filepath.Join(t.TempDir(), "bot")
		_, err := c.code(t.Context(), s.URL, "b", path)
		if got, _ := os.ReadFile(path); (err == nil) != tc.ok || tc.ok && string(got) != code {
			t.Errorf("%s: %v, wrote %q", name, err, got)
		}
		s.Client().CloseIdleConnections()
		s.Close()
	}
}

func TestOwnValuesWin(t *testing.T) {
	needShell(t)
	t.Setenv("SWARMING_BOT_ID", "stray")
	t.Setenv("SKEP_TOKEN", "secret")
	s := serveCode(t, patientBot)
	c := Config{BotID: "mine", WorkDirectory: workDir(t, "b"), Env: []string{"SWARMING_BOT_ID=other", "EXTRA=2"}}
	starter := NewStarter(s.Client(), s.URL+"/")
	b, err := starter.Start(c)
	if err != nil {
		t.Fatal(err)
	}
	log := said(t, c, "up")
	if !strings.Contains(log, "id mine secret none extra 2") {
		t.Errorf("the bot's environment: %s", log)
	}
	if err := b.TerminateOrKill(); err != nil {
		t.Error(err)
	}
	if e, ok := errors.AsType[*ExitError](b.Wait()); !ok || e.Code != 3 {
		t.Errorf("Wait = %v, want exit code 3 of a bot that was told twice", b.Wait())
	}
}

func TestDrainTellsOnce(t *testing.T) {
	needShell(t)
	s := serveCode(t, patientBot)
	c := Config{BotID: "b", WorkDirectory: workDir(t, "b")}
	b, err := NewStarter(s.Client(), s.URL).Start(c)
	if err != nil {
		t.Fatal(err)
	}
	said(t, c, "up")
	for range 3 {
		if err := b.Drain(); err != nil {
			t.Error(err)
		}
	}
	if n := strings.Count(said(t, c, "drains"), "drains"); n != 1 {
		t.Errorf("told %d times", n)
	}
	if _, err := os.Stat(c.DrainFile()); err != nil {
		t.Error(err)
	}
	if err := b.TerminateOrKill(); err != nil {
		t.Error(err)
	}
	if err := b.Drain(); err != nil {
		t.Errorf("drain of one that has ended: %v", err)
	}
}

// A bot that hears nothing, and has spread daemons, is gone after its grace.
func TestKilledWithAllThatItStarted(t *testing.T) {
	needShell(t)
	s := serveCode(t, "#!/bin/sh\ntrap '' TERM\nfor i in 1 2 3; do (setsid sh -c 'trap \"\" TERM; (sleep 1000 &) ; echo $$ >>kids; exec sleep 1000' &); done\nwhile [ \"$(wc -l <kids)\" != 3 ]; do :; done 2>/dev/null\necho up\nwhile :; do sleep 1; done\n")
	c := Config{BotID: "b", WorkDirectory: workDir(t, "b"), Grace: time.Millisecond}
	starter := NewStarter(s.Client(), s.URL)
	journal, err := reconcile.OpenJournal(filepath.Join(t.TempDir(), "journal"))
	if err != nil {
		t.Fatal(err)
	}
	defer journal.Close()
	starter.Journal = journal
	b, err := starter.Start(c)
	if err != nil {
		t.Fatal(err)
	}
	said(t, c, "up")
	inPlace := starter.none == nil && starter.method != proc.MethodGroup
	var place struct {
		Dirs []string `json:"dirs"`
	}
	if entries, _ := journal.Entries(t.Context()); inPlace && len(entries) != 1 {
		t.Errorf("the journal names %v", entries)
	} else if inPlace {
		if err := json.Unmarshal(entries[0].Note, &place); err != nil {
			t.Error(err)
		}
	}
	if err := b.TerminateOrKill(); err != nil {
		t.Fatal(err)
	}
	if e, ok := errors.AsType[*ExitError](b.Wait()); !ok || e.Code != -9 {
		t.Errorf("Wait = %v", b.Wait())
	}
	if !inPlace {
		noCgroups(t)
	}
	kids, _ := os.ReadFile(filepath.Join(c.WorkDirectory, "kids"))
	for _, pid := range strings.Fields(string(kids)) {
		if stat, err := os.ReadFile("/proc/" + pid + "/stat"); err == nil && !strings.Contains(string(stat), ") Z") {
			t.Errorf("process %s is left", pid)
		}
	}
	if entries, _ := journal.Entries(t.Context()); len(entries) != 0 {
		t.Errorf("the journal still names %v", entries)
	}
	for _, dir := range place.Dirs {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s is left", dir)
		}
	}
}

// What a crashed process started is ended by the next one's Recover.
func TestRecover(t *testing.T) {
	needShell(t)
	s := serveCode(t, patientBot)
	journal, err := reconcile.OpenJournal(filepath.Join(t.TempDir(), "journal"))
	if err != nil {
		t.Fatal(err)
	}
	defer journal.Close()
	c := Config{BotID: "b", WorkDirectory: workDir(t, "b")}
	first := NewStarter(s.Client(), s.URL)
	first.Journal = journal
	b, err := first.Start(c)
	if err != nil {
		t.Fatal(err)
	}
	said(t, c, "up")
	if first.none != nil {
		_ = b.TerminateOrKill()
		noCgroups(t)
	}
	second := NewStarter(s.Client(), s.URL)
	second.Journal = journal
	if err := second.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e, ok := errors.AsType[*ExitError](b.Wait()); !ok || e.Code != -9 {
		t.Errorf("Wait = %v", b.Wait())
	}
	if entries, _ := journal.Entries(t.Context()); len(entries) != 0 {
		t.Errorf("the journal still names %v", entries)
	}
	if err := second.Recover(t.Context()); err != nil {
		t.Errorf("once more: %v", err)
	}
}

// A cgroup that cannot be set up is told at once, and nothing is left of it.
func TestFailingSetUp(t *testing.T) {
	needShell(t)
	s := serveCode(t, patientBot)
	journal, err := reconcile.OpenJournal(filepath.Join(t.TempDir(), "journal"))
	if err != nil {
		t.Fatal(err)
	}
	defer journal.Close()
	starter := NewStarter(s.Client(), s.URL)
	starter.Journal = journal
	weird := &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "no such processor"}}
	c := Config{BotID: "b", WorkDirectory: workDir(t, "b"), Resources: weird}
	begun := time.Now()
	if b, err := starter.Start(c); err == nil {
		t.Fatalf("started %v", b)
	} else if skep.KindOf(err) != skep.Precondition {
		t.Errorf("kind %v of %v", skep.KindOf(err), err)
	}
	t.Logf("refused after %v", time.Since(begun))
	if entries, _ := journal.Entries(t.Context()); len(entries) != 0 {
		t.Errorf("the journal names %v", entries)
	}
	for _, r := range []*specs.LinuxResources{
		{Devices: []specs.LinuxDeviceCgroup{{Allow: true}}},
		{Unified: map[string]string{"cgroup.procs": "1"}},
		{Unified: map[string]string{"memory/../x.y": "1"}},
		{Memory: &specs.LinuxMemory{Swap: new(int64)}},
	} {
		c.Resources = r
		if _, err := starter.Start(c); skep.KindOf(err) != skep.Invalid {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

func TestBadConfigs(t *testing.T) {
	s := NewStarter(nil, "http://127.0.0.1:1")
	for _, c := range []Config{{WorkDirectory: t.TempDir()}, {BotID: "b"}, {BotID: "b", WorkDirectory: "/nowhere"}, {BotID: "a=b", WorkDirectory: t.TempDir()}} {
		if _, err := s.Start(c); skep.KindOf(err) != skep.Invalid {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if _, err := s.Start(Config{BotID: "b", WorkDirectory: workDir(t, "b")}); skep.KindOf(err) != skep.Unavailable {
		t.Errorf("without a server: %v", err)
	}
}

// Whether a bot may start is asked when its code is there, and what is refused
// does not run.
func TestAdmitIsAskedLast(t *testing.T) {
	code := serveCode(t, "#!/bin/sh\ntouch ran\n")
	s := NewStarter(code.Client(), code.URL)
	asked := int32(0)
	refused := skep.Errorf(skep.Unavailable, "too late")
	c := Config{BotID: "b", WorkDirectory: workDir(t, "b"), Admit: func() error {
		asked = code.downloads.Load()
		return refused
	}}
	if _, err := s.Start(c); !errors.Is(err, refused) || asked != 1 {
		t.Errorf("refused: %v, asked after %d downloads", err, asked)
	}
	if _, err := os.Stat(filepath.Join(c.WorkDirectory, "ran")); err == nil {
		t.Error("it ran")
	}
}

func TestFakeBot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewFakeBot()
		b.DrainFunc = func(b *FakeBot) error {
			go func() {
				time.Sleep(time.Hour) // its task
				b.Stop()
			}()
			return nil
		}
		begun := time.Now()
		if err := b.Drain(); err != nil {
			t.Error(err)
		}
		if err := b.Wait(); err != nil || time.Since(begun) != time.Hour {
			t.Errorf("Wait = %v after %v", err, time.Since(begun))
		}
		var zero FakeBot
		failure := errors.New("failed")
		zero.StopWith(failure)
		zero.Stop()
		if err := errors.Join(zero.Drain(), zero.TerminateOrKill()); err != nil {
			t.Error(err)
		}
		if err := zero.Wait(); err != failure {
			t.Errorf("Wait = %v", err)
		}
	})
}

// stubborn is a place that is not cleared until it may be.
type stubborn struct {
	mu    sync.Mutex
	may   bool
	tries int
	tried chan struct{} // closed by the second try
}

func (s *stubborn) Kill(time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tries++; s.tries == 2 {
		close(s.tried)
	}
	if !s.may {
		return errors.New("a process does not end")
	}
	return nil
}

func (s *stubborn) Remove() error { return nil }

// While something of a bot is left it has not ended: another one must not
// start, nor its device be given away.
func TestNotEndedBeforeNothingIsLeft(t *testing.T) {
	needShell(t)
	for name, end := range map[string]func(Bot) error{"by itself": Bot.Wait, "told to": Bot.TerminateOrKill} {
		t.Run(name, func(t *testing.T) {
			p, err := proc.Start(&proc.Cmd{Path: "/bin/sh", Args: []string{"sh", "-c", "exit 0"}, Dir: "/", NewGroup: true})
			if err != nil {
				t.Fatal(err)
			}
			left, forgotten := &stubborn{tried: make(chan struct{})}, make(chan struct{})
			b := &process{
				cfg: Config{BotID: "b", Grace: time.Millisecond}, proc: p, place: left,
				forget: func() { close(forgotten) }, log: slog.New(slog.DiscardHandler), done: make(chan struct{}),
			}
			go b.follow()
			ended := make(chan error, 1)
			go func() { ended <- end(b) }()
			<-left.tried
			select {
			case err := <-ended:
				t.Fatalf("it has ended (%v) while a process of it lives", err)
			case <-forgotten:
				t.Fatal("the journal forgets it while a process of it lives")
			default:
			}
			left.mu.Lock()
			left.may = true
			left.mu.Unlock()
			if err := <-ended; err != nil {
				t.Error(err)
			}
			<-forgotten
		})
	}
}
