// Package swarming asks other Swarming servers about bots that live there: what
// package machine wants to know, over pRPC, of skep or of the original.
package swarming

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/prpc"
	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/client"
	"github.com/skepdev/skep/provider/machine"
	"github.com/skepdev/skep/store"
)

// Options of New. Server is required.
type Options struct {
	Server    string        // its URL
	Token     func() string // who asks; read at each call, nil or "" = nobody in particular
	RootCAs   *x509.CertPool
	UserAgent string
	Timeout   time.Duration // of one call; 0 = 20 s
}

// Server is another Swarming server. Its methods may be called at once by many,
// and ask once: who wants to know asks again. Close it.
type Server struct {
	c    *client.Client
	skew atomic.Int64 // nanoseconds that its clock is behind ours
}

var _ machine.Swarming = (*Server)(nil)

// New returns a server, or an error about its address. Nothing is sent yet.
func New(o Options) (*Server, error) {
	if o.Timeout == 0 {
		o.Timeout = 20 * time.Second
	}
	c, err := client.New(client.Options{
		Server: o.Server, TokenSource: o.Token, RootCAs: o.RootCAs, UserAgent: o.UserAgent, Timeout: o.Timeout, Retry: prpc.Retry{Times: -1, Refused: time.Nanosecond},
	})
	if err != nil {
		return nil, err
	}
	return &Server{c: c}, nil
}

// Close gives up idle connections.
func (s *Server) Close() { s.c.Close() }

// pageSize is the most that a server gives. spec api-v2.md
const pageSize = 1000

// skewed is how much the clocks must differ for it to matter.
const skewed = 5 * time.Second

// Bots implements machine.Swarming.
func (s *Server) Bots(ctx context.Context, pool, cursor string) (page []machine.SwarmingBot, next string, err error) {
	req := &pb.BotsRequest{Limit: pageSize, Cursor: cursor}
	if pool != "" {
		req.Dimensions = []*pb.StringPair{{Key: "pool", Value: pool}}
	}
	sent := time.Now()
	res, err := s.c.ListBots(ctx, req)
	if err != nil {
		return nil, "", err
	}
	if res.Now != nil {
		behind := sent.Add(time.Since(sent) / 2).Sub(res.Now.AsTime())
		if behind.Abs() < skewed {
			behind = 0
		}
		s.skew.Store(int64(behind))
	}
	for _, b := range res.Items {
		if b.GetDeleted() {
			continue
		}
		page = append(page, machine.SwarmingBot{ID: skep.BotID(b.GetBotId()), VMBot: s.bot(b)})
	}
	return page, res.Cursor, nil
}

// unreadable is the task of a bot that has one whose id says nothing to us.
const unreadable = skep.TaskID(1)

// bot reads what a server says of a bot, by our clock.
func (s *Server) bot(b *pb.BotInfo) store.VMBot {
	at := func(ts *timestamppb.Timestamp) time.Time {
		if ts == nil {
			return time.Time{}
		}
		return ts.AsTime().Add(time.Duration(s.skew.Load())).Truncate(time.Microsecond)
	}
	out := store.VMBot{Known: true, FirstSeen: at(b.FirstSeenTs), LastSeen: at(b.LastSeenTs), Dead: b.IsDead, Terminated: b.IsDead && b.TerminationTaskId != "", Ill: b.Quarantined || b.MaintenanceMsg != ""}
	if b.TaskId != "" && !b.IsDead {
		out.Task = taskID(b.TaskId)
		if out.Task == 0 {
			out.Task = unreadable
		}
	}
	return out
}

// taskID reads the id of a task or a run; 0 = it is none.
func taskID(text string) skep.TaskID {
	id, err := skep.ParseTaskID(text)
	if err != nil {
		return 0
	}
	return id
}

// Bot implements machine.Swarming. One that was deleted is not known.
func (s *Server) Bot(ctx context.Context, id skep.BotID) (store.VMBot, error) {
	b, err := s.c.GetBot(ctx, &pb.BotRequest{BotId: string(id)})
	if err != nil {
		return store.VMBot{}, err
	}
	if b.Deleted {
		return store.VMBot{}, skep.Errorf(skep.NotFound, "bot %s was deleted", id)
	}
	return s.bot(b), nil
}

// Left implements machine.Swarming. spec provider.md §7.6
func (s *Server) Left(ctx context.Context, id skep.BotID, since time.Time) (bool, error) {
	since = since.Add(-time.Duration(s.skew.Load()))
	res, err := s.c.ListBotEvents(ctx, &pb.BotEventsRequest{BotId: string(id), Limit: 5, Start: timestamppb.New(since)})
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(res.Items, func(e *pb.BotEventResponse) bool { return e.GetEventType() == string(skep.EventTerminate) }), nil
}

// Terminate implements machine.Fleet. Who asks is who the token names; caller
// is for a fleet of our own.
func (s *Server) Terminate(ctx context.Context, id skep.BotID, _, reason string) (skep.TaskID, error) {
	res, err := s.c.TerminateBot(ctx, &pb.TerminateRequest{BotId: string(id), Reason: reason})
	if err != nil {
		if mayBeHeeded(err) {
			err = fmt.Errorf("%w: %w", machine.ErrNoAnswer, err)
		}
		return 0, err
	}
	return taskID(res.TaskId), nil
}

// mayBeHeeded says that a call that failed may have done its work: it was sent,
// and the server did not say that it refuses.
func mayBeHeeded(err error) bool {
	e, ok := errors.AsType[*prpc.Error](err)
	if !ok {
		return true
	}
	if e.HTTP != 0 {
		return slices.Contains([]code.Code{code.Code_UNKNOWN, code.Code_INTERNAL, code.Code_DEADLINE_EXCEEDED, code.Code_CANCELLED}, e.Code)
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return false
	}
	_, untrusted := errors.AsType[*tls.CertificateVerificationError](err)
	return !untrusted && !prpc.Refused(err)
}

// Cancel implements machine.Fleet. Who may not cancel there what it asked for
// leaves it: it ends when its time is over.
func (s *Server) Cancel(ctx context.Context, id skep.TaskID, kill bool) (canceled, wasRunning bool, err error) {
	res, err := s.c.CancelTask(ctx, &pb.TaskCancelRequest{TaskId: id.String(), KillRunning: kill})
	switch k := skep.KindOf(err); {
	case err == nil:
		return res.Canceled, res.WasRunning, nil
	case k == skep.Denied, k == skep.Invalid:
		return false, false, nil
	}
	return false, false, err
}

// Delete implements machine.Fleet.
func (s *Server) Delete(ctx context.Context, id skep.BotID) error {
	_, err := s.c.DeleteBot(ctx, &pb.BotRequest{BotId: string(id)})
	return err
}
