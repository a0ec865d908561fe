package api

import (
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/skepdev/skep"
	pb "github.com/skepdev/skep/api/swarmingpb"
)

// redacted stands for a secret that exists. spec api-v2.md §5.2.
const redacted = "<REDACTED>"

// Request returns what was asked for. A request without ID (evaluate_only)
// has no task_id.
func Request(r *skep.TaskRequest) *pb.TaskRequestResponse {
	out := &pb.TaskRequestResponse{
		TaskId: r.ID.String(), Name: r.Name, ParentTaskId: r.Parent, Priority: r.Priority, Tags: r.Tags,
		CreatedTs: timestamp(r.CreatedAt), User: r.User, Authenticated: r.Authenticated, ServiceAccount: r.ServiceAccount,
		Realm: r.Realm, Resultdb: &pb.ResultDBCfg{Enable: r.ResultDB}, PubsubTopic: r.PubSubTopic, PubsubUserdata: r.PubSubUserdata,
		BotPingToleranceSecs: seconds(r.PingTolerance),
	}
	for i := range r.Slices {
		s := &r.Slices[i]
		out.ExpirationSecs += seconds(s.Expiration)
		out.TaskSlices = append(out.TaskSlices, &pb.TaskSlice{
			Properties: propertiesPB(&s.Properties, r.HasSecret), ExpirationSecs: seconds(s.Expiration), WaitForCapacity: s.WaitForCapacity,
		})
	}
	if len(out.TaskSlices) > 0 {
		out.Properties = propertiesPB(&r.Slices[0].Properties, r.HasSecret)
	}
	return out
}

func propertiesPB(p *skep.Properties, secret bool) *pb.TaskProperties {
	out := &pb.TaskProperties{
		Command: p.Command, RelativeCwd: p.RelativeCwd, Outputs: p.Outputs, Idempotent: p.Idempotent,
		ExecutionTimeoutSecs: seconds(p.ExecutionTimeout), GracePeriodSecs: seconds(p.GracePeriod), IoTimeoutSecs: seconds(p.IOTimeout),
		CasInputRoot: casPB(p.CASInput),
	}
	for _, c := range p.Dimensions {
		out.Dimensions = append(out.Dimensions, &pb.StringPair{Key: c.Key, Value: c.Value()})
	}
	for _, e := range p.Env {
		out.Env = append(out.Env, &pb.StringPair{Key: e.Key, Value: e.Value})
	}
	for _, e := range p.EnvPrefixes {
		out.EnvPrefixes = append(out.EnvPrefixes, &pb.StringListPair{Key: e.Key, Value: e.Values})
	}
	for _, c := range p.Caches {
		out.Caches = append(out.Caches, &pb.CacheEntry{Name: c.Name, Path: c.Path})
	}
	if p.CIPD != nil {
		out.CipdInput = &pb.CipdInput{Server: p.CIPD.Server, ClientPackage: packagePB(p.CIPD.Client), Packages: packagesPB(p.CIPD.Packages)}
	}
	if p.Containment != nil && p.Containment.Type != 0 {
		out.Containment = &pb.Containment{ContainmentType: pb.Containment_ContainmentType(p.Containment.Type)}
	}
	if secret {
		out.SecretBytes = []byte(redacted)
	}
	return out
}

func casPB(r *skep.CASReference) *pb.CASReference {
	if r == nil {
		return nil
	}
	return &pb.CASReference{CasInstance: r.Instance, Digest: &pb.Digest{Hash: r.Hash, SizeBytes: r.Size}}
}

func packagePB(p *skep.CIPDPackage) *pb.CipdPackage {
	if p == nil {
		return nil
	}
	return &pb.CipdPackage{PackageName: p.Name, Version: p.Version, Path: p.Path}
}

func packagesPB(ps []skep.CIPDPackage) []*pb.CipdPackage {
	var out []*pb.CipdPackage
	for i := range ps {
		out = append(out, packagePB(&ps[i]))
	}
	return out
}

func seconds(d time.Duration) int32 { return int32(d / time.Second) }

// timestamp returns nil for "not yet".
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// AutoTags returns the tags that the server adds to those of the request,
// together with them: sorted, each once. spec api-v2.md §6.1.
func AutoTags(r *skep.TaskRequest, poolVersion, template string) []string {
	orNone := func(s string) string {
		if s == "" {
			return "none"
		}
		return s
	}
	tags := append(slices.Clone(r.Tags),
		"priority:"+itoa(r.Priority), "realm:"+orNone(r.Realm), "service_account:"+r.ServiceAccount,
		"user:"+orNone(r.User), "authenticated:"+r.Authenticated,
		"swarming.pool.version:"+poolVersion, "swarming.pool.task_template:"+template)
	if r.Parent != "" {
		tags = append(tags, "parent_task_id:"+r.Parent)
	}
	for _, s := range r.Slices {
		for _, c := range s.Properties.Dimensions {
			for _, v := range c.Values {
				tags = append(tags, c.Key+":"+v)
			}
		}
	}
	slices.Sort(tags)
	return slices.Compact(tags)
}
