//go:build unix

package disk

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
)

const killEnv = "SKEP_TEST_DISK_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(killEnv); dir != "" {
		if err := child(dir); err != nil {
			fmt.Println("failed", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// killOptions are small, so that packs fill and are compacted all the time.
func killOptions(dir string, now func() time.Time) Options {
	return Options{Dir: dir, MinFree: 1, MaxBytes: 6 << 20, packMax: 256 << 10, Now: now}
}

// child works on the store until it is killed: puts, uploads, evictions and
// compactions at once. It prints each blob that it was told to be durable.
func child(dir string) error {
	var mu sync.Mutex
	clock := newClock()
	base, _ := strconv.ParseUint(os.Getenv(killEnv+"_SEED"), 10, 64)
	clock.at.Add(int64(base) * 10_000)
	s, err := Open(context.Background(), killOptions(dir, clock.Now))
	if err != nil {
		return err
	}
	ack := func(seed uint64, n int) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Println(seed, n)
	}
	fmt.Println("ready")
	failed := make(chan error, 8)
	// full reports whether err says that all is too young to be evicted, as where
	// worker 3 gets little time: it then makes it older.
	full := func(err error) bool {
		if skep.KindOf(err) != skep.Exhausted {
			return false
		}
		clock.add(3 * Keep)
		return true
	}
	for w := range uint64(4) {
		go func() {
			for i := uint64(0); ; i++ {
				seed := base<<32 | w<<28 | i
				r := rand.New(rand.NewPCG(seed, 1))
				switch w {
				case 0, 1: // batches, mostly of small ones
					var blobs []Blob
					for k := range uint64(1 + r.IntN(20)) {
						n := 1 + r.IntN(9000)
						if r.IntN(30) == 0 {
							n = smallMax + r.IntN(50_000)
						}
						blobs = append(blobs, blob(seed<<6|k, n))
					}
					for k, err := range s.PutBatch(context.Background(), blobs) {
						if full(err) {
							continue
						}
						if err != nil {
							failed <- err
							return
						}
						ack(seed<<6|uint64(k), len(blobs[k].Data))
					}
				case 2: // uploads in pieces
					b := blob(seed<<6, smallMax+1+r.IntN(300_000))
					up, err := s.Upload(context.Background(), b.Digest, "u")
					for rest := b.Data; err == nil && len(rest) > 0; {
						k := min(len(rest), 1+r.IntN(100_000))
						_, err = up.Write(rest[:k])
						rest = rest[k:]
					}
					if err == nil {
						err = up.Commit(context.Background())
					}
					if full(err) {
						if up != nil {
							_ = up.Close() // forgotten when it is older
						}
						continue
					}
					if err != nil {
						failed <- err
						return
					}
					ack(seed<<6, len(b.Data))
				case 3: // time goes on, so that there is something to evict
					clock.add(3 * Keep)
					s.saveUse()
					_ = s.compactWorst(context.Background())
					time.Sleep(time.Millisecond)
				}
			}
		}()
	}
	return <-failed
}

// TestKill kills a process at random moments. Whatever it did, the next one
// serves no byte that is wrong and finds no temporary file. Blobs may be
// missing if they were evicted only: the last ones acknowledged are there.
func TestKill(t *testing.T) {
	rounds := 25
	if testing.Short() {
		rounds = 5
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	r := rand.New(rand.NewPCG(rand.Uint64(), 1))
	type acked struct {
		seed uint64
		n    int
	}
	var all []acked
	compacted, evicted := int64(0), 0
	for round := range rounds {
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), killEnv+"="+dir, fmt.Sprintf("%s_SEED=%d", killEnv, round+1))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		if !lines.Scan() || lines.Text() != "ready" {
			t.Fatalf("the child said %q", lines.Text())
		}
		var killer *time.Timer
		arm := func() {
			killer = time.AfterFunc(time.Duration(r.IntN(60_000))*time.Microsecond, func() { _ = cmd.Process.Kill() })
		}
		// Of a slow child the time from its start may be over before it did anything:
		// every second one lives until that time after its first acknowledgement.
		if round%2 == 0 {
			arm()
		}
		var got []acked
		for lines.Scan() {
			if killer == nil {
				arm()
			}
			seed, n, ok := strings.Cut(lines.Text(), " ")
			if !ok || seed == "failed" {
				t.Fatalf("the child said %q", lines.Text())
			}
			var a acked
			if a.seed, err = strconv.ParseUint(seed, 10, 64); err != nil {
				break // the last line may be cut short
			}
			if a.n, err = strconv.Atoi(n); err != nil {
				break
			}
			got = append(got, a)
		}
		if killer == nil {
			t.Fatal("the child ended by itself")
		}
		killer.Stop()
		_ = cmd.Wait()
		all = append(all, got...)

		o := killOptions(dir, nil)
		o.Log = options(t, dir).Log
		s, err := Open(context.Background(), o)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		u := s.Usage()
		if u.Corrupt != 0 {
			t.Errorf("round %d: %d corrupt", round, u.Corrupt)
		}
		wantDisk(t, s)
		present := map[cas.Digest]bool{}
		for _, a := range all {
			b := blob(a.seed, a.n)
			data, err := s.Get(context.Background(), b.Digest, 1<<30)
			if err == nil {
				present[b.Digest] = true
				if cas.Sum(data) != b.Digest {
					t.Fatalf("round %d: wrong bytes", round)
				}
			} else if !isMissing(err) {
				t.Fatal(err)
			}
		}
		// Nothing was evicted in this round if the store is far from its limit;
		// then all is there.
		full := u.Bytes > 4<<20
		for _, a := range got {
			if d := blob(a.seed, a.n).Digest; !present[d] {
				evicted++
				if !full {
					t.Errorf("round %d: blob %s was acknowledged and is missing; usage %+v", round, d, u)
				}
			}
		}
		kept := all[:0]
		for _, a := range all {
			if present[blob(a.seed, a.n).Digest] {
				kept = append(kept, a)
			}
		}
		all = kept
		compacted = max(compacted, int64(s.writer.next))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d blobs are there at the end, %d were evicted in their own round, %d packs were begun", len(all), evicted, compacted)
	if len(all) == 0 {
		t.Error("no blob was ever acknowledged")
	}
}
