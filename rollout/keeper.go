package rollout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/store"
)

const (
	metaKey      = "rollout"
	lookEvery    = time.Second // at a rollout that goes on; also how late other servers' changes are seen
	keptReleases = 5           // beside the stable and the next one
	maxBuilds    = 64          // kept composed
	resultOK     = "confirmed"
	resultLost   = "crashed"
	resultOther  = "mismatch" // it downloaded something else than it was told
)

// Options of New.
type Options struct {
	Store    *store.Store
	URLs     []string         // public addresses of the server; the first is for bots that came by another one
	Settings func() Settings  // of the moment; nil = the defaults
	Wake     func(skep.BotID) // ends the wait of a bot's poll, so that it learns of a change; nil = nothing
	Log      *slog.Logger
	Now      func() time.Time
}

// Keeper keeps the releases of a fleet. Its methods may be called at once by
// many.
type Keeper struct {
	o Options

	// composing is held while a build is made: all bots of a fleet come at once
	// after a restart, and each build takes as much memory as the executable.
	composing sync.Mutex

	mu       sync.Mutex
	state    State
	releases map[string]*Release
	builds   map[buildKey]*Build
	digests  map[string]*Build // the same, by digest
	known    map[skep.BotID]*botSeen
	told     map[skep.BotID]telling // bots that were told to run the next release
	wrong    map[skep.BotID]bool    // bots that got other code than they were told, since they had the right one
}

type buildKey struct {
	release string
	Platform
	url string
}

// botSeen is what this server knows of a bot that calls it.
type botSeen struct {
	release       string // that it runs, "" = none that we know
	ill           bool
	at            time.Time
	tasks, failed int // since release changed

	// What of that the store has, for bots with the release that is rolled out.
	noted       bool
	notedTasks  int
	notedFailed int
	notedIll    bool
}

// telling is what a bot was told to run, and what came of it.
type telling struct{ digest, result string }

// New reads where the fleet's rollout is.
func New(ctx context.Context, o Options) (*Keeper, error) {
	if o.Settings == nil {
		o.Settings = func() Settings { return Settings{CanaryPercent: DefaultCanaryPercent, Soak: DefaultSoak} }
	}
	if o.Wake == nil {
		o.Wake = func(skep.BotID) {}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	k := &Keeper{
		o: o, releases: map[string]*Release{}, builds: map[buildKey]*Build{}, digests: map[string]*Build{},
		known: map[skep.BotID]*botSeen{}, told: map[skep.BotID]telling{}, wrong: map[skep.BotID]bool{},
	}
	return k, k.reload(ctx)
}

// reload reads the state that other servers may have changed.
func (k *Keeper) reload(ctx context.Context) error {
	text, err := k.o.Store.Meta(ctx, metaKey)
	if err != nil || text == "" {
		return err
	}
	var s State
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return fmt.Errorf("stored rollout: %w", err)
	}
	k.adopt(s)
	return k.reloadTold(ctx)
}

// reloadTold reads what other servers, or this one before it was started
// again, told bots.
func (k *Keeper) reloadTold(ctx context.Context) error {
	others, err := k.o.Store.Mismatches(ctx)
	if err != nil {
		return err
	}
	k.mu.Lock()
	next := k.state.Next
	clear(k.wrong)
	for _, bot := range others {
		k.wrong[bot] = true
	}
	k.mu.Unlock()
	if next == "" {
		return nil
	}
	bots, err := k.o.Store.RolloutBots(ctx, next)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, b := range bots {
		if k.told[b.Bot].result == "" {
			k.told[b.Bot] = telling{b.Digest, b.Result}
		}
	}
	return nil
}

// adopt makes s the state at hand and wakes the bots for which it says
// something else.
func (k *Keeper) adopt(s State) {
	percent := k.o.Settings().CanaryPercent
	k.mu.Lock()
	if s.Rev <= k.state.Rev {
		k.mu.Unlock()
		return
	}
	old := k.state
	k.state = s
	if old.Next != s.Next || old.Halted != s.Halted {
		clear(k.told)
	}
	var wake []skep.BotID
	for bot := range k.known {
		if old.For(bot, percent) != s.For(bot, percent) {
			wake = append(wake, bot)
		}
	}
	k.mu.Unlock()
	for _, bot := range wake {
		k.o.Wake(bot)
	}
}

