package cli

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	bspb "google.golang.org/genproto/googleapis/bytestream"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/server"
	"github.com/skepdev/skep/store"
)

// served is a server as skep server runs it.
type served struct {
	*service
	addr, url string
	stop      func() error
}

func serveForTest(t *testing.T, dir string, change func(*serverFlags)) *served {
	t.Helper()
	env := &Env{Stdout: t.Output(), Stderr: t.Output(), Getenv: func(string) string { return "" }}
	flags := &serverFlags{listen: "127.0.0.1:0", botDir: t.TempDir()}
	flags.stateDir = dir
	flags.cas.maxSize, flags.cas.minFree = 1<<30, 1<<20
	if change != nil {
		change(flags)
	}
	s, err := openService(t.Context(), env, flags, "none")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- s.run(ctx) }()
	out := &served{service: s, addr: s.listener.Addr().String(), url: s.door.urls[0]}
	out.stop = func() error {
		cancel()
		if ended == nil {
			return nil
		}
		err := <-ended
		ended = nil
		return err
	}
	t.Cleanup(func() {
		if err := out.stop(); err != nil {
			t.Error(err)
		}
	})
	return out
}

type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	if b == "" {
		return nil, nil
	}
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}
func (bearer) RequireTransportSecurity() bool { return false }

func dialForTest(t *testing.T, addr string, creds credentials.TransportCredentials, token bearer, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(addr, append(opts, grpc.WithTransportCredentials(creds), grpc.WithPerRPCCredentials(token))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func upload(ctx context.Context, conn *grpc.ClientConn, blob []byte) error {
	s, err := bspb.NewByteStreamClient(conn).Write(ctx)
	if err != nil {
		return err
	}
	d := cas.Sum(blob)
	for at := 0; ; at += 1 << 20 {
		end := min(at+1<<20, len(blob))
		if err := s.Send(&bspb.WriteRequest{ResourceName: "any/instance/uploads/u/blobs/" + d.String(), WriteOffset: int64(at), Data: blob[at:end], FinishWrite: end == len(blob)}); err != nil {
			break // CloseAndRecv knows why
		}
		if end == len(blob) {
			break
		}
	}
	_, err = s.CloseAndRecv()
	return err
}

func download(ctx context.Context, conn *grpc.ClientConn, d cas.Digest) ([]byte, error) {
	s, err := bspb.NewByteStreamClient(conn).Read(ctx, &bspb.ReadRequest{ResourceName: "instance/blobs/" + d.String()})
	if err != nil {
		return nil, err
	}
	var out []byte
	for {
		m, err := s.Recv()
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		out = append(out, m.Data...)
	}
}

func randomBlob(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n)})
	_, _ = r.Read(b) // never fails
	return b
}

