package machine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/store"
)

// demanded is a pool that follows the queue of os:Linux.
func demanded(prefix string, most int) provider.Config {
	c := fixed(prefix, 0)
	c.Amount.Max = most
	c.Demand = &provider.Demand{Dimensions: map[string][]string{"pool": {"ci"}, "os": {"Linux"}}, TargetWait: time.Minute}
	return c
}

// submit stores tasks that wait for a bot with these dimensions, "key:a|b".
func (w *world) submit(n int, demands ...string) (ids []skep.TaskID) {
	w.t.Helper()
	cs := skep.Constraints{}
	for _, d := range append(demands, "pool:ci") {
		for i := range d {
			if d[i] == ':' {
				cs = append(cs, skep.ParseConstraint(d[:i], d[i+1:]))
				break
			}
		}
	}
	cs.Sort()
	err := w.store.Update(w.t.Context(), func(tx *store.Tx) error {
		ids = nil
		if err := tx.SaveQueue(store.Queue{ID: cs.Queue(), Dimensions: cs, Expires: tx.Now.Add(time.Hour)}); err != nil {
			return err
		}
		for range n {
			req := &skep.TaskRequest{
				ID: skep.NewTaskID(tx.Now), CreatedAt: tx.Now, Name: "t", Priority: 100, Authenticated: "user:x", ServiceAccount: "none",
				Slices: []skep.Slice{{Properties: skep.Properties{Command: []string{"true"}, Dimensions: cs}, Expiration: 100 * time.Hour}},
			}
			task := &skep.Task{
				ID: req.ID, State: skep.Pending, Priority: 100, Queue: cs.Queue(), ExpiresAt: tx.Now.Add(100 * time.Hour), ModifiedAt: tx.Now,
				PingTolerance: time.Minute, ServerVersions: []string{"v"},
			}
			r, err := store.Prepare(req, task, nil)
			if err != nil {
				return err
			}
			if err := tx.CreateTask(r); err != nil {
				return err
			}
			ids = append(ids, req.ID)
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return ids
}

// taken takes a task out of the queue.
func (w *world) taken(id skep.TaskID, state skep.TaskState) {
	err := w.store.Update(context.Background(), func(tx *store.Tx) error { //nolint:usetesting // also in rapid
		task, err := tx.LockTask(id)
		if err != nil {
			return err
		}
		if err := task.Move(state, tx.Now); err != nil {
			return err
		}
		return tx.SaveTask(task)
	})
	if err != nil {
		w.t.Error(err)
	}
}

// idle are the bots that could take a task now, sorted.
func (w *world) idle() (bots []string) {
	vms, err := w.store.VMsAfter(context.Background(), "", 10_000) //nolint:usetesting // also in rapid
	if err != nil {
		w.t.Error(err)
	}
	for i := range vms {
		v := &vms[i]
		w.mu.Lock()
		ok := v.Bot.Known && !v.Bot.Dead && v.Bot.Task == 0 && w.leaving[v.Hostname] == 0 && w.instances[v.Hostname] != nil && !w.resting[v.Hostname]
		w.mu.Unlock()
		if ok {
			bots = append(bots, v.Hostname)
		}
	}
	return bots
}

// match hands tasks that wait to idle bots, as the server does, and returns
// what is left.
func (w *world) match(ids []skep.TaskID) []skep.TaskID {
	for _, bot := range w.idle() {
		if len(ids) == 0 {
			break
		}
		w.taken(ids[0], skep.Canceled) // for the queue it is gone either way
		w.busy(bot, true)
		ids = ids[1:]
	}
	return ids
}

func TestWanted(t *testing.T) {
	d := func(warm int) *provider.Demand { return &provider.Demand{Warm: warm, TargetWait: time.Minute} }
	for name, tc := range map[string]struct {
		warm  int
		n     tally
		tasks int
		want  int
	}{
		"nothing":                          {0, tally{}, 0, 0},
		"the warm floor":                   {2, tally{}, 0, 2},
		"a task for each":                  {0, tally{}, 5, 5},
		"five on their way already":        {0, tally{stay: 5, free: 5}, 5, 5},
		"two on their way, five wait":      {0, tally{stay: 2, free: 2}, 5, 5},
		"three at work":                    {0, tally{stay: 3}, 0, 3},
		"three at work and warm ones":      {2, tally{stay: 3}, 0, 5},
		"the warm ones are for what waits": {2, tally{stay: 5, free: 2}, 2, 5},
		"more waits than is warm":          {2, tally{stay: 5, free: 2}, 4, 7},
		"idle ones are too many":           {1, tally{stay: 6, free: 4}, 0, 3},
		"one that ends has its place":      {1, tally{stay: 1}, 0, 2},
		"one of no use":                    {0, tally{stay: 1, waste: 1}, 0, 0},
		"one of no use, and a task waits":  {0, tally{stay: 1, waste: 1}, 1, 2},
		"its successor is on its way":      {0, tally{stay: 2, free: 1, waste: 1}, 1, 2},
		"its successor is there":           {0, tally{stay: 2, free: 1, idle: 1, waste: 1}, 1, 1},
		"one of no use beside three":       {1, tally{stay: 5, free: 1, idle: 1, waste: 1}, 0, 4},
	} {
		if got := wanted(d(tc.warm), tc.n, tc.tasks); got != tc.want {
			t.Errorf("%s: %d, want %d", name, got, tc.want)
		}
	}
}

func TestPatience(t *testing.T) {
	d := &provider.Demand{TargetWait: time.Minute}
	for ready, want := range map[time.Duration]time.Duration{0: 30 * time.Second, 20 * time.Second: 40 * time.Second, time.Hour: 0} {
		if got := patience(d, ready); got != want {
			t.Errorf("machines that come after %v are asked for after %v, want %v", ready, got, want)
		}
	}
}

func TestCountFree(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	at := store.VM{Inserted: now.Add(-time.Hour), Created: now.Add(-time.Hour), Connected: now.Add(-time.Hour), Bot: store.VMBot{Known: true, LastSeen: now}}
	for name, tc := range map[string]struct {
		change func(*store.VM)
		want   tally
	}{
		"idle":                 {func(*store.VM) {}, tally{1, 1, 1, 1, 0}},
		"planned":              {func(v *store.VM) { *v = store.VM{} }, tally{1, 1, 1, 0, 0}},
		"booting":              {func(v *store.VM) { v.Created, v.Connected, v.Bot = now, time.Time{}, store.VMBot{} }, tally{1, 1, 1, 0, 0}},
		"booting for too long": {func(v *store.VM) { v.Connected, v.Bot = time.Time{}, store.VMBot{} }, tally{1, 1, 0, 0, 1}},
		"at work":              {func(v *store.VM) { v.Bot.Task = 1 }, tally{1, 1, 0, 0, 0}},
		"dead":                 {func(v *store.VM) { v.Bot.Dead = true }, tally{1, 1, 0, 0, 1}},
		"ill":                  {func(v *store.VM) { v.Bot.Ill = true }, tally{1, 1, 0, 0, 1}},
		"its bot was deleted":  {func(v *store.VM) { v.Missing, v.Bot = now, store.VMBot{} }, tally{1, 1, 0, 0, 1}},
		"to be replaced":       {func(v *store.VM) { v.Retire = now }, tally{1, 1, 0, 0, 0}},
		"asked to end":         {func(v *store.VM) { v.Asked = now }, tally{1, 1, 0, 0, 0}},
		"drained":              {func(v *store.VM) { v.Drained = true }, tally{1, 0, 0, 0, 0}},
		"the bot of an earlier life": {func(v *store.VM) {
			v.Inserted, v.Bot.Task, v.Connected, v.Created = now.Add(time.Second), 1, time.Time{}, now
		}, tally{1, 1, 1, 0, 0}},
		"drained and at work":         {func(v *store.VM) { v.Drained, v.Bot.Task = true, 1 }, tally{1, 0, 0, 0, 0}},
		"taken away as it was silent": {func(v *store.VM) { v.Deleting = now }, tally{1, 1, 0, 0, 0}},
	} {
		v := at
		tc.change(&v)
		if got := count([]store.VM{v}, now, 10*time.Minute); got != tc.want {
			t.Errorf("%s: %+v, want %+v", name, got, tc.want)
		}
	}
}

func TestShare(t *testing.T) {
	queue := func(n int, demands ...string) store.QueueLoad {
		q := store.QueueLoad{Tasks: n}
		for i := 0; i < len(demands); i += 2 {
			q.Dimensions = append(q.Dimensions, skep.ParseConstraint(demands[i], demands[i+1]))
		}
		return q
	}
	linux, windows := skep.Dimensions{"os": {"Linux"}, "gpu": {"none"}}, skep.Dimensions{"os": {"Windows"}}
	for name, tc := range map[string]struct {
		queues []store.QueueLoad
		before []rival
		want   int
	}{
		"alone":                               {[]store.QueueLoad{queue(5, "os", "Linux")}, nil, 5},
		"another's":                           {[]store.QueueLoad{queue(5, "os", "Windows")}, nil, 0},
		"alternatives":                        {[]store.QueueLoad{queue(5, "os", "Linux|Windows")}, nil, 5},
		"alternatives, one before takes all":  {[]store.QueueLoad{queue(5, "os", "Linux|Windows")}, []rival{{windows, 9}}, 0},
		"alternatives, one before takes some": {[]store.QueueLoad{queue(5, "os", "Linux|Windows")}, []rival{{windows, 2}}, 3},
		"one before has its own to do":        {[]store.QueueLoad{queue(5, "os", "Linux|Windows"), queue(9, "os", "Windows")}, []rival{{windows, 10}}, 4},
		"one before cannot":                   {[]store.QueueLoad{queue(5, "os", "Linux", "gpu", "none")}, []rival{{windows, 9}}, 5},
		"two queues":                          {[]store.QueueLoad{queue(5, "os", "Linux"), queue(2, "gpu", "none")}, nil, 7},
		"two before":                          {[]store.QueueLoad{queue(9, "os", "Linux")}, []rival{{linux, 3}, {linux, 4}}, 2},
	} {
		pools := []skep.Dimensions{linux}
		for _, p := range tc.before {
			pools = append(pools, p.dimensions)
		}
		if got := share(tc.queues, linux, tc.before, pools); got != tc.want {
			t.Errorf("%s: %d, want %d", name, got, tc.want)
		}
	}
}

// A pool that follows the queue keeps no machine that takes no tasks, once there
// are others enough; where all come up ill it is not made again and again.
func TestIllMachinesGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		c := demanded("a", 4)
		c.Amount.Min, c.Demand.Warm = 0, 1
		w.declare(c)
		stop := w.run()
		defer stop()
		time.Sleep(2 * time.Minute)
		ill := func(name string) {
			w.save(name, func(b *skep.Bot, _ time.Time) { b.Quarantined = "its disk is full" })
		}
		first := w.names()
		if len(first) != 1 {
			t.Fatalf("machines %v, want 1 warm", first)
		}
		ill(first[0])
		time.Sleep(demandCool + 3*time.Minute)
		if got := w.names(); len(got) != 1 || got[0] == first[0] {
			t.Errorf("%v became %v", first, got)
		}
		for range 10 { // of the image, say
			for _, name := range w.names() {
				ill(name)
			}
			time.Sleep(time.Minute)
		}
		before := w.inserts
		for range 30 {
			time.Sleep(time.Minute)
		}
		if n := len(w.names()); n != 4 || w.inserts != before {
			t.Errorf("%d machines, %d more were made", n, w.inserts-before)
		}
		c.Demand.Warm = 0
		w.declare(c)
		time.Sleep(demandCool + 3*time.Minute)
		if err := w.check(nil); err != nil {
			t.Error(err)
		}
	})
}