// change applies edit to the stored state. edit may run twice.
func (k *Keeper) change(ctx context.Context, edit func(*store.Tx, State) (State, error)) error {
	var now State
	err := k.o.Store.Update(ctx, func(tx *store.Tx) error {
		text, err := tx.LockMeta(metaKey)
		if err != nil {
			return err
		}
		var s State
		if text != "" {
			if err := json.Unmarshal([]byte(text), &s); err != nil {
				return fmt.Errorf("stored rollout: %w", err)
			}
		}
		if now, err = edit(tx, s); err != nil || now.Rev == s.Rev {
			return err
		}
		if now.Next != s.Next || s.Halted != "" && now.Halted == "" {
			if err := tx.ForgetRollout(""); err != nil {
				return err
			}
		}
		b, err := json.Marshal(now)
		if err != nil {
			return err
		}
		return tx.SetMeta(metaKey, string(b))
	})
	if err != nil {
		return err
	}
	k.mu.Lock()
	was := k.state
	k.mu.Unlock()
	if now.Rev != was.Rev {
		k.o.Log.InfoContext(ctx, "rollout", "stable", now.Stable, "next", now.Next, "stage", now.Stage, "halted", now.Halted)
	}
	k.adopt(now)
	return nil
}

// Offer says that this server has a release; part returns the content of its
// parts. A release that the fleet never had begins to roll. changed says that
// an operator made it just now, so that one which the fleet had before rolls
// too.
//
// The release, its parts, what the fleet shall run, and what may be forgotten
// for it are one change: another server never forgets a part between them.
func (k *Keeper) Offer(ctx context.Context, r *Release, part func(hash string) ([]byte, error), changed bool) error {
	id := r.ID()
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	packed := map[string][]byte{}
	pack := func(all bool) error {
		for _, h := range r.parts() {
			found, err := k.o.Store.HasPart(ctx, h)
			if err == nil && (all || !found) && packed[h] == nil {
				packed[h], err = packPart(h, part)
			}
			if err != nil {
				return fmt.Errorf("keep the bot code: %w", err)
			}
		}
		return nil
	}
	offer := func(tx *store.Tx, s State) (State, error) {
		for _, h := range r.parts() {
			found, err := tx.HasPart(ctx, h)
			switch {
			case err != nil:
				return s, err
			case found:
			case packed[h] == nil:
				return s, errForgotten
			default:
				if err := tx.AddPart(h, packed[h]); err != nil {
					return s, err
				}
			}
		}
		fresh, err := tx.AddRelease(id, string(text))
		if err != nil {
			return s, err
		}
		s = Offered(k.o.Now(), s, id, fresh || changed)
		return s, prune(ctx, tx, s, id)
	}
	if err := pack(false); err != nil {
		return err
	}
	err = k.change(ctx, offer)
	if errors.Is(err, errForgotten) { // since we looked
		if err := pack(true); err != nil {
			return err
		}
		err = k.change(ctx, offer)
	}
	return err
}

// errForgotten says that a part which was there is not any more.
var errForgotten = errors.New("a part of the bot code was forgotten")

// packPart reads a part and packs it for the store.
func packPart(h string, part func(hash string) ([]byte, error)) ([]byte, error) {
	data, err := part(h)
	if err != nil {
		return nil, err
	}
	if hash(data) != h {
		return nil, fmt.Errorf("a part changed while it was read: %s", h)
	}
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	return z.EncodeAll(data, nil), nil
}

// maxPart bounds a part when it is unpacked.
const maxPart = 256 << 20

func (k *Keeper) part(ctx context.Context, h string) ([]byte, error) {
	small, found, err := k.o.Store.Part(ctx, h)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, skep.Errorf(skep.NotFound, "part %s of the bot code is gone", h)
	}
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxPart))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	data, err := z.DecodeAll(small, nil)
	if err != nil || hash(data) != h {
		return nil, fmt.Errorf("part %s of the bot code is damaged: %w", h, err)
	}
	return data, nil
}

// prune forgets old releases, but not those that s names and not offered.
func prune(ctx context.Context, tx *store.Tx, s State, offered string) error {
	ids, err := tx.Releases(ctx)
	if err != nil {
		return err
	}
	used := []string{s.Stable, s.Next, offered}
	ids = slices.DeleteFunc(ids, func(id string) bool { return slices.Contains(used, id) })
	if len(ids) <= keptReleases {
		return nil
	}
	keep := map[string]bool{}
	for _, id := range append(slices.Clone(ids[:keptReleases]), used...) {
		text, err := tx.ReleaseText(ctx, id)
		if err != nil {
			return err
		}
		if text == "" {
			continue
		}
		var r Release
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			return fmt.Errorf("stored release: %w", err)
		}
		for _, h := range r.parts() {
			keep[h] = true
		}
	}
	for _, id := range ids[keptReleases:] {
		if err := tx.DropRelease(id); err != nil {
			return err
		}
	}
	return tx.DropParts(keep)
}

