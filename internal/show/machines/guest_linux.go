package machines

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/skepdev/skep"
	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/client"
	"github.com/skepdev/skep/internal/bootstrap/unit"
	"github.com/skepdev/skep/internal/proc"
	"github.com/skepdev/skep/internal/servercert"
	"github.com/skepdev/skep/internal/show/form"
	"github.com/skepdev/skep/internal/stage/fleet"
	"github.com/skepdev/skep/internal/stage/metadata"
	"github.com/skepdev/skep/provider/gce/gcesim"
)

// guests is promises P26 and P27: machines that a real server has a simulated
// cloud make become its bots by skep-bot bootstrap-vm, with nothing but the
// identity that the cloud signs. One answer in five of everything is none, and
// the program is killed at random bytes and moments.
type guests struct {
	dir, skep, bot string
	rng            *rand.Rand
	kills          int // of the program, for each machine

	authority *servercert.Authority
	roots     *x509.CertPool
	keys      *metadata.Keys
	sim       *gcesim.Sim
	cloud     string // URL of sim
	proxy     *weather
	url       string // of the server: that of proxy
	server    *fleet.Fleet
	api       *client.Client
	token     string
}

const (
	guestPool    = "guest"
	guestProject = "lab"
	guestBound   = 2 * time.Minute // from the last start to a bot. promise P26
)

// Guests runs the demonstration; SKEP_SHOW=short kills less.
func Guests() int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "show machines guest: SKIPPED: needs root, for a place of its own for units")
		if strings.Contains(os.Getenv("SKEP_TEST_REQUIRE"), "root") {
			return 1
		}
		return 0
	}
	dir, err := os.MkdirTemp("", "skep-guest-")
	if err == nil {
		defer os.RemoveAll(dir)
		seed := uint64(time.Now().UnixNano())
		fmt.Printf("seed %d\n", seed)
		g := &guests{dir: dir, kills: 150, rng: rand.New(rand.NewPCG(seed, 0))}
		if form.Short() {
			g.kills = 8
		}
		err = g.run(seed)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "show machines guest:", err)
		return 1
	}
	fmt.Println("passed")
	return 0
}

func (g *guests) run(seed uint64) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), form.Of(5*time.Minute, 20*time.Minute)+time.Duration(g.kills)*4*time.Second)
	defer cancel()
	if err := os.Chmod(g.dir, 0o755); err != nil { //nolint:gosec // tasks run as another user
		return err
	}
	if g.skep, err = filepath.Abs("bin/skep"); err != nil {
		return err
	}
	g.bot = filepath.Join(filepath.Dir(g.skep), "skep-bot")
	if g.keys, err = metadata.NewKeys(); err != nil {
		return err
	}
	g.sim = gcesim.New(gcesim.Options{Seed: seed, History: true, Settings: gcesim.Settings{Insert: 50 * time.Millisecond, Delete: 50 * time.Millisecond}})
	var close1, close2 func()
	if g.cloud, close1, err = serve(g.sim); err != nil {
		return err
	}
	defer close1()
	certs, close2, err := serve(g.keys)
	if err != nil {
		return err
	}
	defer close2()
	if err := g.start(ctx, certs); err != nil {
		return err
	}
	defer func() {
		g.server.Kill()
		g.proxy.close()
		for _, pid := range processes(g.dir) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}()
	if err := g.live(ctx); err != nil {
		return fmt.Errorf("%w\n%s", err, g.server.Log())
	}
	return nil
}

func serve(h http.Handler) (at string, end func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = srv.Serve(l) }() // until Close
	return "http://" + l.Addr().String(), func() { _ = srv.Close() }, nil
}

