package server

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
)

// Bounds of a page: what is larger is a file to download, what is longer is
// cut.
const (
	maxListed     = 20_000  // entries of a directory
	maxListedSize = 8 << 20 // bytes of its message
)

//go:embed cas_page.html
var casPageText string

var casPage = template.Must(template.New("cas").Parse(casPageText))

// casURL is what a page of the storage is about: a tree, and a path in it.
type casURL struct {
	instance string
	root     cas.Digest
	path     []string
}

// parseCASPath reads INSTANCE/HASH/SIZE[/PATH]; the instance may have several
// segments, or none.
func parseCASPath(p string) (u casURL, err error) {
	segs := strings.Split(strings.Trim(p, "/"), "/")
	for i := 0; i+1 < len(segs); i++ {
		size, err := strconv.ParseInt(segs[i+1], 10, 64)
		if err != nil {
			continue
		}
		if u.root, err = cas.NewDigest(segs[i], size); err == nil {
			u.instance, u.path = strings.Join(segs[:i], "/"), segs[i+2:]
			if len(u.path) > cas.MaxDepth {
				return u, skep.Errorf(skep.NotFound, "the path is more than %d names long", cas.MaxDepth)
			}
			return u, nil
		}
	}
	return u, skep.Errorf(skep.NotFound, "want /cas/INSTANCE/HASH/SIZE[/PATH], with the 64 hex digits of a SHA-256 and a number of bytes")
}

// String returns the path of the page, escaped.
func (u *casURL) String() string {
	var b strings.Builder
	b.WriteString("/cas")
	segs := append([]string{u.root.Hash.String(), strconv.FormatInt(u.root.Size, 10)}, u.path...)
	if u.instance != "" {
		segs = append(strings.Split(u.instance, "/"), segs...)
	}
	for _, s := range segs {
		b.WriteByte('/')
		b.WriteString(url.PathEscape(s))
	}
	return b.String()
}

// casTree serves a directory or a file of the storage to a browser.
func (s *Server) casTree(w http.ResponseWriter, r *http.Request) error {
	if err := s.casPageOf(w, r); err != nil {
		return s.refusePage(w, r, err)
	}
	return nil
}

func (s *Server) casPageOf(w http.ResponseWriter, r *http.Request) error {
	u, err := parseCASPath(r.PathValue("rest"))
	if err != nil {
		return err
	}
	if s.o.Blobs == nil {
		return skep.Errorf(skep.NotFound, "this server keeps no blobs of its own; look at the storage that --cas names")
	}
	ctx := r.Context()
	at, name, isFile := u.root, "", false
	for i, seg := range u.path {
		dir, err := s.directory(ctx, at)
		if err != nil {
			return err
		}
		if at, isFile, err = step(dir, seg); err != nil || isFile && i < len(u.path)-1 {
			return skep.Errorf(skep.NotFound, "there is no %s in this tree", strings.Join(u.path[:i+1], "/"))
		}
		name = seg
	}
	if !isFile {
		dir, err := s.directory(ctx, at)
		if err == nil {
			return s.casListing(w, u, at, dir)
		}
		if len(u.path) > 0 || skep.KindOf(err) != skep.Invalid {
			return err
		}
		name = at.Hash.String() // a blob that is no directory
	}
	return s.casFile(w, r, at, name)
}

func (s *Server) directory(ctx context.Context, d cas.Digest) (*cas.Directory, error) {
	if d == cas.Empty {
		return &cas.Directory{}, nil
	}
	if d.Size > maxListedSize {
		return nil, skep.Errorf(skep.Invalid, "blob %s is too large to be shown as a directory", d)
	}
	b, err := s.o.Blobs.Get(ctx, d, maxListedSize)
	if err != nil {
		return nil, err
	}
	return cas.DecodeDirectory(b)
}

// step goes to an entry of a directory.
func step(dir *cas.Directory, name string) (d cas.Digest, isFile bool, err error) {
	for _, e := range dir.Dirs {
		if e.Name == name {
			return e.Digest, false, nil
		}
	}
	for _, e := range dir.Files {
		if e.Name == name {
			return e.Digest, true, nil
		}
	}
	return d, false, skep.Errorf(skep.NotFound, "no such entry")
}

// listed is a line of a listing.
type listed struct {
	Mode, Name, URL, Target string
	Size                    int64
}

