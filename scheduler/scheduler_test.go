package scheduler

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/store"
)

// TestMain makes the property test shorter: each of its runs opens databases.
// -rapid.checks asks for more.
func TestMain(m *testing.M) {
	if err := flag.Set("rapid.checks", "25"); err != nil {
		panic(err)
	}
	flag.Parse()
	os.Exit(m.Run())
}

// world is a scheduler in a bubble, over a SQLite file.
type world struct {
	*Scheduler
	t    *testing.T
	path string
	stop func()
}

func newWorld(t *testing.T, path string) *world {
	t.Helper()
	time.Sleep(time.Until(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))) // a bubble begins in 2000, before the first task id
	st, err := store.Open(t.Context(), path, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{Scheduler: New(st, Options{Version: "v1"}), t: t, path: path}
	if err := w.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	w.stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	}
	return w
}

// inBubble runs a test on fake time.
func inBubble(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "skep.db")
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, path)
		test(t, w)
		w.stop()
	})
}

func slice(expiration time.Duration, wait bool, dims ...string) skep.Slice {
	s := skep.Slice{Expiration: expiration, WaitForCapacity: wait, Properties: skep.Properties{Command: []string{"true"}, ExecutionTimeout: time.Hour}}
	for i := 0; i < len(dims); i += 2 {
		s.Properties.Dimensions = append(s.Properties.Dimensions, skep.ParseConstraint(dims[i], dims[i+1]))
	}
	s.Properties.Dimensions.Sort()
	return s
}

func (w *world) submit(slices ...skep.Slice) *skep.Task {
	w.t.Helper()
	_, t, err := w.Submit(w.t.Context(), &skep.TaskRequest{
		Name: "t", Priority: 100, Authenticated: "user:x", ServiceAccount: "none", Slices: slices, PingTolerance: 20 * time.Minute,
	}, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return t
}

func (w *world) bot(id string, more ...string) *skep.Bot {
	b := &skep.Bot{ID: skep.BotID(id), Version: "v", SessionID: "s", Dimensions: skep.Dimensions{"id": {id}, "pool": {"p"}}}
	for i := 0; i < len(more); i += 2 {
		b.Dimensions[more[i]] = append(b.Dimensions[more[i]], more[i+1])
	}
	return b
}

func (w *world) poll(b *skep.Bot, key string, wait time.Duration) *skep.Task {
	w.t.Helper()
	cmd, err := w.Poll(w.t.Context(), Poll{Bot: b, Key: key, Wait: wait})
	if err != nil {
		w.t.Fatal(err)
	}
	return cmd.Task
}

func (w *world) state(t *skep.Task) skep.TaskState {
	w.t.Helper()
	now, err := w.store.Task(w.t.Context(), t.ID)
	if err != nil {
		w.t.Fatal(err)
	}
	return now.State
}

func TestAWaitingPollGetsANewTask(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		got := make(chan *skep.Task, 1)
		go func() { got <- w.poll(w.bot("b1"), "k", 40*time.Second) }()
		synctest.Wait()
		begun := time.Now()
		task := w.submit(slice(time.Hour, true, "pool", "p"))
		if g := <-got; g == nil || g.ID != task.ID {
			t.Fatalf("got %v", g)
		}
		if took := time.Since(begun); took != 0 { // no time passes in a bubble but by waiting
			t.Errorf("it took %v", took)
		}
	})
}

// A task whose queue is known, for which a poll waits that nothing else waits
// for, is taken in and given away by one change of the store.
func TestOneChangeTakesATaskInAndGivesItAway(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.poll(w.bot("b1"), "k0", time.Second)
		if first := w.submit(slice(time.Hour, true, "pool", "p")); w.poll(w.bot("b1"), "k1", 0).ID != first.ID { // the queue is known now
			t.Fatal("the first task is not given")
		}
		got := make(chan *skep.Task, 1)
		go func() { got <- w.poll(w.bot("b2"), "k", 40*time.Second) }()
		synctest.Wait()
		before := w.store.Stats().Changes
		task := w.submit(slice(time.Hour, true, "pool", "p"))
		if task.State != skep.Pending {
			t.Errorf("its sender is told that it is %v", task.State)
		}
		if g := <-got; g == nil || g.ID != task.ID || g.State != skep.Running || g.Bot != "b2" || g.ClaimKey != "k" {
			t.Fatalf("got %+v", g)
		}
		synctest.Wait()
		if n := w.store.Stats().Changes - before; n != 1 {
			t.Errorf("%d changes of the store, want 1", n)
		}
		if s := w.state(task); s != skep.Running {
			t.Errorf("the task is %v", s)
		}
		if again := w.poll(w.bot("b2"), "k", time.Second); again == nil || again.ID != task.ID {
			t.Errorf("the same poll got %v", again)
		}
	})
}

