// Package birth shows that a bot is born from one download and comes back by
// itself, whatever of it is killed while it replaces its own code.
package birth

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/skepdev/skep"
	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/bot"
	"github.com/skepdev/skep/bot/code"
	"github.com/skepdev/skep/bot/update"
	"github.com/skepdev/skep/client"
	"github.com/skepdev/skep/internal/proc"
	"github.com/skepdev/skep/internal/show/form"
	"github.com/skepdev/skep/internal/stage/fleet"
	"github.com/skepdev/skep/rollout"
)

var (
	bornBound = form.Of(3*time.Second, 30*time.Second) // from the start of curl to a connected bot
	backBound = form.Of(time.Minute, 5*time.Minute)    // from a kill to a connected bot
)

// moments are when a bot is killed; each is seen from outside, by what lies in
// its directory.
var moments = []string{"download", "check", "trial", "restart", "any"}

type show struct {
	dir, skep, exe, url, listen, id string
	admin                           string // token
	kills                           int
	rng                             *mrand.Rand

	server *fleet.Fleet
	api    *client.Client
	born   *proc.Process
	known  map[string]bool // digests that a server handed out
	killed map[string]int  // by moment
	slow   time.Duration   // longest way back
}

// Main runs the demonstration and returns an exit code. SKEP_SHOW=short kills
// a few times only.
func Main(args []string) int {
	flags := flag.NewFlagSet("birth", flag.ExitOnError)
	kills := flags.Int("kills", 200, "how often to kill the bot")
	seed := flags.Uint64("seed", uint64(time.Now().UnixNano()), "of the random moments")
	_ = flags.Parse(args)
	form.Say()
	if form.Short() {
		*kills = 10
	}
	dir, err := os.MkdirTemp("", "skep-birth-")
	if err == nil {
		defer os.RemoveAll(dir)
		s := &show{
			dir: dir, kills: *kills, rng: mrand.New(mrand.NewPCG(*seed, 0)), known: map[string]bool{}, killed: map[string]int{},
		}
		fmt.Printf("seed %d\n", *seed)
		err = s.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "show birth:", err)
		return 1
	}
	fmt.Println("passed")
	return 0
}

func (s *show) run() (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute+time.Duration(s.kills)*(backBound/4))
	defer cancel()
	if s.skep, err = filepath.Abs("bin/skep"); err != nil {
		return err
	}
	if s.exe, err = filepath.Abs("bin/skep-bot"); err != nil {
		return err
	}
	for i := 0; ; i++ { // a canary, which gets new code at once
		if s.id = fmt.Sprintf("birth-%d", i); rollout.Canary(skep.BotID(s.id)) < 5 {
			break
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.listen = l.Addr().String()
	s.url = "http://" + s.listen
	if err := l.Close(); err != nil {
		return err
	}
	if s.admin, err = s.token("--scope", "admin"); err != nil {
		return err
	}
	boot, err := s.token("--bootstrap", "--bot-id", "birth-*", "--count", "1", "--expires", "1h")
	if err != nil {
		return err
	}
	if err := s.serve(ctx, 0); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, s.end())
		if err != nil {
			fmt.Fprintln(os.Stderr, s.server.Log())
		}
	}()
	if s.api, err = client.New(client.Options{Server: s.url, Token: s.admin}); err != nil {
		return err
	}
	if err := s.birth(ctx, boot); err != nil {
		return err
	}
	for i := range s.kills {
		if err := s.round(ctx, i+1); err != nil {
			return fmt.Errorf("round %d: %w", i+1, err)
		}
	}
	fmt.Printf("killed %d times: %v; back within %v at most\n", s.kills, s.killed, s.slow.Round(time.Millisecond))
	return s.last(ctx)
}

func (s *show) token(args ...string) (string, error) {
	out, err := exec.Command(s.skep, append([]string{"token", "create", "--state-dir", s.state(), "--name", args[0][2:]}, args...)...).Output()
	return strings.TrimSpace(string(out)), err
}

func (s *show) state() string { return filepath.Join(s.dir, "state") }
func (s *show) home() string  { return filepath.Join(s.dir, "bot") }