// start starts the server, behind the weather.
func (g *guests) start(ctx context.Context, certs string) (err error) {
	state, config := filepath.Join(g.dir, "state"), filepath.Join(g.dir, "config")
	if err := errors.Join(os.MkdirAll(filepath.Join(state, "tls"), 0o700), os.Mkdir(config, 0o755)); err != nil { //nolint:gosec // no secret
		return err
	}
	if g.authority, err = servercert.OpenAuthority(filepath.Join(state, "tls"), time.Now); err != nil {
		return err
	}
	g.roots = x509.NewCertPool()
	g.roots.AppendCertsFromPEM(g.authority.PEM())
	behind, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if g.proxy, err = newWeather(g.authority, g.roots, behind.Addr().String()); err != nil {
		return err
	}
	g.url = "https://" + g.proxy.listener.Addr().String()
	out, err := exec.CommandContext(ctx, g.skep, "token", "create", "--state-dir", state, "--scope", "admin", "--name", "a").Output()
	if err != nil {
		return fmt.Errorf("make a token: %w", err)
	}
	g.token = strings.TrimSpace(string(out))
	bots := fmt.Sprintf(`bot_group {
  bot_id_prefix: "%s-"
  auth { require_gce_vm_token { project: %q jwks_url: %q } }
  dimensions: "pool:default"
}
`, guestPool, guestProject, certs)
	if err := errors.Join(os.WriteFile(filepath.Join(config, "bots.cfg"), []byte(bots), 0o644), g.declare(1), os.Setenv("SKEP_GCE_ENDPOINT", g.cloud), behind.Close()); err != nil { //nolint:gosec // no secret
		return err
	}
	g.server, err = fleet.Start(ctx, "", g.skep, "server", "--listen", behind.Addr().String(), "--url", g.url, "--tls-self-signed", "--state-dir", state, "--config", config)
	if err != nil {
		return err
	}
	g.api, err = client.New(client.Options{Server: g.url, Token: g.token, RootCAs: g.roots})
	return err
}

// declare declares so many machines; 0 takes the pool out.
func (g *guests) declare(n int) error {
	text := ""
	if n > 0 {
		text = fmt.Sprintf(`vms {
  prefix: %q
  swarming: %q
  amount { min: %d max: %[3]d }
  lifetime { duration: "1d" }
  attributes {
    project: %q zone: "us-central1-a" machine_type: "zones/us-central1-a/machineTypes/n1-standard-1"
    disk { image: "global/images/bot-1" size: 20 type: "zones/us-central1-a/diskTypes/pd-ssd" }
    network_interface { network: "global/networks/default" }
    metadata { from_text: "provider:%s" }
  }
}
`, guestPool, g.url, n, guestProject, g.url)
	}
	tmp := filepath.Join(g.dir, "vms.cfg")
	if err := os.WriteFile(tmp, []byte(text), 0o644); err != nil { //nolint:gosec // no secret
		return err
	}
	return os.Rename(tmp, filepath.Join(g.dir, "config", "vms.cfg"))
}

// live sees two machines come one after the other, work, and go.
func (g *guests) live(ctx context.Context) error {
	for n := 1; n <= 2; n++ {
		if err := errors.Join(g.keys.Rotate(), g.declare(n)); err != nil { // the second one's key is new to the server
			return err
		}
		v, err := g.made(ctx, n)
		if err != nil {
			return err
		}
		if err := g.alone(ctx, v); err != nil {
			return fmt.Errorf("what %s is told: %w", v.Name, err)
		}
		if err := g.become(ctx, v); err != nil {
			return fmt.Errorf("%s: %w", v.Name, err)
		}
	}
	g.proxy.set(0)
	if err := g.declare(0); err != nil {
		return err
	}
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		there := slices.DeleteFunc(g.sim.Made(), func(m gcesim.Made) bool { return !m.Gone.IsZero() })
		st, err := g.api.MachineStatus(ctx, "")
		if err == nil && len(there) == 0 && len(st.Pools) == 0 {
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("the pool was taken out; left are %v, %v, %w", there, st, err)
		}
	}
	for end := time.Now().Add(patience); len(g.bots()) > 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("processes %v are left", g.bots())
		}
	}
	fmt.Println("the pool was taken out: no machine, no bot is left")
	return nil
}

