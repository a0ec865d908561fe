package api

import (
	"maps"
	"slices"
	"strconv"

	"github.com/skepdev/skep"
	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/cas"
)

// Result returns how a task is doing. stats includes the times of its steps.
func Result(r *skep.TaskRequest, t *skep.Task, stats bool) *pb.TaskResultResponse {
	out := &pb.TaskResultResponse{
		TaskId: t.ID.String(), State: pb.TaskState(t.State), CreatedTs: timestamp(r.CreatedAt), ModifiedTs: timestamp(t.ModifiedAt),
		StartedTs: timestamp(t.StartedAt), CompletedTs: timestamp(t.EndedAt), AbandonedTs: timestamp(t.AbandonAt),
		BotId: string(t.Bot), Name: r.Name, Tags: r.Tags, User: r.User, ServerVersions: t.ServerVersions,
		Failure: t.Failure, InternalFailure: t.InternalFailure, CurrentTaskSlice: int32(t.Slice),
	}
	if t.ExitCode != nil {
		out.ExitCode = *t.ExitCode
	}
	if t.Duration != nil {
		out.Duration = float32(*t.Duration)
	}
	if t.CostUSD > 0 {
		out.CostsUsd = []float32{float32(t.CostUSD)}
	}
	if c := t.Claim; c != nil {
		out.RunId = t.ID.RunID()
		out.BotVersion, out.BotLogsCloudProject = c.Version, c.LogsProject
		out.BotDimensions = DimensionsPB(c.Dimensions)
		out.BotIdleSinceTs = timestamp(c.IdleSince)
	}
	if o := t.Outcome; o != nil {
		out.CasOutputRoot = casPB(o.CASOutput)
		if o.CIPDPins != nil {
			out.CipdPins = &pb.CipdPins{ClientPackage: packagePB(o.CIPDPins.Client), Packages: packagesPB(o.CIPDPins.Packages)}
		}
		if t.State == skep.ClientError {
			for i := range o.MissingCAS {
				out.MissingCas = append(out.MissingCas, casPB(&o.MissingCAS[i]))
			}
			out.MissingCipd = packagesPB(o.MissingCIPD)
		}
		if stats && o.Stats != nil && hasStats(t.State) {
			out.PerformanceStats = statsPB(o.Stats)
		}
	}
	return out
}

// RunResult is Result as the listing of a bot's runs shows it: the cost is
// always there. spec api-v2.md §7.3.
func RunResult(r *skep.TaskRequest, t *skep.Task, stats bool) *pb.TaskResultResponse {
	out := Result(r, t, stats)
	out.CostsUsd = []float32{float32(t.CostUSD)}
	return out
}

func hasStats(s skep.TaskState) bool {
	return s == skep.Completed || s == skep.TimedOut || s == skep.Killed || s == skep.ClientError
}

// DimensionsPB returns dimensions sorted by key, values sorted.
func DimensionsPB(d skep.Dimensions) []*pb.StringListPair {
	out := make([]*pb.StringListPair, 0, len(d))
	for _, k := range slices.Sorted(maps.Keys(d)) {
		out = append(out, &pb.StringListPair{Key: k, Value: slices.Sorted(slices.Values(d[k]))})
	}
	return out
}

func statsPB(s *skep.Stats) *pb.PerformanceStats {
	op := func(d float64) *pb.OperationStats {
		if d == 0 {
			return nil
		}
		return &pb.OperationStats{Duration: float32(d)}
	}
	return &pb.PerformanceStats{
		BotOverhead: float32(s.BotOverhead), IsolatedDownload: transferPB(s.Download), IsolatedUpload: transferPB(s.Upload),
		PackageInstallation: op(s.Packages), CacheTrim: op(s.CacheTrim), NamedCachesInstall: op(s.CachesInstall),
		NamedCachesUninstall: op(s.CachesRemove), Cleanup: op(s.Cleanup),
	}
}

func transferPB(t *skep.TransferStats) *pb.CASOperationStats {
	if t == nil || (t.Duration == 0 && t.InitialItems == 0 && t.InitialSize == 0 && len(t.ItemsCold)+len(t.ItemsHot) == 0) {
		return nil
	}
	out := &pb.CASOperationStats{
		Duration: float32(t.Duration), InitialNumberItems: t.InitialItems, InitialSize: t.InitialSize, ItemsCold: t.ItemsCold, ItemsHot: t.ItemsHot,
	}
	out.NumItemsCold, out.TotalBytesItemsCold = sumPacked(t.ItemsCold)
	out.NumItemsHot, out.TotalBytesItemsHot = sumPacked(t.ItemsHot)
	return out
}

// sumPacked counts a list that was checked when it came in; a broken one
// counts as empty.
func sumPacked(packed []byte) (n, total int64) {
	sizes, err := cas.UnpackSizes(packed)
	if err != nil {
		return 0, 0
	}
	for _, s := range sizes {
		total += s
	}
	return int64(len(sizes)), total
}

func itoa(n int32) string { return strconv.Itoa(int(n)) }
