package server

import (
	"bytes"
	"compress/zlib"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/botapi"
	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/cas"
)

// packed is a list of sizes as bots send it. spec bot.md §5.9.
func packed(sizes ...uint64) []byte {
	var raw []byte
	var last uint64
	for _, s := range sizes {
		raw, last = binary.AppendUvarint(raw, s-last), s
	}
	var b bytes.Buffer
	z := zlib.NewWriter(&b)
	_, _ = z.Write(raw)
	_ = z.Close()
	return b.Bytes()
}

// Inputs, outputs and what the transfers took go from the requester to the bot
// and from the bot to the requester.
func TestInputsAndOutputs(t *testing.T) {
	f := serve(t, nil)
	b := f.bot("b1")
	root := &pb.CASReference{CasInstance: "projects/p/instances/i", Digest: &pb.Digest{Hash: cas.Sum([]byte("in")).Hash.String(), SizeBytes: 2}}
	with := task("inputs")
	with.TaskSlices[0].Properties.CasInputRoot = root
	with.TaskSlices[0].Properties.Outputs = []string{"out/a.txt", "b"}
	without := task("no inputs")
	without.TaskSlices[0].Properties.Outputs = []string{"c"}

	id := f.newTask(with)
	m := b.poll("k1", 10)["manifest"].(map[string]any)
	want := map[string]any{"cas_instance": root.CasInstance, "digest": map[string]any{"hash": root.Digest.Hash, "size_bytes": 2.0}}
	if diff := cmp.Diff(want, m["cas_input_root"]); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]any{"out/a.txt", "b"}, m["outputs"]); diff != "" {
		t.Error(diff)
	}
	if m["skep"] != nil {
		t.Errorf("the manifest names a storage elsewhere: %v", m["skep"])
	}
	out := map[string]any{"cas_instance": "projects/p/instances/i", "digest": map[string]any{"hash": cas.Sum([]byte("out")).Hash.String(), "size_bytes": 3}}
	code, ans := b.update(runOf(id), map[string]any{
		"exit_code": 0, "duration": 1.0, "bot_overhead": 0.5, "cas_output_root": out,
		"isolated_stats": map[string]any{
			"download": map[string]any{"duration": 0.25, "initial_number_items": 7, "initial_size": 70, "items_cold": packed(1, 2, 3), "items_hot": packed(10)},
			"upload":   map[string]any{"duration": 0.5, "items_cold": packed(5)},
		},
	})
	if code != 200 {
		t.Fatal(ans)
	}
	r := f.result(id)
	if diff := cmp.Diff(&pb.CASReference{CasInstance: "projects/p/instances/i", Digest: &pb.Digest{Hash: cas.Sum([]byte("out")).Hash.String(), SizeBytes: 3}}, r.CasOutputRoot, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	down := &pb.CASOperationStats{
		Duration: 0.25, InitialNumberItems: 7, InitialSize: 70, ItemsCold: packed(1, 2, 3), ItemsHot: packed(10),
		NumItemsCold: 3, TotalBytesItemsCold: 6, NumItemsHot: 1, TotalBytesItemsHot: 10,
	}
	if diff := cmp.Diff(down, r.PerformanceStats.IsolatedDownload, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if up := r.PerformanceStats.IsolatedUpload; up.GetNumItemsCold() != 1 || up.GetTotalBytesItemsCold() != 5 {
		t.Errorf("upload: %v", up)
	}

	f.newTask(without)
	m = b.poll("k2", 10)["manifest"].(map[string]any)
	want = map[string]any{"cas_instance": "projects/skep/instances/default", "digest": map[string]any{"hash": cas.Empty.Hash.String(), "size_bytes": 0.0}}
	if diff := cmp.Diff(want, m["cas_input_root"]); diff != "" {
		t.Errorf("the default instance, for outputs: %s", diff)
	}
}

func TestMissingInput(t *testing.T) {
	f := serve(t, nil)
	b := f.bot("b1")
	req := task("inputs")
	hash := cas.Sum([]byte("in")).Hash.String()
	req.TaskSlices[0].Properties.CasInputRoot = &pb.CASReference{CasInstance: "projects/p/instances/i", Digest: &pb.Digest{Hash: hash, SizeBytes: 2}}
	id := f.newTask(req)
	b.poll("k1", 10)
	code, ans := b.post(botapi.PathTaskError+"/"+runOf(id), map[string]any{
		"id": "b1", "task_id": runOf(id), "session": b.session, "message": "no inputs",
		"client_error": map[string]any{"missing_cas": []any{map[string]any{"status": "MISSING", "digest": hash + "/2", "instance": "projects/p/instances/i"}}, "missing_cipd": []any{}},
	})
	if code != 200 {
		t.Fatal(ans)
	}
	r := f.result(id)
	if r.State != pb.TaskState_CLIENT_ERROR || len(r.MissingCas) != 1 || r.MissingCas[0].Digest.Hash != hash || r.MissingCas[0].CasInstance != "projects/p/instances/i" {
		t.Errorf("%v %v", r.State, r.MissingCas)
	}
}

func TestStorageElsewhereIsInTheManifest(t *testing.T) {
	f := serve(t, func(o *Options) { o.CAS, o.CASInstance = "grpcs://cas.example/x", "x" })
	b := f.bot("b1")
	f.newTask(task("t"))
	m := b.poll("k1", 10)["manifest"].(map[string]any)
	if diff := cmp.Diff(map[string]any{"cas": "grpcs://cas.example/x"}, m["skep"]); diff != "" {
		t.Error(diff)
	}
	d, err := f.client.GetDetails(t.Context())
	if err != nil || d.CasViewerServer != "" {
		t.Errorf("a viewer of blobs that are elsewhere: %v %v", d, err)
	}
}

func TestOutputsWithoutStorageAreRefused(t *testing.T) {
	f := serve(t, func(o *Options) { o.CASInstance = "" })
	req := task("t")
	req.TaskSlices[0].Properties.Outputs = []string{"x"}
	if _, err := f.client.NewTask(t.Context(), req); skep.KindOf(err) != skep.Precondition || !strings.Contains(err.Error(), "outputs") {
		t.Errorf("got %v", err)
	}
}

// What bots say of their caches comes to the next who wants one.
func TestCacheHints(t *testing.T) {
	f := serve(t, nil)
	shake := func(id, state string) {
		t.Helper()
		code, ans := f.post(botapi.PathHandshake, map[string]any{"dimensions": map[string][]string{"id": {id}}, "state": map[string]any{}, "version": "v", "session_id": "s"})
		if code != 200 {
			t.Fatal(ans)
		}
		code, ans = f.post(botapi.PathPoll, map[string]any{
			"dimensions": map[string][]string{"id": {id}, "pool": {"default"}, "os": {"Linux"}}, "state": json.RawMessage(state),
			"version": "v", "session": ans["session"], "request_uuid": "u",
		})
		if code != 200 {
			t.Fatal(ans)
		}
	}
	shake("h1", `{"named_caches":{"go":[["aa",1000],1700000000],"odd":17,"none":[["x"],1]}}`)
	shake("h2", `{"named_caches":{"go":[["bb",3000],1700000000]}}`)
	b := f.bot("b1")
	req := task("t")
	for _, name := range []string{"go", "odd", "other"} {
		req.TaskSlices[0].Properties.Caches = append(req.TaskSlices[0].Properties.Caches, &pb.CacheEntry{Name: name, Path: "c/" + name})
	}
	f.newTask(req)
	got := map[string]any{}
	for _, c := range b.poll("k1", 10)["manifest"].(map[string]any)["caches"].([]any) {
		c := c.(map[string]any)
		got[c["name"].(string)] = c["hint"]
	}
	if diff := cmp.Diff(map[string]any{"go": "3000", "odd": "-1", "other": "-1"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestHintsAreSmoothed(t *testing.T) {
	var h cacheHints
	k := hintKey{"p", "c", "Linux"}
	learn := func(sizes ...int64) { h.learn(map[hintKey][]int64{k: sizes}) }
	many := make([]int64, 100)
	for i := range many {
		many[i] = int64(i + 1)
	}
	learn(many...)
	if got := h.size("p", "c", "Linux"); got != 95 {
		t.Errorf("95th percentile of 1 to 100 is %d", got)
	}
	learn(1000)
	if got := h.size("p", "c", "Linux"); got != 1000 {
		t.Errorf("a jump: %d, want 1000 at once", got)
	}
	learn(1050)
	if got := h.size("p", "c", "Linux"); got != 1007 {
		t.Errorf("a small change: %d, want 1007", got)
	}
	if got := h.size("p", "c", "Mac"); got != 1007 {
		t.Errorf("another system: %d, want the largest of all", got)
	}
	if got := h.size("q", "c", "Linux"); got != -1 {
		t.Errorf("another pool: %d, want -1", got)
	}
}

func TestParseCASPath(t *testing.T) {
	d := cas.Sum([]byte("x"))
	for _, tc := range []struct {
		in, instance string
		path         []string
		ok           bool
	}{
		{"projects/a/instances/b/" + d.String(), "projects/a/instances/b", []string{}, true},
		{d.String(), "", []string{}, true},
		{"i/" + d.String() + "/sub/f.txt", "i", []string{"sub", "f.txt"}, true},
		{"i/" + d.String() + "/", "i", []string{}, true},
		{"i/" + d.Hash.String(), "", nil, false},
		{"i/" + strings.ToUpper(d.String()), "", nil, false},
		{"i/" + d.Hash.String() + "/-1", "", nil, false},
		{"", "", nil, false},
		{"i/" + d.String() + strings.Repeat("/a", 1000), "", nil, false},
	} {
		u, err := parseCASPath(tc.in)
		if (err == nil) != tc.ok || err == nil && (u.instance != tc.instance || u.root != d || !cmp.Equal(u.path, tc.path)) {
			t.Errorf("%.200s: %+v %v", tc.in, u, err)
		}
	}
}

func FuzzCASPage(f *testing.F) {
	s := handler(f)
	s.o.Blobs = fakeBlobs{}
	f.Add("i/" + cas.Empty.String() + "/a%2fb")
	f.Add("projects/x/instances/y/blobs/" + cas.Empty.String() + "/tree")
	f.Fuzz(func(t *testing.T, path string) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://localhost/cas/"+path, nil)
		if err != nil {
			return
		}
		w := &discard{header: http.Header{}}
		s.ServeHTTP(w, r)
		if w.code >= 500 {
			t.Errorf("%q: %d", path, w.code)
		}
	})
}

type discard struct {
	header http.Header
	code   int
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(b []byte) (int, error) { return len(b), nil }
func (d *discard) WriteHeader(code int)        { d.code = code }

type fakeBlobs struct{ Blobs }

func (fakeBlobs) Get(_ context.Context, d cas.Digest, _ int64) ([]byte, error) {
	return nil, fmt.Errorf("get: %w", &cas.MissingError{Digests: []cas.Digest{d}})
}

// One bot that lies does not make the others throw away what they have.
func TestOneLiarDoesNotRaiseHints(t *testing.T) {
	const gib = 1 << 30
	for _, tc := range []struct {
		name    string
		samples []int64
		want    int64
	}{
		{"nobody else has it", []int64{1 << 50}, gib},
		{"another has it", []int64{1 << 50, 10 * gib}, 40 * gib},
		{"another has little", []int64{1 << 50, 1000}, gib},
		{"a small pool", []int64{10 * gib, 11 * gib, 1 << 50, 12 * gib}, 44 * gib},
		{"a large pool", append(slices.Repeat([]int64{10 * gib}, 30), 1<<50), 10 * gib},
		{"a liar who says nothing", []int64{0, 10 * gib}, gib},
		{"honest and different", []int64{1 * gib, 3 * gib, 5 * gib}, 5 * gib},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var h cacheHints
			h.learn(map[hintKey][]int64{{"p", "c", "Linux"}: tc.samples})
			if got := h.size("p", "c", "Linux"); got != tc.want {
				t.Errorf("got %d, want %d", got, tc.want)
			}
		})
	}
}
