package machine

import (
	"testing"
	"time"

	"github.com/skepdev/skep/store"
)

// What a machine needs whose bot lives at another server.
func TestNextElsewhere(t *testing.T) {
	at := func(d time.Duration) time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(d) }
	p := Patience{Silence: 10 * time.Minute, Terminate: time.Hour}
	machine := func(fn func(*store.VM)) *store.VM {
		v := &store.VM{
			Server: "https://other.example.com", URL: "u", Inserted: at(0), Created: at(time.Minute), Connected: at(2 * time.Minute), Lifetime: 24 * time.Hour, Answers: at(-time.Hour),
			Bot: store.VMBot{Known: true, FirstSeen: at(2 * time.Minute), LastSeen: at(time.Hour), Heard: at(time.Hour)},
		}
		fn(v)
		return v
	}
	for _, c := range []struct {
		name string
		now  time.Duration
		v    *store.VM
		step Step
		wait time.Duration
	}{
		{"it works", 2 * time.Hour, machine(func(*store.VM) {}), "", 22*time.Hour + time.Minute},
		{"its time is over", 25 * time.Hour, machine(func(*store.VM) {}), TerminateBot, 0},
		{"its time is over and nobody answers", 25 * time.Hour, machine(func(v *store.VM) { v.Answers = time.Time{} }), "", 0},
		{"it has been dead for long", 2 * time.Hour, machine(func(v *store.VM) { v.Bot.Dead = true }), DestroyInstance, 0},
		{"it has been dead for long and nobody answers", 2 * time.Hour, machine(func(v *store.VM) { v.Bot.Dead, v.Answers = true, time.Time{} }), "", 0},
		{"it has been dead for long and its server is just back", 2 * time.Hour, machine(func(v *store.VM) { v.Bot.Dead, v.Answers = true, at(2*time.Hour-time.Minute) }), "", 9 * time.Minute},
		{"it took leave and nobody answers", 2 * time.Hour, machine(func(v *store.VM) { v.Bot.Dead, v.Bot.Terminated, v.Answers = true, true, time.Time{} }), "", 0},
		{"it is being taken away and nobody answers", 2 * time.Hour, machine(func(v *store.VM) { v.Deleting, v.Answers = at(time.Hour), time.Time{} }), DestroyInstance, 0},
		{"it is gone and nobody answers", 2 * time.Hour, machine(func(v *store.VM) { v.Gone, v.Answers = at(time.Hour), time.Time{} }), "", 0},
		{"it is not there yet and nobody answers", 0, machine(func(v *store.VM) { v.URL, v.Created, v.Answers = "", time.Time{}, time.Time{} }), CreateInstance, 0},
		{"its bot is to come", time.Minute + time.Second, machine(func(v *store.VM) { v.Connected, v.Bot = time.Time{}, store.VMBot{} }), "", time.Second},
		{"its bot is due to come", time.Minute + 2*time.Second, machine(func(v *store.VM) { v.Connected, v.Bot = time.Time{}, store.VMBot{} }), ManageBot, 0},
		{"its bot has not come for 10 s", time.Minute + 12*time.Second, machine(func(v *store.VM) {
			v.Connected, v.Bot = time.Time{}, store.VMBot{Heard: at(time.Minute + 10*time.Second)}
		}), "", 3 * time.Second},
		{"its bot was told to end", time.Hour + 3*time.Second, machine(func(v *store.VM) { v.Drained, v.Asked = true, at(time.Hour) }), ManageBot, 0},
		{"its bot was told to end long ago", time.Hour + 3*time.Minute, machine(func(v *store.VM) { v.Drained, v.Asked, v.Bot.Heard = true, at(time.Hour), at(time.Hour+50*time.Second) }), "", 57 * time.Minute},
		{"its bot was told to end an hour ago", 2 * time.Hour, machine(func(v *store.VM) { v.Drained, v.Asked = true, at(time.Hour) }), TerminateBot, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			if step, wait := Next(at(c.now), c.v, p); step != c.step || wait != c.wait {
				t.Errorf("%q, %v; want %q, %v", step, wait, c.step, c.wait)
			}
		})
	}
}