// A tree goes in over plain gRPC, is seen over HTTP on the same port, and is
// there after a restart.
func TestStoragePlain(t *testing.T) {
	dir := t.TempDir()
	s := serveForTest(t, dir, nil)
	conn := dialForTest(t, s.addr, insecure.NewCredentials(), "")
	large, small := randomBlob(3<<20+5), []byte("<script>alert(1)</script>\n")
	if err := upload(t.Context(), conn, large); err != nil {
		t.Fatal(err)
	}
	tree := &cas.Directory{
		Files:    []cas.File{{Name: `"><script>.html`, Digest: cas.Sum(small)}, {Name: "large", Digest: cas.Sum(large), Executable: true}},
		Symlinks: []cas.Symlink{{Name: "zz", Target: "large"}},
	}
	root := &cas.Directory{Dirs: []cas.Dir{{Name: "sub dir", Digest: cas.Sum(tree.Encode())}}}
	update := &repb.BatchUpdateBlobsRequest{}
	for _, b := range [][]byte{small, tree.Encode(), root.Encode()} {
		update.Requests = append(update.Requests, &repb.BatchUpdateBlobsRequest_Request{Digest: &repb.Digest{Hash: cas.Sum(b).Hash.String(), SizeBytes: int64(len(b))}, Data: b})
	}
	resp, err := repb.NewContentAddressableStorageClient(conn).BatchUpdateBlobs(t.Context(), update)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range resp.Responses {
		if r.Status.GetCode() != 0 {
			t.Fatal(r.Status)
		}
	}

	get := func(path string, header ...string) (*http.Response, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "GET", s.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(b)
	}
	base := "/cas/projects/skep/instances/default/" + cas.Sum(root.Encode()).String()
	_, page := get("/projects/skep/instances/default/blobs/" + cas.Sum(root.Encode()).String() + "/tree")
	if want := `<a href="` + base + `/sub%20dir">sub dir/</a>`; !strings.Contains(page, want) {
		t.Errorf("the listing has no %s:\n%s", want, page)
	}
	_, page = get(base + "/sub%20dir")
	for _, want := range []string{"zz → large", `/sub%20dir/large">large</a>`, ">3145733<", "&lt;script&gt;.html</a>", `>..</a>`} {
		if !strings.Contains(page, want) {
			t.Errorf("the listing has no %s:\n%s", want, page)
		}
	}
	if strings.Contains(page, "<script>") {
		t.Error("a name is not escaped")
	}
	r, body := get(base + "/sub%20dir/large")
	if body != string(large) || r.Header.Get("Content-Disposition") != `attachment; filename=large` || r.Header.Get("Content-Type") != "application/octet-stream" {
		t.Errorf("a file: %d bytes, %v", len(body), r.Header)
	}
	r, body = get(base+"/sub%20dir/large", "Range", "bytes=1048570-2097160")
	if r.StatusCode != http.StatusPartialContent || body != string(large[1048570:2097161]) {
		t.Errorf("a range: %d, %d bytes", r.StatusCode, len(body))
	}
	r, body = get(base + "/sub%20dir/%22%3E%3Cscript%3E.html")
	if body != string(small) || r.Header.Get("Content-Type") != "text/plain; charset=utf-8" || r.Header.Get("X-Content-Type-Options") != "nosniff" ||
		!strings.Contains(r.Header.Get("Content-Security-Policy"), "sandbox") {
		t.Errorf("a text: %q %v", body, r.Header)
	}
	for _, path := range []string{base + "/none", base + "/sub%20dir/large/x", "/cas/x", "/cas/x/" + cas.Sum([]byte("none")).String()} {
		if r, body := get(path); r.StatusCode != http.StatusNotFound || len(body) < 20 {
			t.Errorf("%s: %d %q, want 404 and a sentence", path, r.StatusCode, body)
		}
	}

	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	s = serveForTest(t, dir, nil)
	conn = dialForTest(t, s.addr, insecure.NewCredentials(), "")
	foreign := dialForTest(t, s.addr, insecure.NewCredentials(), "", grpc.WithAuthority("evil.example"))
	if _, err := download(t.Context(), foreign, cas.Sum(large)); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "not known as") {
		t.Errorf("under a foreign name: %v", err)
	}
	got, err := download(t.Context(), conn, cas.Sum(large))
	if err != nil || !bytes.Equal(got, large) {
		t.Errorf("after a restart: %d bytes, %v", len(got), err)
	}
}

