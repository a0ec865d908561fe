package chaos

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"time"
)

// strike is one kill to be done.
type strike struct {
	Victim victim
	Phase  phase
}

// form is how large a run is.
type form struct {
	Tasks, Bots int           // the least number of tasks: more follow until the plan is done
	Readers     int           // who watch outputs while tasks run
	Patience    time.Duration // until all tasks must have ended
	TreeGone    time.Duration // from a bot's death until nothing below it runs
	Plan        []strike      // in the order in which they are done
	Phases      []phase       // which must all be hit

	// During names for a strike on a server one on a bot that falls into the
	// time in which the server is away.
	During map[strike]strike
}

// longForm is what the issue asks for: five kills of the server and ten of
// bots, each phase hit by both where it can be, and four of a bot's helpers;
// with PostgreSQL two of it.
func longForm(engine string, rng *rand.Rand) form {
	f := form{Tasks: 1000, Bots: 8, Readers: 4, Patience: 150 * time.Second, TreeGone: time.Second, Phases: phases}
	first := []strike{{victimServer, phaseSubmit}}
	rest := []strike{
		{victimServer, phaseClaim},
		{victimServer, phaseStart},
		{victimServer, phaseOutput},
		{victimServer, phaseFinal},
		{victimRunner, phaseStart},
		{victimRunner, phaseOutput},
		{victimIsolated, phaseOutput},
		{victimIsolated, phaseOutput},
	}
	f.During = map[strike]strike{{victimServer, phaseOutput}: {victimBot, phaseOutput}}
	for p, n := range map[phase]int{phaseClaim: 2, phaseStart: 3, phaseOutput: 2, phaseFinal: 2} {
		for range n {
			rest = append(rest, strike{victimBot, p})
		}
	}
	if engine == enginePostgres {
		first = append(first, strike{victimDatabase, phaseSubmit})
		rest = append(rest, strike{victimDatabase, phaseOutput})
	}
	f.Plan = append(first, shuffled(rest, rng)...)
	return f
}

// shortForm is for every change: all phases are hit, but not by everything.
func shortForm(engine string, rng *rand.Rand) form {
	f := form{Tasks: 200, Bots: 8, Readers: 2, Patience: 3 * time.Minute, TreeGone: 5 * time.Second, Phases: phases}
	first := []strike{{victimServer, phaseSubmit}}
	rest := []strike{{victimServer, phaseFinal}, {victimBot, phaseClaim}, {victimBot, phaseStart}, {victimBot, phaseOutput}}
	if engine == enginePostgres {
		first = append(first, strike{victimDatabase, phaseSubmit})
		rest = append(rest, strike{victimDatabase, phaseOutput})
	}
	f.Plan = append(first, shuffled(rest, rng)...)
	return f
}

// all returns every strike that is to be done.
func (f form) all() []strike {
	out := slices.Clone(f.Plan)
	for _, s := range f.Plan {
		if d, ok := f.During[s]; ok {
			out = append(out, d)
		}
	}
	return out
}

// shuffled mixes strikes. Equal seeds give equal orders.
func shuffled(s []strike, rng *rand.Rand) []strike {
	slices.SortFunc(s, func(a, b strike) int { // they may come from a map
		return cmp.Or(cmp.Compare(a.Victim, b.Victim), cmp.Compare(a.Phase, b.Phase))
	})
	rng.Shuffle(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] })
	return s
}

// due returns how many tasks must have ended before strike i of n is done, so
// that the kills spread over the run. Those of the submission are due at once.
func (f form) due(i int) int {
	if f.Plan[i].Phase == phaseSubmit {
		return 0
	}
	// The last tenth of the tasks is left for the fleet to recover with.
	return f.Tasks * 9 * i / (10 * len(f.Plan))
}

// acked returns how many tasks must have been acknowledged before strike i of
// the submission is done.
func (f form) acked(i int) int { return f.Tasks * (i + 1) / 5 }

// allowed returns how many tasks may be submitted when strike i is next. No more
// than it waits for, if it is one of the submission: else everything might be
// acknowledged while nobody gets to look.
func (f form) allowed(i int) int {
	if f.Plan[i].Phase == phaseSubmit {
		return f.acked(i)
	}
	return f.Tasks
}
