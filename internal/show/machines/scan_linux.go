package machines

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/providerpb/instancespb"
	"github.com/skepdev/skep/config"
	"github.com/skepdev/skep/internal/show/chaos"
	"github.com/skepdev/skep/internal/show/form"
	"github.com/skepdev/skep/internal/stage/fleet"
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/store"
)

// ofPool is how many machines a pool of many has.
const ofPool = 1000

// recorded has a PostgreSQL with the records of many machines that need nothing,
// and the pools that they are of declared. The cloud is away: what it does not
// tell costs no machine.
func (s *scale) recorded(ctx context.Context, name string, pools int, use func(dsn, dir string) error) (err error) {
	dir := filepath.Join(s.dir, name)
	if err := os.MkdirAll(filepath.Join(dir, "config"), 0o755); err != nil { //nolint:gosec // no secret
		return err
	}
	if err := errors.Join(os.Chmod(s.dir, 0o755), os.Chmod(dir, 0o755)); err != nil { //nolint:gosec // PostgreSQL is another user
		return err
	}
	dsn, stop, err := chaos.PrivatePostgres(ctx, filepath.Join(dir, "pg"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop(), os.RemoveAll(dir)) }()
	away := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "away", http.StatusServiceUnavailable) }))
	defer away.Close()
	var texts []string
	for i := range pools {
		texts = append(texts, poolText(fmt.Sprintf("pool%02d", i), ofPool))
	}
	if err := errors.Join(declarePools(dir, texts...), os.Setenv("SKEP_GCE_ENDPOINT", away.URL)); err != nil {
		return err
	}
	declared, err := config.ReadDir(filepath.Join(dir, "config"))
	if err != nil {
		return err
	}
	if err := record(ctx, dsn, declared.Machines()); err != nil {
		return err
	}
	return use(dsn, dir)
}

// scanned starts a provider on the records of many machines, and asks it how
// long it takes to look at all of them. It is a process of its own, so that its
// memory is the provider's; a server knows the bots as well.
func (s *scale) scanned(ctx context.Context) error {
	pools := form.Of(100, 20)
	return s.recorded(ctx, "scanned", pools, func(dsn, dir string) (err error) {
		s.server, err = fleet.Start(ctx, "", s.skep, "provider", "run", "--db", dsn, "--config", filepath.Join(dir, "config"),
			"--url", "https://skep.example.com", "--state-dir", filepath.Join(dir, "state"), "--listen", "127.0.0.1:0")
		if err != nil {
			return err
		}
		s.at = s.server.URL
		return errors.Join(s.scans(ctx, pools*ofPool), s.server.Stop())
	})
}

// scans watches the looks of a provider at its records.
func (s *scale) scans(ctx context.Context, total int) error {
	look := form.Of(3*time.Minute, 10*time.Second) // one look a minute
	cpu, begun := cpuOf(s.server.PID()), time.Now()
	if err := sleep(ctx, look); err != nil {
		return err
	}
	// What is asked of it below is not the scan's.
	cpu, took, peak, now := cpuOf(s.server.PID())-cpu, time.Since(begun), peakOf(s.server.PID()), residentOf(s.server.PID())
	seconds, err := s.metric(ctx, "skep_machine_scan_seconds")
	if err != nil {
		return err
	}
	kept, err := s.metric(ctx, "skep_machines")
	if err != nil {
		return err
	}
	scan := time.Duration(seconds * float64(time.Second))
	fmt.Printf("%d machines looked at in %v (bound %v); the provider has %d MiB, %d at most (bound %d), and used %.1f %% of a core in its first %v\n",
		total, scan.Round(time.Millisecond), boundScan, now>>20, peak>>20, boundResident>>20, 100*float64(cpu)/float64(took), took.Round(time.Second))
	if scan > boundScan || peak > boundResident {
		return errors.New("looking at all machines takes too much")
	}
	if int(kept) < total {
		return fmt.Errorf("%v machines are left of %d", kept, total)
	}
	return nil
}

// listed asks a server for the few of many machines that a filter selects, over
// the wire.
func (s *scale) listed(ctx context.Context) error {
	pools := form.Of(50, 20)
	return s.recorded(ctx, "listed", pools, func(dsn, dir string) (err error) {
		if err := retireFew(ctx, dsn); err != nil {
			return err
		}
		if err := s.serve(ctx, dir, "--db", dsn); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.server.Stop()) }()
		if err := s.wait(ctx, served, func() error { // until it has begun
			seconds, err := s.metric(ctx, "skep_machine_scan_seconds")
			if err == nil && seconds == 0 {
				err = errors.New("it has not looked at its machines")
			}
			return err
		}); err != nil {
			return err
		}
		return s.lists(ctx, pools*ofPool)
	})
}