// TestLargeBlobsByHTTP holds what plain transfers take and give, and that
// what they refuse leaves nothing. wire: docs/wire/cas.md#plain-transfers
func TestLargeBlobsByHTTP(t *testing.T) {
	s := serveForTest(t, t.TempDir(), nil)
	blob := randomBlob(3<<20 + 5)
	d := cas.Sum(blob)
	post := func(path, kind string, body io.Reader, size int64) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+path, body)
		if err != nil {
			t.Fatal(err)
		}
		r.ContentLength = size
		r.Header.Set("Content-Type", kind)
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			return 0, err.Error()
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(text)
	}
	const kind = "application/octet-stream"
	for _, tt := range []struct {
		name, path, kind string
		body             io.Reader
		size             int64
		code             int
		text             string
	}{
		{"another path", "/cas/any/where", kind, bytes.NewReader(blob), d.Size, 404, "uploads"},
		{"as a form has it", "/cas/uploads", "text/plain", bytes.NewReader(blob), d.Size, 400, "Content-Type"},
		{"nobody knows how long", "/cas/uploads", kind, bytes.NewReader(blob), -1, 400, "Content-Length"},
		{"small", "/cas/uploads", kind, bytes.NewReader(blob[:1000]), 1000, 400, "digest"},
		{"too much", "/cas/uploads", kind, bytes.NewReader(nil), 1 << 50, 0, ""},
		{"packed", "/cas/uploads", kind + ";gzip", bytes.NewReader(blob), d.Size, 400, "Content-Type"},
		{"cut short", "/cas/uploads", kind, bytes.NewReader(blob), d.Size + 1, 0, ""},
	} {
		code, text := post(tt.path, tt.kind, tt.body, tt.size)
		if tt.code > 0 && code != tt.code || code == 200 || !strings.Contains(text, tt.text) {
			t.Errorf("%s: %d %s", tt.name, code, text)
		}
	}
	conn := dialForTest(t, s.addr, insecure.NewCredentials(), "")
	if _, err := download(t.Context(), conn, d); status.Code(err) != codes.NotFound {
		t.Fatalf("after refusals: %v", err)
	}
	for range 2 { // the second is there already
		if code, text := post("/cas/any/where/uploads", kind, bytes.NewReader(blob), d.Size); code != 200 || text != d.String()+"\n" {
			t.Fatalf("%d %s", code, text)
		}
	}
	if got, err := download(t.Context(), conn, d); err != nil || !bytes.Equal(got, blob) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	// Who asks first is refused before it sends anything.
	raw, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	fmt.Fprintf(raw, "POST /cas/uploads HTTP/1.1\r\nHost: %s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n", s.addr, d.Size)
	_ = raw.SetReadDeadline(time.Now().Add(30 * time.Second))
	line, err := bufio.NewReader(raw).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "HTTP/1.1 400 ") {
		t.Errorf("asked before: %q, %v", line, err)
	}
	for _, from := range []int{0, 1 << 20, len(blob) - 1} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"/cas/any/"+d.String(), nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Range", fmt.Sprintf("bytes=%d-", from))
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != http.StatusPartialContent || !bytes.Equal(got, blob[from:]) {
			t.Errorf("from %d: %s, %d bytes, %v", from, res.Status, len(got), err)
		}
	}
}

// TestSmallBlobsByHTTP holds the same of bundles. wire: docs/wire/cas.md#bundles
func TestSmallBlobsByHTTP(t *testing.T) {
	s := serveForTest(t, t.TempDir(), nil)
	var bundle cas.Bundle
	var lines, had strings.Builder
	contents := [][]byte{[]byte("small"), {}, randomBlob(cas.MaxBundled), []byte("small"), randomBlob(70000)}
	for _, b := range contents {
		copy(bundle.Append(len(b)), b)
		fmt.Fprintln(&lines, cas.Sum(b))
		if fmt.Fprint(&had, cas.Sum(b)); len(b) > 0 {
			had.WriteString(" had")
		}
		had.WriteByte('\n')
	}
	post := func(path string, body []byte) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/octet-stream")
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(text)
	}
	for _, tt := range []struct {
		name, path string
		body       []byte
		text       string
	}{
		{"a bundle cut short", "/cas/bundles", bundle.Wire()[:5], "blob 0: 1 of 5 bytes"},
		{"too large a bundle", "/cas/bundles", make([]byte, cas.MaxBundle+1), "Content-Length"},
		{"no digest", "/cas/blobs", []byte("x\n"), "HASH/SIZE"},
		{"a large blob", "/cas/blobs", []byte(cas.Empty.Hash.String() + "/1048577\n"), "goes alone"},
		{"more than a bundle", "/cas/blobs", bytes.Repeat([]byte(cas.Sum(contents[2]).String()+"\n"), 4), "more than a bundle"},
		{"too much at once", "/cas/blobs", bytes.Repeat([]byte(cas.Empty.String()+"\n"), 40000), "Content-Length"},
	} {
		if code, text := post(tt.path, tt.body); code != 400 || !strings.Contains(text, tt.text) {
			t.Errorf("%s: %d %.200s", tt.name, code, text)
		}
	}
	if code, text := post("/cas/blobs", []byte(lines.String())); code != 200 || text != "\xff\xff\xff\xff\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff" {
		t.Errorf("before they are there: %d %x", code, text)
	}
	for _, want := range []string{lines.String(), had.String()} {
		if code, text := post("/cas/any/where/bundles", bundle.Wire()); code != 200 || text != want {
			t.Fatalf("%d %s, want %s", code, text, want)
		}
	}
	if code, text := post("/cas/any/where/blobs", []byte(lines.String())); code != 200 || text != string(bundle.Wire()) {
		t.Errorf("%d, %d bytes, want %d", code, len(text), len(bundle.Wire()))
	}
	conn := dialForTest(t, s.addr, insecure.NewCredentials(), "")
	for _, b := range contents {
		if got, err := download(t.Context(), conn, cas.Sum(b)); err != nil || !bytes.Equal(got, b) {
			t.Errorf("%d of %d bytes, %v", len(got), len(b), err)
		}
	}
}

