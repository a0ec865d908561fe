package launch

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/host/engine"
)

// imageStep brings the wanted image here before anything is drained for it, and
// removes those that it replaced once nothing uses them. promises D8, D9.
func (l *Launcher) imageStep(ctx context.Context, _ string) (time.Duration, error) {
	s := l.o.Settings()
	image, err := l.o.Engine.Image(ctx, s.Image)
	l.noteHung(err)
	if err == nil {
		l.useImage(ctx, image, s.Image) // whatever a pull says later
	}
	pinned := engine.Digest(s.Image) != ""
	var pulled error
	if skep.KindOf(err) == skep.NotFound || err == nil && !pinned && s.RefreshImage > 0 {
		pulled = l.o.Engine.Pull(ctx, s.Image)
		if image, err = l.o.Engine.Image(ctx, s.Image); err == nil {
			l.useImage(ctx, image, s.Image)
		}
	}
	switch {
	case err != nil:
		if pulled != nil {
			err = pulled
		}
		l.mu.Lock()
		l.imageNote = err.Error()
		l.mu.Unlock()
		return 0, err
	case pulled != nil:
		return 0, pulled
	}
	if err := l.sweepImages(ctx, s.Image, image); err != nil {
		l.log.WarnContext(ctx, "old images stay", "err", err)
	}
	if pinned {
		return 10 * time.Minute, nil // somebody may have removed it
	}
	return s.RefreshImage, nil
}

func (l *Launcher) useImage(ctx context.Context, image engine.Image, ref string) {
	l.mu.Lock()
	old := l.image
	l.image, l.imageNote = image.ID, ""
	l.mu.Unlock()
	if old != image.ID {
		l.log.InfoContext(ctx, "image", "image", ref, "id", image.ID)
		l.stale()
		l.loop.Wake(l.keys()...)
	}
}

// sweepImages removes images of the wanted one's repository that no container
// has, when all of ours have the wanted one.
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
	for _, i := range images {
		same := func(name string) bool { return engine.Repository(name) == engine.Repository(ref) }
		if used[i.ID] || len(i.Names) == 0 || !slices.ContainsFunc(i.Names, same) {
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
