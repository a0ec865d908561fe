package server

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/api/prpc"
	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/client"
	"github.com/skepdev/skep/scheduler"
	"github.com/skepdev/skep/store"
)

// fleet is one server of a test with a client.
type fleet struct {
	t      *testing.T
	url    string
	store  *store.Store
	client *client.Client
	server *Server
}

// start brings up a server without a listener. It runs until the test ends.
func start(t testing.TB, change func(*Options)) (*Server, *store.Store) {
	t.Helper()
	return startOn(t, filepath.Join(t.TempDir(), "skep.db"), change)
}

func startOn(t testing.TB, dsn string, change func(*Options)) (*Server, *store.Store) {
	t.Helper()
	st, err := store.Open(t.Context(), dsn, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	sched := scheduler.New(st, scheduler.Options{Log: log, Version: "test-1"})
	if err := sched.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	o := Options{Store: st, Scheduler: sched, Log: log, Version: "test-1", Open: true, CASInstance: "projects/skep/instances/default"}
	if change != nil {
		change(&o)
	}
	srv, err := New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- sched.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	return srv, st
}

// handler is start for those who call the server without a network.
func handler(t testing.TB) *Server {
	srv, _ := start(t, nil)
	return srv
}

// serve starts a server on a loopback port.
func serve(t *testing.T, change func(*Options)) *fleet {
	t.Helper()
	return serveOn(t, filepath.Join(t.TempDir(), "skep.db"), change)
}

func serveOn(t *testing.T, dsn string, change func(*Options)) *fleet {
	t.Helper()
	srv, st := startOn(t, dsn, change)
	hs := httptest.NewServer(srv)
	t.Cleanup(func() {
		srv.Drain()
		hs.Close()
	})
	c, err := client.New(client.Options{Server: hs.URL, Retry: prpc.Retry{Times: -1}})
	if err != nil {
		t.Fatal(err)
	}
	return &fleet{t: t, url: hs.URL, store: st, client: c, server: srv}
}

// post sends a Bot API call and returns its status and answer.
func (f *fleet) post(path string, body any, header ...string) (int, map[string]any) {
	f.t.Helper()
	b, ok := body.([]byte)
	if !ok {
		var err error
		if b, err = json.Marshal(body); err != nil {
			f.t.Fatal(err)
		}
	}
	req, err := http.NewRequestWithContext(f.t.Context(), http.MethodPost, f.url+path, bytes.NewReader(b))
	if err != nil {
		f.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json; charset=UTF-8")
	for i := 0; i+1 < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	defer res.Body.Close()
	var out map[string]any
	if err := json.NewDecoder(res.Body).Decode(&out); err != nil {
		f.t.Fatalf("%s: %d, body: %v", path, res.StatusCode, err)
	}
	if ct := res.Header.Get("Content-Type"); ct != "application/json; charset=utf-8" {
		f.t.Errorf("%s: Content-Type %q", path, ct)
	}
	return res.StatusCode, out
}

// bot is a bot of a test that speaks the wire itself.
type bot struct {
	*fleet
	id, session string
}

func (f *fleet) bot(id string) *bot {
	f.t.Helper()
	b := &bot{fleet: f, id: id}
	code, ans := f.post(botapi.PathHandshake, map[string]any{
		"dimensions": b.dims(), "state": map[string]any{}, "version": "v", "session_id": "s1",
	})
	if code != 200 || ans["session"] == "" {
		f.t.Fatalf("handshake: %d %v", code, ans)
	}
	b.session = ans["session"].(string)
	return b
}

func (b *bot) dims() map[string][]string {
	return map[string][]string{"id": {b.id}, "pool": {"default"}, "os": {"Linux", "Debian"}}
}

func (b *bot) poll(key string, wait float64) map[string]any {
	b.t.Helper()
	code, ans := b.post(botapi.PathPoll, map[string]any{
		"dimensions": b.dims(), "state": map[string]any{"sleep_streak": 0}, "version": "v", "session": b.session, "request_uuid": key, "wait": wait,
	})
	if code != 200 {
		b.t.Fatalf("poll: %d %v", code, ans)
	}
	return ans
}

func (b *bot) update(run string, more map[string]any) (int, map[string]any) {
	b.t.Helper()
	body := map[string]any{"id": b.id, "task_id": run, "session": b.session, "cost_usd": 0.1}
	for k, v := range more {
		body[k] = v
	}
	return b.post(botapi.PathTaskUpdate+"/"+run, body)
}

// task returns a request that a bot of the test can run.
func task(name string) *pb.NewTaskRequest {
	return &pb.NewTaskRequest{
		Name: name, Priority: 200,
		TaskSlices: []*pb.TaskSlice{{ExpirationSecs: 3600, WaitForCapacity: true, Properties: &pb.TaskProperties{
			Command: []string{"echo", "hi"}, ExecutionTimeoutSecs: 60, GracePeriodSecs: 5, IoTimeoutSecs: 60,
			Dimensions: []*pb.StringPair{{Key: "pool", Value: "default"}, {Key: "os", Value: "Linux|Mac"}},
		}}},
	}
}

func (f *fleet) newTask(req *pb.NewTaskRequest) string {
	f.t.Helper()
	ans, err := f.client.NewTask(f.t.Context(), req)
	if err != nil {
		f.t.Fatal(err)
	}
	return ans.TaskId
}

func (f *fleet) result(id string) *pb.TaskResultResponse {
	f.t.Helper()
	r, err := f.client.GetResult(f.t.Context(), &pb.TaskIdWithPerfRequest{TaskId: id, IncludePerformanceStats: true})
	if err != nil {
		f.t.Fatal(err)
	}
	return r
}

func runOf(id string) string { return id[:len(id)-1] + "1" }

func TestLifeOfATask(t *testing.T) {
	f := serve(t, nil)
	b := f.bot("b1")
	if ans := b.poll("k0", 0); ans["cmd"] != "sleep" {
		t.Fatalf("idle poll: %v", ans)
	}
	id := f.newTask(task("t"))
	ans := b.poll("k1", 10)
	m, _ := ans["manifest"].(map[string]any)
	if ans["cmd"] != "run" || m["task_id"] != runOf(id) {
		t.Fatalf("poll: %v", ans)
	}
	if again := b.poll("k1", 10); again["cmd"] != "run" || again["manifest"].(map[string]any)["task_id"] != runOf(id) {
		t.Fatalf("repeated poll: %v", again)
	}
	if code, ans := b.update(runOf(id), nil); code != 200 || ans["ok"] != true || ans["must_stop"] != false {
		t.Fatalf("start: %d %v", code, ans)
	}
	for range 2 { // a repetition changes nothing
		if code, _ := b.update(runOf(id), map[string]any{"output": []byte("hello "), "output_chunk_start": 0}); code != 200 {
			t.Fatal("output")
		}
	}
	w, err := f.client.Watch(t.Context(), id, 0, pb.TaskState_RUNNING, time.Second)
	if err != nil || string(w.Output) != "hello " {
		t.Fatalf("watch: %v %v", w, err)
	}
	final := map[string]any{"output": []byte("world"), "output_chunk_start": 6, "exit_code": 3, "duration": 1.5, "bot_overhead": 0.5}
	for range 2 {
		if code, ans := b.update(runOf(id), final); code != 200 || ans["ok"] != true {
			t.Fatalf("final: %v", ans)
		}
	}
	r := f.result(id)
	if r.State != pb.TaskState_COMPLETED || r.ExitCode != 3 || !r.Failure || r.BotId != "b1" || r.RunId != runOf(id) || r.PerformanceStats.GetBotOverhead() != 0.5 {
		t.Errorf("result: %v", r)
	}
	out, err := f.client.GetStdout(t.Context(), &pb.TaskIdWithOffsetRequest{TaskId: id})
	if err != nil || string(out.Output) != "hello world" {
		t.Errorf("output %q %v", out.GetOutput(), err)
	}
	info, err := f.client.GetBot(t.Context(), &pb.BotRequest{BotId: "b1"})
	if err != nil || info.TaskId != "" || info.IsDead {
		t.Errorf("bot: %v %v", info, err)
	}
}

func TestKillReachesTheBotAtOnce(t *testing.T) {
	f := serve(t, nil)
	b := f.bot("b1")
	id := f.newTask(task("t"))
	b.poll("k1", 10)
	stop := make(chan map[string]any, 1)
	go func() {
		_, ans := b.update(runOf(id), map[string]any{"wait": 30})
		stop <- ans
	}()
	c, err := f.client.CancelTask(t.Context(), &pb.TaskCancelRequest{TaskId: id, KillRunning: true})
	if err != nil || !c.Canceled || !c.WasRunning {
		t.Fatalf("cancel: %v %v", c, err)
	}
	if ans := <-stop; ans["must_stop"] != true {
		t.Errorf("control: %v", ans)
	}
	if c, err = f.client.CancelTask(t.Context(), &pb.TaskCancelRequest{TaskId: id, KillRunning: true}); err != nil || c.Canceled || !c.WasRunning {
		t.Errorf("second cancel: %v %v", c, err)
	}
	b.update(runOf(id), map[string]any{"exit_code": -15, "duration": 1})
	if r := f.result(id); r.State != pb.TaskState_KILLED || r.AbandonedTs == nil {
		t.Errorf("result: %v", r)
	}
}

func TestANewHandshakeLosesTheTask(t *testing.T) {
	f := serve(t, nil)
	b := f.bot("b1")
	id := f.newTask(task("t"))
	b.poll("k1", 10)
	f.bot("b1")
	if r := f.result(id); r.State != pb.TaskState_BOT_DIED || !r.InternalFailure || r.ExitCode != -1 {
		t.Errorf("result: %v", r)
	}
	if _, ans := b.update(runOf(id), nil); ans["must_stop"] != true {
		t.Errorf("late update: %v", ans)
	}
}

func TestASecondPollEndsTheFirst(t *testing.T) {
	f := serve(t, nil)
	b := f.bot("b1")
	b.poll("k0", 0)
	first := make(chan map[string]any, 1)
	go func() { first <- b.poll("k1", 40) }()
	second := make(chan map[string]any, 1)
	var ans map[string]any
	for range 100 { // until the second came after the first
		go func() { second <- b.poll("k2", 0.01) }()
		<-second
		select {
		case ans = <-first:
		default:
			continue
		}
		break
	}
	if ans["cmd"] != "sleep" {
		t.Errorf("first poll: %v", ans)
	}
}

func TestNoResource(t *testing.T) {
	f := serve(t, nil)
	f.bot("b1").poll("k", 0)
	req := task("t")
	req.TaskSlices[0].WaitForCapacity = false
	req.TaskSlices[0].Properties.Dimensions[1].Value = "Windows"
	if r := f.result(f.newTask(req)); r.State != pb.TaskState_NO_RESOURCE || r.CompletedTs == nil {
		t.Errorf("result: %v", r)
	}
}

func TestTerminate(t *testing.T) {
	f := serve(t, nil)
	b := f.bot("b1")
	b.poll("k", 0)
	one, err := f.client.TerminateBot(t.Context(), &pb.TerminateRequest{BotId: "b1", Reason: "r"})
	if err != nil {
		t.Fatal(err)
	}
	two, err := f.client.TerminateBot(t.Context(), &pb.TerminateRequest{BotId: "b1"})
	if err != nil || two.TaskId != one.TaskId {
		t.Errorf("second call: %v %v", two, err)
	}
	ans := b.poll("k1", 5)
	if ans["cmd"] != "terminate" || ans["task_id"] != runOf(one.TaskId) {
		t.Fatalf("poll: %v", ans)
	}
	b.update(runOf(one.TaskId), map[string]any{"exit_code": 0, "duration": 0})
	code, ans := b.post(botapi.PathEvent, map[string]any{"dimensions": b.dims(), "state": map[string]any{}, "version": "v", "session": b.session, "event": "bot_shutdown", "message": "m"})
	if code != 200 || len(ans) != 0 {
		t.Errorf("event: %d %v", code, ans)
	}
	info, err := f.client.GetBot(t.Context(), &pb.BotRequest{BotId: "b1"})
	if err != nil || !info.IsDead || info.TerminationTaskId != one.TaskId {
		t.Errorf("bot: %v %v", info, err)
	}
	if r := f.result(one.TaskId); r.State != pb.TaskState_COMPLETED {
		t.Errorf("task: %v", r)
	}
}

func TestRequestUUIDMakesOneTask(t *testing.T) {
	f := serve(t, nil)
	req := task("t")
	req.RequestUuid = "u1"
	one := f.newTask(req)
	if two := f.newTask(req); two != one {
		t.Errorf("a repeated call made %s beside %s", two, one)
	}
}