// Of the tasks that wait none is two pools' to run, and none is nobody's that
// some pool has room for.
func TestShareProperties(t *testing.T) {
	checks(t, 3000)
	keys := []string{"a", "b", "c"}
	rapid.Check(t, func(t *rapid.T) {
		pool := rapid.Custom(func(t *rapid.T) rival {
			d := skep.Dimensions{}
			for _, k := range keys {
				d[k] = []string{rapid.SampledFrom([]string{"1", "2"}).Draw(t, k)}
			}
			return rival{d, rapid.IntRange(0, 6).Draw(t, "room")}
		})
		pools := rapid.SliceOfN(pool, 1, 4).Draw(t, "pools")
		queues := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) store.QueueLoad {
			q := store.QueueLoad{Tasks: rapid.IntRange(1, 5).Draw(t, "tasks")}
			for _, k := range rapid.SliceOfNDistinct(rapid.SampledFrom(keys), 1, 3, rapid.ID).Draw(t, "keys") {
				q.Dimensions = append(q.Dimensions, skep.ParseConstraint(k, rapid.SampledFrom([]string{"1", "2", "1|2"}).Draw(t, "value")))
			}
			return q
		}), 0, 5).Draw(t, "queues")
		total, given, room := 0, 0, 0
		var dims []skep.Dimensions
		for _, p := range pools {
			dims = append(dims, p.dimensions)
		}
		for _, q := range queues {
			if slices.ContainsFunc(pools, func(p rival) bool { return q.Dimensions.Match(p.dimensions) }) {
				total += q.Tasks
			}
		}
		for i, p := range pools {
			got := share(queues, p.dimensions, pools[:i], dims)
			if all := share(queues, p.dimensions, nil, dims); got > all {
				t.Errorf("pool %d is given %d of its %d", i, got, all)
			}
			given += min(got, p.room)
			room += p.room
		}
		if given > total {
			t.Errorf("%d tasks are given away %d times", total, given)
		}
		if room == 0 && given > 0 {
			t.Error("tasks are given to pools without room")
		}
		if last := len(pools) - 1; share(queues, pools[last].dimensions, pools[:last], dims) == 0 && given < total {
			for _, q := range queues { // the last one matches nothing that is left, or nothing is left
				if q.Dimensions.Match(pools[last].dimensions) && last == 0 {
					t.Errorf("%d of %d are given to the only pool", given, total)
				}
			}
		}
	})
}

