package prpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/skepdev/skep/api/prpc/discoverypb"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Prefix is the path below which a Server expects its calls: /prpc/<package>.<Service>/<Method>.
const Prefix = "/prpc/"

// Options are the choices of a Server. The zero value serves everyone, without CORS and compression.
type Options struct {
	// Log gets panics and the errors whose text callers do not see; nil is slog.DiscardHandler.
	Log *slog.Logger
	// Before, if any, is asked before the body is read. It may return a context that says more, or an error that ends
	// the call. It finds the call with CallFrom. Discovery is served without asking it.
	Before func(context.Context) (context.Context, error)
	// Done, if any, is told of every call of a known method when its answer is written, with the error of the handler
	// or of Before, if that was the reason.
	Done func(c *Call, outcome code.Code, took time.Duration, err error)
	// Compress says which answers may be compressed.
	Compress Compression
	// MaxRequest limits request bodies, in bytes before and after decompression; 0 is MaxRequest.
	MaxRequest int64
	// CORS says which foreign pages may call; nil is none.
	CORS *CORS
}

// Server serves pRPC below Prefix. Register everything before the first call; then it serves many at a time.
type Server struct {
	opt      Options
	methods  map[string]*method // by "service/method"
	services map[string]protoreflect.ServiceDescriptor
	describe atomic.Pointer[discoverypb.DescribeResponse]
}

// method is a Handler in its place.
type method struct {
	Handler
	service, name string
	open          bool // Before is not asked
}

// NewServer returns a Server that serves discovery.Discovery and nothing else yet.
func NewServer(opt Options) *Server {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.MaxRequest <= 0 {
		opt.MaxRequest = MaxRequest
	}
	s := &Server{opt: opt, methods: map[string]*method{}, services: map[string]protoreflect.ServiceDescriptor{}}
	if err := s.registerDiscovery(); err != nil {
		panic(err) // both sides of it are in this package
	}
	return s
}

// Register adds a service. It fails, naming every fault, when a method of the descriptor has no handler, a handler
// no method, their messages differ, a method streams, or the service is there already; then nothing is added.
func (s *Server) Register(service protoreflect.ServiceDescriptor, methods Methods) error {
	name := string(service.FullName())
	var errs []error
	if s.services[name] != nil {
		errs = append(errs, fmt.Errorf("service %s is registered already", name))
	}
	for i := range service.Methods().Len() {
		d := service.Methods().Get(i)
		h, ok := methods[string(d.Name())]
		switch {
		case !ok:
			errs = append(errs, fmt.Errorf("method %s has no handler", d.FullName()))
		case d.IsStreamingClient() || d.IsStreamingServer():
			errs = append(errs, fmt.Errorf("method %s streams, which pRPC cannot", d.FullName()))
		case h.serve == nil:
			errs = append(errs, fmt.Errorf("method %s has a handler that Unary did not make", d.FullName()))
		case h.in.FullName() != d.Input().FullName() || h.out.FullName() != d.Output().FullName():
			errs = append(errs, fmt.Errorf("method %s takes %s and returns %s, its handler %s and %s",
				d.FullName(), d.Input().FullName(), d.Output().FullName(), h.in.FullName(), h.out.FullName()))
		}
	}
	for n := range methods {
		if service.Methods().ByName(protoreflect.Name(n)) == nil {
			errs = append(errs, fmt.Errorf("service %s has no method %s", name, n))
		}
	}
	if len(errs) > 0 {
		slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
		return errors.Join(errs...)
	}
	for n, h := range methods {
		s.methods[name+"/"+n] = &method{Handler: h, service: name, name: n}
	}
	s.services[name] = service
	s.describe.Store(nil)
	return nil
}

// ServeHTTP serves one call.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.opt.CORS.mark(w.Header(), r)
	switch r.Method {
	case http.MethodPost:
	case http.MethodOptions:
		s.opt.CORS.preflight(w.Header(), r)
		w.WriteHeader(http.StatusOK)
		return
	default:
		w.Header().Set("Allow", "OPTIONS, POST")
		f := refuse(code.Code_UNIMPLEMENTED, "calls are POST, not %s", r.Method)
		f.http = http.StatusMethodNotAllowed
		f.write(w, Binary)
		return
	}
	name := strings.TrimPrefix(r.URL.Path, Prefix)
	m := s.methods[name]
	if m == nil {
		s.unknown(name).write(w, Binary)
		return
	}
	s.serve(w, r, m)
}

