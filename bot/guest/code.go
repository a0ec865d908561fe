package guest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/bot/code"
)

const (
	maxCode     = 256 << 20
	readLimit   = 30 * time.Second // without a byte
	partSuffix  = ".part"
	stageSuffix = ".fetch" // of the directory beside the bot's: in its own the bot wants no strangers
)

// Executable is the name of the bot in its directory.
func Executable(goos string) string {
	if goos == "windows" {
		return "swarming_bot.exe"
	}
	return "swarming_bot"
}

func (g *guest) makeDir() error {
	if err := os.MkdirAll(g.Dir, 0o755); err != nil {
		return err
	}
	if info, err := os.Lstat(g.Dir); err != nil || !info.IsDir() {
		return skep.Errorf(skep.Precondition, "%s is not a directory", g.Dir)
	}
	return g.own(g.Dir)
}

func (g *guest) own(path string) error {
	if g.Own == nil {
		return nil
	}
	return g.Own(path)
}

// code brings the code that the server has for this bot into its directory and
// returns its path. What is there already is kept when the server knows it: it
// is whole then, and what a bot runs is for itself to replace.
func (g *guest) code(ctx context.Context, server, name string) (string, error) {
	exe := filepath.Join(g.Dir, Executable(g.OS))
	digest, err := g.wanted(ctx, server, name)
	if err != nil {
		return "", err
	}
	if isPlain(exe) {
		has, err := code.Version(exe)
		if err != nil {
			return "", err
		}
		good := has == digest
		if !good {
			if good, err = g.known(ctx, server, has); err != nil {
				return "", err
			}
		}
		if good {
			if s, err := openStage(g.Dir + stageSuffix); err == nil { // else it is not ours to tidy
				_ = s.drop()
			}
			return exe, nil
		}
	}
	s, err := openStage(g.Dir + stageSuffix)
	if err != nil {
		return "", err
	}
	defer s.Close()
	name = digest + partSuffix
	if err := s.forget(name); err != nil {
		return "", err
	}
	if err := g.download(ctx, server, digest, s, name); err != nil {
		return "", err
	}
	part := filepath.Join(s.Name(), name)
	if err := code.Inspect(part, g.OS, g.Arch); err != nil {
		return "", errors.Join(fmt.Errorf("what the server sends is no bot: %w", err), s.Remove(name))
	}
	// Where it lies nobody else writes, so that what was checked is what is run.
	if err := s.Chmod(name, 0o755); err != nil {
		return "", err
	}
	if err := g.own(part); err != nil {
		return "", err
	}
	if err := os.Rename(part, exe); err != nil {
		if g.OS == "windows" && code.Inspect(exe, g.OS, g.Arch) == nil { // it runs, and updates itself
			return exe, nil
		}
		return "", err
	}
	if err := syncDir(g.Dir); err != nil {
		return "", err
	}
	return exe, s.drop()
}

func isPlain(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode().IsRegular() && (runtime.GOOS == "windows" || info.Mode()&0o111 != 0)
}

// syncDir makes a rename durable, where directories can be synced.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

var versioned = regexp.MustCompile(`^` + regexp.QuoteMeta(botapi.PathBotCode) + `([0-9a-f]{64})$`)

// wanted asks which code this bot is to run.
func (g *guest) wanted(ctx context.Context, server, name string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	q := url.Values{"os": {g.OS}, "arch": {g.Arch}, "bot_id": {name}}
	res, err := g.call(ctx, http.MethodGet, server, "/bot_code?"+q.Encode(), nil, nil)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	return digestOf(server, res.Header.Get("Location"))
}

// known reports whether a digest is that of code of the server.
func (g *guest) known(ctx context.Context, server, digest string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, server+botapi.PathBotCode+digest, nil)
	if err != nil {
		return false, err
	}
	req.Header.Set("Accept-Encoding", "identity")
	res, err := g.http.Do(req)
	if err != nil {
		return false, err
	}
	defer res.Body.Close()
	if res.StatusCode >= http.StatusInternalServerError || res.StatusCode == http.StatusTooManyRequests {
		return false, fmt.Errorf("the server answers %s", res.Status)
	}
	return res.StatusCode == http.StatusOK, nil // else it sends to other code, or refuses
}