// The size is the largest that was wanted in the last two minutes, and grows at
// once; what goes meanwhile by itself is not made anew for that.
func TestSizeIsThatOfTheLastMinutes(t *testing.T) {
	r := &Reconciler{lately: map[string]peaks{}}
	c := demanded("a", 10)
	p := &store.MachinePool{Prefix: "a"}
	now := time.Unix(1_700_000_000, 0)
	for i, step := range []struct {
		after time.Duration
		n     tally
		tasks int
		want  int
	}{
		{0, tally{}, 0, 0},
		{time.Second, tally{}, 5, 5},
		{time.Second, tally{stay: 5, free: 5}, 5, 5},
		{time.Minute, tally{stay: 5, free: 5, idle: 5}, 0, 5},      // all were canceled
		{50 * time.Second, tally{stay: 5, free: 5}, 3, 5},          // some were needed meanwhile
		{20 * time.Second, tally{stay: 5, free: 5}, 0, 3},          // two were not, for two minutes
		{time.Second, tally{stay: 2, free: 2}, 0, 2},               // one died: no other comes
		{2 * time.Minute, tally{stay: 2, free: 2}, 0, 0},           // long enough
		{time.Second, tally{stay: 0}, 40, 10},                      // no more than there may be
		{time.Second, tally{stay: 10}, 40, 10},                     // all at work
		{3 * time.Minute, tally{stay: 10}, 0, 10},                  // and they stay
		{time.Second, tally{stay: 10, free: 1}, 0, 10},             // one ends its task
		{118 * time.Second, tally{stay: 10, free: 1}, 0, 10},       // not yet
		{time.Second, tally{stay: 10, free: 1}, 0, 9},              // now
		{time.Second, tally{stay: 9, free: 9}, 0, 9},               // all end
		{119 * time.Second, tally{stay: 9, free: 9}, 0, 0},         // and go two minutes later
		{time.Second, tally{stay: 0, free: 0}, 1, 1},               // and one comes again
		{24 * time.Hour, tally{stay: 1, free: 1, idle: 1}, 0, 0},   // nobody looked meanwhile
		{time.Second, tally{there: 9, stay: 0, free: 0}, 2, 2},     // those that go do not count
		{time.Second, tally{there: 11, stay: 2, free: 2}, 10, 10},  // nor here
		{time.Second, tally{there: 12, stay: 12, free: 2}, 10, 10}, // too many are there
	} {
		now = now.Add(step.after)
		if got := r.size(p, &c, step.n, step.tasks, now); got != step.want {
			t.Errorf("step %d: %d machines, want %d", i, got, step.want)
		}
	}
	if n := len(r.lately["a"]); n > 4 {
		t.Errorf("%d sizes are kept", n)
	}
}