// bots are the processes on machines.
func (g *guests) bots() []int { return processes(filepath.Join(g.dir, "vm")) }

// guest is a machine of the cloud that runs here.
type guest struct {
	*metadata.Machine
	dir  string // all of it
	host string // of its metadata server
}

// made returns the nth machine that the cloud made, with the attributes of its
// insert, as it runs.
func (g *guests) made(ctx context.Context, n int) (*guest, error) {
	var m gcesim.Made
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if all := g.sim.Made(); len(all) >= n && !all[n-1].Running.IsZero() {
			m = all[n-1]
			break
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("machine %d was not made: %+v", n, g.sim.Made())
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("%s/compute/v1/projects/%s/zones/%s/instances/%s", g.cloud, m.Project, m.Zone, m.Name), nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	var instance struct {
		Metadata struct {
			Items []struct{ Key, Value string }
		}
	}
	if err := json.NewDecoder(res.Body).Decode(&instance); err != nil {
		return nil, fmt.Errorf("instance %s: %w", m.Name, err)
	}
	v := &guest{
		Machine: &metadata.Machine{Keys: g.keys, Project: m.Project, Zone: m.Zone, Name: m.Name, Attributes: map[string]string{}, Failing: faults},
		dir:     filepath.Join(g.dir, "vm", m.Name),
	}
	for _, item := range instance.Metadata.Items {
		v.Attributes[item.Key] = item.Value
	}
	at, _, err := serve(v) // as long as this process lives
	v.host = strings.TrimPrefix(at, "http://")
	return v, errors.Join(err, v.furnish())
}

// furnish makes what the machine's own system would have.
func (v *guest) furnish() error {
	if err := errors.Join(os.MkdirAll(filepath.Join(v.dir, "bin"), 0o755), os.MkdirAll(filepath.Join(v.dir, "units"), 0o755)); err != nil { //nolint:gosec // no secret
		return err
	}
	// What systemctl does, in short: it starts the unit's program, unless it runs,
	// and again when it fails.
	text := fmt.Sprintf(`#!/bin/sh
set -eu
[ "$1" = start ] || exit 0
unit=/etc/systemd/system/%s
! readlink /proc/"$(cat %s/pid 2>/dev/null || echo none)"/cwd >/dev/null || exit 0 # that of a zombie cannot be read
cd "$(sed -n 's/^WorkingDirectory=//p' $unit)"
export $(sed -n 's/^Environment=//p' $unit)
rm -f %[2]s/pid
setsid sh -c 'echo $$ >%[2]s/pid; until "$@"; do sleep 2; done' sh $(sed -n 's/^ExecStart=//p' $unit) >>%[2]s/log 2>&1 </dev/null &
until [ -s %[2]s/pid ]; do sleep 0.01; done # what is left of this program's group ends with it
`, unit.Name, v.dir)
	return os.WriteFile(filepath.Join(v.dir, "bin", "systemctl"), []byte(text), 0o755) //nolint:gosec // a program
}

// boot starts the program that makes the machine a bot, as at a start of it.
func (g *guests) boot(v *guest) (*proc.Process, error) {
	path, err := proc.LookPath("unshare") // units are the machine's own
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(v.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	const script = `mount --bind "$1" /etc/systemd/system && shift && exec "$@"`
	return proc.Start(&proc.Cmd{
		Path: path, NewGroup: true, ParentDeath: true, Files: []*os.File{nil, log, log},
		Env: []string{"PATH=" + filepath.Join(v.dir, "bin") + ":" + os.Getenv("PATH"), "HOME=/root"},
		Args: []string{
			"unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh", filepath.Join(v.dir, "units"),
			g.bot, "bootstrap-vm", "--dir", filepath.Join(v.dir, "b"), "--user", "root", "--provider", ":metadata", "--metadata-host", v.host,
			"--ca", g.authority.CertFile(), "--patience", guestBound.String(),
		},
	})
}

// become has a machine become a bot, and do a task.
func (g *guests) become(ctx context.Context, v *guest) error {
	size, err := os.Stat(g.bot)
	if err != nil {
		return err
	}
	g.proxy.set(faults)
	atByte := 0
	for i := range g.kills {
		// The first falls into a fetch that begins, so that one does for sure.
		byByte := i == 0 || g.rng.IntN(3) > 0
		if byByte { // it is to fetch something: all of it, or what it has not yet
			if err := v.powerOff(); err != nil {
				return err
			}
			_ = os.Remove(filepath.Join(v.dir, "b", "swarming_bot"))
			if i == 0 || g.rng.IntN(2) == 0 {
				_ = os.RemoveAll(filepath.Join(v.dir, "b.fetch"))
			}
		}
		p, err := g.boot(v)
		if err != nil {
			return err
		}
		kill := func() { _ = p.Kill() }
		var timer *time.Timer
		if byByte {
			at, limit := g.rng.Int64N(size.Size()), 6*time.Second // it may not come that far
			if i == 0 {
				at, limit = g.rng.Int64N(64<<10), patience
			}
			g.proxy.after(at, func() { atByte++; kill() })
			timer = time.AfterFunc(limit, kill)
		} else {
			timer = time.AfterFunc(time.Duration(g.rng.IntN(600))*time.Millisecond, kill)
		}
		<-p.Done()
		timer.Stop()
		g.proxy.after(0, nil)
	}
	if err := v.powerOff(); err != nil {
		return err
	}
	old, err := g.session(ctx, v)
	if err != nil {
		return err
	}
	before := v.Signed()
	start := time.Now()
	p, err := g.boot(v)
	if err != nil {
		return err
	}
	if status := p.Wait(); status.Code != 0 || status.Err != nil {
		return fmt.Errorf("bootstrap-vm ended with %+v:\n%s", status, v.log())
	}
	after := v.Signed()
	for {
		if b, err := g.api.GetBot(ctx, &pb.BotRequest{BotId: v.Name}); err == nil && !b.IsDead && b.SessionId != old {
			break
		}
		if time.Since(start) > guestBound {
			return fmt.Errorf("no bot after %v:\n%s", guestBound, v.log())
		}
		time.Sleep(20 * time.Millisecond)
	}
	took := time.Since(start)
	fmt.Printf("%s: killed %d times, %d of them at a random byte of the code, one answer in five none: a bot after %v   bound %v\n",
		v.Name, g.kills, atByte, took.Round(time.Millisecond), guestBound)
	if err := g.whole(ctx, v); err != nil {
		return err
	}
	// The bot's own process asks for one, too: it is another program. promise P27
	if n := after[g.url] - before[g.url]; len(after) > 1 || n > 2 || atByte == 0 {
		return fmt.Errorf("one start had %d identities signed; in all: %v; %d kills at a byte", n, after, atByte)
	}
	return g.task(ctx, v)
}

// powerOff ends what runs on the machine.
func (v *guest) powerOff() error {
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		left := processes(v.dir)
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("processes %v go on", left)
		}
		for _, pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// session is that of the machine's bot, if there ever was one.
func (g *guests) session(ctx context.Context, v *guest) (string, error) {
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		switch known, err := g.api.GetBot(ctx, &pb.BotRequest{BotId: v.Name}); {
		case err == nil:
			return known.SessionId, nil
		case skep.KindOf(err) == skep.NotFound:
			return "", nil
		case time.Now().After(end):
			return "", err
		}
	}
}

func (v *guest) log() string {
	var text string
	logs, _ := filepath.Glob(filepath.Join(v.dir, "b", "logs", "*"))
	for _, name := range append(logs, filepath.Join(v.dir, "log")) {
		b, _ := os.ReadFile(name)
		text += name + ":\n" + string(b[max(0, len(b)-3000):])
	}
	return text
}

// whole holds that the server knows what is in the bot's place, by its digest.
func (g *guests) whole(ctx context.Context, v *guest) error {
	f, err := os.Open(filepath.Join(v.dir, "b", "swarming_bot"))
	if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return err
	}
	status, _, err := g.ask(ctx, http.MethodHead, "/swarming/api/v1/bot/bot_code/"+hex.EncodeToString(sum.Sum(nil)), "", "")
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("the server does not know the bot that is in place: %d", status)
	}
	if left, _ := filepath.Glob(filepath.Join(v.dir, "b.*")); len(left) > 0 {
		err = errors.Join(err, fmt.Errorf("it left %v", left))
	}
	return err
}

