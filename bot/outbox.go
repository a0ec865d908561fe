package bot

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/internal/atomicfile"
	"github.com/skepdev/skep/internal/backoff"
)

// Limits of the outbox.
const (
	maxEvents     = 64               // waiting; the oldest is dropped for a new one
	maxEventText  = 16 << 10         // bytes
	repeatErrors  = 10 * time.Minute // spec bot.md §8.7
	maxRemembered = 256              // error texts, for the rule above
)

// outbox holds events until the server has them, in order and on disk: an error
// that happens during an outage, or that ends the bot, is exactly one that
// people want to see.
type outbox struct {
	bot  *Bot
	wake chan struct{} // has room for one hint

	mu      sync.Mutex
	waiting []event
	said    map[string]time.Time // first line of an error → when
	dropped int
}

// event is one of them. Its uuid stays the same however often it is sent, also
// by a later process, so that the server notes it once.
type event struct {
	Kind string `json:"kind"`
	Text string `json:"text"`
	UUID string `json:"uuid"`
}

// OutboxFile is the file of the bot's directory with the events that the server
// has not got yet.
const OutboxFile = "events.json"

const maxOutboxFile = 4 << 20

// newOutbox begins with what an earlier process left.
func newOutbox(b *Bot) *outbox {
	o := &outbox{bot: b, wake: make(chan struct{}, 1), said: map[string]time.Time{}}
	o.waiting = o.load()
	if len(o.waiting) > 0 {
		o.wake <- struct{}{}
	}
	return o
}

func (o *outbox) file() string { return filepath.Join(o.bot.cfg.Dir, OutboxFile) }

// load reads the file; one that cannot be read is none, and is replaced.
func (o *outbox) load() []event {
	f, err := os.Open(o.file())
	if err != nil {
		return nil
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxOutboxFile+1))
	if err != nil || len(data) > maxOutboxFile {
		return nil
	}
	return parseOutbox(data)
}

// parseOutbox reads what save wrote, and drops what the server would refuse.
func parseOutbox(data []byte) []event {
	var events []event
	if json.Unmarshal(data, &events) != nil {
		return nil
	}
	events = slices.DeleteFunc(events, func(e event) bool {
		return e.UUID == "" || len(e.UUID) > 50 || e.Kind != botapi.EventError && e.Kind != botapi.EventLog || len(e.Text) > maxEventText+len("…")
	})
	return events[max(0, len(events)-maxEvents):]
}

// save makes what waits outlive this process. o.mu is held. Where it cannot be,
// the events are still sent by this process.
func (o *outbox) save() {
	var err error
	if len(o.waiting) == 0 {
		if err = os.Remove(o.file()); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	} else {
		var data []byte
		if data, err = json.Marshal(o.waiting); err == nil {
			err = atomicfile.Write(o.file(), data, 0o600)
		}
	}
	if err != nil {
		o.bot.log.Warn("events are not kept on disk", "err", err)
	}
}

// fail posts an error of the bot's own, or of a hook, once in repeatErrors: they
// come with every turn of the loop.
func (o *outbox) fail(text string) {
	o.mu.Lock()
	fresh := o.isNew(text)
	o.mu.Unlock()
	if !fresh {
		o.bot.log.Error("event, told lately", "event", botapi.EventError, "message", clip(text, maxEventText))
		return
	}
	o.post(botapi.EventError, text)
}

// post posts an event, however often: a hook that calls post_error means it.
// spec bot.md §8.7.
func (o *outbox) post(kind, text string) {
	if len(text) > maxEventText {
		text = text[:maxEventText] + "…"
	}
	o.bot.log.Error("event", "event", kind, "message", text)
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.waiting) >= maxEvents {
		o.waiting = o.waiting[1:]
		o.dropped++
	}
	o.waiting = append(o.waiting, event{kind, text, newUUID()})
	o.save()
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// isNew notes an error. It compares first lines: the stacks below them hold
// addresses, which differ each time. o.mu is held.
func (o *outbox) isNew(text string) bool {
	text, _, _ = strings.Cut(text, "\n")
	now := o.bot.cfg.Now()
	if t, ok := o.said[text]; ok && now.Sub(t) < repeatErrors {
		return false
	}
	if len(o.said) >= maxRemembered {
		clear(o.said)
	}
	o.said[text] = now
	return true
}

func (o *outbox) len() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.waiting)
}

// run sends events until ctx ends.
func (o *outbox) run(ctx context.Context) {
	for {
		o.flush(ctx)
		select {
		case <-ctx.Done():
			return
		case <-o.wake:
		}
	}
}

// flush sends what waits, and returns when nothing does or ctx ends.
func (o *outbox) flush(ctx context.Context) {
	var pause backoff.Exponential
	refused := 0
	for ctx.Err() == nil {
		e, ok := o.first()
		if !ok {
			return
		}
		err := o.bot.send(ctx, e)
		switch {
		case err == nil:
			pause.Reset()
			refused = 0
			o.remove(e)
			continue
		case ctx.Err() != nil:
			return
		case botapi.IsTransient(err):
		case botapi.StatusOf(err) == http.StatusUnauthorized && refused < 5:
			refused++ // the loop may be about to shake hands anew
		default:
			o.bot.log.Warn("event refused", "event", e.Kind, "err", err)
			o.remove(e)
			continue
		}
		_ = pause.Sleep(ctx, retryAfter(err))
	}
}

func (o *outbox) first() (event, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.waiting) == 0 {
		return event{}, false
	}
	return o.waiting[0], true
}

// remove drops e, which may have been dropped for newer ones meanwhile.
func (o *outbox) remove(e event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.waiting) > 0 && o.waiting[0] == e {
		o.waiting = o.waiting[1:]
		o.save()
	}
}

func (b *Bot) send(ctx context.Context, e event) error {
	return b.cfg.Client.Event(ctx, &botapi.EventRequest{
		Attributes: b.attributes(), Event: e.Kind, Message: e.Text, RequestUUID: e.UUID,
	})
}
