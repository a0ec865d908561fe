package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"time"

	"github.com/skepdev/skep/internal/proc"
)

// upForm is a run of skep up: it is killed itself, which its bots outlive
// with their tasks, and so are bots, which it starts again.
func upForm(short bool, rng *rand.Rand) form {
	f := form{Tasks: 240, Bots: 4, Readers: 2, Patience: 90 * time.Second, TreeGone: time.Second}
	f.Plan = []strike{
		{victimUp, phaseSubmit},
		{victimUp, phaseOutput},
		{victimUp, phaseFinal},
		{victimUp, phaseStart},
		{victimUp, phaseClaim},
		{victimBot, phaseOutput},
		{victimBot, phaseStart},
		{victimBot, phaseFinal},
	}
	if short {
		f.Tasks, f.Patience, f.TreeGone = 100, 2*time.Minute, 5*time.Second
		f.Plan = []strike{{victimUp, phaseSubmit}, {victimUp, phaseOutput}, {victimBot, phaseStart}}
	}
	f.Plan = append(f.Plan[:1], shuffled(f.Plan[1:], rng)...)
	return f
}

// addUp makes skep up the one process that is kept; the bots are its.
func (fl *fleet) addUp() {
	args := []string{
		fl.prog.Skep, "up", "--listen", fl.listen(), "--state-dir", fl.path("state"),
		"--bot-dir", filepath.Dir(fl.prog.Bot), "--bots", strconv.Itoa(fl.form.Bots),
	}
	fl.server = &keeper{name: string(victimUp), log: fl.path("log", "up"), cmd: func() *proc.Cmd {
		return &proc.Cmd{Path: args[0], Args: args, Env: fl.environ(), Dir: fl.root}
	}}
}

// meet waits for the bots that skep up makes.
func (fl *fleet) meet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		locks, err := filepath.Glob(fl.path("state", "bots", "*", lockName))
		if err != nil {
			return err
		}
		if len(locks) == fl.form.Bots {
			for _, lock := range locks {
				dir := filepath.Dir(lock)
				fl.bots = append(fl.bots, &member{id: filepath.Base(dir), window: window{dir: dir}})
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("skep up made %d bots, want %d", len(locks), fl.form.Bots)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// pids returns the bots' process ids.
func (fl *fleet) pids() []int {
	out := make([]int, len(fl.bots))
	for i, b := range fl.bots {
		out[i] = b.pid()
	}
	return out
}