// serve starts a server whose bot differs from all before: the same program,
// and some bytes that nobody looks at.
func (s *show) serve(ctx context.Context, n int) error {
	if s.server != nil {
		if err := s.server.Stop(); err != nil {
			return err
		}
	}
	builds := filepath.Join(s.dir, fmt.Sprintf("build-%d", n))
	if err := os.RemoveAll(filepath.Join(s.dir, fmt.Sprintf("build-%d", n-1))); err != nil {
		return err
	}
	if err := os.Mkdir(builds, 0o700); err != nil {
		return err
	}
	exe, err := os.ReadFile(s.exe)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(builds, "skep-bot"), append(exe, rand.Text()...), 0o755); err != nil {
		return err
	}
	if s.server, err = fleet.Start(ctx, "", s.skep, "server", "--listen", s.listen, "--state-dir", s.state(), "--bot-dir", builds); err != nil {
		return err
	}
	digest, err := s.offered(ctx)
	s.known[digest] = true
	return err
}

// offered is the digest of the code that the server hands out to our bot.
func (s *show) offered(ctx context.Context) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/bot_code?bot_id="+s.id, nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "Bearer "+s.admin)
	res, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusFound {
		return "", fmt.Errorf("/bot_code answers %s", res.Status)
	}
	return path.Base(res.Header.Get("Location")), nil
}

// birth makes a bot as the documentation says.
func (s *show) birth(ctx context.Context, tok string) error {
	if err := os.Mkdir(s.home(), 0o700); err != nil {
		return err
	}
	out, err := os.Create(filepath.Join(s.dir, "birth.log"))
	if err != nil {
		return err
	}
	defer out.Close()
	start := time.Now()
	line := fmt.Sprintf("curl -fsS '%s/bootstrap?tok=%s' | sh -s -- --id %s", s.url, tok, s.id)
	s.born, err = proc.Start(&proc.Cmd{
		Path: "/bin/sh", Args: []string{"sh", "-c", line}, Dir: s.home(), Files: []*os.File{nil, out, out}, NewGroup: true,
		Env: []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir},
	})
	if err != nil {
		return err
	}
	if _, err := s.connected(ctx, "", bornBound*2); err != nil {
		log, _ := os.ReadFile(out.Name())
		return fmt.Errorf("%w\n%s", err, log)
	}
	took := time.Since(start)
	fmt.Printf("curl | sh to a connected bot: %v   bound %v\n", took.Round(time.Millisecond), bornBound)
	if took > bornBound {
		return fmt.Errorf("it took %v, want %v", took, bornBound)
	}
	for end := time.Now().Add(bornBound); ; time.Sleep(time.Millisecond) { // the server knows a moment sooner than the bot
		_, err := os.Stat(filepath.Join(s.home(), bot.BootstrapFile))
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if time.Now().After(end) {
			return errors.New("the bootstrap token is still there")
		}
	}
	st, err := os.Stat(filepath.Join(s.home(), bot.CredentialFile))
	if err != nil || st.Mode().Perm() != 0o600 {
		return fmt.Errorf("the credential: mode %v, %w", st.Mode(), err)
	}
	return nil
}

