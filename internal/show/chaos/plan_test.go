package chaos

import (
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func seeded(n uint64) *rand.Rand { return rand.New(rand.NewPCG(n, 0)) }

func TestPlansHitEverything(t *testing.T) {
	type count struct{ Server, Bot, Helper, Database int }
	for _, tc := range []struct {
		name   string
		make   func(string, *rand.Rand) form
		engine string
		tasks  int
		want   count
	}{
		{"long", longForm, engineSQLite, 1000, count{5, 10, 4, 0}},
		{"long on PostgreSQL", longForm, enginePostgres, 1000, count{5, 10, 4, 2}},
		{"short", shortForm, engineSQLite, 200, count{2, 3, 0, 0}},
		{"short on PostgreSQL", shortForm, enginePostgres, 200, count{2, 3, 0, 2}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for seed := range uint64(50) {
				f := tc.make(tc.engine, seeded(seed))
				if diff := cmp.Diff(f, tc.make(tc.engine, seeded(seed))); diff != "" {
					t.Fatalf("one seed, two plans: %s", diff)
				}
				var got count
				hit := map[phase]bool{}
				last := 0
				for _, s := range f.all() {
					hit[s.Phase] = true
					switch s.Victim {
					case victimServer:
						got.Server++
					case victimBot:
						got.Bot++
					case victimDatabase:
						got.Database++
					default:
						got.Helper++
					}
				}
				for i, s := range f.Plan {
					if d := f.due(i); d < last || d > f.Tasks*9/10 {
						t.Errorf("strike %d is due at %d, the last at %d", i, d, last)
					} else {
						last = d
					}
					if s.Phase == phaseSubmit && (f.acked(i) < 1 || f.acked(i) > f.Tasks/2) {
						t.Errorf("strike %d is due after %d are acknowledged", i, f.acked(i))
					}
				}
				if got != tc.want || len(hit) != len(phases) || f.Tasks != tc.tasks || f.Bots != 8 {
					t.Errorf("%+v, phases %v, %d tasks", got, hit, f.Tasks)
				}
			}
		})
	}
}
