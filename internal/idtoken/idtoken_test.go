package idtoken

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func sign(t *testing.T, key *rsa.PrivateKey, header, claims map[string]any) string {
	t.Helper()
	h, _ := json.Marshal(header)
	c, _ := json.Marshal(claims)
	text := b64(h) + "." + b64(c)
	sum := sha256.Sum256([]byte(text))
	sig, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return text + "." + b64(sig)
}

func TestVerify(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	var fetches atomic.Int32
	keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fetches.Add(1)
		fmt.Fprintf(w, `{"keys":[{"kty":"RSA","alg":"RS256","use":"sig","kid":"a","n":%q,"e":%q}]}`,
			b64(key.N.Bytes()), b64(big.NewInt(int64(key.E)).Bytes()))
	}))
	defer keys.Close()
	now := time.Unix(1700000000, 0)
	v := New(Options{Keys: keys.URL, Issuer: "https://issuer", Audiences: []string{"https://one", "https://two"}, Now: func() time.Time { return now }})
	rs256 := map[string]any{"alg": "RS256", "kid": "a", "typ": "JWT"}
	claims := func(change ...any) map[string]any {
		m := map[string]any{"iss": "https://issuer", "aud": "https://two", "sub": "s", "iat": now.Unix() - 10, "exp": now.Unix() + 60, "color": "blue"}
		for i := 0; i+1 < len(change); i += 2 {
			m[change[i].(string)] = change[i+1]
		}
		return m
	}
	good := sign(t, key, rs256, claims())
	none := b64([]byte(`{"alg":"none"}`)) + "." + strings.Split(good, ".")[1] + "."
	for _, c := range []struct{ name, token, want string }{
		{"good", good, ""},
		{"expired", sign(t, key, rs256, claims("exp", now.Unix()-3600)), "expired"},
		{"another audience", sign(t, key, rs256, claims("aud", "https://three")), "another audience"},
		{"another issuer", sign(t, key, rs256, claims("iss", "https://evil")), "not signed"},
		{"another key", sign(t, other, rs256, claims()), "not signed"},
		{"a key that is not there", sign(t, other, map[string]any{"alg": "RS256", "kid": "b"}, claims()), "not signed"},
		{"another algorithm", sign(t, key, map[string]any{"alg": "HS256", "kid": "a"}, claims()), "not signed"},
		{"no signature", none, "not signed"},
		{"changed", good[:len(good)-8] + "AAAAAAAA", "not signed"},
		{"garbage", "x", "not signed"},
		{"too long", strings.Repeat("x", maxToken+1), "too long"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got struct{ Color string }
			err := v.Verify(t.Context(), c.token, &got)
			switch {
			case c.want == "" && (err != nil || got.Color != "blue"):
				t.Errorf("%v, claims %+v", err, got)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("error %v, want %q", err, c.want)
			case err != nil && strings.Contains(err.Error(), strings.Split(good, ".")[1]):
				t.Errorf("the error shows the token: %v", err)
			}
		})
	}
	keys.Close()
	away := New(Options{Keys: keys.URL, Issuer: "https://issuer", Audiences: []string{"https://two"}, Now: func() time.Time { return now }})
	if err := away.Verify(t.Context(), good, &struct{}{}); err == nil || !strings.Contains(err.Error(), "cannot be fetched") {
		t.Errorf("without keys: %v", err)
	}
	if n := fetches.Load(); n != 1 {
		t.Errorf("%d fetches", n)
	}
}
