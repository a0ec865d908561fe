package cli_test

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/prpc"
	"github.com/skepdev/skep/api/skeppb"
	pb "github.com/skepdev/skep/api/swarmingpb"
)

// fake is a server in memory whose tasks do what their command says:
//
//	echo WORDS...     prints the words
//	drip WORDS...     prints one word per question
//	exit N            ends with exit code N
//	state NAME        ends in that state
//	wait              runs until it is canceled
//	pending           waits until it is canceled
//
// Every third call of any method fails once with UNAVAILABLE when flaky.
type fake struct {
	mu     sync.Mutex
	news   sync.Cond
	tasks  map[string]*fakeTask
	order  []string
	uuids  map[string]string
	bots   map[string]*pb.BotInfo
	calls  int
	flaky  bool
	token  string
	counts map[string]int
}

type fakeTask struct {
	req    *pb.TaskRequestResponse
	res    *pb.TaskResultResponse
	output []byte
	drip   []string
}

// created is when every task was made.
var created = timestamppb.New(time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC))

func newFake() *fake {
	f := &fake{tasks: map[string]*fakeTask{}, uuids: map[string]string{}, bots: map[string]*pb.BotInfo{}, counts: map[string]int{}}
	f.news.L = &f.mu
	for _, id := range []string{"bot--1", "bot--2"} {
		f.bots[id] = &pb.BotInfo{BotId: id, Version: "abc", LastSeenTs: timestamppb.Now(), Dimensions: []*pb.StringListPair{
			{Key: "id", Value: []string{id}}, {Key: "os", Value: []string{"Linux", "Debian-12"}}, {Key: "pool", Value: []string{"default"}},
		}}
	}
	return f
}

// serve returns a server of f that ends with the test.
func (f *fake) serve(t testing.TB) *httptest.Server {
	server := prpc.NewServer(prpc.Options{Before: f.before})
	register := func(service protoreflect.ServiceDescriptor, methods prpc.Methods) {
		if err := server.Register(service, methods); err != nil {
			t.Fatal(err)
		}
	}
	register(pb.File_swarmingpb_services_proto.Services().ByName("Tasks"), prpc.Methods{
		"NewTask":          prpc.Unary(f.newTask),
		"GetResult":        prpc.Unary(f.getResult),
		"BatchGetResult":   prpc.Unary(f.batchGetResult),
		"GetRequest":       prpc.Unary(f.getRequest),
		"CancelTask":       prpc.Unary(f.cancelTask),
		"GetStdout":        prpc.Unary(f.getStdout),
		"ListTasks":        prpc.Unary(f.listTasks),
		"CancelTasks":      prpc.Unary(f.cancelTasks),
		"CountTasks":       prpc.Unary(f.countTasks),
		"ListTaskStates":   prpc.Unary(unused[pb.TaskStatesRequest, pb.TaskStates]),
		"ListTaskRequests": prpc.Unary(unused[pb.TasksRequest, pb.TaskRequestsResponse]),
	})
	register(pb.File_swarmingpb_services_proto.Services().ByName("Bots"), prpc.Methods{
		"GetBot":           prpc.Unary(f.getBot),
		"DeleteBot":        prpc.Unary(f.deleteBot),
		"ListBotEvents":    prpc.Unary(unused[pb.BotEventsRequest, pb.BotEventsResponse]),
		"TerminateBot":     prpc.Unary(f.terminateBot),
		"ListBotTasks":     prpc.Unary(f.listBotTasks),
		"ListBots":         prpc.Unary(f.listBots),
		"CountBots":        prpc.Unary(f.countBots),
		"GetBotDimensions": prpc.Unary(unused[pb.BotsDimensionsRequest, pb.BotsDimensions]),
	})
	register(skeppb.File_skeppb_tasks_proto.Services().ByName("Tasks"), prpc.Methods{"Watch": prpc.Unary(f.watch)})
	s := httptest.NewServer(server)
	t.Cleanup(s.Close)
	t.Cleanup(s.CloseClientConnections)
	return s
}

func unused[Req, Resp any](context.Context, *Req) (*Resp, error) {
	return nil, skep.Errorf(skep.Precondition, "the command line does not call this")
}

