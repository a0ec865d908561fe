package machines

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/skepdev/skep/internal/proc"
	"github.com/skepdev/skep/internal/show/chaos"
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/provider/gce/gcesim"
)

// cloud is issue 6, shows 2 and 5: providers over a simulated cloud in which a
// fifth of all calls fail, killed and stopped at random points.
type cloud struct {
	dir      string
	kills    int
	workers  int
	dsn      string
	endpoint string
	sim      *gcesim.Sim
	rng      *rand.Rand
	procs    []*proc.Process
	pools    map[string]int
}

// faults is the share of calls that something happens to.
const faults = 0.2

// Cloud kills one provider on SQLite; SKEP_SHOW=short kills it a few times only.
func Cloud() int { return runCloud("cloud", 1, 1000, 25) }

// Two kills and stops two providers on one PostgreSQL.
func Two() int { return runCloud("two", 2, 200, 12) }

func runCloud(name string, workers, kills, few int) int {
	if os.Getenv("SKEP_SHOW") == "short" {
		kills = few
	}
	dir, err := os.MkdirTemp("", "skep-machines-")
	if err == nil {
		defer os.RemoveAll(dir)
		seed := uint64(time.Now().UnixNano())
		fmt.Printf("seed %d\n", seed)
		c := &cloud{dir: dir, kills: kills, workers: workers, rng: rand.New(rand.NewPCG(seed, 0)), pools: map[string]int{}}
		err = c.run(seed)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "show machines %s: %v\n", name, err)
		return 1
	}
	fmt.Println("passed")
	return 0
}

func (c *cloud) run(seed uint64) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute+time.Duration(c.kills)*3*time.Second)
	defer cancel()
	c.dsn = filepath.Join(c.dir, "skep.db")
	if c.workers > 1 {
		if err := os.Chmod(c.dir, 0o755); err != nil { //nolint:gosec // PostgreSQL is another user
			return err
		}
		var stop func() error
		if c.dsn, stop, err = chaos.PrivatePostgres(ctx, filepath.Join(c.dir, "pg")); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, stop()) }()
	}
	c.sim = gcesim.New(gcesim.Options{Seed: seed, History: true, Settings: gcesim.Settings{
		Insert: 50 * time.Millisecond, Delete: 50 * time.Millisecond, Spread: 100 * time.Millisecond, Slow: 300 * time.Millisecond, Faults: gcesim.EveryFault(faults),
	}})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: c.sim, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = srv.Serve(l) }() // until Close
	defer srv.Close()
	c.endpoint = "http://" + l.Addr().String()
	defer func() {
		for _, p := range c.procs {
			_ = p.Signal(syscall.SIGCONT)
			_ = p.Kill()
			<-p.Done()
		}
	}()
	if err := c.resize(); err != nil {
		return err
	}
	for range c.workers {
		if err := c.start(); err != nil {
			return err
		}
	}
	killed, stopped := 0, 0
	for killed < c.kills {
		time.Sleep(time.Duration(20+c.rng.IntN(500)) * time.Millisecond)
		if c.rng.IntN(3) == 0 {
			if err := c.resize(); err != nil {
				return err
			}
		}
		i := c.rng.IntN(len(c.procs))
		p := c.procs[i]
		if c.workers > 1 && c.rng.IntN(2) == 0 { // paused for longer than its lease, at times
			if err := p.Signal(syscall.SIGSTOP); err != nil {
				return err
			}
			time.Sleep(time.Duration(c.rng.IntN(4000)) * time.Millisecond)
			if err := p.Signal(syscall.SIGCONT); err != nil {
				return err
			}
			stopped++
			continue
		}
		select {
		case <-p.Done():
			return fmt.Errorf("a provider ended by itself: %s", c.log())
		default:
		}
		_ = p.Kill()
		<-p.Done()
		killed++
		c.procs = slices.Delete(c.procs, i, i+1)
		if err := c.start(); err != nil {
			return err
		}
	}
	// What is left to do is done with the faults on; only the last look is without.
	if err := c.converge(ctx); err != nil {
		return err
	}
	made := c.sim.Made()
	running := 0
	for _, m := range made {
		if !m.Running.IsZero() {
			running++
		}
	}
	fmt.Printf("%d kills and %d stops of %d providers; %d calls, %d instances made; pools %v: none twice, none left, none lost, none taken from a task\n",
		killed, stopped, c.workers, c.sim.Calls(), running, c.pools)
	return nil
}

