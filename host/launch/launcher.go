package launch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/gofrs/flock"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/host/engine"
	"github.com/skepdev/skep/reconcile"
)

// Labels of the containers that are ours. What does not carry LabelLauncher
// with our name is never touched.
const (
	LabelLauncher = "dev.skep.launcher"
	LabelSlot     = "dev.skep.slot"
	LabelVersion  = "cipd_version"   // spec host.md §1.4
	labelDrain    = "dev.skep.drain" // of an image: its first process takes this signal as a drain
)

// Settings may change while the launcher runs.
type Settings struct {
	Slots          int
	Image          string // name, or name@sha256:…
	MaxAge         time.Duration
	MaxUnavailable int
	Deadlines      map[Cause]time.Duration // of drains; a cause that is missing has Deadline
	Deadline       time.Duration           // 0 = 4 h
	StopGrace      time.Duration           // 0 = defaultStopGrace
	RefreshImage   time.Duration           // between looks for a newer image under a name without digest; 0 = never

	MaxHostAge  time.Duration // 0 = any
	RebootGrace time.Duration
}

func (s Settings) deadline(c Cause) time.Duration {
	if d, ok := s.Deadlines[c]; ok {
		return d
	}
	if s.Deadline == 0 {
		return 4 * time.Hour
	}
	return s.Deadline
}

// Options are what a Launcher stands on. Engine, Root, StateDir, LockDir, Host
// and Settings must be set.
type Options struct {
	Engine   engine.Engine
	Name     string // of this launcher, on its containers' labels; "" = skep
	Root     string // directory of the slots' directories and of the control files
	StateDir string // journal and post-mortems
	LockDir  string // one lock file a container
	Host     string // short host name, the first part of the bots' names
	FQDN     string
	Server   string // URL; its /bot_code is what a container runs
	CAFile   string // certificates that vouch for it, "" = the image's
	TokenDir string // <slot>.tok and <slot>.bootstrap.tok; "" = bots have no token
	Network  string
	Owner    [2]int         // of the slots' directories, uid and gid
	Mounts   []engine.Mount // beside the slot's own
	Devices  []string
	Hosts    []string // "name:address"
	Version  string   // label of containers; another's are replaced

	Settings func() Settings

	// EngineSocket is the file at which the engine listens: when it is made anew
	// the engine is back, and asked at once; "" = it is asked every few seconds.
	EngineSocket string

	// RestartEngine and Reboot act on the host. nil = nobody may.
	RestartEngine func(ctx context.Context) error
	UpdateEngine  func(ctx context.Context) error
	Reboot        func(ctx context.Context, reason string) error
	HostAge       func() (time.Duration, error)

	Proc string // "" = /proc
	Log  *slog.Logger
}

// Launcher keeps containers. One at a time has a state directory.
type Launcher struct {
	o       Options
	log     *slog.Logger
	loop    *reconcile.Loop
	images  *reconcile.Loop
	journal *reconcile.FileJournal
	lock    *flock.Flock
	doctor  doctor
	metrics *metrics

	mu        sync.Mutex
	image     string // id of the local image that is wanted
	imageNote string // why there is none, or no newer one
	refresh   struct {
		ref string
		at  time.Time
	}
	drains    map[string]Drain
	deaths    map[string][]Death
	known     map[string]engine.Container // by id: what Inspect told of the living
	problems  map[string]string           // by key: the last error
	host      Cause
	rebooting string // why; it was told to
	rebootAt  time.Time
	updates   updates
	had       had

	look     sync.Mutex // one look at the engine at a time
	current  int        // guarded by mu: grows with what makes a look stale
	looked   int
	snapshot []engine.Container
}

const (
	keyHost    = "host"
	keyImage   = "image"
	keyEngine  = "engine"  // in the journal
	keyUpdates = "updates" // in the journal
	keyImages  = "images"  // in the journal
)