// unknown says what of a name is not known.
func (s *Server) unknown(name string) *failure {
	service, method, ok := strings.Cut(name, "/")
	switch {
	case !ok || strings.Contains(method, "/"):
		return refuse(code.Code_UNIMPLEMENTED, "path %q is not %s<service>/<method>", name, Prefix)
	case s.services[service] == nil:
		return refuse(code.Code_UNIMPLEMENTED, "service %q is not implemented", service)
	default:
		return refuse(code.Code_UNIMPLEMENTED, "method %q of service %q is not implemented", method, service)
	}
}

// serve answers a call of m.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, m *method) {
	start := time.Now()
	ctx := &callContext{Context: r.Context(), call: Call{Service: m.service, Method: m.name, Request: r}}
	body := getBuffer()
	defer putBuffer(body)

	t, f := readTerms(r.Header)
	if f == nil {
		f = s.run(ctx, m, t, body)
	}
	for name, values := range ctx.call.out {
		w.Header()[name] = values
	}
	outcome, err := code.Code_OK, error(nil)
	if f == nil {
		writeMessage(w, t.out, body, t.gzip && s.opt.Compress.allows(t.out))
	} else {
		outcome, err = f.code, f.cause
		if f.hidden() {
			s.opt.Log.ErrorContext(ctx, "call failed", "service", m.service, "method", m.name, "code", f.code.String(), "err", f.cause)
		}
		f.write(w, t.out)
	}
	if s.opt.Done != nil {
		s.opt.Done(&ctx.call, outcome, time.Since(start), err)
	}
}

// run reads the request, lets the handler work and appends the encoded answer to body.
func (s *Server) run(call *callContext, m *method, t terms, body *bytes.Buffer) (f *failure) {
	defer func() {
		switch p := recover(); p {
		case nil:
		case http.ErrAbortHandler:
			panic(p)
		default:
			s.opt.Log.ErrorContext(call, "panic", "service", m.service, "method", m.name, "panic", p, "stack", string(debug.Stack()))
			f = failed(Errorf(code.Code_INTERNAL, "panic: %v", p))
		}
	}()
	ctx := context.Context(call)
	if t.timed {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, t.timeout)
		defer cancel()
	}
	if s.opt.Before != nil && !m.open {
		var err error
		if ctx, err = s.opt.Before(ctx); err != nil {
			return failed(err)
		}
	}
	req, f := s.request(call.call.Request, m, t.in)
	if f != nil {
		return f
	}
	resp, err := m.serve(ctx, req)
	if err == nil && resp == nil {
		err = Errorf(code.Code_INTERNAL, "the handler returned neither a message nor an error")
	}
	if err != nil {
		return failed(err)
	}
	return respond(body, resp, t)
}

// request reads and decodes the body of a request.
func (s *Server) request(r *http.Request, m *method, in Format) (proto.Message, *failure) {
	body, f := requestBody(r, s.opt.MaxRequest)
	if f != nil {
		return nil, f
	}
	defer putBuffer(body)
	req := m.request()
	if err := unmarshal(in, body.Bytes(), req); err != nil {
		return nil, refuse(code.Code_INVALID_ARGUMENT, "could not decode body: %v", err)
	}
	return req, nil
}

// respond appends the encoded answer to body.
func respond(body *bytes.Buffer, resp proto.Message, t terms) *failure {
	out, err := marshal(t.out, body.AvailableBuffer(), resp)
	if err != nil {
		return failed(Errorf(code.Code_INTERNAL, "encoding the response: %w", err))
	}
	body.Write(out)
	if size := int64(len(out)); t.maxResponse > 0 && size > t.maxResponse {
		return tooBig(size, t.maxResponse)
	}
	return nil
}