// ask asks the server, past the weather.
func (g *guests) ask(ctx context.Context, method, path, body, identity string) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "https://"+g.proxy.behind+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Host = strings.TrimPrefix(g.url, "https://")
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	if identity != "" {
		req.Header.Set("X-Luci-Gce-Vm-Token", identity)
	}
	res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: g.roots}}}).Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	return res.StatusCode, text, err
}

// alone holds that a machine is told about itself, and nothing but the server,
// and that nobody else is told. spec provider.md §13.
func (g *guests) alone(ctx context.Context, v *guest) error {
	const path = "/prpc/instances.Instances/Get"
	question := func(name string) string { return fmt.Sprintf(`{"hostname":%q}`, name) }
	identity := func(change func(*metadata.Machine), audience string) string {
		m := &metadata.Machine{Keys: v.Keys, Project: v.Project, Zone: v.Zone, Name: v.Name}
		change(m)
		token, err := m.Sign(audience)
		if err != nil {
			panic(err) // a key of ours signs
		}
		return token
	}
	itself := func(*metadata.Machine) {}
	var status int
	var text []byte
	var err error
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		if status, text, err = g.ask(ctx, http.MethodPost, path, question(v.Name), identity(itself, g.url)); err != nil {
			return err
		}
		// A server asks for new keys every 5 s at most, whoever makes it ask.
		if status != http.StatusUnauthorized || time.Now().After(end) {
			break
		}
	}
	var answer map[string]any
	if err := json.Unmarshal([]byte(strings.TrimPrefix(string(text), ")]}'")), &answer); status != http.StatusOK || err != nil || len(answer) != 2 || answer["hostname"] != v.Name || answer["swarming"] != g.url {
		return fmt.Errorf("%d %s: %w", status, text, err)
	}
	strange, err := metadata.NewKeys()
	if err != nil {
		return err
	}
	for what, c := range map[string]struct{ name, token string }{
		"no identity":      {v.Name, ""},
		"another audience": {v.Name, identity(itself, "https://example.com")},
		"another project":  {v.Name, identity(func(m *metadata.Machine) { m.Project = "other" }, g.url)},
		"another zone":     {v.Name, identity(func(m *metadata.Machine) { m.Zone = "us-east1-b" }, g.url)},
		"another machine":  {v.Name, identity(func(m *metadata.Machine) { m.Name = guestPool + "-7-abcd" }, g.url)},
		"no such machine":  {guestPool + "-7-abcd", identity(func(m *metadata.Machine) { m.Name = guestPool + "-7-abcd" }, g.url)},
		"another cloud":    {v.Name, identity(func(m *metadata.Machine) { m.Keys = strange }, g.url)},
	} {
		status, text, err := g.ask(ctx, http.MethodPost, path, question(c.name), c.token)
		if err != nil || status != http.StatusUnauthorized && status != http.StatusForbidden {
			return fmt.Errorf("with %s: %d %s %w", what, status, text, err)
		}
	}
	return nil
}

