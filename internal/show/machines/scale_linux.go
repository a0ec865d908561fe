package machines

import (
	"bytes"
	"context"
	"encoding/json"
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
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skepdev/skep/client"
	"github.com/skepdev/skep/internal/show/form"
	"github.com/skepdev/skep/internal/stage/fleet"
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/provider/gce/gcesim"
)

// scale is issue 6, show 3: a real server looks after many machines of a
// simulated cloud, in which everything happens at once. Its bots only talk.
type scale struct {
	dir, skep string

	cloud  *counted
	crowd  *crowd
	server *fleet.Fleet
	at     string // where it listens
	api    *client.Client
}

// The bounds. promises P1, P2, P4, P5, P28.
const (
	boundCalls    = 0.05 // of an API, by machine and minute
	boundResident = 100 << 20
	boundSlower   = 1.10
)

var (
	boundMedian = form.Of(time.Second, 5*time.Second)
	boundP99    = form.Of(5*time.Second, 25*time.Second)
	boundScan   = form.Of(5*time.Second, 25*time.Second)
	boundList   = form.Of(100*time.Millisecond, time.Second)
	served      = form.Of(time.Minute, 3*time.Minute) // until what was asked for is there
)

// Scale runs the demonstration and returns an exit code. SKEP_SHOW=short has
// fewer machines and looks for a shorter time; what a failing pool costs the
// others is told then, not judged.
func Scale() int {
	dir, err := os.MkdirTemp("", "skep-machines-")
	if err == nil {
		defer os.RemoveAll(dir)
		s := &scale{dir: dir}
		err = s.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "show machines scale:", err)
		return 1
	}
	fmt.Println("passed")
	return 0
}

func (s *scale) run() (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Minute)
	defer cancel()
	if s.skep, err = filepath.Abs("bin/skep"); err != nil {
		return err
	}
	if err := allowFiles(12_000); err != nil {
		return err
	}
	for _, part := range []func(context.Context) error{s.many, s.isolated, s.scanned, s.listed} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	return nil
}

// allowFiles raises how many files this process and its children may open.
func allowFiles(n uint64) error {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return err
	}
	l.Cur, l.Max = max(l.Cur, n), max(l.Max, n)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("%d open files are needed (ulimit -Hn): %w", n, err)
	}
	return nil
}

// up starts a cloud and a server with pools of it, in a directory of its own.
func (s *scale) up(ctx context.Context, name string, settings gcesim.Settings, pools ...string) (down func() error, err error) {
	dir := filepath.Join(s.dir, name)
	if err := os.MkdirAll(filepath.Join(dir, "config"), 0o755); err != nil { //nolint:gosec // no secret
		return nil, err
	}
	if err := declarePools(dir, pools...); err != nil {
		return nil, err
	}
	s.cloud = &counted{sim: gcesim.New(gcesim.Options{Seed: rand.Uint64(), Settings: settings})}
	s.crowd = newCrowd()
	s.cloud.made, s.cloud.asked = s.crowd.come, s.crowd.succeeded
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	srv := &http.Server{Handler: s.cloud, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = srv.Serve(l) }() // until Close
	if err := os.Setenv("SKEP_GCE_ENDPOINT", "http://"+l.Addr().String()); err != nil {
		return nil, err
	}
	if err := s.serve(ctx, dir); err != nil {
		return nil, errors.Join(err, srv.Close())
	}
	s.crowd.serve(s.at)
	return func() error {
		err := s.crowd.end()
		s.server.Kill() // its machines stay with the cloud, which ends too
		return errors.Join(err, srv.Close(), os.RemoveAll(dir))
	}, nil
}

// serve starts a server with what dir declares.
func (s *scale) serve(ctx context.Context, dir string, args ...string) error {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if err := free.Close(); err != nil {
		return err
	}
	// The URL is the one that machines are told; nothing here looks its name up.
	s.server, err = fleet.Start(ctx, "", append([]string{
		s.skep, "server", "--url", "https://skep.example.com", "--config", filepath.Join(dir, "config"), "--state-dir", filepath.Join(dir, "state"), "--listen", free.Addr().String(),
	}, args...)...)
	if err != nil {
		return err
	}
	s.at = "http://" + free.Addr().String()
	s.api, err = client.New(client.Options{Server: s.at})
	return err
}

// poolText is the entry of a pool.
func poolText(prefix string, n int) string {
	return fmt.Sprintf(`vms {
  prefix: %q amount { min: %d max: %[2]d } lifetime { seconds: 604800 } swarming: "https://skep.example.com"
  attributes {
    project: "lab" zone: "us-central1-a" machine_type: "zones/{{.Zone}}/machineTypes/n1-standard-1"
    disk { image: %q size: 20 type: "zones/{{.Zone}}/diskTypes/pd-ssd" } network_interface { network: "global/networks/default" }
  }
}
`, prefix, n, image)
}