// Open takes the state directory, or says at once that another launcher has it.
func Open(o Options) (*Launcher, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Name == "" {
		o.Name = "skep"
	}
	if o.Proc == "" {
		o.Proc = "/proc"
	}
	for _, dir := range []string{o.Root, o.StateDir, o.LockDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, skep.Errorf(skep.Precondition, "the launcher cannot write its directory: %w", err)
		}
	}
	l := &Launcher{
		o: o, log: o.Log, drains: map[string]Drain{}, deaths: map[string][]Death{},
		known: map[string]engine.Container{}, problems: map[string]string{}, current: 1,
	}
	l.doctor.sick = map[string]int{}
	l.metrics = newMetrics(l)
	l.host = l.before()
	l.lock = flock.New(filepath.Join(o.StateDir, "lock"))
	if held, err := l.lock.TryLock(); err != nil || !held {
		if err != nil {
			err = skep.Errorf(skep.Precondition, "the launcher cannot lock its --state-dir: %w", err)
		} else {
			err = skep.Errorf(skep.Conflict, "another skep host works in %s; see skep host status", o.StateDir)
		}
		return nil, err
	}
	err := l.recall()
	if err != nil {
		_ = l.lock.Unlock()
		return nil, err
	}
	l.loop = &reconcile.Loop{Step: l.step, List: l.list, Hold: l.hold, Limit: 2 * time.Minute, Log: o.Log, Max: time.Minute}
	l.images = &reconcile.Loop{Step: l.imageStep, List: func(_ context.Context, each func(string)) error { each(keyImage); return nil }, Limit: time.Hour, Workers: 1, Log: o.Log}
	return l, nil
}

// recall reads what earlier launchers noted.
func (l *Launcher) recall() (err error) {
	if l.journal, err = reconcile.OpenJournal(filepath.Join(l.o.StateDir, "journal")); err != nil {
		return skep.Errorf(skep.Precondition, "the launcher's --state-dir: %w", err)
	}
	entries, err := l.journal.Entries(context.Background())
	if err != nil {
		return err
	}
	for _, e := range entries {
		switch e.Key {
		case keyEngine:
			_ = json.Unmarshal(e.Note, &l.doctor.tried)
			continue
		case keyUpdates:
			_ = json.Unmarshal(e.Note, &l.updates)
			continue
		case keyImages:
			_ = json.Unmarshal(e.Note, &l.had)
			continue
		}
		var d Drain
		if err := json.Unmarshal(e.Note, &d); err != nil {
			return fmt.Errorf("journal: entry %s: %w", e.Key, err)
		}
		l.drains[e.Key] = d
	}
	l.deaths, err = readDeaths(filepath.Join(l.o.StateDir, "deaths"))
	return err
}

// Close gives the state directory up.
func (l *Launcher) Close() error {
	return errors.Join(l.journal.Close(), l.lock.Unlock())
}

// Once is one pass: everything that is to be done now is begun, and what it
// takes is not waited for, but for the image. Slots are filled with the one that
// is here, and looked at while a registry keeps the pass waiting: no other can
// begin meanwhile. spec host.md §1.3.
func (l *Launcher) Once(ctx context.Context) error {
	if err := l.answers(ctx); err != nil {
		l.cure(ctx, err)
		return err
	}
	if _, err := l.hostStep(ctx); err != nil {
		l.log.WarnContext(ctx, "host", "err", err)
	}
	if l.rebootBegun() {
		return nil
	}
	_, _ = l.present(ctx, l.o.Settings().Image) // an error is the image step's, too
	if err := l.fill(ctx); err != nil {
		return err
	}
	with := l.imageID()
	imaged := make(chan struct{})
	pulls, cancel := context.WithCancel(ctx)
	go func() {
		defer close(imaged)
		if err := l.images.Pass(pulls); err != nil {
			l.log.WarnContext(ctx, "image", "err", err)
		}
	}()
	defer func() { cancel(); <-imaged }()
	again := time.NewTicker(time.Minute)
	defer again.Stop()
	for {
		select {
		case <-imaged:
			if l.imageID() == with {
				return nil
			}
			return l.fill(ctx)
		case <-again.C:
			if err := l.fill(ctx); err != nil {
				return err
			}
		}
	}
}

