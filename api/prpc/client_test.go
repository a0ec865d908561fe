package prpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/prpc/prpcpb"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/protobuf/testing/protocmp"
)

// transport answers without a network, so that it can be used in a bubble.
type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := f(r)
	if resp != nil {
		resp.Request = r
	}
	return resp, err
}

// to makes a client of what f answers.
func to(f transport) *Client {
	return &Client{BaseURL: "http://server.example", HTTP: &http.Client{Transport: f}}
}

func toHandler(h http.Handler) *Client {
	return to(func(r *http.Request) (*http.Response, error) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Result(), nil
	})
}

// reply is what a server answers.
type reply struct {
	status  int
	body    string
	headers []string // pairs
}

func answer(status int, body string, headers ...string) reply { return reply{status, body, headers} }

func (a reply) send() (*http.Response, error) {
	w := httptest.NewRecorder()
	for i := 0; i < len(a.headers); i += 2 {
		w.Header().Add(a.headers[i], a.headers[i+1])
	}
	w.WriteHeader(a.status)
	_, _ = w.WriteString(a.body)
	return w.Result(), nil
}

func say(ctx context.Context, c *Client, req *pair) (*pair, error) {
	resp := &pair{Key: "rubbish of an earlier call"}
	return resp, c.Call(ctx, "echo.Echo", "Say", req, resp)
}

func TestClientCall(t *testing.T) {
	var got http.Header
	s := echoServer(t, Options{Compress: CompressAlways}, func(ctx context.Context, p *pair) (*pair, error) {
		got = CallFrom(ctx).Request.Header
		return p, nil
	})
	server := httptest.NewServer(s)
	defer server.Close()
	c := &Client{
		BaseURL: server.URL, UserAgent: "test", Token: func() string { return "tok" },
		Timeout: 90 * time.Second, ZipOver: 1024,
	}
	for _, key := range []string{"", "hello", strings.Repeat("k", 1<<20)} {
		resp, err := say(t.Context(), c, &pair{Key: key})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(&pair{Key: key}, resp, protocmp.Transform()); diff != "" {
			t.Errorf("answer differs (-want +got):\n%.200s", diff)
		}
	}
	for name, want := range map[string]string{
		"User-Agent": "test", "Authorization": "Bearer tok", "Content-Type": "application/prpc; encoding=binary",
		"Accept": "application/prpc; encoding=binary", "X-Prpc-Max-Response-Size": "33521664",
		"Accept-Encoding": "gzip", "Content-Encoding": "gzip",
	} {
		if got.Get(name) != want {
			t.Errorf("header %s is %q, want %q", name, got.Get(name), want)
		}
	}
	if left, err := parseTimeout(got.Get("X-Prpc-Grpc-Timeout")); err != nil || left > 90*time.Second || left < time.Minute {
		t.Errorf("header X-Prpc-Grpc-Timeout is %v, %v", left, err)
	}
}

func TestClientReadsErrors(t *testing.T) {
	s := echoServer(t, Options{}, func(context.Context, *pair) (*pair, error) { return nil, skep.Invalidf("key", "is empty") })
	_, err := say(t.Context(), toHandler(s), &pair{})
	if got, want := err.Error(), "key: is empty"; got != want {
		t.Errorf("got text %q, want %q", got, want)
	}
	if skep.KindOf(err) != skep.Invalid || skep.FieldOf(err) != "key" || Code(err) != code.Code_INVALID_ARGUMENT {
		t.Errorf("got kind %s, field %q, code %s", skep.KindOf(err), skep.FieldOf(err), Code(err))
	}
	e, ok := errors.AsType[*Error](err)
	if !ok || e.HTTP != 400 || len(e.Details) != 1 {
		t.Errorf("got %#v", err)
	}
}

