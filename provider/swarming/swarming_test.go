package swarming

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/prpc"
	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/provider/machine"
	"github.com/skepdev/skep/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// other is another server, of which a test says how it answers.
type other struct {
	bots      func(*pb.BotsRequest) (*pb.BotInfoListResponse, error)
	bot       func(*pb.BotRequest) (*pb.BotInfo, error)
	events    func(*pb.BotEventsRequest) (*pb.BotEventsResponse, error)
	terminate func(*pb.TerminateRequest) (*pb.TerminateResponse, error)
	tokens    []string // of the calls
}

func unary[Q, A any](answer func(*Q) (*A, error)) func(context.Context, *Q) (*A, error) {
	return func(_ context.Context, q *Q) (*A, error) {
		if answer == nil {
			return nil, skep.Errorf(skep.NotFound, "nothing here")
		}
		return answer(q)
	}
}

func serve(t *testing.T, o *other, token func() string) *Server {
	t.Helper()
	rpc := prpc.NewServer(prpc.Options{Before: func(ctx context.Context) (context.Context, error) {
		o.tokens = append(o.tokens, prpc.CallFrom(ctx).Request.Header.Get("Authorization"))
		return ctx, nil
	}})
	err := rpc.Register(pb.File_swarmingpb_services_proto.Services().ByName("Bots"), prpc.Methods{
		"ListBots": prpc.Unary(unary(o.bots)), "GetBot": prpc.Unary(unary(o.bot)), "ListBotEvents": prpc.Unary(unary(o.events)),
		"TerminateBot": prpc.Unary(unary(o.terminate)), "DeleteBot": prpc.Unary(unary[pb.BotRequest, pb.DeleteResponse](nil)),
		"ListBotTasks":     prpc.Unary(unary[pb.BotTasksRequest, pb.TaskListResponse](nil)),
		"CountBots":        prpc.Unary(unary[pb.BotsCountRequest, pb.BotsCount](nil)),
		"GetBotDimensions": prpc.Unary(unary[pb.BotsDimensionsRequest, pb.BotsDimensions](nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return open(t, rpc, token)
}

func open(t *testing.T, h http.Handler, token func() string) *Server {
	t.Helper()
	srv := httptest.NewServer(h)
	s, err := New(Options{Server: srv.URL, Token: token})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		srv.Close()
	})
	return s
}

func TestBots(t *testing.T) {
	now := time.Now().Truncate(time.Microsecond).UTC()
	ahead := time.Duration(0) // the clock of the other server
	at := func(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(now.Add(d + ahead)) }
	var asked *pb.BotsRequest
	o := &other{}
	o.bots = func(q *pb.BotsRequest) (*pb.BotInfoListResponse, error) {
		asked = q
		return &pb.BotInfoListResponse{Cursor: "next", Now: timestamppb.New(time.Now().Add(ahead)), Items: []*pb.BotInfo{
			{BotId: "idle", FirstSeenTs: at(-time.Hour), LastSeenTs: at(-time.Second)},
			{BotId: "busy", FirstSeenTs: at(-time.Hour), LastSeenTs: at(-time.Second), TaskId: "5a01"},
			{BotId: "odd", TaskId: "not hex"},
			{BotId: "ill", Quarantined: true},
			{BotId: "repaired", MaintenanceMsg: "a new disk"},
			{BotId: "left", LastSeenTs: at(-time.Minute), IsDead: true, TerminationTaskId: "5b0", TaskId: "5b1"},
			{BotId: "lost", LastSeenTs: at(-time.Minute), IsDead: true, TaskId: "5c1"},
			{BotId: "deleted", Deleted: true},
		}}, nil
	}
	tokens := []string{"first", "second"}
	s := serve(t, o, func() string { defer func() { tokens = tokens[1:] }(); return tokens[0] })
	want := []machine.SwarmingBot{
		{ID: "idle", VMBot: store.VMBot{Known: true, FirstSeen: now.Add(-time.Hour), LastSeen: now.Add(-time.Second)}},
		{ID: "busy", VMBot: store.VMBot{Known: true, FirstSeen: now.Add(-time.Hour), LastSeen: now.Add(-time.Second), Task: 0x5a0}},
		{ID: "odd", VMBot: store.VMBot{Known: true, Task: unreadable}},
		{ID: "ill", VMBot: store.VMBot{Known: true, Ill: true}},
		{ID: "repaired", VMBot: store.VMBot{Known: true, Ill: true}},
		{ID: "left", VMBot: store.VMBot{Known: true, LastSeen: now.Add(-time.Minute), Dead: true, Terminated: true}},
		{ID: "lost", VMBot: store.VMBot{Known: true, LastSeen: now.Add(-time.Minute), Dead: true}},
	}
	page, next, err := s.Bots(t.Context(), "p", "c")
	if err != nil || next != "next" {
		t.Fatal(next, err)
	}
	if d := cmp.Diff(want, page); d != "" {
		t.Errorf("page (-want +got):\n%s", d)
	}
	wantReq := &pb.BotsRequest{Limit: 1000, Cursor: "c", Dimensions: []*pb.StringPair{{Key: "pool", Value: "p"}}}
	if d := cmp.Diff(wantReq, asked, protocmp.Transform()); d != "" {
		t.Errorf("asked (-want +got):\n%s", d)
	}

	// A server whose clock is an hour ahead says the same.
	ahead = time.Hour
	page, _, err = s.Bots(t.Context(), "", "")
	if err != nil || len(asked.Dimensions) > 0 {
		t.Fatal(asked, err)
	}
	near := cmp.Comparer(func(a, b time.Time) bool { return a.Sub(b).Abs() < time.Minute })
	if d := cmp.Diff(want, page, near); d != "" {
		t.Errorf("page (-want +got):\n%s", d)
	}
	if got := strings.Join(o.tokens, ","); got != "Bearer first,Bearer second" {
		t.Errorf("tokens %s", got)
	}
}

func TestBot(t *testing.T) {
	s := serve(t, &other{
		bot: func(q *pb.BotRequest) (*pb.BotInfo, error) {
			switch q.BotId {
			case "there":
				return &pb.BotInfo{BotId: "there"}, nil
			case "deleted":
				return &pb.BotInfo{BotId: "deleted", Deleted: true}, nil
			}
			return nil, skep.Errorf(skep.NotFound, "no such bot")
		},
		events: func(q *pb.BotEventsRequest) (*pb.BotEventsResponse, error) {
			res := &pb.BotEventsResponse{Items: []*pb.BotEventResponse{{EventType: "bot_shutdown"}}}
			if q.BotId == "told" && q.Limit == 5 && q.Start.AsTime().Equal(time.Unix(7, 0)) {
				res.Items = append(res.Items, &pb.BotEventResponse{EventType: "bot_terminate"})
			}
			return res, nil
		},
	}, nil)
	if b, err := s.Bot(t.Context(), "there"); err != nil || !b.Known {
		t.Error(b, err)
	}
	for _, id := range []skep.BotID{"deleted", "nobody"} {
		if b, err := s.Bot(t.Context(), id); skep.KindOf(err) != skep.NotFound || b.Known {
			t.Errorf("%s: %v, %v", id, b, err)
		}
	}
	for id, want := range map[skep.BotID]bool{"told": true, "killed": false} {
		if got, err := s.Left(t.Context(), id, time.Unix(7, 0)); err != nil || got != want {
			t.Errorf("%s: %v, %v", id, got, err)
		}
	}
}

// Of each way in which telling a bot to end can fail it is known whether the
// bot may have been told. promise P19.
func TestMayBeHeeded(t *testing.T) {
	fails := func(err error) *Server {
		return serve(t, &other{terminate: func(*pb.TerminateRequest) (*pb.TerminateResponse, error) { return nil, err }}, nil)
	}
	nobody := open(t, nil, nil)
	closed := httptest.NewServer(nil)
	gone, err := New(Options{Server: closed.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer gone.Close()
	cases := map[string]struct {
		s    *Server
		want bool
	}{
		"refused":            {fails(skep.Errorf(skep.Denied, "not you")), false},
		"unknown bot":        {fails(skep.Errorf(skep.NotFound, "who")), false},
		"busy":               {fails(skep.Errorf(skep.Unavailable, "later")), false},
		"a fault":            {fails(errors.New("oh")), true},
		"no such method":     {nobody, true},
		"nothing listens":    {gone, false},
		"cut off":            {open(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }), nil), true},
		"no such host":       {named(t, "https://nobody.invalid"), false},
		"not a pRPC server":  {open(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusForbidden) }), nil), false},
		"an unknown success": {open(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }), nil), true},
	}
	closed.Close() // not before the others listen: one of them could be given its port
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := c.s.Terminate(t.Context(), "b", "", "why")
			if err == nil || errors.Is(err, machine.ErrNoAnswer) != c.want {
				t.Errorf("%v", err)
			}
		})
	}
	told := serve(t, &other{terminate: func(q *pb.TerminateRequest) (*pb.TerminateResponse, error) {
		if q.BotId != "b" || q.Reason != "why" {
			t.Errorf("asked %v", q)
		}
		return &pb.TerminateResponse{TaskId: "5d0"}, nil
	}}, nil)
	if id, err := told.Terminate(t.Context(), "b", "caller", "why"); id != 0x5d || err != nil {
		t.Error(id, err)
	}
}

