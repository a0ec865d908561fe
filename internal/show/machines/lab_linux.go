package machines

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/skepdev/skep/api/skeppb"
	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/client"
	"github.com/skepdev/skep/internal/show/form"
	"github.com/skepdev/skep/internal/stage/fleet"
	"github.com/skepdev/skep/internal/stage/ownengine"
	"github.com/skepdev/skep/provider"
)

// lab is issue 6, show 1, with machines that are not the server's own children:
// containers of an engine, and boards that a plug-in program hands out.
type lab struct {
	laptop
	engine *ownengine.Engine
	image  string // id
	shelf  string // directory of the plug-in program
}

// Pools of the demonstration.
const (
	boxes  = "box"
	boards = "board"
)

// Lab runs the demonstration and returns an exit code. SKEP_SHOW=short lets
// machines live 4 s instead of 20 s.
func Lab() int {
	if why := ownengine.Missing(); why != "" {
		fmt.Fprintf(os.Stderr, "show machines lab: SKIPPED: needs %s\n", why)
		if strings.Contains(os.Getenv("SKEP_TEST_REQUIRE"), "docker") {
			return 1
		}
		return 0
	}
	dir, err := os.MkdirTemp("/var/tmp", "skep-lab-") // a socket's path is short
	if err == nil {
		defer os.RemoveAll(dir)
		s := &lab{laptop: laptop{dir: dir, lifetime: 20 * time.Second, serves: "lab"}}
		if form.Short() {
			s.lifetime = 4 * time.Second
		}
		err = s.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "show machines lab:", err)
		return 1
	}
	fmt.Println("passed")
	return 0
}

func (s *lab) run() (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), form.Of(5*time.Minute, 20*time.Minute)+10*s.lifetime)
	defer cancel()
	if err := os.Chmod(s.dir, 0o755); err != nil { //nolint:gosec // tasks run as another user
		return err
	}
	if s.skep, err = filepath.Abs("bin/skep"); err != nil {
		return err
	}
	if s.engine, err = ownengine.Start(ctx, filepath.Join(s.dir, "d")); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.engine.Stop()) }()
	if err := errors.Join(s.makeImage(ctx), s.makeShelf()); err != nil {
		return err
	}
	if err := os.Setenv("DOCKER_HOST", s.engine.Host()); err != nil { // for the server
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.listen = l.Addr().String()
	if err := errors.Join(l.Close(), os.Mkdir(s.config(), 0o755)); err != nil { //nolint:gosec // no secret
		return err
	}
	defer func() {
		if s.server != nil {
			s.server.Kill()
		}
		err = errors.Join(err, s.sweep())
	}()
	if err := s.declare(s.pools(2, s.lifetime)...); err != nil {
		return err
	}
	if err := s.up(ctx); err != nil {
		return err
	}
	s.load = startLoad(ctx, s.api, s.serves)
	defer s.load.stop()
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"2 + 2 machines", func(ctx context.Context) error { return s.become(ctx, 2) }},
		{fmt.Sprintf("a lifetime of %v", s.lifetime), s.lifetimes},
		{"3 + 3 of another", func(ctx context.Context) error { return s.resize(ctx, 3) }},
		{"accidents", s.accidents},
		{"the server killed", s.killServer},
		{"1 + 1 machines", func(ctx context.Context) error { return s.resize(ctx, 1) }},
		{"removed Configs", s.remove},
	} {
		start := time.Now()
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%s: %w\n%s", step.name, err, s.server.Log())
		}
		fmt.Printf("%-20s converged after %v\n", step.name, time.Since(start).Round(100*time.Millisecond))
	}
	done, cut := s.load.stop()
	fmt.Printf("%d tasks, %d in containers and %d on boards, %d cut\n", done, s.load.by[boxes], s.load.by[boards], len(cut))
	if len(cut) > 0 || s.load.by[boxes] < 5 || s.load.by[boards] < 5 {
		return fmt.Errorf("%d tasks done, %v; cut: %v", done, s.load.by, cut)
	}
	if err := s.server.Stop(); err != nil {
		return err
	}
	if err := s.nothingLeft(ctx); err != nil {
		return err
	}
	start := time.Now()
	if err := s.closed(ctx); err != nil {
		return fmt.Errorf("a closed server: %w", err)
	}
	fmt.Printf("a container and a board of a server with TLS and tokens came, did tasks and went: %v\n", time.Since(start).Round(100*time.Millisecond))
	return s.nothingLeft(ctx)
}