// A task that cannot be taken in takes nothing from the poll that it would
// have gone to; a poll whose bot has a task by now leaves the task to others.
func TestATaskThatIsNotHandedOverWaits(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		first := w.submit(slice(time.Hour, true, "pool", "p"))
		w.poll(w.bot("b0"), "k", time.Second)
		got := make(chan *skep.Task, 1)
		go func() { got <- w.poll(w.bot("b1"), "k", 40*time.Second) }()
		synctest.Wait()

		gone, cancel := context.WithCancel(t.Context())
		cancel()
		req := &skep.TaskRequest{Name: "t", Priority: 100, Slices: []skep.Slice{slice(time.Hour, true, "pool", "p")}}
		if _, _, err := w.Submit(gone, req, nil); err == nil {
			t.Fatal("a call that is over took a task in")
		}
		w.submit(slice(time.Hour, true, "pool", "p", "id", "b0")) // is for another bot
		select {
		case g := <-got:
			t.Fatalf("the poll ended with %v", g)
		default:
		}
		// The store says that the bot is busy, whatever its poll believes.
		if err := w.store.Update(t.Context(), func(tx *store.Tx) error {
			return tx.Occupy("b1", first.ID, "t", skep.EventTask, "other")
		}); err != nil {
			t.Fatal(err)
		}
		task := w.submit(slice(time.Hour, true, "pool", "p"))
		if g := <-got; g != nil {
			t.Errorf("a busy bot got %v", g)
		}
		if s := w.state(task); s != skep.Pending {
			t.Errorf("the task is %v", s)
		}
		if g := w.poll(w.bot("b2"), "k", time.Second); g == nil || g.ID != task.ID {
			t.Errorf("the next bot got %v", g)
		}
	})
}

func TestAPollWithoutWorkEndsInTime(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		begun := time.Now()
		if got := w.poll(w.bot("b1"), "k", 30*time.Second); got != nil || time.Since(begun) != 30*time.Second {
			t.Errorf("got %v after %v", got, time.Since(begun))
		}
		if got := w.poll(w.bot("b1"), "k", time.Hour); got != nil || time.Since(begun) != 80*time.Second {
			t.Errorf("got %v after %v, waits are bounded", got, time.Since(begun))
		}
	})
}

func TestSlicesExpireInOrder(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		task := w.submit(slice(time.Minute, true, "pool", "p", "os", "A"), slice(time.Minute, true, "pool", "p", "os", "B"))
		time.Sleep(61 * time.Second)
		synctest.Wait()
		now, err := w.store.Task(t.Context(), task.ID)
		if err != nil || now.State != skep.Pending || now.Slice != 1 {
			t.Fatalf("after one slice: %+v %v", now, err)
		}
		if got := w.poll(w.bot("b", "os", "A"), "k", 0); got != nil {
			t.Error("the expired slice was handed out")
		}
		time.Sleep(60 * time.Second)
		synctest.Wait()
		if s := w.state(task); s != skep.Expired {
			t.Errorf("state %s", s)
		}
	})
}

func TestSlicesWithoutCapacityAreSkipped(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.poll(w.bot("b", "os", "B"), "k", 0)
		task := w.submit(slice(time.Hour, false, "pool", "p", "os", "A"), slice(time.Hour, false, "pool", "p", "os", "B"))
		if got := w.poll(w.bot("b", "os", "B"), "k2", 0); got == nil || got.ID != task.ID || got.Slice != 1 {
			t.Errorf("got %+v", got)
		}
		if s := w.submit(slice(time.Hour, false, "pool", "p", "os", "A")).State; s != skep.NoResource {
			t.Errorf("without any bot: %s", s)
		}
		late := w.submit(slice(time.Minute, true, "pool", "p", "os", "C"), slice(time.Hour, false, "pool", "p", "os", "D"))
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if s := w.state(late); s != skep.NoResource {
			t.Errorf("last slice refused: %s", s)
		}
	})
}

