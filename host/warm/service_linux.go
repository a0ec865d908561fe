package warm

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/gofrs/flock"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/host/localsocket"
	"github.com/skepdev/skep/host/pool"
	"github.com/skepdev/skep/internal/proc"
	"github.com/skepdev/skep/reconcile"
)

// Options of a Service. Zero values mean the defaults given here.
type Options struct {
	Dir     string // the pool's directory, on a disk; one pool per directory. C2
	Socket  string // default: Dir/socket
	Runtime Runtime
	Base    Base
	Program string // a static executable that is room.Main with the argument room.Word

	Size   Size        // default: stock 2 to 20, 256 rooms, 5 creators
	Limits proc.Limits // of each room
	// FirstID is the first of IDs ids of users and groups on the host that rooms
	// have; default 1,000,000 and 65,536. Nothing else on the host may use them.
	FirstID, IDs uint32
	HostNetwork  bool // rooms share the host's network; default: they have none

	Users, Groups []uint32 // who may connect besides root and the service's user
	MaxClients    int      // default 10,240

	Log *slog.Logger
	Now func() time.Time
}

// Service is a pool. See Run.
type Service struct {
	o       Options
	log     *slog.Logger
	prefix  string // of the names of its rooms
	began   time.Time
	journal *reconcile.FileJournal
	makers  *reconcile.Loop
	enders  *reconcile.Loop
	circuit reconcile.Circuit
	leases  reconcile.Leases
	metrics *metrics
	program string // our copy of Options.Program

	basing   sync.Mutex     // of the directory of base images; taken before mu
	rebasing sync.WaitGroup // under way

	listener *localsocket.Listener
	ctx      context.Context // ends when everything has to
	cancel   context.CancelFunc
	makeCtx  context.Context // ends when nothing is made any more
	noMore   context.CancelFunc

	mu       sync.Mutex
	rooms    map[string]*cell
	stock    []*cell   // ready, oldest first
	waiters  []*waiter // oldest first
	clients  map[*client]bool
	demand   rate
	gave     time.Time // when a room was handed out last
	took     time.Duration
	seq      int
	stopping bool
	paused   string // why nothing is made
	totals   pool.Totals
	failures []pool.Failed
	errs     map[string]uint64 // all there ever were, by cause
	fillAt   *time.Timer
	trimAt   *time.Timer
	empty    chan struct{} // closed when stopping and no room is left
}

