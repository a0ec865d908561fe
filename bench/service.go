package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/skepdev/skep/api/prpc"
	"github.com/skepdev/skep/client"
	"github.com/skepdev/skep/internal/proc"
	"github.com/skepdev/skep/store"
)

// service is a skep server or skep up, a child with a state of its own.
type service struct {
	URL        string
	Durability map[string]string // as its engine says, read on the connection that writes
	Engine     string

	stateDir string
	process  *proc.Process
	log      string // path
	client   *client.Client
	drop     func() error // takes back what was made in a database
}

// startup is how long a server may take until it answers.
const startup = time.Minute

// start runs `skep verb args…` and returns when it is ready.
func (r *run) start(ctx context.Context, verb string, env []string, args ...string) (_ *service, err error) {
	exe, err := r.exe()
	if err != nil {
		return nil, err
	}
	s := &service{drop: func() error { return nil }}
	if s.stateDir, err = os.MkdirTemp(r.dir, verb+"-"); err != nil {
		return nil, err
	}
	if err := os.Chmod(s.stateDir, 0o711); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stop())
		}
	}()
	env = append(plainEnviron(), env...)
	if r.DB != "" {
		dsn, drop, err := store.Scratch(ctx, r.DB)
		if err != nil {
			return nil, err
		}
		s.drop = func() error { return drop(context.Background()) }
		env = append(env, "SKEP_DB="+dsn) // may hold a password
	}
	argv := []string{exe, verb, "--listen", "127.0.0.1:0", "--state-dir", s.stateDir}
	if r.BotDir != "" {
		argv = append(argv, "--bot-dir", r.BotDir)
	}
	argv = append(append(argv, args...), r.ServerArgs...)
	s.log = filepath.Join(r.dir, filepath.Base(s.stateDir)+".log")
	if err := s.launch(argv, env); err != nil {
		return nil, err
	}
	if s.client, err = client.New(client.Options{Server: s.URL, Retry: prpc.Retry{Times: -1}}); err != nil {
		return nil, err
	}
	return s, s.readBack()
}

// exe returns the skep executable. A test binary is none.
func (r *run) exe() (string, error) {
	if r.Exe != "" {
		return filepath.Abs(r.Exe)
	}
	return os.Executable()
}

// plainEnviron is our environment without what would steer a server.
func plainEnviron() []string {
	var out []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "SKEP_") && !strings.HasPrefix(kv, "SWARMING_") && !strings.HasPrefix(kv, "LUCI_") {
			out = append(out, kv)
		}
	}
	return out
}

// launch starts the process and reads its address from what it prints. Its log
// goes to a file, as an operator would have it.
func (s *service) launch(argv, env []string) error {
	logFile, err := os.Create(s.log)
	if err != nil {
		return err
	}
	defer logFile.Close()
	out, stdout, err := os.Pipe()
	if err != nil {
		return err
	}
	s.process, err = proc.Start(&proc.Cmd{
		Path: argv[0], Args: argv, Env: env, Files: []*os.File{nil, stdout, logFile}, NewGroup: true, ParentDeath: true,
	})
	stdout.Close()
	if err != nil {
		out.Close()
		return fmt.Errorf("start %s: %w", argv[0], err)
	}
	ready := make(chan string, 1)
	go func() { // until the process ends
		defer out.Close()
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if _, rest, ok := strings.Cut(lines.Text(), "ready at "); ok {
				url, _, _ := strings.Cut(rest, " ")
				select {
				case ready <- url:
				default:
				}
			}
		}
	}()
	select {
	case s.URL = <-ready:
		return nil
	case <-s.process.Done():
		return fmt.Errorf("%s ended before it was ready: %s", strings.Join(argv[:2], " "), s.lastWords())
	case <-time.After(startup):
		return fmt.Errorf("%s was not ready in %v: %s", strings.Join(argv[:2], " "), startup, s.lastWords())
	}
}