// Answers that are not from a pRPC server, or broken: spec/prpc.md §11.
func TestClientJudgesAnswers(t *testing.T) {
	const binary = "application/prpc; encoding=binary"
	for _, tc := range []struct {
		name   string
		answer reply
		code   code.Code
		kind   skep.Kind
		text   string
		tries  int
	}{
		{"401 without code", answer(401, "log in"), 16, skep.Unauthenticated, "log in", 1},
		{"403 without code", answer(403, ""), 7, skep.Denied, "not allowed (HTTP 403)", 1},
		{"503 without code", answer(503, "<html><head><title>x</title></head><body><h1>Over&nbsp;loaded</h1>\n<p>later</p></body></html>", "Content-Type", "text/html; charset=utf-8"), 14, skep.Unavailable, "Over loaded later", 3},
		{"502 without code", answer(502, ""), 13, skep.Internal, "HTTP 502: Bad Gateway", 3},
		{"404 without code", answer(404, "404 page not found"), 13, skep.Internal, "HTTP 404 from server.example, which does not look like a pRPC server", 1},
		{"200 without code", answer(200, "hi"), 13, skep.Internal, "HTTP 200 from server.example, which does not look like a pRPC server", 1},
		{"code is no number", answer(200, "", headerCode, "x"), 13, skep.Internal, `header X-Prpc-Grpc-Code: "x" is not a number`, 1},
		{"another content type", answer(200, "{}", headerCode, "0", "Content-Type", "application/json"), 13, skep.Internal, `the answer is "application/json", not application/prpc; encoding=binary`, 1},
		{"no content type", answer(200, "", headerCode, "0", "Content-Type", ""), 13, skep.Internal, `the answer is "", not application/prpc; encoding=binary`, 1},
		{"broken message", answer(200, "\x0a\xff", headerCode, "0", "Content-Type", binary), 13, skep.Internal, "decoding the answer: ...", 1},
		{"broken details", answer(400, "bad\n", headerCode, "3", headerDetails, "%"), 13, skep.Internal, "header X-Prpc-Status-Details-Bin: ...", 1},
		{"unknown", answer(500, "oops\n", headerCode, "2"), 2, skep.Internal, "oops", 3},
		{"internal", answer(500, "oops\n", headerCode, "13"), 13, skep.Internal, "oops", 3},
		{"unavailable", answer(503, "soon\n", headerCode, "14"), 14, skep.Unavailable, "soon", 3},
		{"deadline exceeded", answer(504, "slow\n", headerCode, "4"), 4, skep.Unavailable, "slow", 3},
		{"not found", answer(404, "no such task\n", headerCode, "5"), 5, skep.NotFound, "no such task", 1},
		{"exhausted", answer(429, "full\n", headerCode, "8"), 8, skep.Exhausted, "full", 1},
		{"unimplemented", answer(501, "no\n", headerCode, "12"), 12, skep.Precondition, "no", 1},
		{"a code of the future", answer(500, "?\n", headerCode, "77"), 77, skep.Internal, "?", 1},
		{"no text", answer(404, "", headerCode, "5"), 5, skep.NotFound, "NOT_FOUND", 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tries := 0
				c := to(func(*http.Request) (*http.Response, error) {
					tries++
					return tc.answer.send()
				})
				c.Retry.Times = 2
				_, err := say(t.Context(), c, &pair{})
				text := fmt.Sprint(err)
				if begin, ok := strings.CutSuffix(tc.text, "..."); ok {
					text, tc.text = text[:min(len(text), len(begin))], begin
				}
				if Code(err) != tc.code || skep.KindOf(err) != tc.kind || text != tc.text {
					t.Errorf("got %s, %s, %q; want %s, %s, %q", Code(err), skep.KindOf(err), err, tc.code, tc.kind, tc.text)
				}
				if tries != tc.tries {
					t.Errorf("%d attempts, want %d", tries, tc.tries)
				}
			})
		})
	}
}

