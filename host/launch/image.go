package launch

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/host/engine"
	"github.com/skepdev/skep/reconcile"
)

// imageStep brings the wanted image here before anything is drained for it, and
// removes those that it replaced once nothing uses them. promises D8, D9.
func (l *Launcher) imageStep(ctx context.Context, _ string) (time.Duration, error) {
	s := l.o.Settings()
	image, err := l.present(ctx, s.Image)
	pinned := engine.Digest(s.Image) != ""
	refresh := err == nil && !pinned && s.RefreshImage > 0 && fromRegistry(image)
	lately := refresh && l.refreshed(s.Image, s.RefreshImage)
	var pulled error
	if refresh && !lately || skep.KindOf(err) == skep.NotFound {
		pulled = l.o.Engine.Pull(ctx, s.Image)
		image, err = l.present(ctx, s.Image)
	}
	if err != nil {
		if pulled != nil {
			err = pulled
		}
		l.noteImage(err.Error())
		return 0, err
	}
	switch { // the one that is here will do
	case pulled != nil:
		if l.noteImage("not refreshed: " + pulled.Error()) {
			l.log.WarnContext(ctx, "no newer image looked for", "image", s.Image, "err", pulled)
		}
	case !lately:
		l.noteImage("")
	}
	if err := l.claim(ctx, image, s.Image); err != nil {
		l.log.WarnContext(ctx, "image not marked as wanted; old ones stay", "err", err)
	} else if err := l.sweepImages(ctx, s.Image, image); err != nil {
		l.log.WarnContext(ctx, "old images stay", "err", err)
	}
	if pinned {
		return 10 * time.Minute, nil // somebody may have removed it
	}
	return s.RefreshImage, nil
}

// refreshed says whether a newer image under ref was looked for within the last
// every, and if not, that it is now. The step comes more often than that.
func (l *Launcher) refreshed(ref string, every time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refresh.ref == ref && time.Since(l.refresh.at) < every {
		return true
	}
	l.refresh.ref, l.refresh.at = ref, time.Now()
	return false
}

// fromRegistry says whether an image was ever there. What was built here has no
// newer one elsewhere, and whoever has its name in a registry is a stranger.
func fromRegistry(image engine.Image) bool {
	return slices.ContainsFunc(image.Names, func(name string) bool { return engine.Digest(name) != "" })
}

// present finds the wanted image among those that are here. Until it is, slots
// get the one that was wanted before.
func (l *Launcher) present(ctx context.Context, ref string) (engine.Image, error) {
	image, err := l.o.Engine.Image(ctx, ref)
	l.noteHung(err)
	switch {
	case err == nil:
		l.useImage(ctx, image, ref)
	case skep.KindOf(err) == skep.NotFound && l.imageID() == "":
		if before, err := l.o.Engine.Image(ctx, l.claimName()); err == nil {
			l.useImage(ctx, before, l.claimName())
		}
	}
	return image, err
}

func (l *Launcher) imageID() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.image
}

// noteImage says whether text is another than was noted before.
func (l *Launcher) noteImage(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.imageNote
	l.imageNote = text
	return text != before
}

func (l *Launcher) useImage(ctx context.Context, image engine.Image, ref string) {
	l.mu.Lock()
	old := l.image
	l.image = image.ID
	l.mu.Unlock()
	if old != image.ID {
		l.log.InfoContext(ctx, "image", "image", ref, "id", image.ID)
		l.stale()
		l.loop.Wake(l.keys()...)
	}
}

// claims is the repository of the names by which launchers that share an engine
// tell each other which images they want, also while no container has them.
const claims = "skep-wanted-by"

var tag = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,100}$`)

// claimName is the name of the image that this launcher wants.
func (l *Launcher) claimName() string {
	name := l.o.Name
	if !tag.MatchString(name) {
		name = fmt.Sprintf("_%x", sha256.Sum256([]byte(name)))
	}
	return claims + ":" + name
}

// claim gives the image this launcher's name, which the one before loses, and
// remembers it.
func (l *Launcher) claim(ctx context.Context, image engine.Image, ref string) error {
	if err := l.keepHad(ctx, func(h had) { h[image.ID] = engine.Repository(ref) }); err != nil {
		return err
	}
	name := l.claimName()
	if slices.Contains(image.Names, name) {
		return nil
	}
	return l.o.Engine.Tag(ctx, image.ID, name)
}

// had are the images that this launcher wanted, by id, with the repository that
// each came from; as the journal keeps them, until they are gone.
type had map[string]string

// keepHad changes what is remembered of images, and writes it down.
func (l *Launcher) keepHad(ctx context.Context, change func(had)) error {
	l.mu.Lock()
	next := maps.Clone(l.had)
	if next == nil {
		next = had{}
	}
	change(next)
	same := maps.Equal(l.had, next)
	l.had = next
	l.mu.Unlock()
	if same {
		return nil
	}
	note, err := json.Marshal(next)
	if err != nil {
		return err
	}
	return l.journal.Begin(ctx, reconcile.Entry{Key: keyImages, Step: "images", At: time.Now(), Note: note})
}

// sweepImages removes images that no container has and no launcher wants, when
// all of ours have the wanted one: those of its repository, and those that were
// wanted before, wherever they came from.
func (l *Launcher) sweepImages(ctx context.Context, ref string, wanted engine.Image) error {
	all, err := l.o.Engine.List(ctx, nil)
	if err != nil {
		return err
	}
	used := map[string]bool{wanted.ID: true}
	for _, c := range all {
		used[c.ImageID] = true
		if c.Labels[LabelLauncher] == l.o.Name && c.ImageID != wanted.ID {
			return nil // the roll-out is under way, and may be taken back
		}
	}
	images, err := l.o.Engine.Images(ctx)
	if err != nil {
		return err
	}
	here := map[string]bool{}
	for _, i := range images {
		here[i.ID] = true
	}
	var before had
	err = l.keepHad(ctx, func(h had) {
		maps.DeleteFunc(h, func(id, _ string) bool { return !here[id] })
		before = maps.Clone(h)
	})
	if err != nil {
		return err
	}
	for _, i := range images {
		same := func(name string) bool {
			r := engine.Repository(name)
			return r == engine.Repository(ref) || r == before[i.ID]
		}
		wanted := func(name string) bool { return engine.Repository(name) == claims }
		if used[i.ID] || slices.ContainsFunc(i.Names, wanted) || !slices.ContainsFunc(i.Names, same) {
			continue
		}
		for _, name := range i.Names {
			if !same(name) {
				continue
			}
			if err := l.o.Engine.RemoveImage(ctx, name); err != nil {
				return fmt.Errorf("image %s: %w", name, err)
			}
		}
		l.log.InfoContext(ctx, "image removed", "image", i.Names[0], "id", i.ID)
	}
	return nil
}