// lists asks for the few in each way that there is.
func (s *scale) lists(ctx context.Context, total int) error {
	const asked = 50
	zone, image, created := "instances.zone="+few.zone, "instances.disks.image="+few.image, "instances.created<"+few.created.Add(time.Second).Format(time.RFC3339)
	const drained, outdated = "instances.drained=true", "instances.outdated=true"
	for _, filter := range []string{zone, image, drained, outdated, created, strings.Join([]string{zone, image, drained, outdated, created}, " AND ")} {
		var took []time.Duration
		for range asked {
			begun := time.Now()
			got, err := s.api.ListMachines(ctx, &instancespb.ListRequest{Filter: filter, PageSize: 200})
			took = append(took, time.Since(begun))
			if err != nil {
				return err
			}
			if len(got.Instances) != total/few.every {
				return fmt.Errorf("%s selects %d machines, want %d", filter, len(got.Instances), total/few.every)
			}
		}
		slices.Sort(took)
		most := took[asked*9/10]
		fmt.Printf("%d of %d machines, by %s: %v at the median, 90 of 100 answers within %v (bound %v), the slowest %v\n",
			total/few.every, total, filter, took[asked/2].Round(100*time.Microsecond), most.Round(100*time.Microsecond), boundList, took[asked-1].Round(100*time.Microsecond))
		if most > boundList {
			return errors.New("a filtered list takes too long")
		}
	}
	return nil
}

// few machines, one of every so many, differ from the others by what filters
// select.
var few = struct {
	every       int
	zone, image string
	created     time.Time
}{500, "us-central1-f", "bot-0", time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)}

// retireFew makes the few old, and drained.
func retireFew(ctx context.Context, dsn string) (err error) {
	st, err := store.Open(ctx, dsn, store.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	vms, err := st.ListVMs(ctx, store.VMFilter{Zone: few.zone, Limit: 1000})
	if err != nil {
		return err
	}
	return st.Update(ctx, func(tx *store.Tx) error {
		for i := range vms {
			v := vms[i]
			v.Drained, v.Created = true, few.created
			if err := tx.SaveVM(&v); err != nil {
				return err
			}
		}
		return nil
	})
}

// metric adds up the values of a metric of the server.
func (s *scale) metric(ctx context.Context, name string) (sum float64, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.at+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err
	}
	found := regexp.MustCompile(`(?m)^`+name+`(\{[^}]*\})? (\S+)$`).FindAllSubmatch(text, -1)
	if len(found) == 0 {
		return 0, fmt.Errorf("there is no %s: %.300s", name, text)
	}
	for _, f := range found {
		v, err := strconv.ParseFloat(string(f[2]), 64)
		if err != nil {
			return 0, err
		}
		sum += v
	}
	return sum, nil
}

// record writes machines that are at work, with their bots, into a store. The few
// are outdated, which is no reason to replace them.
func record(ctx context.Context, dsn string, pools []provider.Config) (err error) {
	st, err := store.Open(ctx, dsn, store.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	attributes, err := json.Marshal(provider.Attributes{
		Project: "lab", Zone: "us-central1-a", MachineType: "zones/us-central1-a/machineTypes/n1-standard-1",
		Disks:    []provider.Disk{{Image: image, SizeGB: 20, Type: "zones/us-central1-a/diskTypes/pd-ssd"}},
		Networks: []provider.NetworkInterface{{Network: "global/networks/default"}},
	})
	if err != nil {
		return err
	}
	for p, pool := range pools {
		shape := pool.Shape()
		err := st.Update(ctx, func(tx *store.Tx) error {
			for i := range ofPool {
				id := fmt.Sprintf("%s-%d", pool.Prefix, i)
				name := fmt.Sprintf("%s-%04x", id, p)
				v := &store.VM{
					ID: id, Prefix: pool.Prefix, Kind: "gce", Index: i, Hostname: name, Generation: int64(i + 1), Attributes: attributes, Images: []string{"bot-1"},
					Project: "lab", Zone: "us-central1-a", Shape: shape, Scaling: "fixed", Swarming: "https://skep.example.com", Lifetime: 7 * 24 * time.Hour,
					Expanded: tx.Now, Inserted: tx.Now, Created: tx.Now, Connected: tx.Now, URL: "https://compute.example.com/" + name,
				}
				if i%few.every == few.every/2 {
					v.Zone, v.Images, v.Shape = few.zone, []string{few.image}, "older"
				}
				b := &skep.Bot{
					ID: skep.BotID(name), FirstSeen: tx.Now, LastSeen: tx.Now,
					Dimensions: skep.Dimensions{"id": {name}, "pool": {"default"}, "os": {"Linux", "Debian", "Debian-12"}, "cpu": {"x86", "x86-64"}},
				}
				if err := errors.Join(tx.SaveVM(v), tx.SaveBot(b)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