// New checks what can be refused and takes the pool's directory. Run must
// follow, or Close.
//
// Errors: Conflict when another service has the directory, Precondition when
// the host lacks something, Invalid for a bad option.
func New(ctx context.Context, o Options) (_ *Service, err error) {
	if o.Size == (Size{}) {
		o.Size = Size{Min: 2, Max: 20}
	}
	o.Size.Max = max(o.Size.Max, o.Size.Min)
	if o.Size.Limit == 0 {
		o.Size.Limit = max(256, 2*o.Size.Max)
	}
	if o.Size.Creators == 0 {
		o.Size.Creators = 5
	}
	if o.FirstID == 0 {
		o.FirstID, o.IDs = 1_000_000, 65536
	}
	if o.MaxClients == 0 {
		o.MaxClients = 10240
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Socket == "" {
		o.Socket = filepath.Join(o.Dir, "socket")
	}
	if os.Geteuid() != 0 {
		return nil, skep.Errorf(skep.Precondition, "the pool makes containers of users of their own, which takes root; start it as root, its containers are unprivileged all the same")
	}
	if err := o.Runtime.Check(ctx); err != nil {
		return nil, err
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, err
	}
	// Clients pass through to the socket, and to all else only the rooms' root.
	if err := os.MkdirAll(o.Dir, 0o711); err != nil {
		return nil, skep.Errorf(skep.Precondition, "the pool cannot write its directory: %w", err)
	}
	for _, d := range []string{"rooms", "bases"} {
		if err := private(filepath.Join(o.Dir, d), o.FirstID); err != nil {
			return nil, skep.Errorf(skep.Precondition, "the pool cannot write its directory: %w", err)
		}
	}
	lock := flock.New(filepath.Join(o.Dir, "lock"))
	ok, err := lock.TryLock()
	if err != nil {
		return nil, skep.Errorf(skep.Precondition, "the pool cannot lock its directory: %w", err)
	}
	if !ok {
		return nil, skep.Errorf(skep.Conflict, "another pool runs in %s; stop it with skep pool stop, or name another directory", o.Dir)
	}
	defer func() {
		if err != nil {
			_ = lock.Close()
		}
	}()
	if err := localsocket.Clear(o.Socket); err != nil {
		return nil, err
	}
	s := &Service{
		o: o, log: o.Log, began: o.Now(), rooms: map[string]*cell{}, clients: map[*client]bool{}, errs: map[string]uint64{},
		empty: make(chan struct{}), took: time.Second,
		program: filepath.Join(o.Dir, "room"),
	}
	s.metrics = newMetrics(s)
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(s.ctx, func() { _ = lock.Close() })
	defer func() {
		if err != nil {
			s.cancel()
		}
	}()
	s.makeCtx, s.noMore = context.WithCancel(s.ctx)
	var unique [3]byte
	_, _ = rand.Read(unique[:])
	s.prefix = "skep-" + hex.EncodeToString(unique[:])
	if s.journal, err = reconcile.OpenJournal(filepath.Join(o.Dir, "journal")); err != nil {
		return nil, skep.Errorf(skep.Precondition, "the pool's journal: %w", err)
	}
	if err := copyProgram(o.Program, s.program); err != nil {
		return nil, skep.Errorf(skep.Precondition, "the rooms' program: %w", err)
	}
	if err := s.o.Base.prepare(ctx, filepath.Join(o.Dir, "bases"), o.FirstID, o.IDs); err != nil {
		return nil, err
	}
	s.makers = &reconcile.Loop{Step: s.make, Workers: o.Size.Creators, Limit: 2 * time.Minute, Log: s.log}
	s.enders = &reconcile.Loop{Step: s.end, Workers: 4, Min: 200 * time.Millisecond, Max: 30 * time.Second, Log: s.log}
	if err := s.recover(); err != nil {
		return nil, err
	}
	group := -1
	if len(o.Groups) > 0 {
		group = int(o.Groups[0])
	}
	if s.listener, err = localsocket.Listen(o.Socket, 0o660, group); err != nil {
		return nil, err
	}
	return s, nil
}

func copyProgram(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	tmp := to + ".new"
	if err := os.WriteFile(tmp, b, 0o755); err != nil { //nolint:gosec // rooms execute it
		return err
	}
	return os.Rename(tmp, to)
}

// recover takes up what an earlier service left, to remove it.
func (s *Service) recover() error {
	entries, err := s.journal.Entries(s.ctx)
	if err != nil {
		return err
	}
	for _, e := range entries {
		var n note
		if err := json.Unmarshal(e.Note, &n); err != nil || n.Spec.Name != e.Key {
			return skep.Errorf(skep.Precondition, "the journal's entry for %s cannot be read: %v", e.Key, err)
		}
		s.rooms[e.Key] = newCell(n, cellEnding)
	}
	// What the journal does not know, as a disk may lose it.
	dirs, err := os.ReadDir(filepath.Join(s.o.Dir, "rooms"))
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if !roomName.MatchString(d.Name()) { // its name would be that of cgroups to end
			s.log.Warn("not a room's directory, left alone", "name", d.Name())
			continue
		}
		if _, known := s.rooms[d.Name()]; !known {
			n, err := s.note(d.Name())
			if err != nil {
				return err
			}
			s.rooms[d.Name()] = newCell(n, cellEnding)
		}
	}
	if n := len(s.rooms); n > 0 {
		s.log.Info("removing what an earlier pool left", "rooms", n)
	}
	return nil
}

// roomName is what names rooms and, in its own hierarchy, their cgroups.
var roomName = regexp.MustCompile(`^skep-[0-9a-f]+-[0-9]+$`)

