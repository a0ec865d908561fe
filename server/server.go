// Package server is the fleet's HTTP surface: one route table, who may come
// in, and thin handlers that read a request, make one call, and write the
// answer.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/api/prpc"
	"github.com/skepdev/skep/cas/disk"
	"github.com/skepdev/skep/cas/plain"
	"github.com/skepdev/skep/provider/machine"
	"github.com/skepdev/skep/queen"
	"github.com/skepdev/skep/rollout"
	"github.com/skepdev/skep/scheduler"
	"github.com/skepdev/skep/store"
)

// Options of New.
type Options struct {
	Store     *store.Store
	Scheduler *scheduler.Scheduler
	Log       *slog.Logger     // default: nothing is logged
	Now       func() time.Time // default time.Now

	Version string   // of this server
	URLs    []string // public addresses, scheme and host; the first is what tasks are told
	Open    bool     // loopback: without tokens in the store everybody may do everything

	Machines *machine.Reconciler // pools of machines; nil = this server looks after none

	Code   *rollout.Keeper          // bot code; nil = none is handed out
	Script func(name string) string // scripts/NAME of the configuration, "" = there is none; nil = no configuration

	CASInstance string // instance named in manifests of tasks that name none; "" = there is no content-addressed storage
	CAS         string // grpc(s):// URL of the storage that bots use; "" = that of this server
	Blobs       Blobs  // this server's own storage, for its pages; nil = it has none

	Rules func() *Rules // of the moment; nil = the server has no configuration
	// MetricsToken is what a scraper of /metrics may bring instead of a token of
	// scope admin; nil or "" = nothing.
	MetricsToken func() string
	Usage        func() disk.Usage // of this server's own storage; nil = it has none

	// Pin keeps the inputs of a task while it is being accepted, until done is
	// called; nil = they are kept elsewhere.
	Pin func(inputs []skep.CASReference) (done func())

	LookEvery   time.Duration // how often the fleet is looked at; default 10 s
	BehindProxy bool          // callers' addresses and certificates are the proxy's
}

// Server serves one process of a fleet. Its methods may be called at once by
// many.
type Server struct {
	o        Options
	store    *store.Store
	sched    *scheduler.Scheduler
	log      *slog.Logger
	tokens   *tokens
	sessions sessions
	cursors  cursors
	hints    cacheHints
	queen    *queen.Queen
	rpc      *prpc.Server
	mux      *http.ServeMux
	fleet    *fleetHealth
	metrics  *metrics
	plain    *plain.Transfers
	lastAway atomic.Int64 // Unix second of the last log line about an outage
}

// New returns a server over o.Store. It fails when the store cannot be read.
func New(ctx context.Context, o Options) (*Server, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.LookEvery == 0 {
		o.LookEvery = lookEvery
	}
	s := &Server{plain: plain.New(o.Blobs), o: o, store: o.Store, sched: o.Scheduler, log: o.Log, tokens: newTokens(o.Store, o.Now), queen: queen.New(o.Store, o.Log)}
	s.queen.Policy = func() queen.Policy { return s.rules().Queen }
	if err := s.tokens.load(ctx); err != nil {
		return nil, err
	}
	key, err := o.Store.ServerKey(ctx, "session")
	if err != nil {
		return nil, err
	}
	s.sessions.key, s.sessions.now = key, o.Now
	if s.fleet, err = newFleetHealth(ctx, s); err != nil {
		return nil, err
	}
	if key, err = o.Store.ServerKey(ctx, "cursor"); err != nil {
		return nil, err
	}
	if s.cursors, err = newCursors(key); err != nil {
		return nil, err
	}
	// The largest valid request is a NewTask with 8 slices at all their limits.
	const maxRPC = 16 << 20
	s.rpc = prpc.NewServer(prpc.Options{Log: o.Log, Before: s.before, Compress: prpc.CompressNotJSON, MaxRequest: maxRPC})
	if err := s.register(); err != nil {
		return nil, fmt.Errorf("register services: %w", err)
	}
	s.metrics = newMetrics(s)
	s.routes()
	return s, nil
}

// route is one line of the table: what is served and who may use it.
type route struct {
	pattern string
	access  access
	handle  func(*Server, http.ResponseWriter, *http.Request) error
}

// access says who may use a route.
type access uint8

