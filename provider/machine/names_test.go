package machine

import (
	"context"
	"flag"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/provider"
)

// No lifetime becomes shorter by chance, however long it is, nor longer by more
// than a tenth.
func TestJitter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := time.Duration(rapid.Int64Range(0, math.MaxInt64).Draw(t, "lifetime"))
		u := rapid.Float64Range(0, math.Nextafter(1, 0)).Draw(t, "u")
		if got := jitter(l, u); got < l || got-l > l/10 {
			t.Errorf("%d became %d", l, got)
		}
	})
	if got := jitter(math.MaxInt64, 0.9); got != math.MaxInt64 {
		t.Errorf("the longest became %d", got)
	}
}

// Whatever devices are called, the names of machines that are taken fit, and a
// short prefix takes every device.
func TestDeviceNamesFit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		prefix := rapid.StringMatching(`[a-z][a-z0-9]{0,55}`).Draw(t, "prefix")
		dut := rapid.StringN(1, 256, 256).Draw(t, "device")
		err := CheckDevice("duts", prefix, dut)
		if name := hostname(vmID(prefix, 0, dut), dut, map[string]string{suffixed: "true"}); (len(name) > 63) != (err != nil) {
			t.Errorf("%s has %d characters: %v", name, len(name), err)
		}
		if err != nil && len(prefix) <= 22 {
			t.Error(err)
		}
	})
	if err := CheckDevice("duts", strings.Repeat("p", 56), strings.Repeat("d", 24)); err == nil {
		t.Error("a name of 97 characters is taken")
	}
}

var pairs = flag.Int("pairs", 10_000, "pairs of names of TestNoDeviceIsLost; 1000000 is the long form")

// promise P16: of two devices each has a machine of its own, or both are refused.
func TestNoDeviceIsLost(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	const letters = "abzABZ019-_. é"
	alphabet := []rune(letters)
	name := func() []rune {
		d := make([]rune, 1+rng.IntN(40))
		for i := range d {
			d[i] = alphabet[rng.IntN(len(alphabet))]
		}
		return d
	}
	same := 0 // but for the digest: that is all that tells them apart
	for range *pairs {
		a := name()
		b := slices.Clone(a)
		if rng.IntN(4) == 0 {
			b = name()
		} else { // much like the other
			b[rng.IntN(len(b))] = alphabet[rng.IntN(len(alphabet))]
		}
		if string(a) == string(b) {
			continue
		}
		one, other := vmID("p", -1, string(a)), vmID("p", -1, string(b))
		if (one == other) != (checkDevices([]string{string(a), string(b)}) != nil) {
			t.Fatalf("%q and %q are %s and %s", string(a), string(b), one, other)
		}
		if one[:len(one)-10] == other[:len(other)-10] {
			same++
		}
	}
	if same < *pairs/20 {
		t.Errorf("%d of %d pairs are alike: too few to show anything", same, *pairs)
	}
}

// Two names whose digests begin alike, which takes a million tries to find, are
// refused together, and one by one taken.
func TestDevicesOfOneName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.declare(fixed("a", 0))
		one, other := "rbnhld1", "rbtjgp1"
		if vmID("a", -1, one) != vmID("a", -1, other) {
			t.Fatal("their names differ: nothing is shown")
		}
		for _, duts := range [][]string{{one}, {other}, {one, one}} {
			if _, err := w.r.Resize(t.Context(), "a", nil, duts); err != nil {
				t.Errorf("%v: %v", duts, err)
			}
		}
		_, err := w.r.Resize(t.Context(), "a", nil, []string{"x", one, other})
		if skep.KindOf(err) != skep.Invalid || !strings.Contains(err.Error(), one) || !strings.Contains(err.Error(), other) {
			t.Errorf("both: %v", err)
		}
		if p, err := w.store.MachinePool(t.Context(), "a"); err != nil || len(p.Duts) != 1 {
			t.Errorf("devices %v, %v", p.Duts, err)
		}
	})
}

// orders notes what is asked for.
type orders struct {
	*world
	got []provider.Order
}

func (o *orders) Create(ctx context.Context, order provider.Order) (bool, error) {
	o.got = append(o.got, order)
	return o.world.Create(ctx, order)
}

// A cloud gets the URL of the bots' server, however it was named.
func TestServerIsAURL(t *testing.T) {
	for named, want := range map[string]string{
		"": "https://own.example.com", "lab.example.com": "https://lab.example.com", "lab.example.com:8443": "https://lab.example.com:8443",
		"https://lab.example.com/": "https://lab.example.com/",
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.slow = 0
			o := &orders{world: w}
			r, err := New(t.Context(), w.store, fleetOf{w}, func(string, []string) (provider.Provider, error) { return o, nil }, Options{Server: "https://own.example.com"})
			if err != nil {
				t.Fatal(err)
			}
			w.r = r
			c := fixed("a", 1)
			c.Swarming = named
			w.declare(c)
			for _, s := range []struct {
				step Step
				id   string
			}{{ExpandConfigs, "a"}, {CreateInstance, "a-0"}} {
				if _, err := r.RunStep(t.Context(), s.step, s.id); err != nil {
					t.Fatal(err)
				}
			}
			if len(o.got) != 1 || o.got[0].Server != want {
				t.Errorf("%q: %+v, want %s", named, o.got, want)
			}
		})
	}
}