// A task waits for a bot that would be made for it.
func TestSliceOfABotThatMayCome(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.o.MayCome = func(c skep.Constraints) bool { return c.Match(skep.Dimensions{"pool": {"p"}, "os": {"A"}}) }
		for os, want := range map[string]skep.TaskState{"A": skep.Pending, "B": skep.NoResource, "A|B": skep.Pending} {
			if s := w.submit(slice(time.Hour, false, "pool", "p", "os", os)).State; s != want {
				t.Errorf("os %s: %s, want %s", os, s, want)
			}
		}
	})
}

func TestASilentBotLosesItsTask(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		task := w.submit(slice(24*time.Hour, true, "pool", "p"))
		w.poll(w.bot("b1"), "k", 0)
		time.Sleep(11 * time.Minute)
		synctest.Wait()
		b, err := w.store.Bot(t.Context(), "b1")
		if err != nil || !b.Dead || b.Task != task.ID {
			t.Errorf("after 11 minutes: %+v %v", b, err)
		}
		if s := w.state(task); s != skep.Running {
			t.Errorf("within its tolerance: %s", s)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if s := w.state(task); s != skep.BotDied {
			t.Errorf("after its tolerance: %s", s)
		}
	})
}

// TestContactIsWrittenOnceASecond: a report of nothing new that comes sooner
// changes no row, output is kept whenever it comes.
func TestContactIsWrittenOnceASecond(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		task := w.submit(slice(24*time.Hour, true, "pool", "p"))
		w.poll(w.bot("b1"), "k", 0)
		last := time.Now()
		for _, c := range []struct {
			after  time.Duration
			output string
			noted  bool
		}{{500 * time.Millisecond, "", false}, {500 * time.Millisecond, "", true}, {100 * time.Millisecond, "", false}, {100 * time.Millisecond, "x", true}} {
			time.Sleep(c.after)
			if ans, err := w.Report(t.Context(), skep.Report{Bot: "b1", Task: task.ID, Output: []byte(c.output), CostUSD: 1}); err != nil || !ans.OK {
				t.Fatal(ans, err)
			}
			if c.noted {
				last = time.Now()
			}
			got, err := w.store.Task(t.Context(), task.ID)
			if err != nil {
				t.Fatal(err)
			}
			if d := got.ContactAt.Sub(last).Abs(); d > time.Millisecond {
				t.Errorf("%v later, with output %q: the contact is %v off", c.after, c.output, d)
			}
		}
	})
}

func TestSilenceCountsOnlyWhileServed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "skep.db")
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, path)
		task := w.submit(slice(24*time.Hour, true, "pool", "p"))
		w.poll(w.bot("b1"), "k", 0)
		w.stop()
		time.Sleep(3 * time.Hour) // nobody is up
		w = newWorld(t, path)
		time.Sleep(19 * time.Minute)
		synctest.Wait()
		if s := w.state(task); s != skep.Running {
			t.Errorf("after an outage: %s", s)
		}
		if ans, err := w.Report(t.Context(), skep.Report{Bot: "b1", Task: task.ID}); err != nil || !ans.OK || ans.MustStop {
			t.Errorf("the bot comes back: %+v %v", ans, err)
		}
		time.Sleep(25 * time.Minute)
		synctest.Wait()
		if s := w.state(task); s != skep.BotDied {
			t.Errorf("after its tolerance: %s", s)
		}
		w.stop()
	})
}

func TestAnIdleFleetDiesOnlyAfterItsTimeout(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		b := w.bot("b1")
		w.poll(b, "k", 0)
		for range 30 { // it keeps polling
			w.poll(w.bot("b1"), "k", 50*time.Second)
		}
		now, err := w.store.Bot(t.Context(), "b1")
		if err != nil || now.Dead || now.IdleSince.IsZero() {
			t.Errorf("%+v %v", now, err)
		}
	})
}