// What a server aimed for before a restart goes as slowly as what it aims for.
func TestSizeAfterRestart(t *testing.T) {
	r := &Reconciler{lately: map[string]peaks{}}
	c := demanded("a", 10)
	p := &store.MachinePool{Prefix: "a", Amount: 4}
	now := time.Unix(1_700_000_000, 0)
	for _, step := range []struct {
		after time.Duration
		want  int
	}{{0, 4}, {time.Minute, 4}, {time.Minute, 0}} {
		now = now.Add(step.after)
		if got := r.size(p, &c, tally{stay: 6, free: 6}, 0, now); got != step.want {
			t.Errorf("%v later %d machines, want %d", step.after, got, step.want)
		}
	}
}

// A queue that grows has its machines in time, one for each task however long
// they take; when it is empty, busy ones stay and idle ones go.
func TestPoolFollowsTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.declare(demanded("a", 10))
		stop := w.run()
		defer stop()
		time.Sleep(time.Minute)
		if n := len(w.names()); n != 0 {
			t.Fatalf("%d machines without a task", n)
		}
		w.submit(3, "os:Windows")
		asked := time.Now()
		waiting := w.submit(5, "os:Linux")
		for len(waiting) > 0 && time.Since(asked) < 2*time.Minute {
			if n := len(w.names()); n > 5 {
				t.Fatalf("%d machines for 5 tasks", n)
			}
			time.Sleep(100 * time.Millisecond)
			waiting = w.match(waiting)
		}
		if took := time.Since(asked); took > time.Minute+5*time.Second {
			t.Errorf("the last task waited %v, at most 1m is wanted", took)
		}
		busy := w.names()
		time.Sleep(10 * time.Minute)
		if got := w.names(); !slices.Equal(got, busy) || w.inserts != 5 {
			t.Fatalf("%v became %v, %d inserts", busy, got, w.inserts)
		}
		for _, b := range busy[2:] {
			w.busy(b, false)
		}
		time.Sleep(demandCool - 10*time.Second)
		if got := w.names(); !slices.Equal(got, busy) {
			t.Errorf("idle machines went early: %v of %v", got, busy)
		}
		time.Sleep(20 * time.Second)
		if got := w.names(); !slices.Equal(got, busy[:2]) {
			t.Errorf("%v are left, want the busy %v", got, busy[:2])
		}
		if len(w.cut) > 0 {
			t.Errorf("cut: %v", w.cut)
		}
		// Others came after 22 s: they are asked for when that is what is left.
		asked = time.Now()
		waiting = w.submit(2, "os:Linux")
		for len(waiting) > 0 && time.Since(asked) < 2*time.Minute {
			time.Sleep(100 * time.Millisecond)
			waiting = w.match(waiting)
		}
		if took := time.Since(asked); took > time.Minute+5*time.Second || took < 50*time.Second {
			t.Errorf("the next tasks waited %v, want 1m", took)
		}
		if n := len(w.names()); n != 4 {
			t.Errorf("%d machines, want 4", n)
		}
	})
}

