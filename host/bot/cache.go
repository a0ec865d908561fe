package bot

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gofrs/flock"

	"github.com/skepdev/skep"
)

const (
	maxCode  = 256 << 20       // bytes of a bot
	maxKept  = 4               // versions of code in the cache
	fetching = 5 * time.Minute // for one download
)

// cache holds bot code by its SHA-256, for all bots of the host. Its directory
// may be used by several processes.
type cache struct {
	dir    string
	client *http.Client
	token  func() string

	mu   sync.Mutex
	busy map[string]*sync.Mutex // by digest: who downloads it
}

// code writes the code for a bot to the file at path, and returns its digest.
func (c *cache) code(ctx context.Context, server, id, to string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, fetching)
	defer cancel()
	// A Repr-Digest is of what is sent, packed or not, and the transport unpacks.
	header := http.Header{"Accept-Encoding": {"identity"}}
	if token := c.token(); token != "" {
		header.Set("Authorization", "Bearer "+token)
	}
	q := url.Values{"bot_id": {id}, "os": {runtime.GOOS}, "arch": {runtime.GOARCH}}
	resp, err := c.get(ctx, server+"/bot_code?"+q.Encode(), header)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusOK: // a server without versioned code
		digest, err := promised(resp)
		if err != nil {
			return "", err
		}
		if digest, err = c.keep(resp.Body, digest); err != nil {
			return "", err
		}
		return digest, c.copy(digest, to)
	case resp.StatusCode/100 == 3:
		loc, err := resp.Location()
		if err != nil {
			return "", skep.Errorf(skep.Unavailable, "bot code: the server sends the bot elsewhere and does not say where: %w", err)
		}
		digest := path.Base(loc.Path)
		if !isDigest(digest) {
			return "", skep.Errorf(skep.Unavailable, "bot code: the server sends the bot to %s, which names no SHA-256", loc.Redacted())
		}
		return digest, c.versioned(ctx, loc.String(), digest, to)
	default:
		return "", refused(resp)
	}
}

// versioned writes the code with a digest to a file: from the cache, and
// downloaded by the first who needs it.
func (c *cache) versioned(ctx context.Context, from, digest, to string) error {
	defer c.alone(digest)()
	err := c.copy(digest, to)
	if err == nil {
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errDamaged) {
		return err
	}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return err
	}
	other := flock.New(c.path(digest) + ".lock") // other processes
	if err := other.Lock(); err != nil {
		return fmt.Errorf("lock the cache of bot code: %w", err)
	}
	defer other.Close()
	if c.copy(digest, to) == nil {
		return nil
	}
	resp, err := c.get(ctx, from, nil) // without the token: this is no secret, and the token is
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return refused(resp)
	}
	if _, err := c.keep(resp.Body, digest); err != nil {
		return err
	}
	c.tidy(digest)
	return c.copy(digest, to)
}

func (c *cache) alone(digest string) (release func()) {
	c.mu.Lock()
	if c.busy == nil {
		c.busy = map[string]*sync.Mutex{}
	}
	m := c.busy[digest]
	if m == nil {
		m = &sync.Mutex{}
		c.busy[digest] = m
	}
	c.mu.Unlock()
	m.Lock()
	return m.Unlock
}

func (c *cache) path(digest string) string { return filepath.Join(c.dir, digest) }

func (c *cache) get(ctx context.Context, from string, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, err
	}
	maps.Copy(req.Header, header)
	client := *c.client
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := client.Do(req)
	if err != nil {
		return nil, skep.Errorf(skep.Unavailable, "bot code: %w", err)
	}
	return resp, nil
}

func refused(resp *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 400))
	kind := skep.Unavailable
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		kind = skep.Unauthenticated
	case http.StatusForbidden:
		kind = skep.Denied
	}
	return skep.Errorf(kind, "bot code: the server answers %s: %s", resp.Status, strings.TrimSpace(string(text)))
}

// promised returns the digest that an answer says it has; "" = none.
func promised(resp *http.Response) (string, error) {
	text, ok := strings.CutPrefix(resp.Header.Get("Repr-Digest"), "sha-256=:")
	if !ok {
		return "", nil
	}
	sum, err := base64.StdEncoding.DecodeString(strings.TrimSuffix(text, ":"))
	if err != nil || len(sum) != sha256.Size {
		return "", skep.Errorf(skep.Unavailable, "bot code: the server's Repr-Digest cannot be read")
	}
	return hex.EncodeToString(sum), nil
}

func isDigest(s string) bool {
	return len(s) == 2*sha256.Size && strings.Trim(s, "0123456789abcdef") == ""
}

// keep puts what r holds into the cache, if it has the digest or that is "".
func (c *cache) keep(r io.Reader, digest string) (string, error) {
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return "", err
	}
	f, err := os.CreateTemp(c.dir, ".part.*")
	if err != nil {
		return "", err
	}
	defer os.Remove(f.Name())
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, sum), io.LimitReader(r, maxCode+1))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", skep.Errorf(skep.Unavailable, "download bot code: %w", err)
	}
	if n > maxCode {
		return "", skep.Errorf(skep.Unavailable, "bot code has more than %d bytes", maxCode)
	}
	got := hex.EncodeToString(sum.Sum(nil))
	if digest != "" && got != digest {
		return "", skep.Errorf(skep.Unavailable, "bot code: %d bytes with SHA-256 %s came, and not %s; it is not run", n, got, digest)
	}
	return got, os.Rename(f.Name(), c.path(got))
}

var errDamaged = errors.New("the cached bot code is damaged")

// copy writes cached code to a file that others may read at any time. What is
// in the cache is believed only as far as its digest goes.
func (c *cache) copy(digest, to string) error {
	f, err := os.Open(c.path(digest))
	if err != nil {
		return err
	}
	defer f.Close()
	w, err := os.CreateTemp(filepath.Dir(to), ".skep.*")
	if err != nil {
		return err
	}
	defer os.Remove(w.Name())
	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(w, sum), f)
	if err = errors.Join(err, w.Chmod(0o755), w.Close()); err != nil { // not synced: the next start writes it again
		return fmt.Errorf("write %s: %w", to, err)
	}
	if hex.EncodeToString(sum.Sum(nil)) != digest {
		return errDamaged
	}
	if err := os.Rename(w.Name(), to); err != nil {
		return err
	}
	now := time.Now()
	_ = os.Chtimes(c.path(digest), now, now) // what was used last stays
	return nil
}

// tidy removes code that was not used for the longest time, and parts of
// downloads that a crash left.
func (c *cache) tidy(keep string) {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return
	}
	type version struct {
		digest string
		used   time.Time
	}
	var all []version
	for _, e := range entries {
		info, err := e.Info()
		switch {
		case err != nil:
		case strings.HasPrefix(e.Name(), ".part.") && time.Since(info.ModTime()) > 2*fetching:
			_ = os.Remove(filepath.Join(c.dir, e.Name()))
		case isDigest(e.Name()) && e.Name() != keep:
			all = append(all, version{e.Name(), info.ModTime()})
		}
	}
	slices.SortFunc(all, func(a, b version) int { return b.used.Compare(a.used) })
	for _, v := range all[min(len(all), maxKept-1):] {
		_ = os.Remove(c.path(v.digest))
		_ = os.Remove(c.path(v.digest) + ".lock")
	}
}