func (f *fake) before(ctx context.Context) (context.Context, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	c := prpc.CallFrom(ctx)
	f.counts[c.Method]++
	if f.token != "" && c.Request.Header.Get("Authorization") != "Bearer "+f.token {
		return ctx, skep.Errorf(skep.Unauthenticated, "unknown token")
	}
	if f.flaky && f.calls%3 == 0 {
		return ctx, skep.Errorf(skep.Unavailable, "restarting")
	}
	return ctx, nil
}

func (f *fake) newTask(_ context.Context, req *pb.NewTaskRequest) (*pb.TaskRequestMetadataResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if req.Name == "" || strings.HasSuffix(req.Name, "bad") {
		return nil, skep.Invalidf("name", "%q is not allowed here", req.Name)
	}
	if id, ok := f.uuids[req.RequestUuid]; ok {
		return f.metadata(id), nil
	}
	id := cmp.Or(map[string]string{"one": "aaa0", "two": "bbb0"}[req.Name], fmt.Sprintf("%d0", 1000+len(f.order)))
	props := req.TaskSlices[len(req.TaskSlices)-1].Properties
	t := &fakeTask{
		req: &pb.TaskRequestResponse{
			TaskId: id, Name: req.Name, Priority: req.Priority, Tags: req.Tags, User: req.User, TaskSlices: req.TaskSlices,
			Realm: req.Realm, ParentTaskId: req.ParentTaskId, CreatedTs: created, ServiceAccount: req.ServiceAccount,
			Resultdb: req.Resultdb, Properties: req.TaskSlices[0].Properties,
		},
		res: &pb.TaskResultResponse{TaskId: id, Name: req.Name, Tags: req.Tags, User: req.User, State: pb.TaskState_PENDING, CreatedTs: created},
	}
	f.tasks[id] = t
	f.order = append(f.order, id)
	f.uuids[req.RequestUuid] = id
	f.start(t, props.GetCommand())
	f.news.Broadcast()
	return f.metadata(id), nil
}

func (f *fake) start(t *fakeTask, command []string) {
	if len(command) == 0 || command[0] == "pending" {
		return
	}
	t.res.State, t.res.BotId, t.res.StartedTs = pb.TaskState_RUNNING, "bot--1", timestamppb.Now()
	t.res.RunId = strings.TrimSuffix(t.res.TaskId, "0") + "1"
	switch args := command[1:]; command[0] {
	case "echo":
		t.output = []byte(strings.Join(args, " ") + "\n")
		f.end(t, pb.TaskState_COMPLETED, 0)
	case "drip":
		t.drip = args
	case "exit":
		var code int64
		fmt.Sscan(args[0], &code)
		f.end(t, pb.TaskState_COMPLETED, code)
	case "state":
		f.end(t, pb.TaskState(pb.TaskState_value[args[0]]), -1)
	}
}

func (f *fake) end(t *fakeTask, state pb.TaskState, code int64) {
	t.res.State, t.res.ExitCode, t.res.Failure, t.res.CompletedTs = state, code, code != 0, timestamppb.Now()
	f.news.Broadcast()
}

func (f *fake) metadata(id string) *pb.TaskRequestMetadataResponse {
	t := f.tasks[id]
	return &pb.TaskRequestMetadataResponse{TaskId: id, Request: t.req, TaskResult: clone(t.res)}
}

func clone[M proto.Message](m M) M { return proto.Clone(m).(M) }

func (f *fake) task(id string) (*fakeTask, error) {
	if len(id) > 0 {
		id = id[:len(id)-1] + "0"
	}
	if t := f.tasks[id]; t != nil {
		return t, nil
	}
	return nil, skep.Errorf(skep.NotFound, "no such task")
}

// waitFor returns when the task is in the state.
func (f *fake) waitFor(id string, state pb.TaskState) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.tasks[id] == nil || f.tasks[id].res.State != state {
		f.news.Wait()
	}
}

func (f *fake) getResult(_ context.Context, req *pb.TaskIdWithPerfRequest) (*pb.TaskResultResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t, err := f.task(req.TaskId)
	if err != nil {
		return nil, err
	}
	if t.res.Name == "Terminate bot--1" && t.res.State == pb.TaskState_PENDING { // the bot was idle
		f.end(t, pb.TaskState_COMPLETED, 0)
	}
	return clone(t.res), nil
}