// The warm floor is kept: when its machines get tasks, when they end, and when
// they die.
func TestWarmFloor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		c := demanded("a", 6)
		c.Demand.Warm, c.Lifetime = 2, 30*time.Minute
		w.declare(c)
		stop := w.run()
		defer stop()
		time.Sleep(time.Minute)
		first := w.names()
		if len(first) != 2 {
			t.Fatalf("%d machines, want 2 warm ones", len(first))
		}
		w.busy(first[0], true)
		time.Sleep(time.Minute)
		if n := len(w.names()); n != 3 {
			t.Errorf("%d machines with one at work, want 3", n)
		}
		w.busy(first[1], true)
		time.Sleep(50 * time.Minute) // their lives are over, and their tasks are not; others come and go meanwhile
		if got := w.names(); !slices.Contains(got, first[0]) || !slices.Contains(got, first[1]) || len(got) != 4 || len(w.idle()) != 2 {
			t.Errorf("%v with %v at work, %v idle; want 2 idle ones", got, first, w.idle())
		}
		for _, b := range first {
			w.busy(b, false)
		}
		time.Sleep(5 * time.Minute)
		if got := w.names(); len(got) != 2 || slices.Contains(got, first[0]) {
			t.Errorf("%v, want 2 young ones", got)
		}
		w.save(w.names()[0], func(b *skep.Bot, _ time.Time) { b.Dead = true })
		time.Sleep(time.Minute)
		if n := len(w.idle()); n != 2 {
			t.Errorf("%d idle machines a minute after one died, want 2", n)
		}
	})
}

