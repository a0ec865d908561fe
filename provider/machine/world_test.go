package machine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a cloud and the server of its bots. It keeps the rules of both: an
// insert with a known request id is the earlier one, names are unique, and a
// bot ends only after its task.
type world struct {
	t     testing.TB
	store *store.Store
	dsn   string
	r     *Reconciler // of the moment

	away *away // where its bots live; nil = in store

	slow time.Duration // of operations
	boot time.Duration // from instance to bot

	mu        sync.Mutex
	byRequest map[string]*operation
	instances map[string]*provider.Instance // by name
	resting   map[string]bool               // instances that are stopped
	tasks     map[string]bool               // bots with a task
	leaving   map[string]skep.TaskID        // bots that were told to end
	noCloud   error                         // why there is none
	hang      func(context.Context) error   // before a machine is made or taken away; nil = it does not
	fail      func(call, name, zone string) error
	lose      func() bool // the answer is lost
	inserts   int         // that made something
	made      map[string]bool
	twice     []string // machines that were made twice
	calls     map[string]int
	asked     map[string][]time.Time // requests to end, by bot
	lastTask  skep.TaskID
	cut       []string // busy bots whose machine was taken away
}

type operation struct {
	done time.Time
	err  error
}

func newWorld(t testing.TB) *world { return newWorldOn(t, filepath.Join(t.TempDir(), "skep.db")) }

func newWorldOn(t testing.TB, dsn string) *world {
	time.Sleep(time.Until(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))) // a bubble begins in 2000, before the first task id
	s, err := store.Open(t.Context(), dsn, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	w := &world{
		t: t, store: s, dsn: dsn, slow: 2 * time.Second, boot: 20 * time.Second, byRequest: map[string]*operation{}, instances: map[string]*provider.Instance{},
		resting: map[string]bool{}, tasks: map[string]bool{}, leaving: map[string]skep.TaskID{}, calls: map[string]int{}, made: map[string]bool{}, asked: map[string][]time.Time{}, lastTask: 0x10,
	}
	w.restart()
	return w
}

func (w *world) reconciler(o Options) *Reconciler {
	o.Server = "https://skep.example.com"
	if w.away != nil {
		o.Elsewhere = func(server string) (Swarming, error) {
			if server != foreignServer {
				w.t.Errorf("asked for %s", server)
			}
			return w.away, nil
		}
	}
	o.Log = slog.New(slog.NewTextHandler(w.t.Output(), &slog.HandlerOptions{Level: slog.LevelError}))
	r, err := New(w.t.Context(), w.store, fleetOf{w}, func(string, []string) (provider.Provider, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w, w.noCloud
	}, o)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// run runs the reconciler until the returned function is called.
func (w *world) run() (stop func()) {
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error)
	go func() { done <- w.r.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			w.t.Errorf("Run = %v", err)
		}
	}
}

func (w *world) declare(configs ...provider.Config) {
	w.t.Helper()
	if err := w.r.Import(w.t.Context(), configs, nil); err != nil {
		w.t.Fatal(err)
	}
}

func fixed(prefix string, n int) provider.Config {
	return provider.Config{
		Prefix: prefix, Kind: "fake", Amount: provider.Amount{Min: n, Max: n}, Lifetime: 24 * time.Hour, Attributes: provider.Attributes{Project: "p", Zone: "z"},
	}
}

var errLost = errors.New("connection reset")

// refuse has the cloud answer calls to create with err, those that which picks
// by name and zone.
func (w *world) refuse(err error, which func(name, zone string) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail = func(call, name, zone string) error {
		if call == "create" && which(name, zone) {
			return err
		}
		return nil
	}
}

// relent takes what refuse did back.
func (w *world) relent() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail = nil
}

// refused is how often the cloud was asked to make something that it did not
// make.
func (w *world) refused() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.calls["create"] - w.inserts
}

func inZone(want string) func(string, string) bool {
	return func(_, zone string) bool { return zone == want }
}

func (w *world) begin(call, name, zone string) error {
	w.calls[call]++
	if w.fail != nil {
		return w.fail(call, name, zone)
	}
	return nil
}

func (w *world) answer(done bool, err error) (bool, error) {
	if w.lose != nil && w.lose() {
		return false, errLost
	}
	return done, err
}

// hung is what came of the wait before a call.
func (w *world) hung(ctx context.Context) error {
	w.mu.Lock()
	hang := w.hang
	w.mu.Unlock()
	if hang == nil {
		return nil
	}
	return hang(ctx)
}