// Tokens and names are asked for as everywhere else.
func TestStorageWithTLSAndTokens(t *testing.T) {
	dir := t.TempDir()
	st, err := store.Open(t.Context(), filepath.Join(dir, "skep.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	mint := func(scope string, bots ...string) bearer {
		t.Helper()
		n := server.NewToken{Name: scope, Scope: scope, Bots: bots}
		if scope == server.ScopeBootstrap {
			n.Uses, n.Life = 1, time.Hour
		}
		text, _, err := server.CreateToken(t.Context(), st, n)
		if err != nil {
			t.Fatal(err)
		}
		return bearer(text)
	}
	tokens := map[string]bearer{"admin": mint("admin"), "user": mint("user"), "bot": mint("bot", "b*")}
	bootstrap := mint("bootstrap", "b*")
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	s := serveForTest(t, dir, func(f *serverFlags) { f.selfSigned = true })
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.door.authority.PEM())
	config := &tls.Config{RootCAs: roots}
	blob := randomBlob(100)
	for name, token := range tokens {
		conn := dialForTest(t, s.addr, credentials.NewTLS(config), token)
		if err := upload(t.Context(), conn, append(blob, name...)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, tc := range []struct {
		name  string
		token bearer
		code  codes.Code
		text  string
	}{
		{"no token", "", codes.Unauthenticated, "SKEP_TOKEN"},
		{"unknown token", "skep_nonsense", codes.Unauthenticated, "not known"},
		{"bootstrap token", bootstrap, codes.PermissionDenied, "bootstrap"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			conn := dialForTest(t, s.addr, credentials.NewTLS(config), tc.token)
			_, err := repb.NewCapabilitiesClient(conn).GetCapabilities(t.Context(), &repb.GetCapabilitiesRequest{})
			if status.Code(err) != tc.code || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("got %v, want %v with %q", err, tc.code, tc.text)
			}
		})
	}
	// What offers both protocols gets HTTP/1.1, and all of HTTP works on it.
	h := &http.Client{Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}}
	defer h.CloseIdleConnections()
	resp, err := h.Get(s.url + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.Proto != "HTTP/1.1" || resp.StatusCode != http.StatusOK {
		t.Errorf("got %s %s", resp.Proto, resp.Status)
	}
	if resp, err = h.Get(s.url + "/cas/x/" + cas.Empty.String()); err != nil || resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("a page without a token: %v %v", resp.StatusCode, err)
	}
	resp.Body.Close()
}

func TestStorageElsewhere(t *testing.T) {
	s := serveForTest(t, t.TempDir(), func(f *serverFlags) { f.cas.url = "grpc://localhost:9092/main" })
	conn := dialForTest(t, s.addr, insecure.NewCredentials(), "")
	err := upload(t.Context(), conn, randomBlob(10))
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "grpc://localhost:9092/main") {
		t.Errorf("got %v, want a pointer to the other storage", err)
	}
	if _, err := os.Stat(filepath.Join(s.stateDir, "cas")); err == nil {
		t.Error("a storage was made all the same")
	}
}

func TestElsewhere(t *testing.T) {
	for _, tc := range []struct{ in, to, instance, fault string }{
		{"grpc://127.0.0.1:9092", "grpc://127.0.0.1:9092", "", ""},
		{"grpcs://cas.example/projects/a/instances/b/", "grpcs://cas.example/projects/a/instances/b/", "projects/a/instances/b", ""},
		{"grpc://cas.example", "", "", "plain text"},
		{"http://cas.example", "", "", "want grpc"},
		{"grpcs://user:secret@cas.example", "", "", "want grpc"},
		{"grpcs://", "", "", "want grpc"},
	} {
		to, instance, err := (&casFlags{url: tc.in}).elsewhere()
		if to != tc.to || instance != tc.instance || (err == nil) != (tc.fault == "") || err != nil && (!strings.Contains(err.Error(), tc.fault) || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%s: %q %q %v", tc.in, to, instance, err)
		}
	}
}