// Machines that were drained and finish long tasks do not keep others from what
// waits, but there are never more than there may be.
func TestDrainedMachinesKeepNoTaskWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		c := demanded("a", 5)
		c.Demand.Warm = 3
		w.declare(c)
		stop := w.run()
		defer stop()
		time.Sleep(time.Minute)
		old := w.names()
		for _, b := range old {
			w.busy(b, true)
		}
		c.Demand.Warm = 0
		w.declare(c)
		for _, b := range old {
			v, err := w.store.VMByHostname(t.Context(), b)
			if err != nil {
				t.Fatal(err)
			}
			if err := w.r.Drain(t.Context(), v.ID); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(5 * time.Minute)
		waiting := w.submit(4, "os:Linux")
		for range 900 {
			time.Sleep(100 * time.Millisecond)
			if n := len(w.names()); n > 5 {
				t.Fatalf("%d machines, at most 5 may be there", n)
			}
			waiting = w.match(waiting)
		}
		if len(waiting) != 2 {
			t.Errorf("%d tasks wait, want 2: there was room for 2 more machines", len(waiting))
		}
		w.busy(old[0], false)
		w.busy(old[1], false)
		for range 600 {
			time.Sleep(100 * time.Millisecond)
			waiting = w.match(waiting)
		}
		if len(waiting) != 0 || len(w.cut) > 0 {
			t.Errorf("%d tasks wait; cut %v", len(waiting), w.cut)
		}
	})
}

// A task that two pools could run has one machine made. If the first pool fails,
// it is the other's.
func TestTasksOfTwoPools(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := demanded("a", 3), demanded("b", 10)
		b.Demand.Dimensions["os"] = []string{"Windows"}
		w.declare(a, b)
		stop := w.run()
		defer stop()
		waiting := w.submit(5, "os:Linux|Windows")
		time.Sleep(time.Minute)
		if err := w.check(map[string]int{"a": 3, "b": 2}); err != nil {
			t.Error(err)
		}
		for _, id := range waiting {
			w.taken(id, skep.Canceled)
		}
		time.Sleep(5 * time.Minute)
		w.mu.Lock()
		w.fail = func(call, name, _ string) error {
			if call == "create" && prefixOf(name) == "a" {
				return &provider.Error{Class: provider.Quota, Code: 403, Reason: "no", Text: "no"}
			}
			return nil
		}
		w.mu.Unlock()
		w.submit(5, "os:Linux|Windows")
		time.Sleep(3 * time.Minute)
		have := map[string]int{}
		for _, name := range w.names() {
			have[prefixOf(name)]++
		}
		if have["a"] != 0 || have["b"] != 5 {
			t.Errorf("%v, want 5 of b", have)
		}
	})
}

// load is something that happens to a pool that follows the queue.
type load struct {
	What string
	N    int
	Wait time.Duration
}

var loads = rapid.Custom(func(t *rapid.T) load {
	return load{
		What: rapid.SampledFrom([]string{"tasks", "tasks", "end", "end", "cancel", "die", "restart", "deaf", "fail", "drain", "shape"}).Draw(t, "what"),
		N:    rapid.IntRange(1, 6).Draw(t, "n"),
		Wait: time.Duration(rapid.SampledFrom([]int{1, 5, 30, 90, 300}).Draw(t, "wait")) * time.Second,
	}
})