func TestClientLimitsAnswers(t *testing.T) {
	c := toHandler(echoServer(t, Options{}, nil))
	c.MaxResponse = 100
	if _, err := say(t.Context(), c, &pair{Key: strings.Repeat("k", 98)}); err != nil {
		t.Errorf("an answer of 100 bytes: %v", err)
	}
	tries := 0
	lying := to(func(r *http.Request) (*http.Response, error) { // a server that does not know the header
		tries++
		r.Header.Del(headerMaxResponse)
		return toHandler(echoServer(t, Options{}, nil)).HTTP.Transport.RoundTrip(r)
	})
	lying.MaxResponse = 100
	for name, c := range map[string]*Client{"refused by the server": c, "refused by the client": lying} {
		_, err := say(t.Context(), c, &pair{Key: strings.Repeat("k", 200)})
		var d prpcpb.ErrorDetails
		e, ok := errors.AsType[*Error](err)
		if !ok || e.Code != code.Code_UNAVAILABLE || !e.Detail(&d) || d.GetResponseTooBig().GetResponseLimit() != 100 {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if tries != 1 {
		t.Errorf("a large answer was fetched %d times", tries)
	}
}

func TestClientCutsErrorTexts(t *testing.T) {
	_, err := say(t.Context(), to(func(*http.Request) (*http.Response, error) {
		return answer(404, strings.Repeat("é", 4000), headerCode, "5").send()
	}), &pair{})
	if got := err.Error(); len(got) != maxErrorText+3 || !strings.HasSuffix(got, "é...") {
		t.Errorf("got %d bytes, end %q", len(got), got[len(got)-8:])
	}
}

// The pauses of the existing command line: ten retries from 1 s to 60 s, ours up to half shorter.
func TestClientRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start, tries := time.Now(), 0
		c := to(func(*http.Request) (*http.Response, error) {
			tries++
			return answer(503, "soon", headerCode, "14").send()
		})
		_, err := say(t.Context(), c, &pair{})
		if took := time.Since(start); tries != 11 || Code(err) != code.Code_UNAVAILABLE || took > 303*time.Second || took < 151*time.Second {
			t.Errorf("%d attempts in %v: %v", tries, took, err)
		}
	})
}

func TestClientRetriesUntilItWorks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		s := echoServer(t, Options{}, nil)
		c := to(func(r *http.Request) (*http.Response, error) {
			if tries++; tries < 4 {
				return nil, errors.New("connection reset")
			}
			return toHandler(s).HTTP.Transport.RoundTrip(r)
		})
		got, err := say(t.Context(), c, &pair{Key: "hello"})
		if err != nil || got.Key != "hello" || tries != 4 {
			t.Errorf("%d attempts: %v, %v", tries, got, err)
		}
	})
}

func TestClientRetriesWithinLimits(t *testing.T) {
	busy := func(*http.Request) (*http.Response, error) { return answer(503, "soon", headerCode, "14").send() }
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		c := to(busy)
		c.Retry = Retry{Times: 1000, For: 30 * time.Second, Max: 5 * time.Second}
		_, err := say(t.Context(), c, &pair{})
		if took := time.Since(start); took < 30*time.Second || took > 36*time.Second || err == nil {
			t.Errorf("gave up after %v: %v", took, err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		start := time.Now()
		_, err := say(ctx, to(busy), &pair{})
		if took := time.Since(start); took != 10*time.Second || !errors.Is(err, context.DeadlineExceeded) || Code(err) != code.Code_UNAVAILABLE {
			t.Errorf("gave up after %v: %v, %s", took, err, Code(err))
		}
	})
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		c := to(func(*http.Request) (*http.Response, error) { tries++; return busy(nil) })
		c.Retry.Times = -1
		if _, err := say(t.Context(), c, &pair{}); err == nil || tries != 1 {
			t.Errorf("%d attempts without retries: %v", tries, err)
		}
	})
}

// An attempt that takes too long is repeated; the call as a whole ends with its context.
func TestClientTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		c := to(func(r *http.Request) (*http.Response, error) {
			tries++
			<-r.Context().Done()
			return nil, r.Context().Err()
		})
		c.Timeout, c.Retry.Times = 90*time.Second, 1
		_, err := say(t.Context(), c, &pair{})
		if tries != 2 || Code(err) != code.Code_DEADLINE_EXCEEDED || skep.KindOf(err) != skep.Unavailable {
			t.Errorf("%d attempts: %v", tries, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		_, err = say(ctx, c, &pair{})
		if tries != 3 || !errors.Is(err, context.Canceled) || Code(err) != code.Code_CANCELLED {
			t.Errorf("%d attempts: %v", tries, err)
		}
	})
}