// lastWords returns the end of the log, for an error.
func (s *service) lastWords() string {
	b, err := os.ReadFile(s.log)
	if err != nil {
		return err.Error()
	}
	b = bytes.TrimSpace(b)
	if len(b) > 600 {
		b = b[len(b)-600:]
	}
	return string(b)
}

// readBack finds in the log what the server's own connection said about
// durability. Another connection would tell only about itself.
func (s *service) readBack() error {
	f, err := os.Open(s.log)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if !strings.Contains(lines.Text(), `msg="store open"`) {
			continue
		}
		s.Durability = map[string]string{}
		for _, kv := range strings.Fields(lines.Text()) {
			switch k, v, _ := strings.Cut(kv, "="); k {
			case "time", "level", "msg", `open"`:
			case "engine":
				s.Engine = v
			default:
				s.Durability[k] = v
			}
		}
		return s.mustBeDurable()
	}
	return errors.Join(lines.Err(), errors.New("the server does not say how durable its commits are; no figure without that"))
}

// durable are the settings behind every figure. decisions.md 20.
var durable = map[string]map[string]string{
	"sqlite":   {"synchronous": "FULL"},
	"postgres": {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on"},
}

func (s *service) mustBeDurable() error {
	want, ok := durable[s.Engine]
	if !ok {
		return fmt.Errorf("the server runs on %q, an engine that this bench does not know", s.Engine)
	}
	for k, v := range want {
		if s.Durability[k] != v {
			return fmt.Errorf("the engine's %s is %q, want %q: its figures would not be those of durable commits", k, s.Durability[k], v)
		}
	}
	return nil
}

// about is what every report says of the server it measured.
func (s *service) about(extra map[string]any) map[string]any {
	extra["engine"], extra["durability"] = s.Engine, s.Durability
	return extra
}

// pid of the server.
func (s *service) pid() int { return s.process.Pid }

// bots returns the process ids of the bots of skep up.
func (s *service) bots() []int {
	var pids []int
	locks, _ := filepath.Glob(filepath.Join(s.stateDir, "bots", "*", "swarming.lck"))
	for _, path := range locks {
		var pid int
		if b, err := os.ReadFile(path); err == nil {
			if _, err := fmt.Sscan(string(b), &pid); err == nil && pid > 1 {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// stop ends the server and its bots, politely first.
func (s *service) stop() error {
	var errs []error
	if s.client != nil {
		s.client.Close()
	}
	if s.process != nil {
		bots := s.bots()
		errs = append(errs, s.end())
		for _, pid := range bots { // skep up takes them along unless it was killed
			for _, p := range treeOf(pid) {
				if found, err := os.FindProcess(p); err == nil && runsHere(p, s.stateDir) {
					_ = found.Kill()
				}
			}
		}
	}
	return errors.Join(append(errs, s.drop())...)
}

// end sends SIGTERM, which for skep up drains, then again, which stops, and
// at last kills.
func (s *service) end() error {
	for _, wait := range []time.Duration{2 * time.Second, 30 * time.Second} {
		if err := s.process.Terminate(); errors.Is(err, proc.ErrGone) {
			return nil
		}
		select {
		case <-s.process.Done():
			if st := s.process.Wait(); st.Code != 0 {
				return fmt.Errorf("the server ended with %d: %s", st.Code, s.lastWords())
			}
			return nil
		case <-time.After(wait):
		}
	}
	_ = s.process.Kill()
	<-s.process.Done()
	return fmt.Errorf("the server did not end on request: %s", s.lastWords())
}

// parallel calls do for 0 to n-1, at most width at a time, and returns the
// first error.
func parallel(n, width int, do func(i int) error) error {
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		next  int
		first error
	)
	for range min(n, width) {
		wg.Go(func() {
			for {
				mu.Lock()
				i := next
				next++
				stop := i >= n || first != nil
				mu.Unlock()
				if stop {
					return
				}
				if err := do(i); err != nil {
					mu.Lock()
					if first == nil {
						first = err
					}
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return first
}