// Whatever happens to a pool that follows the queue: there are never more
// machines than there may be, none is taken from a task, every task gets one,
// and when all are done the warm ones are left.
func TestQueueProperties(t *testing.T) {
	checks(t, 10)
	rapid.Check(t, func(rt *rapid.T) {
		ops := rapid.SliceOfN(loads, 1, 12).Draw(rt, "ops")
		warm, stopped := rapid.IntRange(0, 2).Draw(rt, "warm"), rapid.IntRange(0, 3).Draw(rt, "stopped")
		var err error
		synctest.Test(t, func(t *testing.T) { err = underLoad(newWorld(t), ops, warm, stopped) })
		if err != nil {
			rt.Fatal(err)
		}
	})
}

func underLoad(w *world, ops []load, warm, stopped int) error {
	const most = 6
	c := demanded("a", most)
	c.Demand.Warm, c.Demand.TargetWait, c.Demand.Stopped = warm, 20*time.Second, stopped
	w.declare(c)
	stop := w.run()
	defer func() { stop() }()
	var waiting []skep.TaskID
	var over error
	pass := func(d time.Duration) {
		for end := time.Now().Add(d); time.Now().Before(end); {
			time.Sleep(500 * time.Millisecond)
			waiting = w.match(waiting)
			w.mu.Lock()
			n, rest := len(w.instances), len(w.resting)
			w.mu.Unlock()
			if (n-rest > most || rest > stopped) && over == nil {
				over = fmt.Errorf("%d machines of which %d are stopped, %d may run and %d be stopped: %v", n, rest, most, stopped, w.names())
			}
		}
	}
	ends := func(n int) {
		for _, bot := range w.names() {
			w.mu.Lock()
			busy := w.tasks[bot]
			w.mu.Unlock()
			if busy && n > 0 {
				w.end(bot)
				n--
			}
		}
	}
	for _, o := range ops {
		names := w.names()
		switch o.What {
		case "tasks":
			waiting = append(waiting, w.submit(o.N, "os:Linux")...)
		case "end":
			ends(o.N)
		case "cancel":
			for ; len(waiting) > 0 && o.N > 0; o.N-- {
				w.taken(waiting[0], skep.Canceled)
				waiting = waiting[1:]
			}
		case "die":
			if len(names) > 0 {
				bot := names[o.N%len(names)]
				w.mu.Lock()
				w.tasks[bot] = false
				w.mu.Unlock()
				w.save(bot, func(b *skep.Bot, _ time.Time) { b.Dead, b.Task = true, 0 })
			}
		case "restart":
			stop()
			w.restart()
			stop = w.run()
		case "deaf", "fail":
			w.mu.Lock()
			left := o.N
			if o.What == "deaf" {
				w.lose = func() bool { left--; return left >= 0 }
			} else {
				w.fail = func(string, string, string) error {
					if left--; left < 0 {
						return nil
					}
					return errors.New("no connection")
				}
			}
			w.mu.Unlock()
		case "drain":
			if len(names) > 0 {
				if v, err := w.store.VMByHostname(w.t.Context(), names[o.N%len(names)]); err == nil {
					if err := w.r.Drain(w.t.Context(), v.ID); err != nil {
						return err
					}
				}
			}
		case "shape":
			c.Attributes.MachineType = fmt.Sprint(o.N)
			w.declare(c)
		}
		pass(o.Wait)
	}
	w.mu.Lock()
	w.fail, w.lose = nil, nil
	w.mu.Unlock()
	for range 30 {
		pass(2 * time.Minute)
		ends(most)
	}
	if len(waiting) > 0 {
		return fmt.Errorf("%d tasks wait still", len(waiting))
	}
	pass(20 * time.Minute)
	vms, err := w.store.VMsOf(w.t.Context(), "a")
	if err != nil {
		return err
	}
	for i := range vms {
		if v := &vms[i]; v.Shape != c.Shape() && StateOf(v, time.Now()) == Stopped {
			over = errors.Join(over, fmt.Errorf("%s is kept, and of an older shape", v.ID))
		}
	}
	w.mu.Lock()
	rest := len(w.resting)
	w.mu.Unlock()
	return errors.Join(over, w.check(map[string]int{"a": warm + rest}))
}
