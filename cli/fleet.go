package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"google.golang.org/genproto/googleapis/rpc/code"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/prpc"
	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/client"
)

// fleet is a server as commands see it. Its calls, all but Watch, are repeated
// while the server does not answer, which is safe for every one of them: a new
// task carries a request_uuid.
type fleet struct {
	*client.Client
	url   string
	token string // for calls that are not the API's
	roots *x509.CertPool
	notes io.Writer
}

// retry bridges a server's restart: 25 tries within about a minute and a half.
func retry(connectTimeout time.Duration) prpc.Retry {
	return prpc.Retry{Times: 25, First: 100 * time.Millisecond, Max: 5 * time.Second, Refused: connectTimeout}
}

func newFleet(env *Env, c *connection, url, token string, roots *x509.CertPool) (*fleet, error) {
	opt := client.Options{
		Server: url, Token: token, UserAgent: "skep " + version(), RootCAs: roots, Retry: retry(c.connectTimeout),
	}
	if c.verbose {
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
		opt.HTTP = &http.Client{Transport: logged{transport, slog.New(slog.NewTextHandler(env.Stderr, nil))}}
	}
	cl, err := client.New(opt)
	if err != nil {
		return nil, err
	}
	f := &fleet{Client: cl, url: cl.Server(), token: token, roots: roots, notes: env.Stderr}
	if c.quiet {
		f.notes = io.Discard
	}
	return f, nil
}

// logged writes a line per call for --verbose. Headers, which may hold a
// token, are not written.
type logged struct {
	http.RoundTripper
	log *slog.Logger
}

func (l logged) RoundTrip(r *http.Request) (*http.Response, error) {
	start := time.Now()
	res, err := l.RoundTripper.RoundTrip(r)
	took := time.Since(start)
	if err != nil {
		l.log.Info("call", "path", r.URL.Path, "took", took, "err", err)
		return nil, err
	}
	l.log.Info("call", "path", r.URL.Path, "took", took, "status", res.StatusCode, "code", res.Header.Get("X-Prpc-Grpc-Code"))
	return res, nil
}

// notef tells a person something beside the output.
func (f *fleet) notef(format string, args ...any) {
	fmt.Fprintln(f.notes, "skep:", oneLine(fmt.Sprintf(format, args...)))
}

// isTransient says that the same call may succeed a moment later.
func isTransient(err error) bool {
	switch prpc.Code(err) {
	case code.Code_UNKNOWN, code.Code_INTERNAL, code.Code_UNAVAILABLE, code.Code_DEADLINE_EXCEEDED, code.Code_CANCELLED:
		return true
	default:
		return false
	}
}

// hint says what the user can do about a failed call, "" when the error's own
// text is all there is to say.
func hint(err error) string {
	_, database := errors.AsType[*pgconn.ConnectError](err)
	switch {
	case database:
		return "; see that PostgreSQL is there, and that --db or SKEP_DB names it"
	case prpc.Refused(err), errors.Is(err, syscall.ECONNREFUSED):
		return "; start a server with skep up, or name another with --server or SKEP_SERVER"
	case isUntrusted(err):
		return "; if it made its own (--tls-self-signed), name its authority with --ca-file or SKEP_CA_FILE: ca.pem of its state directory"
	case errors.Is(err, io.EOF) && strings.HasPrefix(err.Error(), "http://"):
		return "; if it speaks TLS, its address begins with https://"
	case skep.KindOf(err) == skep.Unauthenticated:
		return "; set SKEP_TOKEN or --token-file (skep token create makes a token)"
	}
	return ""
}

// isUntrusted tells a certificate of an authority that nobody knows from one
// that is wrong.
func isUntrusted(err error) bool {
	_, ok := errors.AsType[x509.UnknownAuthorityError](err)
	return ok
}

// stdoutPage is the largest piece of output a server gives, spec/api-v2.md
// §6.6. A shorter answer is the end of what there is.
const stdoutPage = 16384000

// copyStdout writes the output that a task has so far.
func (f *fleet) copyStdout(ctx context.Context, id string, w io.Writer) error {
	for offset := int64(0); ; {
		res, err := f.GetStdout(ctx, &pb.TaskIdWithOffsetRequest{TaskId: id, Offset: offset, Length: stdoutPage})
		if err != nil {
			return err
		}
		if _, err := w.Write(res.Output); err != nil {
			return fmt.Errorf("write the output: %w", err)
		}
		offset += int64(len(res.Output))
		if len(res.Output) < stdoutPage {
			return nil
		}
	}
}

func (f *fleet) listTasks(ctx context.Context, req *pb.TasksWithPerfRequest, limit int) ([]*pb.TaskResultResponse, error) {
	return pages(limit, func(n int32, cursor string) ([]*pb.TaskResultResponse, string, error) {
		req.Limit, req.Cursor = n, cursor
		res, err := f.ListTasks(ctx, req)
		return res.GetItems(), res.GetCursor(), err
	})
}

func (f *fleet) listBotTasks(ctx context.Context, req *pb.BotTasksRequest, limit int) ([]*pb.TaskResultResponse, error) {
	return pages(limit, func(n int32, cursor string) ([]*pb.TaskResultResponse, string, error) {
		req.Limit, req.Cursor = n, cursor
		res, err := f.ListBotTasks(ctx, req)
		return res.GetItems(), res.GetCursor(), err
	})
}

func (f *fleet) listBots(ctx context.Context, req *pb.BotsRequest) ([]*pb.BotInfo, error) {
	return pages(noLimit, func(n int32, cursor string) ([]*pb.BotInfo, string, error) {
		req.Limit, req.Cursor = n, cursor
		res, err := f.ListBots(ctx, req)
		return res.GetItems(), res.GetCursor(), err
	})
}

const (
	pageSize = 1000 // the largest a server gives
	noLimit  = 1<<31 - 1
)

// pages reads a listing until its cursor is empty or limit items are there.
func pages[T any](limit int, page func(n int32, cursor string) ([]T, string, error)) ([]T, error) {
	var all []T
	cursor := ""
	for {
		items, next, err := page(int32(min(limit-len(all), pageSize)), cursor)
		if err != nil {
			return nil, err
		}
		all = append(all, items...)
		if next == "" || len(all) >= limit {
			return all[:min(len(all), limit)], nil
		}
		cursor = next
	}
}