func (f *fake) batchGetResult(_ context.Context, req *pb.BatchGetResultRequest) (*pb.BatchGetResultResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := &pb.BatchGetResultResponse{}
	for _, id := range req.TaskIds {
		r := &pb.BatchGetResultResponse_ResultOrError{TaskId: id}
		if t, err := f.task(id); err != nil {
			r.Outcome = &pb.BatchGetResultResponse_ResultOrError_Error{Error: &rpcstatus.Status{Code: 5, Message: err.Error()}}
		} else {
			r.Outcome = &pb.BatchGetResultResponse_ResultOrError_Result{Result: clone(t.res)}
		}
		out.Results = append(out.Results, r)
	}
	return out, nil
}

func (f *fake) getRequest(_ context.Context, req *pb.TaskIdRequest) (*pb.TaskRequestResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t, err := f.task(req.TaskId)
	if err != nil {
		return nil, err
	}
	return clone(t.req), nil
}

func (f *fake) cancelTask(_ context.Context, req *pb.TaskCancelRequest) (*pb.CancelResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t, err := f.task(req.TaskId)
	if err != nil {
		return nil, err
	}
	return f.cancel(t, req.KillRunning), nil
}

func (f *fake) cancel(t *fakeTask, kill bool) *pb.CancelResponse {
	switch {
	case t.res.State == pb.TaskState_PENDING:
		f.end(t, pb.TaskState_CANCELED, 0)
		return &pb.CancelResponse{Canceled: true}
	case t.res.State == pb.TaskState_RUNNING && kill:
		t.output = append(t.output, "killed\n"...)
		f.end(t, pb.TaskState_KILLED, -15)
		return &pb.CancelResponse{Canceled: true, WasRunning: true}
	}
	return &pb.CancelResponse{WasRunning: t.res.State == pb.TaskState_RUNNING}
}

func (f *fake) getStdout(_ context.Context, req *pb.TaskIdWithOffsetRequest) (*pb.TaskOutputResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t, err := f.task(req.TaskId)
	if err != nil {
		return nil, err
	}
	return &pb.TaskOutputResponse{Output: t.output[min(req.Offset, int64(len(t.output))):], State: t.res.State}, nil
}

func (f *fake) watch(ctx context.Context, req *skeppb.WatchRequest) (*skeppb.WatchResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer context.AfterFunc(ctx, func() { f.mu.Lock(); f.news.Broadcast(); f.mu.Unlock() })()
	for ctx.Err() == nil {
		t, err := f.task(req.TaskId)
		if err != nil {
			return nil, err
		}
		if t.drip != nil {
			if len(t.drip) > 0 {
				t.output = append(t.output, t.drip[0]+"\n"...)
				t.drip = t.drip[1:]
			} else {
				t.drip = nil
				f.end(t, pb.TaskState_COMPLETED, 0)
			}
		}
		out := &skeppb.WatchResponse{Output: t.output[min(req.Offset, int64(len(t.output))):], Offset: req.Offset, State: t.res.State}
		final := t.res.State != pb.TaskState_PENDING && t.res.State != pb.TaskState_RUNNING
		if final {
			out.Result = clone(t.res)
		}
		if final || len(out.Output) > 0 || out.State != req.KnownState {
			return out, nil
		}
		f.news.Wait()
	}
	return nil, ctx.Err()
}

// list returns the tasks that match, newest first.
func (f *fake) list(state pb.StateQuery, tags []string) []*fakeTask {
	var out []*fakeTask
	for _, id := range slices.Backward(f.order) {
		t := f.tasks[id]
		if slices.ContainsFunc(tags, func(tag string) bool { return !slices.Contains(t.res.Tags, tag) }) {
			continue
		}
		if state == pb.StateQuery_QUERY_ALL || "QUERY_"+t.res.State.String() == state.String() {
			out = append(out, t)
		}
	}
	return out
}

// page cuts a page out of a list; the cursor is the place of the next item.
func page[T any](all []T, limit int32, cursor string) ([]T, string) {
	from := 0
	fmt.Sscan(cursor, &from)
	all = all[min(from, len(all)):]
	n := min(int(cmp.Or(limit, 100)), 2, len(all)) // small pages, so that cursors are used
	next := ""
	if n == min(int(limit), 2) {
		next = fmt.Sprint(from + n)
	}
	return all[:n], next
}