func named(t *testing.T, server string) *Server {
	s, err := New(Options{Server: server})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestCancel(t *testing.T) {
	for name, c := range map[string]struct {
		says code.Code
		want skep.Kind // 0 = no error
	}{
		"nothing there": {code.Code_NOT_FOUND, skep.NotFound},
		"not allowed":   {code.Code_PERMISSION_DENIED, 0},
		"away":          {code.Code_UNAVAILABLE, skep.Unavailable},
		"done":          {code.Code_OK, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				var q pb.TaskCancelRequest
				if err := errors.Join(err, proto.Unmarshal(body, &q)); err != nil || r.URL.Path != "/prpc/swarming.v2.Tasks/CancelTask" || q.TaskId != "5d0" || q.KillRunning {
					t.Errorf("%s: asked %v, %v", r.URL.Path, &q, err)
				}
				w.Header().Set("X-Prpc-Grpc-Code", strconv.Itoa(int(c.says)))
				w.Header().Set("Content-Type", "application/prpc; encoding=binary")
				if c.says != code.Code_OK {
					w.WriteHeader(http.StatusTeapot)
				}
			}), nil)
			_, _, err := s.Cancel(t.Context(), 0x5d, false)
			if c.want == 0 && err != nil || c.want != 0 && skep.KindOf(err) != c.want {
				t.Error(err)
			}
		})
	}
}

func TestPlainTextIsForLoopback(t *testing.T) {
	if _, err := New(Options{Server: "http://swarming.example.com"}); err == nil {
		t.Error("a token would be sent in plain text")
	}
}
