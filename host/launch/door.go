package launch

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/host/engine"
)

// Status is how a host is. It is told from memory: an engine that hangs does
// not keep it waiting.
type Status struct {
	Host      string       `json:"host"`
	Wanted    int          `json:"wanted"`
	Running   int          `json:"running"`
	Image     string       `json:"image"`              // as wanted
	ImageID   string       `json:"image_id,omitempty"` // here
	ImageNote string       `json:"image_note,omitempty"`
	Drain     Cause        `json:"drain,omitempty"` // of the whole host
	Rebooting string       `json:"rebooting,omitempty"`
	Engine    treatment    `json:"engine"`
	Problem   string       `json:"problem,omitempty"`
	Slots     []SlotStatus `json:"slots"`
}

// SlotStatus is how a slot is.
type SlotStatus struct {
	Slot      string    `json:"slot"`
	State     string    `json:"state"` // of its container, "empty" without one
	Container string    `json:"container,omitempty"`
	ImageID   string    `json:"image_id,omitempty"`
	Started   time.Time `json:"started,omitzero"`
	Drain     *Drain    `json:"drain,omitempty"`
	Stamped   bool      `json:"stamped,omitempty"`
	Deaths    int       `json:"deaths"` // that are kept
	Last      *Death    `json:"last_death,omitempty"`
	Problem   string    `json:"problem,omitempty"`
}

// Status returns how the host was when last looked.
func (l *Launcher) Status() Status {
	s := l.o.Settings()
	slots, stamped := l.keys(), l.stamped()
	l.mu.Lock()
	defer l.mu.Unlock()
	st := Status{
		Host: l.o.Host, Wanted: s.Slots, Image: s.Image, ImageID: l.image, ImageNote: l.imageNote, Drain: l.host, Rebooting: l.rebooting,
		Engine: l.doctor.tried, Problem: l.problems[keyHost],
	}
	for _, slot := range slots {
		one := SlotStatus{Slot: slot, State: "empty", Stamped: stamped[slot], Problem: l.problems[slot], Deaths: len(l.deaths[slot])}
		for _, c := range l.snapshot {
			if c.Labels[LabelSlot] == slot && one.State != string(engine.Running) {
				one.State, one.Container, one.ImageID, one.Started = string(c.State), c.ID, c.ImageID, l.known[c.ID].Started
			}
		}
		if one.State == string(engine.Running) {
			st.Running++
		}
		if d, ok := l.drains[slot]; ok && d.Container == one.Container {
			one.Drain = &d
		}
		if n := len(l.deaths[slot]); n > 0 {
			last := l.deaths[slot][n-1]
			one.Last = &last
		}
		st.Slots = append(st.Slots, one)
	}
	return st
}

var slotName = regexp.MustCompile(`^[0-9A-Za-z_-]{1,64}$`)

// Drain drains a slot, "" = the host, until Undrain. It is a control file, and
// so outlives the launcher.
func (l *Launcher) Drain(slot string) error {
	stamp := hostStamp
	if slot != "" {
		if !slotName.MatchString(slot) {
			return skep.Invalidf("slot", "%q is no name of a slot, as 000 is", slot)
		}
		stamp = slot + slotStamp
	}
	return l.stamp(stamp)
}

// Undrain ends what Drain began. A bot that was asked to end does; its slot
// gets another.
func (l *Launcher) Undrain(slot string) error {
	stamps := []string{slot + slotStamp}
	if slot == "" {
		stamps = []string{hostStamp, rebootStamp}
	} else if !slotName.MatchString(slot) {
		return skep.Invalidf("slot", "%q is no name of a slot, as 000 is", slot)
	}
	for _, s := range stamps {
		if err := os.Remove(filepath.Join(l.o.Root, s)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	l.Wake()
	return nil
}

// RequestReboot drains the host and restarts it when no container runs. While
// that happens it does nothing.
func (l *Launcher) RequestReboot() error {
	if l.o.Reboot == nil {
		return skep.Errorf(skep.Precondition, "this launcher may not restart the host; start it with --reboot-command")
	}
	if l.rebootBegun() {
		return nil
	}
	return l.stamp(rebootStamp)
}

func (l *Launcher) stamp(name string) error {
	f, err := os.OpenFile(filepath.Join(l.o.Root, name), os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer l.Wake()
	return f.Close()
}

// Handler serves the local socket: GET /status and /metrics, POST /drain,
// /undrain (both with slot=) and /reboot.
func (l *Launcher) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { answer(w, l.Status(), nil) })
	mux.HandleFunc("POST /drain", func(w http.ResponseWriter, r *http.Request) { answer(w, nil, l.Drain(r.URL.Query().Get("slot"))) })
	mux.HandleFunc("POST /undrain", func(w http.ResponseWriter, r *http.Request) { answer(w, nil, l.Undrain(r.URL.Query().Get("slot"))) })
	mux.HandleFunc("POST /reboot", func(w http.ResponseWriter, _ *http.Request) { answer(w, nil, l.RequestReboot()) })
	mux.Handle("GET /metrics", promhttp.HandlerFor(l.metrics.registry, promhttp.HandlerOpts{}))
	return mux
}

var statusOf = map[skep.Kind]int{skep.Invalid: http.StatusBadRequest, skep.NotFound: http.StatusNotFound, skep.Conflict: http.StatusConflict, skep.Precondition: http.StatusPreconditionFailed, skep.Denied: http.StatusForbidden}

// answer writes v, or err with its reason, as the socket answers.
func answer(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		kind := skep.KindOf(err)
		code, ok := statusOf[kind]
		if !ok {
			code = http.StatusInternalServerError
		}
		w.WriteHeader(code)
		v = map[string]string{"reason": kind.String(), "error": err.Error()}
	}
	if v == nil {
		v = struct{}{}
	}
	_ = json.NewEncoder(w).Encode(v) // a client that went away
}