const (
	accessAll access = iota // nobody is asked
	accessRPC               // each method decides
	accessBot               // a bot, or who acts for it
	accessCAS               // everybody known
)

// table is the whole surface and who may use it.
var table = []route{
	{"GET /healthz", accessAll, (*Server).healthz},
	{"GET /readyz", accessAll, (*Server).readyz},
	{"GET /metrics", accessAll, (*Server).serveMetrics},
	{"GET " + botapi.PathServerPing, accessAll, (*Server).serverPing},
	{prpc.Prefix, accessRPC, (*Server).serveRPC},
	{"POST " + botapi.PathHandshake, accessBot, (*Server).handshake},
	{"POST " + botapi.PathPoll, accessBot, (*Server).poll},
	{"POST " + botapi.PathClaim, accessBot, (*Server).claim},
	{"POST " + botapi.PathEvent, accessBot, (*Server).event},
	{"POST " + botapi.PathTaskUpdate, accessBot, (*Server).taskUpdate},
	{"POST " + botapi.PathTaskUpdate + "/{run}", accessBot, (*Server).taskUpdate},
	{"POST " + botapi.PathTaskError, accessBot, (*Server).taskError},
	{"POST " + botapi.PathTaskError + "/{run}", accessBot, (*Server).taskError},
	{"POST " + botapi.PathOAuthToken, accessBot, (*Server).token},
	{"POST " + botapi.PathIDToken, accessBot, (*Server).token},
	{"GET /bot_code", accessAll, (*Server).botCode},
	{"GET " + botapi.PathBotCode + "{digest}", accessAll, (*Server).botCodeVersion},
	{"GET /bootstrap", accessAll, (*Server).bootstrap},
	{"GET /cas/{rest...}", accessCAS, (*Server).casTree},
	{"POST /cas/{rest...}", accessCAS, (*Server).casPost},
	{"/swarming/api/", accessAll, (*Server).notFound},
}

func (s *Server) routes() {
	s.mux = http.NewServeMux()
	for _, rt := range table {
		answers := s.metrics.routes[rt.pattern]
		s.mux.HandleFunc(rt.pattern, func(plain http.ResponseWriter, r *http.Request) {
			w := &countedWriter{ResponseWriter: plain}
			defer func() { answers.note(w.status) }()
			var err error
			if rt.access != accessAll {
				r, err = s.identify(r)
			}
			switch {
			case err != nil:
			case rt.access == accessBot:
				err = s.mayBeBot(callerOf(r.Context()), r.URL.Path)
			case rt.access == accessCAS:
				err = mayUseCAS(callerOf(r.Context()))
			}
			if err == nil {
				err = rt.handle(s, w, r)
			}
			if err != nil {
				s.refuse(w, r, err)
			}
		})
	}
}

// ServeHTTP serves one request after checking that it came through the front
// door.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := s.door(r); err != nil {
		s.refuse(w, r, err)
		return
	}
	if to, ok := casViewer(r); ok { // /INSTANCE/blobs/HASH/SIZE/tree is no pattern: the instance may have any number of segments
		http.Redirect(w, r, to, http.StatusFound)
		return
	}
	limitBody(w, r)
	s.mux.ServeHTTP(w, r)
}

func (s *Server) serveRPC(w http.ResponseWriter, r *http.Request) error {
	s.rpc.ServeHTTP(w, withDroneVersion(r))
	return nil
}

func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) error {
	_, err := w.Write([]byte("ok\n"))
	return err
}

func (s *Server) readyz(w http.ResponseWriter, r *http.Request) error {
	if err := s.store.Ping(r.Context()); err != nil {
		return skep.Errorf(skep.Unavailable, "the database does not answer: %w", err)
	}
	_, err := w.Write([]byte("ok\n" + s.configLines()))
	return err
}

func (s *Server) serverPing(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, err := w.Write([]byte("Server up"))
	return err
}

func (s *Server) notFound(_ http.ResponseWriter, r *http.Request) error {
	return skep.Errorf(skep.NotFound, "no such endpoint: %s %s", r.Method, r.URL.Path)
}

// Drain ends the waits of all bots and readers, so that the listener can be
// closed at once.
func (s *Server) Drain() { s.sched.Drain() }

// quiet reports whether err only says that the caller went away.
func quiet(err error) bool { return errors.Is(err, context.Canceled) }
