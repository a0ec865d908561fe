// Package metadata is the metadata server of virtual machines for
// demonstrations, and the keys that a cloud signs their identities with.
package metadata

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Issuer is who made the identities.
const Issuer = "https://accounts.google.com"

// Keys are those of a cloud. As a handler they are its public set, at any path.
type Keys struct {
	mu   sync.Mutex
	keys []*rsa.PrivateKey // the last one signs
}

// NewKeys returns a set with one key.
func NewKeys() (*Keys, error) {
	k := &Keys{}
	return k, k.Rotate()
}

// Rotate adds a key to the set, which signs from now on.
func (k *Keys) Rotate() error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys = append(k.keys, key)
	return nil
}

func (k *Keys) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	k.mu.Lock()
	defer k.mu.Unlock()
	set := []map[string]string{}
	for i, key := range k.keys {
		set = append(set, map[string]string{
			"kty": "RSA", "alg": "RS256", "use": "sig", "kid": fmt.Sprint(i), "n": b64(key.N.Bytes()), "e": b64(big.NewInt(int64(key.E)).Bytes()),
		})
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"keys": set})
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// Machine is a virtual machine. As a handler it is its metadata server.
type Machine struct {
	Keys                *Keys
	Project, Zone, Name string
	Attributes          map[string]string
	Failing             float64 // share of answers that are none

	mu     sync.Mutex
	signed map[string]int
}

// Signed is how often each audience was signed for.
func (m *Machine) Signed() map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string]int{}
	for audience, n := range m.signed {
		out[audience] = n
	}
	return out
}

func (m *Machine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Metadata-Flavor", "Google")
	path, ok := strings.CutPrefix(r.URL.Path, "/computeMetadata/v1/instance/")
	switch {
	case !ok:
		http.NotFound(w, r)
	case r.Header.Get("Metadata-Flavor") != "Google":
		http.Error(w, "no flavor", http.StatusForbidden)
	case mathrand.Float64() < m.Failing:
		http.Error(w, "out of order", http.StatusServiceUnavailable)
	case path == "name":
		fmt.Fprintln(w, m.Name)
	case path == "service-accounts/default/identity":
		token, err := m.Sign(r.FormValue("audience"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprint(w, token)
	default:
		key, _ := strings.CutPrefix(path, "attributes/")
		value, ok := m.Attributes[key]
		if !ok {
			http.NotFound(w, r)
			return
		}
		fmt.Fprintln(w, value)
	}
}

// Sign returns the machine's identity for an audience, as Compute Engine signs
// it.
func (m *Machine) Sign(audience string) (string, error) {
	m.mu.Lock()
	if m.signed == nil {
		m.signed = map[string]int{}
	}
	m.signed[audience]++
	m.mu.Unlock()
	now := time.Now()
	claims, err := json.Marshal(map[string]any{
		"iss": Issuer, "aud": audience, "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
		"google": map[string]any{"compute_engine": map[string]any{"project_id": m.Project, "zone": m.Zone, "instance_name": m.Name}},
	})
	if err != nil {
		return "", err
	}
	m.Keys.mu.Lock()
	defer m.Keys.mu.Unlock()
	last := len(m.Keys.keys) - 1
	text := b64(fmt.Appendf(nil, `{"alg":"RS256","kid":"%d","typ":"JWT"}`, last)) + "." + b64(claims)
	sum := sha256.Sum256([]byte(text))
	sig, err := rsa.SignPKCS1v15(rand.Reader, m.Keys.keys[last], crypto.SHA256, sum[:])
	return text + "." + b64(sig), err
}