func TestChildrenEndWithTheirParent(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		parent := w.submit(slice(time.Hour, true, "pool", "p"))
		w.poll(w.bot("b1"), "k", 0)
		_, child, err := w.Submit(t.Context(), &skep.TaskRequest{
			Name: "c", Priority: 100, Authenticated: "user:x", Parent: parent.ID.RunID(), Slices: []skep.Slice{slice(time.Hour, true, "pool", "q")},
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Report(t.Context(), skep.Report{Bot: "b1", Task: parent.ID, Ending: &skep.Ending{ExitCode: new(int64), Duration: new(float64)}}); err != nil {
			t.Fatal(err)
		}
		if s := w.state(child); s != skep.Canceled {
			t.Errorf("child is %s", s)
		}
	})
}

// step is one move of the property test below.
type step struct {
	Do   string
	Bot  string
	Pick int // which task or key
	Yes  bool
	Wait time.Duration
}

// TestNoTaskIsHandedOutTwice runs random commands of bots and clients, with
// repetitions and restarts of the server, and checks that each task has one
// owner and never leaves a final state, and no bot runs two.
func TestNoTaskIsHandedOutTwice(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		steps := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) step {
			return step{
				Do:   rapid.SampledFrom([]string{"submit", "submit", "poll", "poll", "repeat", "report", "finish", "connect", "cancel", "restart", "pass"}).Draw(t, "do"),
				Bot:  rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "bot"),
				Pick: rapid.IntRange(0, 99).Draw(t, "pick"), Yes: rapid.Bool().Draw(t, "yes"),
				Wait: time.Duration(rapid.IntRange(1, 1500).Draw(t, "seconds")) * time.Second,
			}
		}), 5, 40).Draw(rt, "steps")
		path := filepath.Join(t.TempDir(), "skep.db")
		var violation error
		synctest.Test(t, func(t *testing.T) { violation = play(t, path, steps) })
		if violation != nil {
			rt.Fatal(violation)
		}
	})
}

// player remembers what the outside saw.
type player struct {
	*world
	owner map[skep.TaskID]string
	last  map[skep.TaskID]skep.TaskState
	holds map[string]*skep.Task
	keys  map[string]string
	all   []skep.TaskID
}

func play(t *testing.T, path string, steps []step) error {
	p := &player{
		world: newWorld(t, path), owner: map[skep.TaskID]string{}, last: map[skep.TaskID]skep.TaskState{},
		holds: map[string]*skep.Task{}, keys: map[string]string{},
	}
	defer func() { p.stop() }()
	for i, s := range steps {
		if err := p.step(i, s); err != nil {
			return fmt.Errorf("step %d %+v: %w", i, s, err)
		}
		if err := p.check(); err != nil {
			return fmt.Errorf("after step %d %+v: %w", i, s, err)
		}
	}
	return nil
}

func (p *player) step(i int, s step) error {
	ctx := p.t.Context()
	me := p.bot(s.Bot, "os", map[string]string{"a": "A", "b": "B", "c": "A"}[s.Bot])
	if s.Do == "submit" || len(p.all) == 0 {
		p.all = append(p.all, p.submit(slice(time.Hour, true, "pool", "p", "os", []string{"A", "A|B", "B"}[s.Pick%3])).ID)
		return nil
	}
	task := p.all[s.Pick%len(p.all)]
	switch s.Do {
	case "poll":
		p.keys[s.Bot] = fmt.Sprint("key", i)
		got := p.poll(me, p.keys[s.Bot], 0)
		p.holds[s.Bot] = got
		if got == nil {
			return nil
		}
		if o, taken := p.owner[got.ID]; taken {
			return fmt.Errorf("task %s of bot %s was handed out again", got.ID, o)
		}
		p.owner[got.ID] = s.Bot
	case "repeat":
		h := p.holds[s.Bot]
		if h == nil || p.state(h) != skep.Running {
			return nil
		}
		if got := p.poll(me, p.keys[s.Bot], 0); got == nil || got.ID != h.ID {
			return fmt.Errorf("a repeated poll got %v, not %s", got, h.ID)
		}
	case "report", "finish": // also for tasks that the bot does not hold
		r := skep.Report{Bot: me.ID, Task: task, Output: []byte("x")}
		if s.Do == "finish" {
			r.Ending = &skep.Ending{ExitCode: new(int64), Duration: new(float64), Lost: s.Yes}
		}
		_, err := p.Report(ctx, r)
		return err
	case "connect":
		if err := p.Connect(ctx, me); err != nil {
			return err
		}
		if h := p.holds[s.Bot]; h != nil && p.state(h) == skep.Running {
			return fmt.Errorf("task %s survived a new process of its bot", h.ID)
		}
	case "cancel":
		_, _, err := p.Cancel(ctx, task, s.Yes)
		return err
	case "restart":
		p.stop()
		p.world = newWorld(p.t, p.path)
	case "pass":
		time.Sleep(s.Wait)
		synctest.Wait()
	}
	return nil
}

