package api

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/skepdev/skep"
	pb "github.com/skepdev/skep/api/swarmingpb"
)

func valid() *pb.NewTaskRequest {
	return &pb.NewTaskRequest{
		Name: "n", Priority: 100, Tags: []string{"a:b"}, User: "u",
		TaskSlices: []*pb.TaskSlice{{ExpirationSecs: 3600, Properties: &pb.TaskProperties{
			Command: []string{"echo", "hi"}, ExecutionTimeoutSecs: 3600, GracePeriodSecs: 30, IoTimeoutSecs: 1200,
			Dimensions: []*pb.StringPair{{Key: "pool", Value: "p"}, {Key: "os", Value: "Linux|Mac"}},
			Env:        []*pb.StringPair{{Key: "B", Value: "2"}, {Key: "A", Value: "1"}},
		}}},
	}
}

// TestNewTaskRules breaks each rule of spec api-v2.md §4 once, and stays just
// inside where the rule is a limit.
func TestNewTaskRules(t *testing.T) {
	type req = pb.NewTaskRequest
	props := func(f func(*pb.TaskProperties)) func(*req) {
		return func(r *req) { f(r.TaskSlices[0].Properties) }
	}
	long := func(n int) string { return strings.Repeat("x", n) }
	cas := func(instance, hash string, size int64) func(*req) {
		return props(func(p *pb.TaskProperties) {
			p.CasInputRoot = &pb.CASReference{CasInstance: instance, Digest: &pb.Digest{Hash: hash, SizeBytes: size}}
		})
	}
	pkg := func(name, version, path string) *pb.CipdPackage {
		return &pb.CipdPackage{PackageName: name, Version: version, Path: path}
	}
	for _, c := range []struct {
		name   string
		change func(*req)
		field  string // "" = accepted
	}{
		{"valid", func(*req) {}, ""},
		{"no slice", func(r *req) { r.TaskSlices = nil }, "task_slices"},
		{"no pool", props(func(p *pb.TaskProperties) { p.Dimensions = p.Dimensions[1:] }), "task_slices[0].properties.dimensions"},
		{"two pools", props(func(p *pb.TaskProperties) { p.Dimensions[0].Value = "p|q" }), "task_slices[0].properties.dimensions"},
		{"no name", func(r *req) { r.Name = "" }, "name"},
		{"expiration at the top", func(r *req) { r.ExpirationSecs = 1 }, "expiration_secs"},
		{"properties at the top", func(r *req) { r.Properties = &pb.TaskProperties{} }, "properties"},
		{"odd parent", func(r *req) { r.ParentTaskId = "xyz" }, "parent_task_id"},
		{"priority 0", func(r *req) { r.Priority = 0 }, "priority"},
		{"priority 256", func(r *req) { r.Priority = 256 }, "priority"},
		{"negative priority", func(r *req) { r.Priority = -1 }, "priority"},
		{"account bot", func(r *req) { r.ServiceAccount = "bot" }, ""},
		{"account e-mail", func(r *req) { r.ServiceAccount = "a@b.example.com" }, ""},
		{"account odd", func(r *req) { r.ServiceAccount = "robot" }, "service_account"},
		{"topic", func(r *req) { r.PubsubTopic = "projects/abcdef/topics/some.topic" }, ""},
		{"topic odd", func(r *req) { r.PubsubTopic = "projects/abcdef/topics/google" }, "pubsub_topic"},
		{"userdata without topic", func(r *req) { r.PubsubUserdata = "x" }, "pubsub_topic"},
		{"tolerance low", func(r *req) { r.BotPingToleranceSecs = 59 }, "bot_ping_tolerance_secs"},
		{"tolerance high", func(r *req) { r.BotPingToleranceSecs = 1201 }, "bot_ping_tolerance_secs"},
		{"realm", func(r *req) { r.Realm = "proj:realm" }, ""},
		{"realm odd", func(r *req) { r.Realm = "realm" }, "realm"},
		{"tag without value", func(r *req) { r.Tags = []string{"a:"} }, ""},
		{"tag without colon", func(r *req) { r.Tags = []string{"a"} }, "tags[0]"},
		{"tag reserved", func(r *req) { r.Tags = []string{"swarming.terminate:1"} }, "tags[0]"},
		{"tag with blanks", func(r *req) { r.Tags = []string{"a: b"} }, "tags[0]"},
		{"automatic tags again", func(r *req) { r.Tags = []string{"pool:p", "authenticated:x:y", "swarming.pool.version:1"} }, ""},
		{"257 tags", func(r *req) { r.Tags = strings.Split(strings.Repeat("a:b,", 256)+"a:b", ",") }, "tags"},
		{"unknown template", func(r *req) { r.PoolTaskTemplate = 9 }, "pool_task_template"},
		{"invalid UTF-8", func(r *req) { r.Name = "\xff" }, "name"},
		{"NUL", func(r *req) { r.User = "a\x00" }, "user"},

		{"expiration low", func(r *req) { r.TaskSlices[0].ExpirationSecs = 29 }, "task_slices[0].expiration_secs"},
		{"expiration high", func(r *req) { r.TaskSlices[0].ExpirationSecs = 604801 }, "task_slices[0].expiration_secs"},
		{"equal slices", func(r *req) { r.TaskSlices = append(r.TaskSlices, proto.CloneOf(r.TaskSlices[0])) }, "task_slices[1]"},
		{"slices differ in what is never returned", func(r *req) {
			r.TaskSlices = append(r.TaskSlices, proto.CloneOf(r.TaskSlices[0]), proto.CloneOf(r.TaskSlices[0]))
			r.TaskSlices[1].Properties.Containment = &pb.Containment{LimitProcesses: 5}
			r.TaskSlices[2].Properties.SecretBytes = []byte("s")
		}, ""},
		{"secrets differ", func(r *req) {
			r.TaskSlices = append(r.TaskSlices, proto.CloneOf(r.TaskSlices[0]))
			r.TaskSlices[0].Properties.SecretBytes, r.TaskSlices[1].Properties.SecretBytes = []byte("s"), []byte("t")
		}, "task_slices[1].properties.secret_bytes"},
		{"secret too large", props(func(p *pb.TaskProperties) { p.SecretBytes = make([]byte, 20481) }), "task_slices[0].properties.secret_bytes"},

		{"grace 0", props(func(p *pb.TaskProperties) { p.GracePeriodSecs = 0 }), ""},
		{"grace high", props(func(p *pb.TaskProperties) { p.GracePeriodSecs = 3601 }), "task_slices[0].properties.grace_period_secs"},
		{"execution low", props(func(p *pb.TaskProperties) { p.ExecutionTimeoutSecs = 29 }), "task_slices[0].properties.execution_timeout_secs"},
		{"execution highest", props(func(p *pb.TaskProperties) { p.ExecutionTimeoutSecs = 601140 }), ""},
		{"execution high", props(func(p *pb.TaskProperties) { p.ExecutionTimeoutSecs = 601141 }), "task_slices[0].properties.execution_timeout_secs"},
		{"no I/O limit", props(func(p *pb.TaskProperties) { p.IoTimeoutSecs = 0 }), ""},
		{"I/O low", props(func(p *pb.TaskProperties) { p.IoTimeoutSecs = 29 }), "task_slices[0].properties.io_timeout_secs"},
		{"no command", props(func(p *pb.TaskProperties) { p.Command = nil }), "task_slices[0].properties.command"},
		{"129 arguments", props(func(p *pb.TaskProperties) { p.Command = make([]string, 129) }), "task_slices[0].properties.command"},
		{"cwd escapes", props(func(p *pb.TaskProperties) { p.RelativeCwd = "../x" }), "task_slices[0].properties.relative_cwd"},
		{"cwd escapes by backslash", props(func(p *pb.TaskProperties) { p.RelativeCwd = `..\x` }), "task_slices[0].properties.relative_cwd"},
		{"cwd with backslash", props(func(p *pb.TaskProperties) { p.RelativeCwd = `a\b` }), ""},
		{"cwd absolute", props(func(p *pb.TaskProperties) { p.RelativeCwd = "/x" }), "task_slices[0].properties.relative_cwd"},
		{"env name", props(func(p *pb.TaskProperties) { p.Env[0].Key = "1A" }), "task_slices[0].properties.env[0]"},
		{"env twice", props(func(p *pb.TaskProperties) { p.Env[1].Key = "B" }), "task_slices[0].properties.env[1]"},
		{"env value", props(func(p *pb.TaskProperties) { p.Env[0].Value = long(1025) }), "task_slices[0].properties.env[0]"},
		{"prefix without path", props(func(p *pb.TaskProperties) { p.EnvPrefixes = []*pb.StringListPair{{Key: "PATH"}} }), "task_slices[0].properties.env_prefixes[0]"},
		{"output unclean", props(func(p *pb.TaskProperties) { p.Outputs = []string{"a//b"} }), "task_slices[0].properties.outputs[0]"},
		{"cas", cas("projects/a/instances/b_c", "00", 0), ""},
		{"cas instance", cas("b", "00", 0), "task_slices[0].properties.cas_input_root.cas_instance"},
		{"cas hash", cas("projects/a/instances/b", "", 0), "task_slices[0].properties.cas_input_root.digest.hash"},
		{"cas size", cas("projects/a/instances/b", "00", -1), "task_slices[0].properties.cas_input_root.digest.size_bytes"},
		{"cache name", props(func(p *pb.TaskProperties) { p.Caches = []*pb.CacheEntry{{Name: "A", Path: "a"}} }), "task_slices[0].properties.caches[0].name"},
		{"caches nest", props(func(p *pb.TaskProperties) {
			p.Caches = []*pb.CacheEntry{{Name: "a", Path: "a"}, {Name: "b", Path: "a/b"}}
		}), "task_slices[0].properties.caches"},
		{"caches beside", props(func(p *pb.TaskProperties) {
			p.Caches = []*pb.CacheEntry{{Name: "a", Path: "a"}, {Name: "b", Path: "ab"}}
		}), ""},
		{"packages share", props(func(p *pb.TaskProperties) {
			p.CipdInput = &pb.CipdInput{Packages: []*pb.CipdPackage{pkg("a/${platform}", "latest", "x"), pkg("b", "v:1", "x")}}
		}), ""},
		{"package without path", props(func(p *pb.TaskProperties) {
			p.CipdInput = &pb.CipdInput{Packages: []*pb.CipdPackage{pkg("a", "latest", "")}}
		}), "task_slices[0].properties.cipd_input.packages[0].path"},
		{"package moves", props(func(p *pb.TaskProperties) {
			p.Idempotent = true
			p.CipdInput = &pb.CipdInput{Packages: []*pb.CipdPackage{pkg("a", "latest", "x")}}
		}), "task_slices[0].properties.cipd_input.packages[0].version"},
		{"package server", props(func(p *pb.TaskProperties) { p.CipdInput = &pb.CipdInput{Server: "http://x.example"} }), "task_slices[0].properties.cipd_input.server"},
		{"package under a cache", props(func(p *pb.TaskProperties) {
			p.Caches = []*pb.CacheEntry{{Name: "a", Path: "a"}}
			p.CipdInput = &pb.CipdInput{Packages: []*pb.CipdPackage{pkg("a", "latest", "a/b")}}
		}), "task_slices[0].properties.caches"},

		{"dimension key", props(func(p *pb.TaskProperties) { p.Dimensions[1].Key = "a b" }), "task_slices[0].properties.dimensions[1]"},
		{"dimension blank", props(func(p *pb.TaskProperties) { p.Dimensions[1].Value = "a|" }), "task_slices[0].properties.dimensions[1]"},
		{"alternative twice", props(func(p *pb.TaskProperties) { p.Dimensions[1].Value = "a|a" }), "task_slices[0].properties.dimensions[1]"},
		{"product 9", props(func(p *pb.TaskProperties) {
			p.Dimensions[1].Value = "a|b|c"
			p.Dimensions = append(p.Dimensions, &pb.StringPair{Key: "x", Value: "a|b|c"})
		}), "task_slices[0].properties.dimensions"},
		{"same demand twice", props(func(p *pb.TaskProperties) {
			p.Dimensions = append(p.Dimensions, &pb.StringPair{Key: "os", Value: "Mac|Linux"})
		}), "task_slices[0].properties.dimensions"},
		{"same key, other value", props(func(p *pb.TaskProperties) {
			p.Dimensions = append(p.Dimensions, &pb.StringPair{Key: "os", Value: "Debian"})
		}), ""},
		{"two ids", props(func(p *pb.TaskProperties) {
			p.Dimensions = append(p.Dimensions, &pb.StringPair{Key: "id", Value: "a|b"})
		}), "task_slices[0].properties.dimensions"},
		{"containment unknown", props(func(p *pb.TaskProperties) { p.Containment = &pb.Containment{ContainmentType: 7} }), "task_slices[0].properties.containment.containment_type"},
		{"negative limit", props(func(p *pb.TaskProperties) { p.Containment = &pb.Containment{LimitProcesses: -1} }), "task_slices[0].properties.containment.limit_processes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := valid()
			c.change(r)
			sub, err := NewTask(r)
			if c.field == "" {
				if err != nil || sub.Pool != "p" {
					t.Errorf("refused: %v", err)
				}
				return
			}
			if skep.KindOf(err) != skep.Invalid || skep.FieldOf(err) != c.field || !strings.HasPrefix(err.Error(), "bad request: ") {
				t.Errorf("got %v about %q, want a fault of %q", err, skep.FieldOf(err), c.field)
			}
		})
	}
}