// fill does one step of each slot, and more while the engine serves none.
func (l *Launcher) fill(ctx context.Context) error {
	for n := 1; ; n++ {
		if err := l.loop.Pass(ctx); err != nil { // per container: logged, exit code 0 as before
			l.log.WarnContext(ctx, "pass", "err", err)
		}
		deaf := l.unserved(n)
		if deaf == nil {
			return nil
		}
		err := l.answers(ctx)
		if err != nil || n == asks {
			err = errors.Join(err, deaf)
			l.cure(ctx, err)
			return err
		}
		if err := rest(ctx, n); err != nil {
			return err
		}
	}
}

// Run keeps the containers until ctx ends, and leaves them running then.
func (l *Launcher) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l.doctor.suspicion = make(chan struct{}, 1)
	wg.Go(func() { _ = l.images.Run(ctx) })
	wg.Go(func() { l.follow(ctx) })
	wg.Go(func() { l.treat(ctx) })
	stamps, err := l.watchStamps(ctx)
	if err != nil {
		return err
	}
	wg.Go(stamps)
	return l.loop.Run(ctx)
}

// Wake looks at everything now: settings or control files changed.
func (l *Launcher) Wake() {
	l.stale()
	l.loop.Wake(append(l.keys(), keyHost)...)
	l.images.Wake(keyImage)
}

func (l *Launcher) stale() {
	l.mu.Lock()
	l.current++
	l.mu.Unlock()
}

