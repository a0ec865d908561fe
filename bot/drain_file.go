package bot

import (
	"os"
	"path/filepath"
	"time"
)

// drainEvery is how often the drain file is looked for: an operator waits for
// it, and a stat costs microseconds.
const drainEvery = 2 * time.Second

// watchDrain follows the drain file until the bot ends. While it is there the
// bot finishes what it runs and takes no new work, and goes on polling; without
// it, it works again. spec host.md §5 names the file, decisions.md 1 its
// meaning.
func (b *Bot) watchDrain() {
	t := time.NewTicker(drainEvery)
	defer t.Stop()
	for {
		select {
		case <-b.idle.Done():
			return
		case <-t.C:
			b.contain(b.lookForDrain)
		}
	}
}

// lookForDrain notes whether the drain file is there, and has a poll that waits
// asked anew when that changed.
func (b *Bot) lookForDrain() {
	_, err := os.Lstat(filepath.Join(b.cfg.Dir, DrainFile))
	b.mu.Lock()
	defer b.mu.Unlock()
	if there := err == nil; there != b.drainFile {
		b.drainFile = there
		b.log.Info("drain file", "there", there)
		close(b.news)
		b.news = make(chan struct{})
	}
}

// changed is closed when the server should learn of something at once.
func (b *Bot) changed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.news
}