func TestRequestComesBackSortedAndRedacted(t *testing.T) {
	r := valid()
	r.TaskSlices[0].Properties.SecretBytes = []byte("hidden")
	r.TaskSlices[0].Properties.Containment = &pb.Containment{ContainmentType: pb.Containment_AUTO, LowerPriority: true}
	sub, err := NewTask(r)
	if err != nil {
		t.Fatal(err)
	}
	sub.Request.Authenticated = "user:x"
	sub.Request.Tags = AutoTags(sub.Request, "none", "none")
	got := Request(sub.Request)
	want := proto.CloneOf(r.TaskSlices[0].Properties)
	want.SecretBytes = []byte("<REDACTED>")
	want.Containment = &pb.Containment{ContainmentType: pb.Containment_AUTO}
	want.Env = []*pb.StringPair{{Key: "A", Value: "1"}, {Key: "B", Value: "2"}}
	want.Dimensions = []*pb.StringPair{{Key: "os", Value: "Linux|Mac"}, {Key: "pool", Value: "p"}}
	if d := cmp.Diff(want, got.Properties, protocmp.Transform()); d != "" {
		t.Errorf("properties (-want +got):\n%s", d)
	}
	tags := []string{
		"a:b", "authenticated:user:x", "os:Linux", "os:Mac", "pool:p", "priority:100", "realm:none", "service_account:none",
		"swarming.pool.task_template:none", "swarming.pool.version:none", "user:u",
	}
	if d := cmp.Diff(tags, got.Tags); d != "" {
		t.Errorf("tags (-want +got):\n%s", d)
	}
	if got.ExpirationSecs != 3600 || got.BotPingToleranceSecs != 1200 || got.ServiceAccount != "none" || got.Resultdb == nil {
		t.Errorf("got %v", got)
	}
}