func (w *world) Create(ctx context.Context, o provider.Order) (bool, error) {
	if err := w.hung(ctx); err != nil {
		return false, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if op := w.byRequest[o.RequestID]; op != nil {
		w.calls["follow"]++
		return w.answer(!time.Now().Before(op.done), op.err)
	}
	if err := w.begin("create", o.Name, o.Zone); err != nil {
		if e, ok := errors.AsType[*provider.Error](err); ok && e.Code == 200 {
			w.byRequest[o.RequestID] = &operation{done: time.Now(), err: err}
		}
		return true, err
	}
	if w.instances[o.Name] != nil {
		return true, &provider.Error{Class: provider.Conflict, Code: 409, Reason: "alreadyExists"}
	}
	w.inserts++
	key := o.Labels[provider.LabelVM] + " " + o.Labels[provider.LabelGeneration]
	if w.made[key] {
		w.twice = append(w.twice, key)
	}
	w.made[key] = true
	created := time.Now().Add(w.slow)
	in := &provider.Instance{Ref: provider.Ref{Project: "p", Zone: o.Zone, Name: o.Name}, URL: "u/" + o.RequestID, Created: created, Labels: o.Labels}
	w.instances[o.Name] = in
	w.byRequest[o.RequestID] = &operation{done: created}
	time.AfterFunc(w.slow+w.boot, func() { w.connect(in) })
	return w.answer(w.slow == 0, nil)
}

func (w *world) Get(_ context.Context, r provider.Ref) (provider.Instance, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.begin("get", r.Name, r.Zone); err != nil {
		return provider.Instance{}, err
	}
	in := w.instances[r.Name]
	if in == nil || in.Ref.Zone != r.Zone {
		return provider.Instance{}, &provider.Error{Class: provider.NotFound, Code: 404}
	}
	return *in, nil
}

func (w *world) Delete(ctx context.Context, r provider.Ref, requestID string) (bool, error) {
	if err := w.hung(ctx); err != nil {
		return false, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if op := w.byRequest[requestID]; op != nil {
		return w.answer(!time.Now().Before(op.done), op.err)
	}
	if err := w.begin("delete", r.Name, r.Zone); err != nil {
		if e, ok := errors.AsType[*provider.Error](err); ok && e.Code == 200 {
			w.byRequest[requestID] = &operation{done: time.Now(), err: err}
		}
		return false, err
	}
	if w.instances[r.Name] == nil {
		return true, nil
	}
	if w.tasks[r.Name] {
		w.cut = append(w.cut, r.Name)
	}
	delete(w.instances, r.Name)
	delete(w.resting, r.Name)
	w.byRequest[requestID] = &operation{done: time.Now().Add(w.slow)}
	return w.answer(w.slow == 0, nil)
}

// Stop implements provider.Stopper.
func (w *world) Stop(ctx context.Context, r provider.Ref, requestID string) (bool, error) {
	return w.turn(ctx, "stop", r, requestID)
}

// Start implements provider.Stopper.
func (w *world) Start(ctx context.Context, r provider.Ref, requestID string) (bool, error) {
	return w.turn(ctx, "start", r, requestID)
}

func (w *world) turn(ctx context.Context, call string, r provider.Ref, requestID string) (bool, error) {
	if err := w.hung(ctx); err != nil {
		return false, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if op := w.byRequest[requestID]; op != nil {
		w.calls["follow"]++
		return w.answer(!time.Now().Before(op.done), op.err)
	}
	if err := w.begin(call, r.Name, r.Zone); err != nil {
		if e, ok := errors.AsType[*provider.Error](err); ok && e.Code == 200 {
			w.byRequest[requestID] = &operation{done: time.Now(), err: err}
		}
		return false, err
	}
	in := w.instances[r.Name]
	if in == nil || in.Ref.Zone != r.Zone {
		return false, &provider.Error{Class: provider.NotFound, Code: 404}
	}
	done := time.Now().Add(w.slow)
	switch {
	case call == "stop":
		if w.tasks[r.Name] {
			w.cut = append(w.cut, r.Name)
		}
		w.resting[r.Name] = true
	case w.resting[r.Name]:
		delete(w.resting, r.Name)
		delete(w.leaving, r.Name)
		time.AfterFunc(w.slow+w.boot/2, func() { w.connect(in) }) // its disk is there already
	}
	w.byRequest[requestID] = &operation{done: done}
	return w.answer(w.slow == 0, nil)
}

func (w *world) List(_ context.Context, s provider.Scope, token string) (page []provider.Instance, next string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.begin("list", "", s.Zone); err != nil {
		return nil, "", err
	}
	for _, name := range slices.Sorted(maps.Keys(w.instances)) {
		if in := w.instances[name]; in.Ref.Zone == s.Zone && name > token {
			if len(page) == 3 {
				return page, page[2].Ref.Name, nil
			}
			page = append(page, *in)
		}
	}
	return page, "", nil
}

// connect is the first that is heard of a bot.
func (w *world) connect(in *provider.Instance) {
	w.mu.Lock()
	there := w.instances[in.Ref.Name] == in && !w.resting[in.Ref.Name]
	w.mu.Unlock()
	if there {
		w.save(in.Ref.Name, func(b *skep.Bot, now time.Time) { b.FirstSeen = now })
	}
}

func (w *world) save(name string, fn func(*skep.Bot, time.Time)) {
	if w.away != nil {
		w.away.save(name, fn)
		return
	}
	_ = w.store.Update(context.Background(), func(tx *store.Tx) error { //nolint:usetesting // timers outlive the test
		b, err := tx.LockBot(skep.BotID(name))
		if err != nil {
			b = &skep.Bot{ID: skep.BotID(name), FirstSeen: tx.Now}
		}
		b.LastSeen = tx.Now
		fn(b, tx.Now)
		return tx.SaveBot(b)
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.r.Rouse(skep.BotID(name))
}

// restart goes on with another reconciler.
func (w *world) restart() {
	r := w.reconciler(Options{})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.r = r
}

func (w fleetOf) Terminate(_ context.Context, bot skep.BotID, _, _ string) (skep.TaskID, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked[string(bot)] = append(w.asked[string(bot)], time.Now())
	if id := w.leaving[string(bot)]; id != 0 {
		return id, nil
	}
	w.lastTask += 0x10
	w.leaving[string(bot)] = w.lastTask
	if !w.tasks[string(bot)] {
		time.AfterFunc(100*time.Millisecond, func() { w.leave(string(bot)) })
	}
	return w.lastTask, nil
}

// fleetOf is the server's side of a world.
type fleetOf struct{ *world }

// leave ends a bot that was told to and has no task.
func (w *world) leave(bot string) {
	w.mu.Lock()
	id, in := w.leaving[bot], w.instances[bot]
	w.mu.Unlock()
	if id != 0 && in != nil && !w.isResting(bot) {
		w.save(bot, func(b *skep.Bot, now time.Time) { b.Dead, b.Terminated, b.Task, b.IdleSince = true, id, 0, now })
	}
}

func (w *world) isResting(bot string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.resting[bot]
}

func (w fleetOf) Cancel(context.Context, skep.TaskID, bool) (bool, bool, error) {
	return false, false, nil
}

func (w fleetOf) Delete(ctx context.Context, id skep.BotID) error {
	return w.store.Update(ctx, func(tx *store.Tx) error {
		if _, err := tx.LockBot(id); err != nil {
			return err
		}
		return tx.DeleteBot(id)
	})
}

// busy gives a bot a task, or ends it.
func (w *world) busy(bot string, task bool) {
	w.mu.Lock()
	w.tasks[bot] = task
	leaving := w.leaving[bot]
	w.mu.Unlock()
	w.save(bot, func(b *skep.Bot, _ time.Time) {
		b.Task = 0
		if task {
			b.Task = 0x7770
		}
	})
	if !task && leaving != 0 {
		w.leave(bot)
	}
}

// names of instances, sorted.
func (w *world) names() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Sorted(maps.Keys(w.instances))
}

// check holds what must be true when nothing moves: the wanted instances, each
// with one record, and no other.
func (w *world) check(want map[string]int) error {
	vms, err := w.store.VMsAfter(context.Background(), "", 100000) //nolint:usetesting // also in rapid
	if err != nil {
		return err
	}
	records, pools := []string{}, map[string]int{}
	for _, v := range vms {
		records = append(records, v.Hostname)
		pools[v.Prefix]++
	}
	slices.Sort(records)
	if names := w.names(); !slices.Equal(records, names) {
		return fmt.Errorf("records %v, instances %v", records, names)
	}
	for p, n := range want {
		if n == 0 {
			delete(want, p)
		}
	}
	if !maps.Equal(pools, want) {
		return fmt.Errorf("machines %v, want %v", pools, want)
	}
	if len(w.cut)+len(w.twice) > 0 {
		return fmt.Errorf("cut: %v; made twice: %v", w.cut, w.twice)
	}
	return nil
}

func prefixOf(name string) string {
	prefix, _, _ := strings.Cut(name, "-")
	return prefix
}

// quarantineBut puts the bots of all machines but old into quarantine, "" lets
// them out, and returns how many there are.
func (w *world) quarantineBut(old []string, why string) (n int) {
	for _, name := range w.names() {
		if !slices.Contains(old, name) {
			n++
			w.save(name, func(b *skep.Bot, _ time.Time) { b.Quarantined = why })
		}
	}
	return n
}