func (s *Server) casListing(w http.ResponseWriter, u casURL, at cas.Digest, dir *cas.Directory) error {
	page := struct {
		Digest, Path, Up string
		Lines            []listed
		Files            int
		Bytes            int64
		Left             int
	}{Digest: at.String(), Path: "/" + strings.Join(u.path, "/")}
	to := func(name string) string {
		next := u
		next.path = append(append([]string{}, u.path...), name)
		return next.String()
	}
	if len(u.path) > 0 {
		up := u
		up.path = u.path[:len(u.path)-1]
		page.Up = up.String()
	}
	for _, e := range dir.Dirs {
		page.Lines = append(page.Lines, listed{Mode: "d", Name: e.Name + "/", URL: to(e.Name)})
	}
	for _, e := range dir.Files {
		mode := "-"
		if e.Executable {
			mode = "x"
		}
		page.Lines = append(page.Lines, listed{Mode: mode, Name: e.Name, URL: to(e.Name), Size: e.Digest.Size})
		page.Files++
		page.Bytes += e.Digest.Size
	}
	for _, e := range dir.Symlinks {
		page.Lines = append(page.Lines, listed{Mode: "l", Name: e.Name, Target: e.Target})
	}
	if len(page.Lines) > maxListed {
		page.Left = len(page.Lines) - maxListed
		page.Lines = page.Lines[:maxListed]
	}
	var b bytes.Buffer
	if err := casPage.Execute(&b, page); err != nil {
		return fmt.Errorf("render the listing: %w", err)
	}
	safeHeaders(w.Header())
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write(b.Bytes())
	return nil
}

// safeHeaders keep what somebody uploaded from acting in this server's name.
func safeHeaders(h http.Header) {
	h.Set("Content-Security-Policy", "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox allow-downloads")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "private, no-cache")
}

// casFile sends a blob. Text is shown, anything else is downloaded: a browser
// never runs it as a page of this server.
func (s *Server) casFile(w http.ResponseWriter, r *http.Request, d cas.Digest, name string) error {
	f := &blobFile{ctx: r.Context(), blobs: s.o.Blobs, digest: d}
	defer f.Close()
	head := make([]byte, min(d.Size, 1024))
	if _, err := io.ReadFull(f, head); err != nil { // here a blob that is missing is found
		return err
	}
	h := w.Header()
	safeHeaders(h)
	h.Set("Etag", `"`+d.Hash.String()+`"`)
	if isText(head) {
		h.Set("Content-Type", "text/plain; charset=utf-8")
		h.Set("Content-Disposition", mime.FormatMediaType("inline", map[string]string{"filename": name}))
	} else {
		h.Set("Content-Type", "application/octet-stream")
		h.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": name}))
	}
	if h.Get("Content-Disposition") == "" { // a name that cannot be said there
		h.Set("Content-Disposition", "attachment")
	}
	_, _ = f.Seek(0, io.SeekStart)
	defer sending(w, d.Size)()
	http.ServeContent(w, r, "", time.Time{}, f)
	return nil
}

// isText reports whether a file that begins so is shown as text.
func isText(head []byte) bool {
	if bytes.IndexByte(head, 0) >= 0 {
		return false
	}
	for cut := range min(utf8.UTFMax, len(head)+1) { // the last character may be cut off
		if utf8.Valid(head[:len(head)-cut]) {
			return true
		}
	}
	return false
}

// blobFile is a blob to seek in; it is opened where it is read.
type blobFile struct {
	ctx    context.Context
	blobs  Blobs
	digest cas.Digest
	at     int64
	open   io.ReadCloser
}

func (f *blobFile) Read(p []byte) (int, error) {
	if f.at >= f.digest.Size {
		return 0, io.EOF
	}
	if f.open == nil {
		var err error
		if f.open, err = f.blobs.Open(f.ctx, f.digest, f.at); err != nil {
			return 0, err
		}
	}
	n, err := f.open.Read(p)
	f.at += int64(n)
	return n, err
}

func (f *blobFile) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += f.at
	case io.SeekEnd:
		offset += f.digest.Size
	}
	if offset < 0 {
		return 0, errors.New("seek before the start of a blob")
	}
	if offset != f.at {
		_ = f.Close()
	}
	f.at = offset
	return offset, nil
}

func (f *blobFile) Close() error {
	if f.open == nil {
		return nil
	}
	err := f.open.Close()
	f.open = nil
	return err
}

// casViewer leads from the form of links that existing pages have,
// VIEWER/INSTANCE/blobs/HASH/SIZE/tree, to ours. spec cli-and-ui.md.
func casViewer(r *http.Request) (to string, ok bool) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return "", false
	}
	p, ok := strings.CutSuffix(r.URL.Path, "/tree")
	instance, digest, ok2 := strings.Cut(p, "/blobs/")
	if !ok || !ok2 || strings.HasPrefix(p, "/cas/") {
		return "", false
	}
	d, err := cas.ParseDigest(digest)
	u := casURL{instance: strings.Trim(instance, "/"), root: d}
	return u.String(), err == nil
}

// refusePage tells a person why there is no page; what it does not know how
// to tell it leaves to the caller.
func (s *Server) refusePage(w http.ResponseWriter, r *http.Request, err error) error {
	if _, ok := errors.AsType[*cas.MissingError](err); ok {
		err = skep.Errorf(skep.NotFound, "%w: it was never written, or has been evicted", err)
	}
	switch kind := skep.KindOf(err); kind {
	case skep.NotFound, skep.Invalid:
		safeHeaders(w.Header())
		http.Error(w, clean(err.Error()), httpStatus[kind])
		return nil
	default:
		return err
	}
}