func (k *Keeper) release(ctx context.Context, id string) (*Release, error) {
	k.mu.Lock()
	r := k.releases[id]
	k.mu.Unlock()
	if r != nil {
		return r, nil
	}
	text, err := k.o.Store.ReleaseText(ctx, id)
	if err != nil {
		return nil, err
	}
	if text == "" {
		return nil, skep.Errorf(skep.NotFound, "release %q of the bot code is not known", id)
	}
	r = &Release{}
	if err := json.Unmarshal([]byte(text), r); err != nil {
		return nil, fmt.Errorf("stored release: %w", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.releases[id] = r
	return r, nil
}

// build returns a build, composing it where that was not done yet.
func (k *Keeper) build(ctx context.Context, release string, p Platform, url string) (*Build, error) {
	if release == "" {
		return nil, skep.Errorf(skep.Unavailable, "this server has no bot code to hand out; start it with --bot-dir")
	}
	key := buildKey{release, p, k.url(url)}
	if b := k.made(key); b != nil {
		return b, nil
	}
	k.composing.Lock()
	defer k.composing.Unlock()
	if b := k.made(key); b != nil { // while we waited
		return b, nil
	}
	r, err := k.release(ctx, release)
	if err != nil {
		return nil, err
	}
	b, err := compose(release, r, p, key.url, func(h string) ([]byte, error) {
		if exe := k.exe(h); exe != nil {
			return exe, nil
		}
		return k.part(ctx, h)
	})
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.builds) >= maxBuilds {
		for key, old := range k.builds {
			if key.release != k.state.Stable && key.release != k.state.Next {
				delete(k.builds, key)
				delete(k.digests, old.Digest)
			}
		}
	}
	k.builds[key], k.digests[b.Digest] = b, b
	return b, nil
}

// made returns a build that was composed before, or nil.
func (k *Keeper) made(key buildKey) *Build {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.builds[key]
}

// exe returns an executable that another build holds, or nil. Builds that
// differ in their hooks or addresses share it.
func (k *Keeper) exe(hash string) []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, b := range k.builds {
		if b.exeHash == hash {
			return b.exe
		}
	}
	return nil
}

// url returns the address that a bot which calls us as asked shall use.
func (k *Keeper) url(asked string) string {
	if slices.Contains(k.o.URLs, asked) {
		return asked
	}
	return k.o.URLs[0]
}

// Code returns the build that a bot should run; a bot that is not known yet
// has no id. The error is NotFound for a platform without an executable and
// Unavailable when there is no code at all.
func (k *Keeper) Code(ctx context.Context, bot skep.BotID, p Platform, url string) (*Build, error) {
	k.mu.Lock()
	s := k.state
	k.mu.Unlock()
	release := s.Stable
	if bot != "" {
		release = s.For(bot, k.o.Settings().CanaryPercent)
	}
	return k.build(ctx, release, p, url)
}

// Version returns the digest of a release's code for a platform, at the
// server's first address; "" when there is none.
func (k *Keeper) Version(ctx context.Context, release string, p Platform) string {
	if release == "" {
		return ""
	}
	b, err := k.build(ctx, release, p, k.o.URLs[0])
	if err != nil {
		return ""
	}
	return b.Digest
}

// WithDigest returns the build that has a digest, of the releases that a bot
// may be told to run now; nil when there is none.
func (k *Keeper) WithDigest(ctx context.Context, digest string) (*Build, error) {
	k.mu.Lock()
	b, s := k.digests[digest], k.state
	k.mu.Unlock()
	if b != nil {
		return b, nil
	}
	for _, id := range []string{s.Stable, s.Next} { // this server just started
		if id == "" {
			continue
		}
		r, err := k.release(ctx, id)
		if err != nil {
			return nil, err
		}
		for name := range r.Exes {
			for _, url := range k.o.URLs {
				b, err := k.build(ctx, id, parsePlatform(name), url)
				if err != nil {
					return nil, err
				}
				if b.Digest == digest {
					return b, nil
				}
			}
		}
	}
	return nil, nil
}