// Run serves until ctx ends or a client asks for shutdown; then it removes
// every room and returns nil, or what it could not remove within 30 s.
func (s *Service) Run(ctx context.Context) error {
	var loops, serving sync.WaitGroup
	loops.Go(func() {
		_ = s.makers.Run(s.makeCtx)
		s.madeNoMore()
	})
	loops.Go(func() { _ = s.enders.Run(s.ctx) })
	s.mu.Lock()
	for name := range s.rooms {
		s.enders.Wake(name)
	}
	s.enders.Wake(keyBases)
	s.fill()
	s.log.Info("pool ready", "socket", s.o.Socket, "runtime", s.o.Runtime.Name(), "base", s.o.Base.Digest)
	s.mu.Unlock()
	serving.Go(func() { s.accept(&serving) })
	stop := context.AfterFunc(ctx, s.stop)
	defer stop()
	var err error
	<-s.makeCtx.Done() // stopping
	select {
	case <-s.empty:
	case <-time.After(30 * time.Second):
		s.mu.Lock()
		err = skep.Errorf(skep.Unavailable, "%d rooms are not removed; the next start tries again", len(s.rooms))
		s.mu.Unlock()
	}
	_ = s.listener.Hide()
	s.mu.Lock()
	clients := make([]*client, 0, len(s.clients))
	for c := range s.clients {
		clients = append(clients, c)
	}
	s.mu.Unlock()
	for _, c := range clients {
		c.farewell(err)
	}
	_ = s.listener.Close()
	for _, c := range clients {
		c.finish()
	}
	serving.Wait()
	s.cancel()
	s.rebasing.Wait()
	loops.Wait()
	return errors.Join(err, s.journal.Close())
}

// Close gives up a service that Run was not called for.
func (s *Service) Close() {
	_ = s.listener.Close()
	_ = s.journal.Close()
	s.cancel()
}

// Socket returns where the pool is reached.
func (s *Service) Socket() string { return s.o.Socket }

// stop begins the end; it may be called many times.
func (s *Service) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return
	}
	s.stopping = true
	for _, t := range []*time.Timer{s.fillAt, s.trimAt} {
		if t != nil {
			t.Stop()
		}
	}
	for _, w := range s.waiters {
		w.refuse(pool.Refusef(skep.Unavailable, pool.ReasonStopping, "the pool is stopping"))
	}
	s.waiters = nil
	s.enders.Forgive() // what could not be removed before may be now
	for _, c := range s.rooms {
		if c.state != cellMaking { // its creator sees to it, when it has given up
			s.retire(c)
		}
	}
	s.noMore()
}

// madeNoMore retires what the creators, who have ended, did not get to.
func (s *Service) madeNoMore() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.rooms {
		s.retire(c)
	}
	s.closeIfEmpty()
}

// keyBases is the enders' key for base images that are not needed any more. No
// room is called so.
const keyBases = "bases"

// rebase has new rooms made of b, and gives out no others from then on.
func (s *Service) rebase(b Base) error {
	s.basing.Lock()
	defer s.basing.Unlock()
	if err := b.prepare(s.makeCtx, filepath.Join(s.o.Dir, "bases"), s.o.FirstID, s.o.IDs); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return skep.Errorf(skep.Unavailable, "the pool is stopping")
	}
	s.log.Info("base image changed", "base", b.Digest, "was", s.o.Base.Digest)
	s.o.Base = b
	for _, c := range slices.Clone(s.stock) {
		if s.outdated(c) {
			s.retire(c)
		}
	}
	s.enders.Wake(keyBases)
	s.circuit.Succeeded("make") // what was wrong with the old one says nothing of this one
	s.paused = ""
	s.fill()
	return nil
}

// outdated says that a room is not of the base image of new ones.
func (s *Service) outdated(c *cell) bool { return c.Spec.Base != s.o.Base.root }

// pruneBases removes base images that are not ours and that no room is of. No
// new room can come to be of one while basing is held, so the other mutex is not
// while that takes its time: seconds, for a large one.
func (s *Service) pruneBases() error {
	s.basing.Lock()
	defer s.basing.Unlock()
	s.mu.Lock()
	used := []string{s.o.Base.root}
	for _, c := range s.rooms {
		used = append(used, c.Spec.Base)
	}
	s.mu.Unlock()
	err := pruneBases(filepath.Join(s.o.Dir, "bases"), used)
	if err != nil {
		s.mu.Lock()
		s.failed("base", err.Error())
		s.mu.Unlock()
	}
	return err
}