func (f *fake) listTasks(_ context.Context, req *pb.TasksWithPerfRequest) (*pb.TaskListResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	tasks, cursor := page(f.list(req.State, req.Tags), req.Limit, req.Cursor)
	out := &pb.TaskListResponse{Cursor: cursor, Now: timestamppb.Now()}
	for _, t := range tasks {
		out.Items = append(out.Items, clone(t.res))
	}
	return out, nil
}

func (f *fake) countTasks(_ context.Context, req *pb.TasksCountRequest) (*pb.TasksCount, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &pb.TasksCount{Count: int32(len(f.list(req.State, req.Tags)))}, nil
}

func (f *fake) cancelTasks(_ context.Context, req *pb.TasksCancelRequest) (*pb.TasksCancelResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var matched []*fakeTask
	for _, t := range f.list(pb.StateQuery_QUERY_ALL, req.Tags) {
		if t.res.State == pb.TaskState_PENDING || req.KillRunning && t.res.State == pb.TaskState_RUNNING {
			matched = append(matched, t)
		}
	}
	tasks, cursor := page(matched, req.Limit, "")
	for _, t := range tasks {
		f.cancel(t, req.KillRunning)
	}
	return &pb.TasksCancelResponse{Cursor: cursor, Matched: int32(len(tasks))}, nil
}

func (f *fake) bot(id string) (*pb.BotInfo, error) {
	if b := f.bots[id]; b != nil {
		return b, nil
	}
	return nil, skep.Errorf(skep.NotFound, "no such bot: %s", id)
}

func (f *fake) getBot(_ context.Context, req *pb.BotRequest) (*pb.BotInfo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.bot(req.BotId)
}

func (f *fake) deleteBot(_ context.Context, req *pb.BotRequest) (*pb.DeleteResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.bot(req.BotId); err != nil {
		return nil, err
	}
	delete(f.bots, req.BotId)
	return &pb.DeleteResponse{Deleted: true}, nil
}

func (f *fake) terminateBot(ctx context.Context, req *pb.TerminateRequest) (*pb.TerminateResponse, error) {
	props := &pb.TaskProperties{Dimensions: []*pb.StringPair{{Key: "id", Value: req.BotId}}}
	t, err := f.newTask(ctx, &pb.NewTaskRequest{Name: "Terminate " + req.BotId, RequestUuid: "t" + req.BotId, TaskSlices: []*pb.TaskSlice{{Properties: props}}})
	if err != nil {
		return nil, err
	}
	return &pb.TerminateResponse{TaskId: t.TaskId}, nil
}

func (f *fake) listBotTasks(_ context.Context, req *pb.BotTasksRequest) (*pb.TaskListResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var ran []*pb.TaskResultResponse
	for _, t := range f.list(req.State, nil) {
		if t.res.BotId == req.BotId {
			ran = append(ran, clone(t.res))
		}
	}
	items, cursor := page(ran, req.Limit, req.Cursor)
	return &pb.TaskListResponse{Items: items, Cursor: cursor}, nil
}

func (f *fake) listBots(_ context.Context, req *pb.BotsRequest) (*pb.BotInfoListResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	items, cursor := page(f.matching(req.Dimensions), req.Limit, req.Cursor)
	return &pb.BotInfoListResponse{Items: items, Cursor: cursor}, nil
}

func (f *fake) countBots(_ context.Context, req *pb.BotsCountRequest) (*pb.BotsCount, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &pb.BotsCount{Count: int32(len(f.matching(req.Dimensions)))}, nil
}

func (f *fake) matching(want []*pb.StringPair) []*pb.BotInfo {
	var out []*pb.BotInfo
	for _, id := range slices.Sorted(maps.Keys(f.bots)) {
		b := f.bots[id]
		has := func(w *pb.StringPair) bool {
			return slices.ContainsFunc(b.Dimensions, func(d *pb.StringListPair) bool { return d.Key == w.Key && slices.Contains(d.Value, w.Value) })
		}
		if !slices.ContainsFunc(want, func(w *pb.StringPair) bool { return !has(w) }) {
			out = append(out, b)
		}
	}
	return out
}