const image = "global/images/bot-1"

func declarePools(dir string, pools ...string) error {
	tmp := filepath.Join(dir, "vms.cfg")
	if err := os.WriteFile(tmp, []byte(strings.Join(pools, "")), 0o644); err != nil { //nolint:gosec // no secret
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, "config", "vms.cfg"))
}

// many machines: they come, they rest, they are replaced.
func (s *scale) many(ctx context.Context) error {
	const pools = 10
	each := form.Of(1000, 200)
	total := pools * each
	var texts []string
	for i := range pools {
		texts = append(texts, poolText(fmt.Sprintf("pool%d", i), each))
	}
	begun := time.Now()
	down, err := s.up(ctx, "many", gcesim.Settings{}, texts...)
	if err != nil {
		return err
	}
	err = s.live(ctx, total, begun)
	return errors.Join(err, down())
}

func (s *scale) live(ctx context.Context, total int, begun time.Time) error {
	if err := s.wait(ctx, 3*served, func() error { return s.serving(ctx, total) }); err != nil {
		return err
	}
	fmt.Printf("%d machines in 10 pools, each with its bot, %v after the start of the server\n", total, time.Since(begun).Round(100*time.Millisecond))
	if err := s.rest(ctx, total); err != nil {
		return err
	}
	return s.replaced(ctx, total)
}

// serving says whether so many machines have their bot, and no more are there.
func (s *scale) serving(ctx context.Context, want int) error {
	if have := s.crowd.there(); have != want { // the cheap question first: it is asked often
		return errors.Join(fmt.Errorf("%d bots, want %d", have, want), s.crowd.fault())
	}
	st, err := s.api.MachineStatus(ctx, "")
	if err != nil {
		return err
	}
	n := 0
	for _, p := range st.Pools {
		n += int(p.Connected)
	}
	if have := len(s.cloud.sim.Made()); n != want || have != want {
		return fmt.Errorf("%d machines at work of %d in the cloud, want %d", n, have, want)
	}
	return s.crowd.fault()
}