func TestByteSize(t *testing.T) {
	for in, want := range map[string]string{
		"50GiB": "50GiB", "1024": "1KiB", "1.5KiB": "1536", "10MB": "10000000", "3G": "3000000000", "1T": "976562500KiB",
		"": "", "GiB": "", "-1": "", "0": "", "1Gib": "", "1e30": "", "NaN": "", "5 GiB": "",
	} {
		var b byteSize
		err := b.Set(in)
		if want == "" && err == nil || want != "" && (err != nil || b.String() != want) {
			t.Errorf("%q: %s %v, want %q", in, &b, err, want)
		}
	}
}

// Commands find the storage that a server uses, without being told and
// without giving it the server's token.
func TestCommandsFindTheStorageElsewhere(t *testing.T) {
	keeps := serveForTest(t, t.TempDir(), nil)
	points := serveForTest(t, t.TempDir(), func(f *serverFlags) { f.cas.url = "grpc://" + keeps.addr + "/main" })
	var stdout, stderr bytes.Buffer
	run := func(args ...string) (string, error) {
		stdout.Reset()
		stderr.Reset()
		env := &Env{Args: args, Stdout: &stdout, Stderr: &stderr, Getenv: func(key string) string {
			return map[string]string{"SKEP_SERVER": points.url, "XDG_CACHE_HOME": t.TempDir()}[key]
		}}
		root := newRootCommand(env)
		root.SetArgs(args)
		root.SetOut(&stdout)
		root.SetErr(&stderr)
		err := root.ExecuteContext(t.Context())
		return stdout.String(), err
	}
	src, dst := t.TempDir(), filepath.Join(t.TempDir(), "out")
	if err := os.WriteFile(filepath.Join(src, "f"), []byte("found"), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := run("cas", "archive", src)
	if err != nil {
		t.Fatal(err, stderr.String())
	}
	digest := strings.TrimSpace(out)
	d, err := cas.ParseDigest(digest)
	if err != nil {
		t.Fatal(err)
	}
	if m, err := keeps.storage.disk.Missing(t.Context(), []cas.Digest{d, cas.Sum([]byte("found"))}); len(m) > 0 || err != nil {
		t.Errorf("the other storage lacks %v: %v", m, err)
	}
	if out, err = run("cas", "ls", digest); err != nil || !strings.Contains(out, "f") {
		t.Errorf("ls: %q %v", out, err)
	}
	if _, err := run("cas", "download", digest, dst); err != nil {
		t.Error(err, stderr.String())
	}
	if b, err := os.ReadFile(filepath.Join(dst, "f")); string(b) != "found" {
		t.Errorf("downloaded %q, %v", b, err)
	}
	if _, err := run("cas", "ls", "--cas", "grpc://localhost:1/x", "--connect-timeout", "10ms", "--cas-patience", "10ms", digest); err == nil || !strings.Contains(err.Error(), "localhost:1") {
		t.Errorf("--cas does not win: %v", err)
	}
	gone := filepath.Join(t.TempDir(), "gone.json")
	if _, err := run("cas", "download", "--server", "http://localhost:1", "--connect-timeout", "10ms", "--dump-json", gone, digest, dst); err == nil {
		t.Error("no server, and no error")
	}
	if b, err := os.ReadFile(gone); !strings.Contains(string(b), "rpc_error") {
		t.Errorf("the dump says %q, %v", b, err)
	}
}

// A server elsewhere cannot send commands to programs of this machine.
func TestStorageOfAnotherMachine(t *testing.T) {
	for _, tc := range []struct{ storage, server, want string }{
		{"grpc://127.0.0.1:9092", "https://swarming.example", "of its own machine"},
		{"grpcs://localhost:9092", "https://swarming.example", "of its own machine"},
		{"https://cas.example", "https://swarming.example", "no address"},
		{"grpcs://cas.example/main", "https://swarming.example", ""},
		{"grpc://127.0.0.1:9092", "http://localhost:8900", ""},
	} {
		err := checkElsewhere(tc.storage, tc.server)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s of %s: %v, want %q", tc.storage, tc.server, err, tc.want)
		}
	}
}
