package content

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/skepdev/skep/api/prpc"
	"github.com/skepdev/skep/client"
	"github.com/skepdev/skep/internal/debris"
	"github.com/skepdev/skep/internal/proc"
)

// site is a server with a storage and a few bots, real processes below one
// directory that may be killed and started again.
type site struct {
	root   string // holds everything; removed by close
	bin    string // of skep and skep-bot
	url    string
	args   []string // further ones of the server
	client *client.Client

	server *proc.Process
	bots   []*member
}

// member is one bot of a site.
type member struct {
	id  string
	dir string
	log string
	p   *proc.Process
}

// plan is what a site is made with.
type plan struct {
	bin       string
	root      string   // "" = a temporary directory of its own
	cacheSize int64    // bytes of each bot's cache of inputs; 0 = as ever
	cacheDir  string   // that all bots share; "" = each has its own
	server    []string // further arguments of the server
}

// open makes a site and starts its server. The bots' rules of free disk space
// are loose: a disk that is nearly full would empty every cache, and that is
// not what is shown here.
func (pl plan) open(ctx context.Context) (_ *site, err error) {
	s := &site{root: pl.root}
	if s.root == "" {
		if s.root, err = os.MkdirTemp("", "skep-content-"); err != nil {
			return nil, err
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if err := os.Chmod(s.root, 0o755); err != nil { // tasks may be other users
		return nil, err
	}
	if s.bin, err = filepath.Abs(pl.bin); err != nil {
		return nil, err
	}
	scripts := s.path("config", "scripts")
	if err := os.MkdirAll(scripts, 0o755); err != nil {
		return nil, err
	}
	size := pl.cacheSize
	if size == 0 {
		size = 50 << 30
	}
	hook := fmt.Sprintf(`def get_settings(bot):
    return {
        "free_partition": {
            "root": {"size": 1, "max_percent": 1.0, "min_percent": 0.0},
            "bot": {"size": 1, "max_percent": 1.0, "min_percent": 0.0, "wiggle": 0},
        },
        "caches": {"isolated": {"size": %d, "dir": %q}},
    }
`, size, pl.cacheDir)
	if err := os.WriteFile(filepath.Join(scripts, "bot_config.star"), []byte(hook), 0o644); err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	s.url = fmt.Sprintf("http://127.0.0.1:%d", port)
	s.args = append([]string{"--config", s.path("config")}, pl.server...)
	if !slices.Contains(pl.server, "--cas") {
		s.args = append(s.args, "--cas-min-free", "64MiB")
	}
	if s.client, err = client.New(client.Options{
		Server: s.url, Retry: prpc.Retry{Times: 100, First: 50 * time.Millisecond, Max: 500 * time.Millisecond, For: time.Minute, Refused: -1},
	}); err != nil {
		return nil, err
	}
	return s, s.startServer(ctx)
}

func (s *site) path(elem ...string) string {
	return filepath.Join(append([]string{s.root}, elem...)...)
}

// freePort draws a port outside of the range of outgoing connections: a client
// of a server that is down could meet itself there.
func freePort() (int, error) {
	for range 100 {
		port := 20000 + rand.IntN(10000)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		return port, l.Close()
	}
	return 0, errors.New("no free port")
}

func (s *site) environ(more ...string) []string {
	return append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.root, "LANG=C.UTF-8"}, more...)
}

// start starts a process whose log is kept; it dies with us.
func (s *site) start(log, dir string, env []string, argv ...string) (*proc.Process, error) {
	f, err := os.OpenFile(log, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return proc.Start(&proc.Cmd{
		Path: argv[0], Args: argv, Env: env, Dir: dir, Files: []*os.File{nil, f, f}, NewGroup: true, ParentDeath: true,
	})
}

const readyTime = 30 * time.Second

// startServer starts the server and waits until it is ready.
func (s *site) startServer(ctx context.Context) (err error) {
	argv := append([]string{filepath.Join(s.bin, "skep"), "server", "--listen", strings.TrimPrefix(s.url, "http://"), "--state-dir", s.path("state")}, s.args...)
	if s.server, err = s.start(s.path("server.log"), s.root, s.environ(), argv...); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	for {
		if _, err := s.get(ctx, "/readyz"); err == nil {
			return nil
		}
		select {
		case <-s.server.Done():
			return fmt.Errorf("the server ended: %s", tail(s.path("server.log")))
		case <-ctx.Done():
			return fmt.Errorf("the server is not ready after %v: %s", readyTime, tail(s.path("server.log")))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (s *site) get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+path, nil)
	if err != nil {
		return nil, err
	}
	req.Close = true
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s: %.200s", path, res.Status, b)
	}
	return b, err
}

// addBot gets the bot's code from the server and starts it.
func (s *site) addBot(ctx context.Context, id string) (*member, error) {
	m := &member{id: id, dir: s.path("bots", id), log: s.path(id + ".log")}
	if err := os.MkdirAll(m.dir, 0o755); err != nil {
		return nil, err
	}
	code, err := s.get(ctx, "/bot_code?bot_id="+id)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(m.dir, "swarming_bot"), code, 0o755); err != nil {
		return nil, err
	}
	s.bots = append(s.bots, m)
	return m, s.startBot(m)
}

func (s *site) startBot(m *member) (err error) {
	exe := filepath.Join(m.dir, "swarming_bot")
	m.p, err = s.start(m.log, m.dir, s.environ("SWARMING_BOT_ID="+m.id, "SKEP_REBOOT=none"), exe, "start_bot")
	return err
}

// killWait is kill -9, and waits for the end.
func killWait(p *proc.Process) error {
	if err := p.Kill(); err != nil && !errors.Is(err, proc.ErrGone) {
		return err
	}
	<-p.Done()
	return nil
}

// end asks a process to end and kills one that does not.
func end(name string, p *proc.Process, patience time.Duration) error {
	if p == nil {
		return nil
	}
	if err := p.Terminate(); errors.Is(err, proc.ErrGone) {
		return nil
	}
	select {
	case <-p.Done():
		return nil
	case <-time.After(patience):
		return errors.Join(fmt.Errorf("%s did not end within %v of SIGTERM", name, patience), killWait(p))
	}
}

// stop ends all processes: bots drain, then the server ends.
func (s *site) stop() error {
	var errs []error
	for _, m := range s.bots {
		if m.p != nil {
			_ = m.p.Terminate()
		}
	}
	for _, m := range s.bots {
		errs = append(errs, end("bot "+m.id, m.p, 20*time.Second))
	}
	errs = append(errs, end("the server", s.server, 15*time.Second))
	s.bots, s.server = nil, nil
	return errors.Join(errs...)
}

// close ends all processes and removes everything.
func (s *site) close() error {
	err := s.stop()
	if s.client != nil {
		s.client.Close()
	}
	if os.Getenv("SKEP_KEEP") != "" {
		fmt.Println("kept:", s.root)
		return err
	}
	return errors.Join(err, debris.Remove(s.root))
}

// tail is the end of a log.
func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	b = bytes.TrimSpace(b)
	return string(b[max(0, len(b)-1500):])
}
