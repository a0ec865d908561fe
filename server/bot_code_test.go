package server

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"github.com/skepdev/skep/api/botapi"
)

// Only who says that it is a skep-bot is told to become another one: a foreign
// bot's version is of other bytes.
func TestForeignBotsAreNotUpdated(t *testing.T) {
	f, admin := guarded(t)
	for _, tc := range []struct {
		state string
		want  string
	}{
		{`{}`, "sleep"},
		{`{"skep":null}`, "sleep"},
		{`{"skep":{}}`, "sleep"},
		{`{"skep":{"os":"plan9","arch":"mips"}}`, "sleep"}, // there is none for it
		{`{"skep":{"os":"` + runtime.GOOS + `","arch":"` + runtime.GOARCH + `","url":"https://h:1"}}`, "update"},
	} {
		_, ans := f.post(botapi.PathPoll, []byte(`{"dimensions":{"id":["b"],"pool":["default"]},"version":"v","request_uuid":"k","state":`+tc.state+`}`), "Authorization", "Bearer "+admin)
		if ans["cmd"] != tc.want {
			t.Errorf("%s: %v", tc.state, ans)
		}
	}
}

// A cache may keep bot code, in either encoding, and a download goes on where
// it stopped. Row B28.
func TestBotCodeIsCachedAndResumed(t *testing.T) {
	f, admin := guarded(t)
	get := func(path string, headers ...string) (*http.Response, []byte) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept-Encoding", "identity") // or the client would ask for gzip by itself
		for i := 0; i < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		res, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res, body
	}
	res, _ := get("/bot_code", "Authorization", "Bearer "+admin)
	path := res.Header.Get("Location")
	if res.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("/bot_code may be cached: %q", res.Header.Get("Cache-Control"))
	}

	plain, code := get(path)
	if sum := sha256.Sum256(code); botapi.PathBotCode+hex.EncodeToString(sum[:]) != path {
		t.Fatalf("%s has the digest %x", path, sum)
	}
	if sum := sha256.Sum256(code); plain.Header.Get("Repr-Digest") != "sha-256=:"+base64.StdEncoding.EncodeToString(sum[:])+":" {
		t.Errorf("Repr-Digest: %q", plain.Header.Get("Repr-Digest"))
	}
	packed, z := get(path, "Accept-Encoding", "gzip")
	if packed.Header.Get("Content-Encoding") != "gzip" {
		t.Fatalf("no gzip: %v", packed.Header)
	}
	if d := packed.Header.Get("Repr-Digest"); d != "" { // RFC 9530 means the packed bytes
		t.Errorf("gzip has the Repr-Digest %q of other bytes", d)
	}
	r, err := gzip.NewReader(bytes.NewReader(z))
	if err != nil {
		t.Fatal(err)
	}
	if unpacked, err := io.ReadAll(r); err != nil || !bytes.Equal(unpacked, code) {
		t.Errorf("gzip holds other bytes: %v", err)
	}
	tags := map[string]string{"identity": plain.Header.Get("ETag"), "gzip": packed.Header.Get("ETag")}
	if tags["identity"] == tags["gzip"] {
		t.Errorf("both encodings are %s", tags["gzip"])
	}
	for encoding, tag := range tags {
		for _, list := range []string{tag, "W/" + tag, `"other", ` + tag, "*"} {
			res, body := get(path, "Accept-Encoding", encoding, "If-None-Match", list)
			if res.StatusCode != http.StatusNotModified || len(body) > 0 || res.Header.Get("ETag") != tag || res.Header.Get("Content-Encoding") != "" ||
				!strings.Contains(res.Header.Get("Cache-Control"), "immutable") || res.Header.Get("Vary") != "Accept-Encoding" {
				t.Errorf("%s, If-None-Match: %s: %d, %d bytes, %v", encoding, list, res.StatusCode, len(body), res.Header)
			}
		}
		if res, _ := get(path, "Accept-Encoding", encoding, "If-None-Match", `"other"`); res.StatusCode != http.StatusOK {
			t.Errorf("%s, another tag: %d", encoding, res.StatusCode)
		}
	}

	// Who has the plain bytes needs no packed ones; who cannot unpack is not sent to packed ones.
	if res, body := get(path, "Accept-Encoding", "gzip", "If-None-Match", tags["identity"]); res.StatusCode != http.StatusNotModified || len(body) > 0 || res.Header.Get("ETag") != tags["identity"] {
		t.Errorf("gzip for who has the plain bytes: %d, %d bytes, %v", res.StatusCode, len(body), res.Header)
	}
	if res, all := get(path, "If-None-Match", tags["gzip"]); res.StatusCode != http.StatusOK || !bytes.Equal(all, code) {
		t.Errorf("plain for who has the packed bytes: %d", res.StatusCode)
	}

	// Ranges are of the plain bytes, also for who would take gzip.
	for _, encoding := range []string{"identity", "gzip"} {
		res, rest := get(path, "Accept-Encoding", encoding, "Range", "bytes=5-", "If-Range", tags["identity"])
		if res.StatusCode != http.StatusPartialContent || !bytes.Equal(rest, code[5:]) || res.Header.Get("Content-Encoding") != "" {
			t.Errorf("%s, the rest: %d, %d bytes", encoding, res.StatusCode, len(rest))
		}
	}
	if res, all := get(path, "Range", "bytes=5-", "If-Range", tags["gzip"]); res.StatusCode != http.StatusOK || !bytes.Equal(all, code) {
		t.Errorf("gzip continued with plain bytes: %d", res.StatusCode)
	}
	if res, _ := get(path, "Range", "bytes=99999999-"); res.StatusCode != http.StatusRequestedRangeNotSatisfiable {
		t.Errorf("a range beyond the end: %d", res.StatusCode)
	}
}