// task runs a task on a machine's bot.
func (g *guests) task(ctx context.Context, v *guest) error {
	g.proxy.set(0)
	res, err := g.api.NewTask(ctx, &pb.NewTaskRequest{
		Name: v.Name, Priority: 100,
		TaskSlices: []*pb.TaskSlice{{ExpirationSecs: 60, Properties: &pb.TaskProperties{
			Command: []string{"true"}, ExecutionTimeoutSecs: 60, GracePeriodSecs: 30,
			Dimensions: []*pb.StringPair{{Key: "pool", Value: "default"}, {Key: "id", Value: v.Name}},
		}}},
	})
	if err != nil {
		return err
	}
	for ; ; time.Sleep(50 * time.Millisecond) {
		st, err := g.api.GetResult(ctx, &pb.TaskIdWithPerfRequest{TaskId: res.TaskId})
		switch {
		case err != nil:
			return err
		case st.State == pb.TaskState_PENDING || st.State == pb.TaskState_RUNNING:
		case st.State == pb.TaskState_COMPLETED && st.ExitCode == 0:
			return nil
		default:
			return fmt.Errorf("the task of %s is %s: %+v", v.Name, st.State, st)
		}
	}
}

// weather lies between machines and their server. A share of what is asked
// fails: with 503, without an answer, after the server did it, or in the middle
// of the answer.
type weather struct {
	listener net.Listener
	behind   string
	http     *http.Server

	mu    sync.Mutex
	share float64
	left  int64  // bytes of code until then is called
	then  func() // nil = nothing is to happen
}

