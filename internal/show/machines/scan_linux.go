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
	"strconv"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/internal/show/chaos"
	"github.com/skepdev/skep/internal/show/form"
	"github.com/skepdev/skep/internal/stage/fleet"
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/store"
)

// scanned starts a provider on the records of many machines that need nothing,
// and asks it how long it takes to look at all of them. It is a process of its
// own, so that its memory is the provider's; a server knows the bots as well. The
// cloud is away: what it does not tell costs no machine.
func (s *scale) scanned(ctx context.Context) (err error) {
	const each = 1000
	pools := form.Of(100, 20)
	dir := filepath.Join(s.dir, "scanned")
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
	defer func() { err = errors.Join(err, stop()) }()
	away := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "away", http.StatusServiceUnavailable) }))
	defer away.Close()
	var texts []string
	for i := range pools {
		texts = append(texts, poolText(fmt.Sprintf("pool%02d", i), each))
	}
	if err := errors.Join(declarePools(dir, texts...), record(ctx, dsn, pools, each), os.Setenv("SKEP_GCE_ENDPOINT", away.URL)); err != nil {
		return err
	}
	s.server, err = fleet.Start(ctx, "", s.skep, "provider", "run", "--db", dsn, "--config", filepath.Join(dir, "config"),
		"--url", "https://skep.example.com", "--state-dir", filepath.Join(dir, "state"), "--listen", "127.0.0.1:0")
	if err != nil {
		return err
	}
	return errors.Join(s.scans(ctx, pools*each), s.server.Stop())
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

// metric adds up the values of a metric of the server.
func (s *scale) metric(ctx context.Context, name string) (sum float64, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.server.URL+"/metrics", nil)
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

// record writes machines that are at work, with their bots, into a store.
func record(ctx context.Context, dsn string, pools, each int) (err error) {
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
	for p := range pools {
		err := st.Update(ctx, func(tx *store.Tx) error {
			for i := range each {
				id := fmt.Sprintf("pool%02d-%d", p, i)
				name := fmt.Sprintf("%s-%04x", id, p)
				v := &store.VM{
					ID: id, Prefix: fmt.Sprintf("pool%02d", p), Kind: "gce", Index: i, Hostname: name, Generation: int64(i + 1), Attributes: attributes, Images: []string{"bot-1"},
					Project: "lab", Zone: "us-central1-a", Scaling: "fixed", Swarming: "https://skep.example.com", Lifetime: 7 * 24 * time.Hour,
					Expanded: tx.Now, Inserted: tx.Now, Created: tx.Now, Connected: tx.Now, URL: "https://compute.example.com/" + name,
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