// wait until a look finds nothing wrong.
func (s *scale) wait(ctx context.Context, patience time.Duration, look func() error) error {
	for end := time.Now().Add(patience); ; {
		err := look()
		if err == nil {
			return nil
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return fmt.Errorf("after %v: %w\n%s", patience, err, s.server.Log())
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

// rest counts what is asked of the cloud while nothing happens. Bots that wait
// for work ask the server for it, as they do without a provider; the provider
// asks nothing of the server, whose store it shares.
func (s *scale) rest(ctx context.Context, total int) error {
	look := form.Of(10*time.Minute, 20*time.Second)
	calls, cpu := s.cloud.calls.Load(), cpuOf(s.server.PID())
	begun := time.Now()
	if err := sleep(ctx, look); err != nil {
		return err
	}
	took := time.Since(begun)
	n := s.cloud.calls.Load() - calls
	rate := float64(n) / float64(total) / took.Minutes()
	fmt.Printf("at rest for %v: %d calls of the cloud, %.5f a machine and minute (bound %.2f); the server used %.1f %% of a core and has %d MiB\n",
		took.Round(time.Second), n, rate, boundCalls, 100*float64(cpuOf(s.server.PID())-cpu)/float64(took), residentOf(s.server.PID())>>20)
	if rate > boundCalls {
		return fmt.Errorf("%.3f calls a machine and minute", rate)
	}
	return s.serving(ctx, total)
}

// replaced has machines replaced one after the other, many times faster than
// their lifetime would.
func (s *scale) replaced(ctx context.Context, total int) error {
	n := form.Of(2000, 200)
	made := s.cloud.sim.Made()
	rand.Shuffle(len(made), func(i, j int) { made[i], made[j] = made[j], made[i] })
	begun := time.Now()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for _, m := range made[:n] {
		if _, err := s.api.ReplaceMachine(ctx, m.Name); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := s.wait(ctx, served, func() error {
		if have := len(s.crowd.took()); have != n {
			return fmt.Errorf("%d of %d machines have a successor", have, n)
		}
		return s.serving(ctx, total)
	}); err != nil {
		return err
	}
	took := s.crowd.took()
	slices.Sort(took)
	median, p99 := took[len(took)/2], took[len(took)*99/100]
	fmt.Printf("%d replaced in %v: from the bot's leave to the call that makes the next machine %v at the median (bound %v), p99 %v (bound %v)\n",
		n, time.Since(begun).Round(time.Second), median.Round(time.Millisecond), boundMedian, p99.Round(time.Millisecond), boundP99)
	if median > boundMedian || p99 > boundP99 {
		return errors.New("replacements are too slow")
	}
	return nil
}

// isolated compares how long machines of 49 pools take with and without a
// fiftieth, large one whose every machine fails.
func (s *scale) isolated(ctx context.Context) error {
	const pools, each = 49, 10
	rounds := form.Of(12, 2)
	down, err := s.up(ctx, "isolated", gcesim.Settings{Insert: 500 * time.Millisecond, Spread: time.Second})
	if err != nil {
		return err
	}
	var kept []string
	var with, without []time.Duration
	sum := 0
	round := func(i int, disturbed bool) error {
		declared := slices.Clone(kept)
		for p := range pools {
			declared = append(declared, poolText(fmt.Sprintf("r%02dp%02d", i, p), each))
		}
		kept = slices.Clone(declared)
		if disturbed {
			declared = append(declared, poolText(fmt.Sprintf(broken+"%02d", i), 1000))
		}
		begun := time.Now()
		if err := declarePools(filepath.Join(s.dir, "isolated"), declared...); err != nil {
			return err
		}
		sum += pools * each
		if err := s.wait(ctx, served, func() error { return s.serving(ctx, sum) }); err != nil {
			return err
		}
		for _, at := range s.crowd.madeSince(begun) {
			if disturbed {
				with = append(with, at)
			} else {
				without = append(without, at)
			}
		}
		// The broken pool is gone before the next round.
		s.cloud.told.Store(true)
		defer s.cloud.told.Store(false)
		if err := declarePools(filepath.Join(s.dir, "isolated"), kept...); err != nil {
			return err
		}
		return s.wait(ctx, served, func() error {
			st, err := s.api.MachineStatus(ctx, "")
			if err == nil && len(st.Pools) != pools*(i+1) {
				err = fmt.Errorf("%d pools", len(st.Pools))
			}
			return err
		})
	}
	for i := range 2 * rounds {
		// Each round leaves more machines behind: in turns, neither kind comes later.
		if err = round(i, i%4 == 1 || i%4 == 2); err != nil {
			break
		}
	}
	refused := s.cloud.refused.Load()
	if err = errors.Join(err, down()); err != nil {
		return err
	}
	slices.Sort(with)
	slices.Sort(without)
	alone, beside := without[len(without)*99/100], with[len(with)*99/100]
	fmt.Printf("%d machines of %d pools, %d times alone and beside a pool of 1,000 whose every call takes 2 s and fails (%d calls): p99 from their declaration %v and %v, %.2f times (bound %.2f)\n",
		pools*each, pools, rounds, refused, alone.Round(time.Millisecond), beside.Round(time.Millisecond), float64(beside)/float64(alone), boundSlower)
	switch {
	case refused == 0:
		return errors.New("no machine failed: this shows nothing")
	case !form.Short() && float64(beside) > boundSlower*float64(alone):
		return errors.New("a failing pool slows the others")
	}
	return nil
}

// counted is a cloud that counts what is asked of it and tells what it made.
type counted struct {
	sim   *gcesim.Sim
	calls atomic.Int64
	asked func(vm string)       // a machine is asked for
	made  func(name, vm string) // and made

	refused atomic.Int64 // calls for machines of broken pools
	told    atomic.Bool  // these fail for good now: nobody need ask what became of a call
}

// broken begins the names of pools of which no machine can be made: each call
// takes a while and fails, in a way that is worth another try.
const (
	broken     = "broken"
	brokenTime = 2 * time.Second
)

func (c *counted) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.calls.Add(1)
	if r.Method != http.MethodPost || !strings.HasSuffix(r.URL.Path, "/instances") {
		c.sim.ServeHTTP(w, r)
		return
	}
	body, err := io.ReadAll(r.Body)
	var in struct {
		Name   string
		Labels map[string]string
	}
	if err := errors.Join(err, json.Unmarshal(body, &in)); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	vm := in.Labels[provider.LabelVM]
	if strings.HasPrefix(vm, broken) {
		c.refused.Add(1)
		if c.told.Load() {
			http.Error(w, "there is no such project any more", http.StatusBadRequest)
			return
		}
		select {
		case <-time.After(brokenTime):
		case <-r.Context().Done():
		}
		http.Error(w, "Service unavailable", http.StatusServiceUnavailable)
		return
	}
	c.asked(vm)
	r.Body = io.NopCloser(bytes.NewReader(body))
	seen := &status{ResponseWriter: w, code: http.StatusOK}
	c.sim.ServeHTTP(seen, r)
	if seen.code == http.StatusOK {
		c.made(in.Name, vm)
	}
}

// status remembers the code of an answer.
type status struct {
	http.ResponseWriter
	code int
}

func (s *status) WriteHeader(code int) {
	s.code = code
	s.ResponseWriter.WriteHeader(code)
}