func (s *Service) closeIfEmpty() {
	if s.stopping && len(s.rooms) == 0 {
		select {
		case <-s.empty:
		default:
			close(s.empty)
		}
	}
}

// failureCauses are what failures are about.
var failureCauses = []string{"accept", "base", "make", "remove", "room"}

// failed notes an error where status and metrics show it.
func (s *Service) failed(cause, text string) {
	s.errs[cause]++
	s.failures = append(s.failures, pool.Failed{At: s.o.Now().UTC(), Cause: cause, Text: cut(text, 500)})
	if n := len(s.failures) - 100; n > 0 {
		s.failures = slices.Delete(s.failures, 0, n)
	}
}

func cut(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}

func (s *Service) observe() Stock {
	st := Stock{Ready: len(s.stock), Waiting: len(s.waiters), Total: len(s.rooms), Rate: s.demand.now(s.o.Now()), Took: s.took}
	for _, c := range s.rooms {
		if c.state == cellMaking {
			st.Making++
		}
	}
	return st
}

// fill begins as many rooms as the plan says, and lets those go that are too
// many for long.
func (s *Service) fill() {
	if s.stopping {
		return
	}
	begin, spare := Plan(s.o.Size, s.observe())
	switch {
	case begin > 0 && len(s.waiters) == 0 && 2*len(s.stock) > s.o.Size.Want(s.observe()) && time.Since(s.gave) < courtesy:
		// Who got one begins to work now; the processors are theirs for a moment.
		s.later(&s.fillAt, courtesy, s.fill)
	case begin > 0:
		if wait := s.circuit.Wait("make"); wait > 0 {
			s.later(&s.fillAt, wait, s.fill)
			return
		}
		if s.paused != "" {
			begin = 1 // one tries, the others wait for what comes of it
		}
		for range begin {
			s.begin()
		}
	case spare > 0 && s.trimAt == nil:
		s.later(&s.trimAt, trimAfter, func() {
			if _, spare := Plan(s.o.Size, s.observe()); spare > 0 {
				for _, c := range slices.Clone(s.stock[:spare]) {
					s.retire(c)
				}
			}
		})
	}
}

const trimAfter = 30 * time.Second

// courtesy is how long a pool that has more than half its stock waits with
// making more.
const courtesy = 50 * time.Millisecond

// later calls do, with the lock held, after a while, unless it is to already.
func (s *Service) later(t **time.Timer, after time.Duration, do func()) {
	if *t != nil {
		return
	}
	*t = time.AfterFunc(after, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		*t = nil
		if !s.stopping {
			do()
		}
	})
}

func (s *Service) begin() {
	s.seq++
	name := fmt.Sprintf("%s-%d", s.prefix, s.seq)
	n, err := s.note(name)
	if err != nil {
		s.failed("make", err.Error())
		s.paused = cut(err.Error(), 200)
		s.later(&s.fillAt, s.circuit.Failed("make"), s.fill)
		return
	}
	s.rooms[name] = newCell(n, cellMaking)
	s.makers.Wake(name)
}

// note is what the journal holds of a room.
type note struct {
	Spec  Spec        `json:"spec"`
	Group *proc.Group `json:"group,omitempty"`
}

func (s *Service) note(name string) (note, error) {
	dir := filepath.Join(s.o.Dir, "rooms", name)
	n := note{Spec: Spec{
		Name: name, Dir: dir, Base: s.o.Base.root, From: Base{File: s.o.Base.File, Digest: s.o.Base.Digest}, Run: filepath.Join(dir, "run"),
		FirstID: s.o.FirstID, IDs: s.o.IDs, HostNetwork: s.o.HostNetwork,
	}}
	g, err := proc.PlanGroup(name)
	if err != nil {
		if s.o.Limits != (proc.Limits{}) {
			return n, err
		}
		g = nil
	}
	n.Group = g
	return n, nil
}
