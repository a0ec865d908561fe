package gce_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/provider/gce"
	"github.com/skepdev/skep/provider/gce/gcesim"
)

// keeper has one machine, and makes another each time its life is over. It
// knows what a reconciler may know: a new name after a refusal, the same
// request until it is answered.
type keeper struct {
	t    *testing.T
	p    *gce.Provider
	vm   string
	next int
}

// bring makes one machine, whatever it takes within reason, and returns its
// name.
func (k *keeper) bring() string {
	for range 100 {
		k.next++
		o := order(fmt.Sprintf("%s-%d", k.vm, k.next))
		o.Labels = map[string]string{provider.LabelOwner: "me", provider.LabelVM: k.vm, provider.LabelGeneration: fmt.Sprint(k.next)}
		var done bool
		var err error
		for tries := 0; !done; tries++ {
			if tries > 1000 {
				k.t.Errorf("%s: not done after %d calls", o.Name, tries)
				return o.Name
			}
			time.Sleep(time.Second)
			done, err = k.p.Create(k.t.Context(), o)
			var e *provider.Error
			if errors.As(err, &e) && e.Class == provider.Conflict { // the name is somebody else's
				done = true
			}
		}
		if err == nil && k.there(o.Name) {
			return o.Name
		}
	}
	k.t.Errorf("%s: no machine in 100 attempts", k.vm)
	return k.vm
}

func (k *keeper) there(name string) bool {
	for {
		time.Sleep(time.Second)
		_, err := k.p.Get(k.t.Context(), provider.Ref{Project: scope.Project, Zone: scope.Zone, Name: name})
		var e *provider.Error
		switch {
		case err == nil:
			return true
		case errors.As(err, &e) && e.Class == provider.NotFound:
			return false
		}
	}
}

func (k *keeper) take(name string) {
	id := uuid.NewString()
	for range 1000 {
		time.Sleep(time.Second)
		done, err := k.p.Delete(k.t.Context(), provider.Ref{Project: scope.Project, Zone: scope.Zone, Name: name}, id)
		if done {
			return
		}
		var e *provider.Error
		if errors.As(err, &e) && e.Code == 200 { // this operation has failed, and would be told of for a day
			id = uuid.NewString()
		}
	}
	k.t.Errorf("%s cannot be taken away", name)
}

// TestUnderFaults holds that with every fault in a fifth of the calls no
// machine is made twice, none is lost and none is left.
func TestUnderFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const vms, lives = 20, 5
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		sim := gcesim.New(gcesim.Options{Check: true, History: true, Seed: seed, Settings: gcesim.Settings{
			Insert: 20 * time.Second, Delete: 10 * time.Second, Spread: 20 * time.Second, Slow: 40 * time.Second, Faults: gcesim.EveryFault(0.2),
		}})
		var wg sync.WaitGroup
		for n := range vms {
			wg.Go(func() {
				k := &keeper{t: t, p: client(t, sim.Transport()), vm: fmt.Sprintf("vm-%d", n)}
				for range lives {
					k.take(k.bring())
				}
			})
		}
		wg.Wait()
		ran := map[string]int{}
		requested := map[string]bool{}
		for _, m := range sim.Made() {
			if m.Labels[provider.LabelOwner] == "" {
				continue // the conflict's
			}
			if requested[m.Name] {
				t.Errorf("%s was made twice", m.Name)
			}
			requested[m.Name] = true
			if m.Gone.IsZero() {
				t.Errorf("%s is left", m.Name)
			}
			if !m.Running.IsZero() {
				ran[m.Labels[provider.LabelVM]]++
			}
		}
		if len(ran) != vms {
			t.Errorf("%d machines ran, want %d", len(ran), vms)
		}
		for vm, n := range ran {
			if n != lives {
				t.Errorf("%s ran %d times, want %d", vm, n, lives)
			}
		}
		hit := 0
		for what := range sim.Counts() {
			if strings.HasPrefix(what, "fault ") {
				hit++
			}
		}
		if hit < 10 {
			t.Errorf("only %d kinds of faults happened", hit)
		}
	})
}