func (c *cloud) start() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(c.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	p, err := proc.Start(&proc.Cmd{
		Path: self, Args: []string{self, "machines", "worker", "-db", c.dsn, "-gce", c.endpoint, "-dir", c.dir},
		Env: os.Environ(), Files: []*os.File{nil, log, log}, NewGroup: true, ParentDeath: true,
	})
	if err == nil {
		c.procs = append(c.procs, p)
	}
	return err
}

func (c *cloud) log() string {
	b, _ := os.ReadFile(filepath.Join(c.dir, "log"))
	return string(b[max(0, len(b)-2000):])
}

// resize declares three pools of other sizes; at times one is not there.
func (c *cloud) resize() error {
	var configs []provider.Config
	clear(c.pools)
	for _, prefix := range []string{"red", "green", "blue"} {
		n := c.rng.IntN(9)
		if c.rng.IntN(8) == 0 {
			continue
		}
		if n > 0 {
			c.pools[prefix] = n
		}
		configs = append(configs, provider.Config{
			Prefix: prefix, Kind: "gce", Amount: provider.Amount{Min: n, Max: n}, Lifetime: time.Duration(5+c.rng.IntN(60)) * time.Second, MaxReplacing: 2,
			Zones: []string{"us-central1-a", "us-central1-b", "us-east1-b"}, Swarming: "https://skep.example.com",
			Attributes: provider.Attributes{
				Project: "lab", Zone: "us-central1-a", MachineType: "zones/{{.Zone}}/machineTypes/n1-standard-1",
				Disks:    []provider.Disk{{Image: "global/images/bot-1", SizeGB: 20, Type: "zones/{{.Zone}}/diskTypes/pd-ssd"}},
				Networks: []provider.NetworkInterface{{Network: "global/networks/default"}},
			},
		})
	}
	b, err := json.Marshal(configs)
	if err != nil {
		return err
	}
	tmp := filepath.Join(c.dir, "pools.tmp")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(c.dir, "pools.json"))
}

// settle is how long a fleet may take to be as declared, with the faults on.
const settle = 90 * time.Second

// converge waits until what the cloud has is what is declared, and looks at
// what ever happened.
func (c *cloud) converge(ctx context.Context) error {
	var why error
	for end := time.Now().Add(settle); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if why = c.look(); why == nil {
			break
		}
		for _, p := range c.procs {
			select {
			case <-p.Done():
				return fmt.Errorf("a provider ended by itself: %s", c.log())
			case <-ctx.Done():
				return ctx.Err()
			default:
			}
		}
	}
	if why != nil {
		return fmt.Errorf("after %v: %w\n%s", settle, why, c.log())
	}
	twice := map[string]string{}
	for _, m := range c.sim.Made() {
		key := m.Labels[provider.LabelVM] + " " + m.Labels[provider.LabelGeneration]
		if m.Labels[provider.LabelOwner] == "" || m.Running.IsZero() {
			continue
		}
		if other := twice[key]; other != "" {
			return fmt.Errorf("machine %s was made twice: %s and %s", key, other, m.Name)
		}
		twice[key] = m.Name
	}
	if b, err := os.ReadFile(filepath.Join(c.dir, "cut")); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("taken from a task: %s %w", strings.Fields(string(b)), err)
	}
	return nil
}

// look compares the cloud with what is declared. Instances of others, which
// conflicts are made of, must all be there.
func (c *cloud) look() error {
	have := map[string]int{}
	for _, m := range c.sim.Made() {
		switch {
		case m.Labels[provider.LabelOwner] == "" && !m.Gone.IsZero():
			return fmt.Errorf("the foreign instance %s was taken away", m.Name)
		case m.Labels[provider.LabelOwner] == "" || !m.Gone.IsZero() || m.Failed != "":
		case m.Running.IsZero():
			return fmt.Errorf("%s is being made", m.Name)
		default:
			prefix, _, _ := strings.Cut(m.Name, "-")
			have[prefix]++
		}
	}
	if fmt.Sprint(have) != fmt.Sprint(c.pools) {
		return fmt.Errorf("the cloud has %v, declared are %v", have, c.pools)
	}
	return nil
}