// connected waits until the bot polls as another process than session, and
// checks what it runs.
func (s *show) connected(ctx context.Context, session string, patience time.Duration) (*pb.BotInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var last error
	for {
		b, err := s.api.GetBot(ctx, &pb.BotRequest{BotId: s.id})
		switch {
		case err != nil:
			last = err
		case b.IsDead || b.SessionId == session || b.Version == "":
			last = fmt.Errorf("the server last heard of it at %v", b.LastSeenTs.AsTime())
		case !s.known[b.Version]:
			return nil, fmt.Errorf("it runs %s, which no server handed out", b.Version)
		default:
			return b, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the bot is not back after %v: %w", patience, last)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// round offers new code and kills the bot at some moment of its becoming that.
func (s *show) round(ctx context.Context, n int) error {
	before, err := s.connected(ctx, "", backBound)
	if err != nil {
		return err
	}
	if err := s.serve(ctx, n); err != nil {
		return err
	}
	moment := moments[s.rng.IntN(len(moments))]
	if !s.await(moment) {
		fmt.Printf("round %d: no %s was seen\n", n, moment)
		moment = "any"
	}
	time.Sleep(time.Duration(s.rng.IntN(20_000)) * time.Microsecond) //nolint:forbidigo // the random moment itself
	pid, running := bot.Running(s.home())
	if running && pid > 0 {
		if err := signal(pid, os.Kill); err != nil {
			return err
		}
	}
	s.killed[moment]++
	start := time.Now()
	b, err := s.connected(ctx, before.SessionId, backBound)
	if err != nil {
		return fmt.Errorf("killed at %q: %w", moment, err)
	}
	s.slow = max(s.slow, time.Since(start))
	return s.valid(b)
}

// await returns when the moment has come; false when it did not come soon.
func (s *show) await(moment string) bool {
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Microsecond) {
		parts, _ := filepath.Glob(filepath.Join(s.home(), "*.part"))
		_, trial := os.Stat(filepath.Join(s.home(), update.StateFile))
		switch moment {
		case "download":
			if len(parts) > 0 {
				return true
			}
		case "check": // downloaded, and not on trial yet
			if len(parts) > 0 {
				for time.Now().Before(end) {
					if parts, _ = filepath.Glob(filepath.Join(s.home(), "*.part")); len(parts) == 0 {
						return true
					}
				}
			}
		case "trial":
			if trial == nil {
				return true
			}
		case "restart":
			if trial == nil {
				time.Sleep(time.Duration(s.rng.IntN(300)) * time.Millisecond)
				return true
			}
		default:
			time.Sleep(time.Duration(s.rng.IntN(1500)) * time.Millisecond)
			return true
		}
	}
	return false
}

// valid checks that the process runs what it says.
func (s *show) valid(b *pb.BotInfo) error {
	pid, running := bot.Running(s.home())
	if !running {
		return nil // between two processes
	}
	_, text, _ := strings.Cut(b.SessionId, "/")
	if text != strconv.Itoa(pid) {
		return nil // it is replacing itself
	}
	have, err := code.Version(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return nil //nolint:nilerr // it ended meanwhile
	}
	if !s.known[have] {
		return fmt.Errorf("the process runs %s, which no server handed out", have)
	}
	return nil
}

// last lets the bot become what the last server offers and do some work.
func (s *show) last(ctx context.Context) error {
	if err := s.serve(ctx, s.kills+1); err != nil {
		return err
	}
	want, err := s.offered(ctx)
	if err != nil {
		return err
	}
	start := time.Now()
	for {
		b, err := s.connected(ctx, "", backBound)
		if err != nil {
			return err
		}
		if b.Version == want {
			break
		}
		if time.Since(start) > backBound {
			return fmt.Errorf("left alone, the bot still runs %s, want %s", b.Version, want)
		}
		time.Sleep(50 * time.Millisecond)
	}
	fmt.Printf("left alone it runs the new code after %v\n", time.Since(start).Round(time.Millisecond))
	cmd := exec.CommandContext(ctx, s.skep, "run", "-d", "id="+s.id, "--", "echo", "alive")
	cmd.Env = append(os.Environ(), "SKEP_SERVER="+s.url, "SKEP_TOKEN="+s.admin)
	if out, err := cmd.Output(); err != nil || string(out) != "alive\n" {
		return fmt.Errorf("a task printed %q, %w", out, err)
	}
	return nil
}

// signal reaches a process that may have ended.
func signal(pid int, sig os.Signal) error {
	p, err := os.FindProcess(pid)
	if err == nil {
		err = p.Signal(sig)
	}
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// end terminates the bot and looks what it left.
func (s *show) end() error {
	var errs []error
	if s.born != nil {
		if pid, ok := bot.Running(s.home()); ok {
			_ = signal(pid, syscall.SIGTERM)
		}
		select {
		case <-s.born.Done():
		case <-time.After(backBound / 3):
			errs = append(errs, errors.New("the shell that started the bot did not end with it"))
			_ = s.born.Kill()
		}
		if _, ok := bot.Running(s.home()); ok {
			errs = append(errs, errors.New("a bot still runs"))
		}
		entries, _ := os.ReadDir(s.home())
		var odd []string
		for _, e := range entries {
			if n := e.Name(); strings.HasSuffix(n, ".part") || strings.HasPrefix(n, ".") || strings.HasPrefix(n, "w") {
				odd = append(odd, n)
			}
		}
		if slices.Sort(odd); len(odd) > 0 {
			errs = append(errs, fmt.Errorf("left behind: %v", odd))
		}
	}
	return errors.Join(append(errs, s.server.Stop())...)
}