var refused = &net.OpError{Op: "dial", Net: "tcp", Err: fmt.Errorf("connect: %w", errRefused)}

func TestClientGivesUpOnClosedPorts(t *testing.T) {
	nobody := func(*http.Request) (*http.Response, error) { return nil, refused }
	for _, tc := range []struct {
		name     string
		retry    Retry
		min, max time.Duration
	}{
		{"by default", Retry{}, 2 * time.Second, 2500 * time.Millisecond},
		{"as told", Retry{Refused: time.Minute}, time.Minute, time.Minute + 500*time.Millisecond},
		{"with the patience of any other failure", Retry{Refused: -1, For: 10 * time.Second}, 10 * time.Second, 11 * time.Second},
		{"without retries", Retry{Times: -1}, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := to(nobody)
				c.Retry = tc.retry
				start := time.Now()
				_, err := say(t.Context(), c, &pair{})
				if took := time.Since(start); took < tc.min || took > tc.max {
					t.Errorf("gave up after %v, want %v to %v", took, tc.min, tc.max)
				}
				if !Refused(err) || skep.KindOf(err) != skep.Unavailable || !strings.HasPrefix(err.Error(), "nothing listens at http://server.example: ") {
					t.Errorf("got %v, %s", err, skep.KindOf(err))
				}
			})
		})
	}
}

// A server that has answered once and now refuses is being restarted: that is worth the full patience.
func TestClientWaitsForRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		s := toHandler(echoServer(t, Options{}, nil)).HTTP.Transport
		c := to(func(r *http.Request) (*http.Response, error) {
			if down.Load() {
				return nil, refused
			}
			return s.RoundTrip(r)
		})
		if _, err := say(t.Context(), c, &pair{}); err != nil {
			t.Fatal(err)
		}
		down.Store(true)
		time.AfterFunc(30*time.Second, func() { down.Store(false) })
		if _, err := say(t.Context(), c, &pair{}); err != nil {
			t.Errorf("gave up on a restart: %v", err)
		}
	})
}

func TestClientOfARealClosedPort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	c := &Client{BaseURL: "http://" + l.Addr().String(), Retry: Retry{Times: -1}}
	if _, err := say(t.Context(), c, &pair{}); !Refused(err) {
		t.Errorf("got %v, which is not refused", err)
	}
}

func TestClientFailsFastWithHints(t *testing.T) {
	tls := httptest.NewUnstartedServer(echoServer(t, Options{}, nil))
	tls.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes fail here, as they should
	tls.StartTLS()
	defer tls.Close()
	plain := httptest.NewServer(echoServer(t, Options{}, nil))
	defer plain.Close()
	for _, tc := range []struct{ name, url, want string }{
		{"certificate not trusted", tls.URL, "its certificate is not trusted"},
		{"plain HTTP", strings.Replace(plain.URL, "http:", "https:", 1), "it speaks plain HTTP, not TLS"},
		{"no scheme", "localhost", "the address must begin with http:// or https://"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := say(t.Context(), &Client{BaseURL: tc.url}, &pair{})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
	if _, err := say(t.Context(), &Client{BaseURL: tls.URL, HTTP: tls.Client()}, &pair{Key: "x"}); err != nil {
		t.Errorf("with the right roots: %v", err)
	}
}

// Whatever a server sends, the client makes an answer or an error of it.
func FuzzAnswer(f *testing.F) {
	f.Add(200, "0", "application/prpc; encoding=binary", "", "\x0a\x01a")
	f.Add(400, "3", "text/plain", "CgA=,CgA=", "bad\n")
	f.Add(502, "", "text/html", "", "<html><script>x</script>&amp;</html>")
	f.Fuzz(func(t *testing.T, status int, number, contentType, details, body string) {
		r := &http.Response{StatusCode: status, Body: io.NopCloser(strings.NewReader(body)), ContentLength: -1, Header: http.Header{
			headerCode: {number}, "Content-Type": {contentType}, headerDetails: {details},
		}}
		e, _ := readAnswer(r, 1000, &pair{})
		if e != nil && (e.Code == code.Code_OK || len(e.Error()) > 3*maxErrorText+200) {
			t.Errorf("got error %v", e)
		}
	})
}