func newWeather(a *servercert.Authority, roots *x509.CertPool, behind string) (*weather, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	w := &weather{listener: l, behind: behind}
	to := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "https", Host: behind})
	to.Transport = &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}, MaxIdleConnsPerHost: 16}
	to.FlushInterval = -1
	to.ErrorHandler = func(rw http.ResponseWriter, _ *http.Request, _ error) { rw.WriteHeader(http.StatusBadGateway) }
	w.http = &http.Server{ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		fails := rand.Float64() < w.share
		w.mu.Unlock()
		out := &drops{ResponseWriter: rw, w: w, code: strings.HasPrefix(r.URL.Path, "/swarming/api/v1/bot/bot_code/"), left: -1}
		if fails {
			switch rand.IntN(4) {
			case 0:
				http.Error(rw, "out of order", http.StatusServiceUnavailable)
				return
			case 1:
				panic(http.ErrAbortHandler)
			case 2:
				out.left = 0
			default:
				out.left = rand.Int64N(20 << 20)
			}
		}
		to.ServeHTTP(out, r)
	})}
	source := a.Source([]string{"127.0.0.1"})
	go func() {
		_ = w.http.Serve(tls.NewListener(l, &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: source})) // until close
	}()
	return w, nil
}

func (w *weather) close() { _ = w.http.Close() }

func (w *weather) set(share float64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.share = share
}

// after has then called when so many bytes of code have passed.
func (w *weather) after(n int64, then func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.left, w.then = n, then
}

// passed counts bytes of code.
func (w *weather) passed(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.left -= int64(n)
	if w.left <= 0 && w.then != nil {
		w.then()
		w.then = nil
	}
}

// drops is an answer whose connection ends after left bytes; -1 = it does not.
type drops struct {
	http.ResponseWriter
	w    *weather
	code bool
	left int64
}

func (d *drops) Write(p []byte) (int, error) {
	cut := d.left >= 0 && int64(len(p)) >= d.left
	if cut {
		p = p[:d.left]
	} else if d.left >= 0 {
		d.left -= int64(len(p))
	}
	n, err := d.ResponseWriter.Write(p)
	if d.code {
		d.w.passed(n)
	}
	if cut {
		_ = http.NewResponseController(d.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, err
}

// Unwrap is for http.ResponseController.
func (d *drops) Unwrap() http.ResponseWriter { return d.ResponseWriter }
