package bot

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/skepdev/skep/bot/hook"
)

const (
	authMargin  = 570 * time.Second // spec bot.md §2.3
	authRetry   = 10 * time.Second  // after a hook that failed
	authRefresh = 15 * time.Second  // how often a running task's headers are looked at
)

// Auth gives the headers that authenticate the bot's calls: those of the hook
// get_authentication_headers, or else a bearer token. It may be used by many
// goroutines. spec bot.md §2.3.
type Auth struct {
	hooks Hooks
	token func() string
	vm    *VMIdentity // nil = none

	mu      sync.Mutex
	bot     *Bot              // set by New: before that there is only the token
	headers map[string]string // of the hook
	until   time.Time         // when the hook is asked again; zero = at every call
	off     bool              // the hook switched authentication off
}

// NewAuth returns the headers of a bot. hooks may be nil; token returns the
// bearer token of the moment, "" for none.
func NewAuth(hooks Hooks, token func() string) *Auth { return &Auth{hooks: hooks, token: token} }

// WithVM adds the identity of the bot's VM to what is shown without a hook.
func (a *Auth) WithVM(vm *VMIdentity) *Auth {
	a.vm = vm
	return a
}

// Headers returns the headers of a call that begins now; nil = none.
func (a *Auth) Headers() map[string]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.bot == nil || a.hooks == nil || a.off || !a.hooks.Has(hook.GetAuthenticationHeaders) {
		return a.byToken()
	}
	now := a.bot.cfg.Now()
	if !a.until.IsZero() && now.Before(a.until) {
		return a.given()
	}
	headers, expiry, err := a.ask()
	if err != nil {
		// The old ones may still do.
		a.until = now.Add(authRetry)
		return a.given()
	}
	a.headers = headers
	switch {
	case expiry == nil:
		a.off = true
	case *expiry == 0:
		a.until = time.Time{}
	default:
		a.until = time.Unix(0, int64(*expiry*1e9)).Add(-authMargin)
		if !a.until.After(now) {
			a.until = time.Time{}
		}
	}
	return a.given()
}

func (a *Auth) byToken() map[string]string {
	h := map[string]string{}
	if token := a.token(); token != "" {
		h["Authorization"] = "Bearer " + token
	}
	if a.vm != nil {
		if token, err := a.vm.Token(); token != "" {
			h[HeaderVMToken] = token
		} else if a.bot != nil {
			a.bot.Error(fmt.Sprintf("the VM's identity: %v", err))
		}
	}
	if len(h) == 0 {
		return nil
	}
	return h
}

func (a *Auth) given() map[string]string {
	if a.headers == nil {
		return a.byToken()
	}
	return a.headers
}

// ask calls the hook. What it asks for is obeyed; its failure is an event.
func (a *Auth) ask() (headers map[string]string, expiry *float64, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.bot.hard), 40*time.Second)
	defer cancel()
	out, err := a.bot.hookErr(ctx, hook.GetAuthenticationHeaders)
	if err != nil {
		return nil, nil, err
	}
	if !out.Called {
		return nil, nil, nil
	}
	var pair []json.RawMessage
	if err = json.Unmarshal(out.Value, &pair); err == nil && len(pair) != 2 {
		err = fmt.Errorf("has %d elements", len(pair))
	}
	if err == nil {
		err = json.Unmarshal(pair[0], &headers)
	}
	if err == nil {
		err = json.Unmarshal(pair[1], &expiry)
	}
	if err == nil && expiry != nil && (*expiry < 0 || *expiry > 1e11) {
		err = fmt.Errorf("an expiry of %v", *expiry)
	}
	if err != nil {
		a.bot.Error(fmt.Sprintf("hook get_authentication_headers: %v", err))
		return nil, nil, err
	}
	return headers, expiry, nil
}

// renewed is a Runner whose task can get new headers while it runs.
type renewed interface {
	SetHeaders(map[string]string) error
}

// changes reports whether the headers may be others while a task runs.
func (a *Auth) changes() bool {
	return a.vm != nil || a.hooks != nil && a.hooks.Has(hook.GetAuthenticationHeaders)
}

// keepFresh gives the task that runs new headers as the hook gives them, until
// ctx ends.
func (b *Bot) keepFresh(ctx context.Context) {
	r, ok := b.cfg.Runner.(renewed)
	if !ok || b.cfg.Auth == nil || !b.cfg.Auth.changes() {
		return
	}
	last := b.headers()
	go func() {
		t := time.NewTicker(authRefresh)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
			b.contain(func() {
				h := b.headers()
				if maps.Equal(h, last) {
					return
				}
				last = h
				if err := r.SetHeaders(h); err != nil {
					b.log.Warn("give the task new headers", "err", err)
				}
			})
		}
	}()
}