func (p *player) check() error {
	running := map[skep.BotID]skep.TaskID{}
	for _, id := range p.all {
		task, err := p.store.Task(p.t.Context(), id)
		if err != nil {
			return err
		}
		if last, seen := p.last[id]; seen && last.Final() && task.State != last {
			return fmt.Errorf("task %s left its final state %s for %s", id, last, task.State)
		}
		p.last[id] = task.State
		if task.State != skep.Running {
			continue
		}
		if other, two := running[task.Bot]; two {
			return fmt.Errorf("bot %s runs %s and %s", task.Bot, other, id)
		}
		running[task.Bot] = id
	}
	return nil
}

func TestPriorityThenAge(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		var want []skep.TaskID
		for _, p := range []int32{200, 50, 200, 50} {
			_, task, err := w.Submit(t.Context(), &skep.TaskRequest{Name: "t", Priority: p, Slices: []skep.Slice{slice(time.Hour, true, "pool", "p", "os", fmt.Sprint(p))}}, nil)
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, task.ID)
			time.Sleep(time.Millisecond)
		}
		want = []skep.TaskID{want[1], want[3], want[0], want[2]}
		var got []skep.TaskID
		for i := range want {
			got = append(got, w.poll(w.bot(fmt.Sprint("b", i), "os", "50", "os", "200"), "k", 0).ID)
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}

// A round draws only the first polls of a queue; those behind them that cannot
// wait must not be forgotten.
func TestPollsThatCannotWaitAreAnswered(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		var wg sync.WaitGroup
		for i := range maxRound + 10 {
			wg.Go(func() { w.poll(w.bot(fmt.Sprint("waits", i)), "k", 40*time.Second) })
		}
		synctest.Wait()
		for i := range maxRound + 20 {
			wg.Go(func() { w.poll(w.bot(fmt.Sprint("once", i)), "k", 0) })
		}
		w.submit(slice(time.Hour, true, "pool", "p"))
		wg.Wait() // a poll without an answer would end the bubble as a deadlock
	})
}

func TestOrphansAreCanceled(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		parent := w.submit(slice(time.Hour, true, "pool", "p"))
		w.poll(w.bot("b1"), "k", 0)
		_, child, err := w.Submit(t.Context(), &skep.TaskRequest{
			Name: "c", Priority: 100, Authenticated: "user:x", Parent: parent.ID.RunID(), Slices: []skep.Slice{slice(time.Hour, true, "pool", "q")},
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		// The parent ends, and the server is killed before it gets to the children.
		if err := w.store.Update(t.Context(), func(tx *store.Tx) error {
			_, err := w.lose(tx, parent.ID, "b1")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if s := w.state(child); s != skep.Canceled {
			t.Errorf("the child is %s", s)
		}
	})
}

func TestUnservedQueuesAreForgotten(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		for i := range 20 {
			w.submit(slice(time.Minute, true, "pool", "p", "os", fmt.Sprint(i)))
		}
		time.Sleep(10 * time.Hour)
		synctest.Wait()
		w.queues.mu.Lock()
		defer w.queues.mu.Unlock()
		if n := len(w.queues.all); n != 0 {
			t.Errorf("%d queues are kept", n)
		}
	})
}