// closed has a server that asks for tokens, with an authority of its own, make
// a container and a board: they bring what their bots need to get in.
func (s *lab) closed(ctx context.Context) (err error) {
	c := &lab{laptop: laptop{dir: filepath.Join(s.dir, "closed"), serves: s.serves}, engine: s.engine, image: s.image, shelf: s.shelf}
	if err := os.MkdirAll(c.config(), 0o755); err != nil { //nolint:gosec // no secret
		return err
	}
	token, err := exec.CommandContext(ctx, s.skep, "token", "create", "--state-dir", c.state(), "--scope", "admin", "--name", "a").Output()
	if err != nil {
		return fmt.Errorf("make a token: %w", err)
	}
	if err := c.declare(c.pools(1, time.Hour)...); err != nil {
		return err
	}
	c.server, err = fleet.Start(ctx, "", s.skep, "server", "--listen", "127.0.0.1:0", "--tls-self-signed", "--state-dir", c.state(), "--config", c.config())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.server.Stop()) }()
	pem, err := os.ReadFile(filepath.Join(c.state(), "tls", "ca.pem"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	if c.api, err = client.New(client.Options{Server: c.server.URL, Token: strings.TrimSpace(string(token)), RootCAs: roots}); err != nil {
		return err
	}
	load := &load{api: c.api, pool: c.serves, by: map[string]int{}}
	for end := time.Now().Add(patience); load.by[boxes] == 0 || load.by[boards] == 0; {
		load.one(ctx, fmt.Sprintf("closed-%d", load.done), 0.1)
		if len(load.cut) > 0 || time.Now().After(end) {
			return fmt.Errorf("tasks: %v, cut %v\n%s", load.by, load.cut, c.server.Log())
		}
	}
	if err := c.declare(); err != nil {
		return err
	}
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		_, all, err := c.alive(ctx)
		have, listErr := s.instances(ctx)
		if err = errors.Join(err, listErr); err == nil && all == 0 && have[boxes] == 0 && have[boards] == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%d bots and %v are left: %w\n%s", all, have, err, c.server.Log())
		}
	}
}

// makeImage makes the image of a bot's container, without a registry.
func (s *lab) makeImage(ctx context.Context) error {
	build := exec.CommandContext(ctx, "deploy/bot-image/build.sh", "bin/skep-bot", "skep-bot:show")
	build.Env = append(os.Environ(), "DOCKER_HOST="+s.engine.Host())
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the image: %w: %s", err, out)
	}
	i, err := s.engine.Image(ctx, "skep-bot:show")
	s.image = i.ID
	return err
}

// makeShelf sets the example's shelf up.
func (s *lab) makeShelf() error {
	s.shelf = filepath.Join(s.dir, "shelf")
	return os.CopyFS(s.shelf, os.DirFS("examples/provider-exec/local"))
}

func (s *lab) pools(n int, lifetime time.Duration) []pool {
	script, _ := filepath.Abs("examples/provider-exec/boards.sh") // the working directory is there
	return []pool{
		{prefix: boxes, amount: n, lifetime: lifetime, provider: fmt.Sprintf("docker { image: %q network: \"host\" } max_replacing: 5", s.image)},
		{prefix: boards, amount: n, lifetime: lifetime, provider: fmt.Sprintf("exec { command: [%q, %q] } max_replacing: 5", script, s.shelf)},
	}
}

// instances are the containers and the boards in use, in whatever state.
func (s *lab) instances(ctx context.Context) (map[string]int, error) {
	containers, err := s.engine.List(ctx, nil)
	if err != nil {
		return nil, err
	}
	have := map[string]int{}
	for _, c := range containers {
		if c.Labels[provider.LabelOwner] != "" {
			have[boxes]++
		}
	}
	busy, _ := filepath.Glob(filepath.Join(s.shelf, "busy", "*"))
	have[boards] = len(busy)
	return have, nil
}

// become waits until there are so many machines in either pool and no other:
// bots alive, records of bots, and instances.
func (s *lab) become(ctx context.Context, n int) error {
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		alive, all, err := s.alive(ctx)
		have, listErr := s.instances(ctx)
		st, statusErr := s.api.MachineStatus(ctx, "")
		changing := slices.ContainsFunc(st.GetPools(), func(p *skeppb.MachinePool) bool { // or one is about to be replaced
			return int(p.Configured) != n || p.Outdated > 0 || p.Draining > 0
		})
		if err = errors.Join(err, listErr, statusErr); err == nil && !changing && all == 2*n && len(alive[boxes]) == n && len(alive[boards]) == n && have[boxes] == n && have[boards] == n {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("want %d machines of each kind; bots alive %v, %d records, instances %v: %w", n, alive, all, have, err)
		}
	}
}

func (s *lab) resize(ctx context.Context, n int) error {
	if err := s.declare(s.pools(n, time.Hour)...); err != nil {
		return err
	}
	return s.become(ctx, n)
}