// keys are the slots that are wanted, or were when last looked.
func (l *Launcher) keys() []string {
	n := l.o.Settings().Slots
	names := map[string]bool{}
	for i := range n {
		names[SlotName(i)] = true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.snapshot {
		names[c.Labels[LabelSlot]] = true
	}
	for slot := range l.drains {
		names[slot] = true
	}
	return slices.Sorted(keys(names))
}

func (l *Launcher) list(ctx context.Context, each func(string)) error {
	l.stale()
	_, err := l.observe(ctx)
	for _, key := range l.keys() {
		each(key)
	}
	each(keyHost)
	return err
}

// hold takes the lock file of a container, as other launchers do. The path
// must still name the file that was locked. spec host.md §1.8.
func (l *Launcher) hold(_ context.Context, key string) (func(), error) {
	if key == keyHost {
		return func() {}, nil
	}
	path := filepath.Join(l.o.LockDir, "swarm_docker."+key+".lock")
	for range 3 {
		f := flock.New(path)
		held, err := f.TryLock()
		if err != nil {
			return nil, err
		}
		if !held {
			return nil, fmt.Errorf("%s: %w", path, reconcile.ErrHeld)
		}
		ours, err1 := f.Stat()
		named, err2 := os.Stat(path)
		if err1 == nil && err2 == nil && os.SameFile(ours, named) {
			return func() { _ = f.Unlock() }, nil
		}
		_ = f.Unlock()
	}
	return nil, fmt.Errorf("%s is replaced again and again: %w", path, reconcile.ErrHeld)
}

// observe lists our containers, for all who ask since something changed.
func (l *Launcher) observe(ctx context.Context) ([]engine.Container, error) {
	l.look.Lock()
	defer l.look.Unlock()
	l.mu.Lock()
	at, fresh := l.current, l.looked == l.current
	list := l.snapshot
	l.mu.Unlock()
	if fresh {
		return list, nil
	}
	list, err := l.o.Engine.List(ctx, map[string]string{LabelLauncher: l.o.Name})
	if err != nil {
		if ctx.Err() == nil {
			l.suspect()
		}
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.snapshot, l.looked = list, at
	there := map[string]bool{}
	for _, c := range list {
		there[c.ID] = true
	}
	for id := range l.known {
		if !there[id] {
			delete(l.known, id)
		}
	}
	return list, nil
}

// inspect completes what is known of a slot's living containers. Each slot asks
// for its own: one that hangs keeps no other waiting.
func (l *Launcher) inspect(ctx context.Context, slot string, list []engine.Container) error {
	for _, c := range list {
		l.mu.Lock()
		_, known := l.known[c.ID]
		l.mu.Unlock()
		if c.Labels[LabelSlot] != slot || known || c.State != engine.Running {
			continue
		}
		got, err := l.o.Engine.Inspect(ctx, c.ID)
		if skep.KindOf(err) == skep.NotFound {
			l.stale()
			continue
		}
		if err != nil {
			return err
		}
		l.mu.Lock()
		l.known[c.ID] = got
		l.mu.Unlock()
	}
	return nil
}

func (l *Launcher) plan(list []engine.Container) []Action {
	s := l.o.Settings()
	stamped := l.stamped()
	l.mu.Lock()
	defer l.mu.Unlock()
	have := Have{Drains: l.drains, NotBefore: map[string]time.Time{}}
	for _, c := range list {
		if k, ok := l.known[c.ID]; ok {
			c.Started = k.Started
			if c.State == engine.Running {
				c.State = k.State
			}
		}
		have.Containers = append(have.Containers, c)
	}
	for slot, deaths := range l.deaths {
		if n := len(deaths); n > 0 {
			have.NotBefore[slot] = deaths[n-1].Ended.Add(Pause(deaths, l.image))
		}
	}
	return Plan(time.Now(), Want{
		Slots: s.Slots, Image: l.image, Version: l.o.Version, MaxAge: s.MaxAge, MaxUnavailable: s.MaxUnavailable,
		StopGrace: orElse(s.StopGrace, defaultStopGrace), Host: l.host, Stamped: stamped, Deadline: s.deadline,
	}, have)
}

const defaultStopGrace = 30 * time.Second

func orElse(d, zero time.Duration) time.Duration {
	if d == 0 {
		return zero
	}
	return d
}

// step does what Plan says of one slot, and what follows from that.
func (l *Launcher) step(ctx context.Context, key string) (again time.Duration, err error) {
	var unknown error // what keeps a container from being looked at
	defer func() {
		sick := engine.Hung(err) || unknown != nil
		if ctx.Err() == nil || err == nil {
			l.note(key, err, sick)
		}
		if sick {
			l.suspect()
		}
	}()
	if key == keyHost {
		return l.hostStep(ctx)
	}
	for range 4 { // dead: buried, made anew
		list, err := l.observe(ctx)
		if err != nil {
			return 0, err
		}
		// What is not known of a container keeps no drain of it from its end.
		unknown = l.inspect(ctx, key, list)
		var next time.Time
		did := false
		for _, a := range l.plan(list) {
			if a.Slot != key {
				continue
			}
			if !a.At.IsZero() && (next.IsZero() || a.At.Before(next)) {
				next = a.At
			}
			if a.Act == "" {
				continue
			}
			if err := l.apply(ctx, a); err != nil {
				l.stale()
				if a.Act == ActRemove { // nothing else is left to try
					l.suspect()
				}
				return 0, fmt.Errorf("%s: %w", a.Act, err)
			}
			did = did || a.Act != ActDrain && a.Act != ActStop && a.Act != ActKill
			l.stale()
		}
		if unknown != nil {
			return 0, unknown
		}
		if !did {
			if next.IsZero() {
				return 0, nil
			}
			return max(time.Until(next), 10*time.Millisecond), nil
		}
	}
	return 10 * time.Millisecond, nil
}

func (l *Launcher) note(key string, err error, sick bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.problems, key)
	if err != nil {
		l.problems[key] = err.Error()
	}
	switch {
	case key == keyHost:
	case sick:
		l.doctor.sick[key]++
	default:
		delete(l.doctor.sick, key)
	}
}

func (l *Launcher) apply(ctx context.Context, a Action) error {
	e := l.o.Engine
	log := l.log.With("slot", a.Slot)
	switch a.Act {
	case ActCreate:
		return l.create(ctx, a)
	case ActStart:
		return e.Start(ctx, a.Container.ID)
	case ActUnpause:
		return e.Unpause(ctx, a.Container.ID)
	case ActBury:
		return l.bury(ctx, a.Slot, a.Container)
	case ActForget:
		return l.forget(ctx, a.Slot)
	case ActDrain:
		return l.drain(ctx, a)
	case ActStop:
		log.InfoContext(ctx, "drain is over its deadline, the bot is stopped", "cause", a.Drain.Cause, "container", a.Container.ID)
		if err := l.remember(ctx, a.Slot, a.Drain); err != nil {
			return err
		}
		return gone(e.Signal(ctx, a.Container.ID, "SIGINT"))
	case ActKill:
		log.WarnContext(ctx, "the bot does not stop, its container is killed", "cause", a.Drain.Cause, "container", a.Container.ID)
		a.Drain.Late = true
		if err := l.remember(ctx, a.Slot, a.Drain); err != nil {
			return err
		}
		return gone(e.Signal(ctx, a.Container.ID, "SIGKILL"))
	case ActRemove:
		log.ErrorContext(ctx, "the container does not die, it is removed by force", "cause", a.Drain.Cause, "container", a.Container.ID)
		return e.Remove(ctx, a.Container.ID)
	}
	return fmt.Errorf("there is no act %q", a.Act)
}

// gone forgives a signal to what has ended.
func gone(err error) error {
	if k := skep.KindOf(err); k == skep.NotFound || k == skep.Conflict {
		return nil
	}
	return err
}

// create makes a slot's container and starts it. spec host.md §1.4.
func (l *Launcher) create(ctx context.Context, a Action) error {
	dir := filepath.Join(l.o.Root, a.Slot)
	if err := os.Mkdir(dir, 0o755); err == nil {
		if l.o.Owner != ([2]int{}) {
			if err := os.Chown(dir, l.o.Owner[0], l.o.Owner[1]); err != nil {
				return err
			}
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return err
	}
	env := []string{
		"SWARM_URL=" + strings.TrimSuffix(l.o.Server, "/") + "/bot_code",
		"DOCKER_HOST_HOSTNAME=" + l.o.FQDN,
		fmt.Sprintf("NUM_CONFIGURED_CONTAINERS=%d", l.o.Settings().Slots),
	}
	mounts := append([]engine.Mount{{Source: dir, Target: "/b"}}, l.o.Mounts...)
	if l.o.CAFile != "" {
		mounts = append(mounts, engine.Mount{Source: l.o.CAFile, Target: "/etc/skep/ca.pem", ReadOnly: true})
		env = append(env, "SKEP_CA_FILE=/etc/skep/ca.pem")
	}
	tokens, err := l.tokens(a.Slot)
	if err != nil {
		return err
	}
	labels := map[string]string{LabelLauncher: l.o.Name, LabelSlot: a.Slot}
	if l.o.Version != "" {
		labels[LabelVersion] = l.o.Version
	}
	id, err := l.o.Engine.Create(ctx, engine.Spec{
		Name: a.Slot, Hostname: l.o.Host + "--" + a.Slot, Image: a.Image, Labels: labels, Env: append(env, tokens...),
		Mounts: mounts, Devices: l.o.Devices, Network: l.o.Network, StopSignal: "SIGINT", LogLimit: 4 << 20, ExtraHosts: l.o.Hosts,
	})
	if skep.KindOf(err) == skep.NotFound { // of the image, if somebody took it away, or of a network or mount
		if _, gone := l.o.Engine.Image(ctx, a.Image); skep.KindOf(gone) == skep.NotFound {
			l.images.Wake(keyImage)
		}
	}
	if skep.KindOf(err) == skep.Conflict {
		return skep.Errorf(skep.Conflict, "%w; a container that is not this launcher's has the name %s: rename or remove it", err, a.Slot)
	}
	if err != nil {
		return err
	}
	l.stale()
	if err := l.o.Engine.Start(ctx, id); err != nil {
		return err
	}
	l.metrics.started.Inc()
	l.log.InfoContext(ctx, "container started", "slot", a.Slot, "container", id)
	return nil
}

// tokens are the credentials of a slot's bot, read for each container anew.
func (l *Launcher) tokens(slot string) ([]string, error) {
	if l.o.TokenDir == "" {
		return nil, nil
	}
	var env []string
	for _, t := range [][2]string{{slot + ".tok", "SKEP_BOT_TOKEN="}, {slot + ".bootstrap.tok", "SKEP_BOOTSTRAP_TOKEN="}} {
		path := filepath.Join(l.o.TokenDir, t[0])
		fi, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if fi.Mode().Perm()&0o077 != 0 {
			return nil, skep.Errorf(skep.Precondition, "%s can be read by others; chmod 600 it", path)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		env = append(env, t[1]+strings.TrimSpace(string(b)))
	}
	if len(env) == 0 {
		return nil, skep.Errorf(skep.Precondition, "%s holds neither %s.tok nor %[2]s.bootstrap.tok; make one with skep token create", l.o.TokenDir, slot)
	}
	return env, nil
}

// drain asks the bot to end after its task. It is noted first: two signals in
// 3 s would stop it. And so is its deadline, before an engine is asked that may
// hang.
func (l *Launcher) drain(ctx context.Context, a Action) error {
	l.mu.Lock()
	noted := l.drains[a.Slot] == a.Drain
	l.mu.Unlock()
	if !noted {
		if err := l.remember(ctx, a.Slot, a.Drain); err != nil {
			return err
		}
	}
	c, err := l.o.Engine.Inspect(ctx, a.Container.ID)
	if err != nil {
		return gone(err)
	}
	if c.State != engine.Running {
		return nil
	}
	d := a.Drain
	first := d.Signalled.IsZero()
	d.Signalled, d.Why = time.Now(), ""
	if err := l.remember(ctx, a.Slot, d); err != nil {
		return err
	}
	err = signalBot(l.o.Proc, filepath.Join(l.o.Root, a.Slot), c.PID, syscall.SIGTERM)
	if errors.Is(err, errNoBot) {
		// There is nobody to signal yet. A first process that takes the signal as
		// a drain passes it on to a bot that starts this moment.
		image, err2 := l.o.Engine.Image(ctx, c.ImageID)
		if err2 == nil && image.Labels[labelDrain] == "SIGTERM" {
			err = gone(l.o.Engine.Signal(ctx, c.ID, "SIGTERM"))
		}
	}
	if err != nil {
		d.Signalled, d.Why = time.Time{}, err.Error()
		l.log.InfoContext(ctx, "bot not signalled, its drain goes on to the deadline", "slot", a.Slot, "cause", d.Cause, "err", err)
		return l.remember(ctx, a.Slot, d)
	}
	if first {
		l.metrics.drains.WithLabelValues(string(d.Cause)).Inc()
		l.log.InfoContext(ctx, "bot asked to end", "slot", a.Slot, "cause", d.Cause, "container", c.ID, "deadline", d.Deadline)
	}
	return nil
}

func (l *Launcher) remember(ctx context.Context, slot string, d Drain) error {
	note, err := json.Marshal(d)
	if err != nil {
		return err
	}
	if err := l.journal.Begin(ctx, reconcile.Entry{Key: slot, Step: "drain", At: time.Now(), Note: note}); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drains[slot] = d
	return nil
}

func (l *Launcher) forget(ctx context.Context, slot string) error {
	if err := l.journal.End(ctx, slot); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.drains, slot)
	return nil
}

// bury keeps what a dead container leaves and removes it.
func (l *Launcher) bury(ctx context.Context, slot string, c engine.Container) error {
	full, err := l.o.Engine.Inspect(ctx, c.ID)
	if skep.KindOf(err) == skep.NotFound {
		return nil
	}
	if err != nil {
		return err
	}
	if full.State == engine.Running || full.State == engine.Paused { // it came back
		return nil
	}
	if !full.Started.IsZero() {
		out, err := l.o.Engine.Log(ctx, c.ID, maxLog)
		if engine.Hung(err) {
			return err
		}
		l.mu.Lock()
		d, asked := l.drains[slot]
		l.mu.Unlock()
		death := Death{
			Container: c.ID, Image: full.ImageID, Started: full.Started, Ended: full.Ended, ExitCode: full.ExitCode, OOMKilled: full.OOMKilled, Error: full.Error,
			Asked: asked && d.Container == c.ID || full.ExitCode == 0 || full.ExitCode == exitReboot,
		}
		if asked && d.Container == c.ID {
			death.Cause = d.Cause
		}
		if err := l.mourn(slot, death, out); err != nil { // the slot matters more
			l.log.WarnContext(ctx, "post-mortem not kept", "slot", slot, "err", err)
		}
	}
	return l.o.Engine.Remove(ctx, c.ID)
}

// exitReboot is how the first process ends when its bot wants a reboot.
const exitReboot = 10

// How often an engine that does not answer is asked: soon at first, then every
// few seconds, as not every return makes the socket anew.
const (
	askFirst = 50 * time.Millisecond
	askMax   = 5 * time.Second
)

// follow wakes slots by what the engine tells.
func (l *Launcher) follow(ctx context.Context) {
	var back <-chan struct{} // nil while it answers, or where its return cannot be seen
	end := func() {}
	defer func() { end() }()
	pause := askFirst
	labels := map[string]string{LabelLauncher: l.o.Name}
	for ctx.Err() == nil {
		for ev, err := range l.o.Engine.Events(ctx, labels, func() { l.stale(); l.loop.Wake(l.keys()...) }) {
			if err != nil {
				break
			}
			switch ev.Action {
			case "die", "start", "destroy", "pause", "unpause":
				pause = askFirst
				// The list may still have the state before; Inspect waits for the new one.
				l.mu.Lock()
				delete(l.known, ev.Container)
				l.mu.Unlock()
				l.stale()
				l.loop.Wake(append(l.keys(), keyHost)...)
			}
		}
		l.suspect()
		again := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-again.C:
			pause = min(2*pause, askMax)
		case <-back: // it is there, and answers in a moment
			pause = askFirst
		}
		again.Stop()
		err := l.o.Engine.Ping(ctx)
		if err != nil { // what hung meanwhile says nothing of what is when it is back
			l.recount()
		}
		switch {
		case err != nil && back == nil:
			back, end = l.watchEngine(ctx)
		case err == nil:
			end()
			back, end = nil, func() {}
			pause = min(pause, time.Second)
			l.loop.Forgive() // what failed with the engine need not wait
			l.images.Forgive()
		}
	}
}

// watchEngine returns what tells that the engine's socket was made, nil when
// that cannot be seen, and what ends it.
func (l *Launcher) watchEngine(ctx context.Context) (back <-chan struct{}, end func()) {
	if l.o.EngineSocket == "" {
		return nil, func() {}
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, func() {}
	}
	if err := w.Add(filepath.Dir(l.o.EngineSocket)); err != nil {
		_ = w.Close()
		return nil, func() {}
	}
	made := make(chan struct{}, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case ev, ok := <-w.Events:
				if !ok {
					return
				}
				if filepath.Base(ev.Name) != filepath.Base(l.o.EngineSocket) || !ev.Has(fsnotify.Create) {
					continue
				}
			case _, ok := <-w.Errors: // events were lost
				if !ok {
					return
				}
			}
			select {
			case made <- struct{}{}:
			default:
			}
		}
	})
	return made, func() {
		_ = w.Close()
		wg.Wait()
	}
}