// digestOf reads which code a server sends to: only its own counts.
func digestOf(server, location string) (string, error) {
	base, err := url.Parse(server)
	if err != nil {
		return "", err
	}
	to, err := base.Parse(location)
	if err != nil || location == "" {
		return "", errors.New("/bot_code does not say which code it is: the server is no skep")
	}
	parts := versioned.FindStringSubmatch(to.Path)
	if to.Scheme != base.Scheme || to.Host != base.Host || parts == nil {
		return "", fmt.Errorf("/bot_code sends elsewhere, to %.100q", to.Redacted())
	}
	return parts[1], nil
}

// download makes a file of s the code with a digest. What is there of it
// already is not fetched again.
func (g *guest) download(ctx context.Context, server, digest string, s *stage, name string) error {
	f, err := s.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	has, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	err = g.receive(ctx, server, digest, f, has)
	if err == nil {
		if err = verify(f, digest); err != nil { // a machine that lost its power may have written nonsense
			err = errors.Join(err, f.Truncate(0))
		}
	}
	return errors.Join(err, f.Close())
}

// receive appends what lacks of the code to f, which has so many bytes.
func (g *guest) receive(ctx context.Context, server, digest string, f *os.File, has int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	alive := time.AfterFunc(readLimit, cancel)
	defer alive.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, server+botapi.PathBotCode+digest, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept-Encoding", "identity") // ranges are of the plain bytes
	if has > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(has, 10)+"-")
		req.Header.Set("If-Range", `"`+digest+`"`)
	}
	res, err := answered(g.http.Do(req))
	if err != nil {
		return err
	}
	defer res.Body.Close()
	switch start, size, ok := rangeOf(res); {
	case res.StatusCode == http.StatusRequestedRangeNotSatisfiable: // it is all there, or more than that
		if res.Header.Get("Content-Range") == "bytes */"+strconv.FormatInt(has, 10) {
			return nil
		}
		return errors.Join(errors.New("more was there than the code has"), f.Truncate(0))
	case !ok || start > has || size > maxCode:
		return fmt.Errorf("the server does not say which part of the code it sends, or more than %d bytes", maxCode)
	case start != has:
		if _, err := f.Seek(start, io.SeekStart); err != nil {
			return err
		}
		if err := f.Truncate(start); err != nil {
			return err
		}
		fallthrough
	default:
		n, err := io.Copy(f, &beating{io.LimitReader(res.Body, size-start+1), func() { alive.Reset(readLimit) }})
		if err == nil && start+n != size {
			err = fmt.Errorf("the code has %d bytes, %d came", size, start+n)
		}
		return err
	}
}

// rangeOf says which bytes an answer begins with, of how many.
func rangeOf(res *http.Response) (start, size int64, ok bool) {
	if res.StatusCode == http.StatusOK {
		return 0, res.ContentLength, res.ContentLength > 0
	}
	return parseRange(res.Header.Get("Content-Range"))
}

// parseRange reads "bytes START-END/SIZE", where END is the last byte.
func parseRange(text string) (start, size int64, ok bool) {
	span, total, ok1 := strings.Cut(strings.TrimPrefix(text, "bytes "), "/")
	from, to, ok2 := strings.Cut(span, "-")
	start, err1 := strconv.ParseInt(from, 10, 63)
	end, err2 := strconv.ParseInt(to, 10, 63)
	size, err3 := strconv.ParseInt(total, 10, 63)
	return start, size, ok1 && ok2 && err1 == nil && err2 == nil && err3 == nil && start >= 0 && start <= end && end == size-1
}

// beating is a reader that says when something came.
type beating struct {
	io.Reader
	beat func()
}

func (b *beating) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if n > 0 {
		b.beat()
	}
	return n, err
}

// verify checks the digest of all of f and makes it durable.
func verify(f *os.File, digest string) error {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != digest {
		return fmt.Errorf("the code has digest %s, want %s; it is fetched anew", got, digest)
	}
	return f.Sync()
}