// lifetimes sees two machines of each kind replaced, under load.
func (s *lab) lifetimes(ctx context.Context) error {
	seen := map[string]map[string]bool{boxes: {}, boards: {}}
	for end := time.Now().Add(3*s.lifetime + patience); len(seen[boxes]) < 4 || len(seen[boards]) < 4; time.Sleep(100 * time.Millisecond) {
		alive, _, err := s.alive(ctx)
		if err != nil {
			return err
		}
		for prefix, ids := range seen {
			for _, id := range alive[prefix] {
				ids[id] = true
			}
		}
		if time.Now().After(end) {
			return fmt.Errorf("want 4 machines of each kind after each other: %v", seen)
		}
	}
	return nil
}

// accidents kills one machine of each kind, takes another one away, and has the
// server forget the bot of the third.
func (s *lab) accidents(ctx context.Context) error {
	s.load.pause() // what kills a machine ends its task too
	defer s.load.resume()
	before, _, err := s.alive(ctx)
	if err != nil {
		return err
	}
	box, board := before[boxes], before[boards]
	if err := errors.Join(s.engine.Signal(ctx, box[0], "SIGKILL"), s.engine.Remove(ctx, box[1]), s.killBoard(board[0]), s.killBoard(board[1])); err != nil {
		return err
	}
	links, _ := filepath.Glob(filepath.Join(s.shelf, "busy", "*"))
	for _, link := range links { // somebody takes the second board away
		a, err := os.Stat(link)
		b, err2 := os.Stat(filepath.Join(s.shelf, "names", board[1]))
		if err == nil && err2 == nil && os.SameFile(a, b) {
			err = errors.Join(os.Remove(link), os.Remove(filepath.Join(s.shelf, "names", board[1])))
		}
		if err != nil {
			return err
		}
	}
	for _, id := range []string{box[2], board[2]} {
		if _, err := s.api.DeleteBot(ctx, &pb.BotRequest{BotId: id}); err != nil {
			return err
		}
	}
	// Containers of this host are looked at all the time, a shelf every 4 minutes.
	if out, err := exec.CommandContext(ctx, s.skep, "provider", "step", "audit", "exec//", "-S", s.server.URL).CombinedOutput(); err != nil {
		return fmt.Errorf("audit of the shelf: %w: %s", err, out)
	}
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		after, _, err := s.alive(ctx)
		ids := append(after[boxes], after[boards]...)
		gone := !slices.ContainsFunc([]string{box[0], box[1], board[0], board[1]}, func(id string) bool { return slices.Contains(ids, id) })
		if err == nil && gone {
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("%v became %v: %w", before, after, err)
		}
	}
	if err := s.become(ctx, 3); err != nil {
		return err
	}
	after, _, err := s.alive(ctx)
	if err == nil && (!slices.Contains(after[boxes], box[2]) || !slices.Contains(after[boards], board[2])) {
		err = fmt.Errorf("%v became %v: a machine went whose bot was forgotten only", before, after)
	}
	return err
}

// killBoard kills the bot on a board.
func (s *lab) killBoard(name string) error {
	locks, err := filepath.Glob(filepath.Join(s.shelf, "b*", name, "swarming.lck"))
	if err != nil || len(locks) != 1 {
		return fmt.Errorf("board of %s: %v, %w", name, locks, err)
	}
	b, err := os.ReadFile(locks[0])
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return err
	}
	return syscall.Kill(pid, syscall.SIGKILL)
}

// killServer kills the server under load; the machines outlive it.
func (s *lab) killServer(ctx context.Context) error {
	before, _, err := s.alive(ctx)
	if err != nil {
		return err
	}
	s.server.Kill()
	if err := s.up(ctx); err != nil {
		return err
	}
	if err := s.become(ctx, 3); err != nil {
		return err
	}
	after, _, err := s.alive(ctx)
	if err == nil && (!slices.Equal(before[boxes], after[boxes]) || !slices.Equal(before[boards], after[boards])) {
		err = fmt.Errorf("%v became %v", before, after)
	}
	return err
}

// remove takes both pools out under load, beside one that does its tasks then.
func (s *lab) remove(ctx context.Context) error {
	if err := s.declare(pool{prefix: "other", amount: 1, lifetime: time.Hour}); err != nil {
		return err
	}
	if err := s.laptop.become(ctx, map[string]int{"other": 1}); err != nil {
		return err
	}
	s.load.stop()
	if err := s.declare(); err != nil {
		return err
	}
	return s.laptop.become(ctx, nil)
}

// nothingLeft looks for what machines were.
func (s *lab) nothingLeft(ctx context.Context) error {
	have, err := s.instances(ctx)
	if err != nil || have[boxes]+have[boards] > 0 {
		return fmt.Errorf("%v are left: %w", have, err)
	}
	for _, dir := range []string{"names", "b[0-9]*"} {
		if left, _ := filepath.Glob(filepath.Join(s.shelf, dir, "*")); len(left) > 0 {
			return fmt.Errorf("%v are left", left)
		}
	}
	if left := processes(s.shelf); len(left) > 0 {
		return fmt.Errorf("processes %v are left", left)
	}
	return s.laptop.nothingLeft()
}
