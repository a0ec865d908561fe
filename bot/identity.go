package bot

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/skepdev/skep/internal/backoff"
)

// HeaderVMToken carries the signed identity of a Compute Engine VM. spec bot.md
// §2.3.
const HeaderVMToken = "X-Luci-Gce-Vm-Token"

const (
	identityMargin = 5 * time.Minute        // before its end a token is not used any more. promise P27
	identityFirst  = 200 * time.Millisecond // until it is asked again, where it did not answer
	identityRetry  = 10 * time.Second       // the most that this grows to
	identityLimit  = 10 * time.Second       // of one call of the metadata server
	maxIdentity    = 16 << 10
)

// VMIdentity is the identity of the VM that a bot runs on, as the VM's metadata
// server signs it for one audience. It is asked for again 5 minutes before it
// ends. Its methods may be called at once by many.
type VMIdentity struct {
	url string
	now func() time.Time

	mu    sync.Mutex
	token string
	until time.Time
	next  time.Time // not asked before
	pause backoff.Exponential
}

// NewVMIdentity returns the identity for audience, the bot's server, from the
// metadata server at host. Nothing is asked yet.
func NewVMIdentity(host, audience string) *VMIdentity {
	return (&VMIdentities{Host: host}).For(audience)
}

// VMIdentities are the identities of a VM for several audiences, each of which
// is kept as a VMIdentity is.
type VMIdentities struct {
	Host    string // of the metadata server
	Account string // service account that signs; "" = default

	mu sync.Mutex
	by map[string]*VMIdentity
}

// maxAudiences bounds them; who asks for more does not know what it asks for.
const maxAudiences = 64

// For returns the identity for an audience, the base URL of a server. Nothing
// is asked yet.
func (v *VMIdentities) For(audience string) *VMIdentity {
	v.mu.Lock()
	defer v.mu.Unlock()
	if id := v.by[audience]; id != nil {
		return id
	}
	account := v.Account
	if account == "" {
		account = "default"
	}
	id := &VMIdentity{
		url: "http://" + v.Host + "/computeMetadata/v1/instance/service-accounts/" + url.PathEscape(account) + "/identity?format=full&audience=" + url.QueryEscape(audience),
		now: time.Now, pause: backoff.Exponential{Min: identityFirst, Max: identityRetry},
	}
	if v.by == nil || len(v.by) >= maxAudiences {
		v.by = map[string]*VMIdentity{}
	}
	v.by[audience] = id
	return id
}

// Token returns a token that is good for 5 minutes at least, or the last one
// while it is good at all and there is no other, or "" and why there is none.
func (v *VMIdentity) Token() (string, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := v.now()
	if now.Before(v.until.Add(-identityMargin)) {
		return v.token, nil
	}
	var err error
	if !now.Before(v.next) || v.next.Sub(now) > identityRetry { // else the clock was set back
		var token string
		var until time.Time
		if token, until, err = v.ask(); err == nil {
			v.token, v.until = token, until
			v.pause.Reset()
			v.next = v.now().Add(identityRetry) // one that ends soon is no reason to ask all the time
		} else {
			v.next = v.now().Add(v.pause.Next())
		}
	} else {
		err = errors.New("the metadata server is asked again soon")
	}
	if v.now().Before(v.until) {
		return v.token, nil
	}
	return "", err
}

func (v *VMIdentity) ask() (token string, until time.Time, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), identityLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, v.url, nil)
	if err != nil {
		return "", until, err
	}
	req.Header.Set("Metadata-Flavor", "Google")
	res, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req) // never by a proxy
	if err != nil {
		return "", until, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxIdentity))
	if err != nil {
		return "", until, err
	}
	if res.StatusCode != http.StatusOK || res.Header.Get("Metadata-Flavor") != "Google" {
		return "", until, fmt.Errorf("the metadata server answers %d", res.StatusCode)
	}
	token = strings.TrimSpace(string(body))
	until, err = endOf(token)
	return token, until, err
}

// endOf returns when a JSON web token ends. Whether it is true is for the
// server to say.
func endOf(token string) (time.Time, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}, errors.New("what the metadata server gave is no JSON web token")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	var claims struct {
		Exp float64 `json:"exp"`
	}
	if err != nil || json.Unmarshal(payload, &claims) != nil || claims.Exp <= 0 || claims.Exp > 1e11 {
		return time.Time{}, errors.New("the metadata server's token does not say when it ends")
	}
	return time.Unix(int64(claims.Exp), 0), nil
}
