package cli

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/skepdev/skep/api/swarmingpb"
)

// isFinal: every state but these two ends a task. spec/api-v2.md §2.6.
func isFinal(s pb.TaskState) bool {
	return s != pb.TaskState_INVALID && s != pb.TaskState_PENDING && s != pb.TaskState_RUNNING
}

func tasksTable(w *tableWriter, tasks []*pb.TaskResultResponse) {
	w.row("TASK", "STATE", "EXIT", "CREATED", "DURATION", "BOT", "NAME")
	for _, t := range tasks {
		w.row(t.GetTaskId(), taskStateCell(t), exitCell(t), timeCell(t.GetCreatedTs()), durationCell(t), t.GetBotId(), t.GetName())
	}
}

func botsTable(w *tableWriter, bots []*pb.BotInfo) {
	w.row("BOT", "STATUS", "TASK", "POOL", "OS", "LAST SEEN", "VERSION")
	for _, b := range bots {
		w.row(b.BotId, botStatus(b), b.TaskId, dimensionCell(b, "pool"), dimensionCell(b, "os"), timeCell(b.LastSeenTs), short(b.Version))
	}
}

// botStatus is one word for a bot, the gravest that holds.
func botStatus(b *pb.BotInfo) string {
	switch {
	case b.Deleted:
		return "deleted"
	case b.IsDead:
		return "dead"
	case b.Quarantined:
		return "quarantined"
	case b.MaintenanceMsg != "":
		return "maintenance"
	case b.TaskId != "":
		return "busy"
	}
	return "idle"
}

func dimensionCell(b *pb.BotInfo, key string) string {
	for _, d := range b.Dimensions {
		if d.Key == key && len(d.Value) > 0 {
			longest := d.Value[0]
			for _, v := range d.Value[1:] {
				if len(v) > len(longest) {
					longest = v
				}
			}
			if key == "pool" {
				return strings.Join(d.Value, ",")
			}
			return longest
		}
	}
	return ""
}

// taskStateCell splits COMPLETED, which says little alone.
func taskStateCell(t *pb.TaskResultResponse) string {
	switch {
	case t == nil:
		return ""
	case t.State == pb.TaskState_COMPLETED && t.DedupedFrom != "":
		return "COMPLETED (deduped)"
	case t.State == pb.TaskState_COMPLETED && t.Failure:
		return "COMPLETED (failure)"
	case t.State == pb.TaskState_COMPLETED:
		return "COMPLETED (success)"
	}
	return t.State.String()
}

func exitCell(t *pb.TaskResultResponse) string {
	if t == nil || t.CompletedTs == nil || t.StartedTs == nil {
		return ""
	}
	return fmt.Sprint(t.ExitCode)
}

func durationCell(t *pb.TaskResultResponse) string {
	if t == nil || t.StartedTs == nil {
		return ""
	}
	d := time.Duration(float64(t.Duration) * float64(time.Second))
	if !isFinal(t.State) {
		d = time.Since(t.StartedTs.AsTime())
	}
	if d < time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(100 * time.Millisecond).String()
}

func timeCell(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().Local().Format("2006-01-02 15:04:05")
}

// short cuts a digest to what people compare.
func short(digest string) string { return digest[:min(len(digest), 10)] }

// taskFields lists what is known of one task.
func taskFields(w *tableWriter, req *pb.TaskRequestResponse, res *pb.TaskResultResponse) {
	w.field("task", res.TaskId)
	w.field("name", res.Name)
	w.field("state", taskStateCell(res))
	w.field("exit code", exitCell(res))
	w.field("bot", res.BotId)
	w.field("run", res.RunId)
	w.field("deduped from", res.DedupedFrom)
	w.field("created", timeCell(res.CreatedTs))
	w.field("started", timeCell(res.StartedTs))
	w.field("completed", timeCell(res.CompletedTs))
	w.field("abandoned", timeCell(res.AbandonedTs))
	w.field("duration", durationCell(res))
	w.field("user", res.User)
	w.field("authenticated", req.Authenticated)
	w.field("realm", req.Realm)
	w.field("priority", fmt.Sprint(req.Priority))
	w.field("parent", req.ParentTaskId)
	for i, s := range req.TaskSlices {
		prefix := ""
		if len(req.TaskSlices) > 1 {
			prefix = fmt.Sprintf("slice %d ", i)
			if i == int(res.CurrentTaskSlice) {
				prefix = fmt.Sprintf("slice %d* ", i)
			}
		}
		w.field(prefix+"dimensions", joinPairs(s.GetProperties().GetDimensions()))
		w.field(prefix+"command", quoteCommand(s.GetProperties().GetCommand()))
		w.field(prefix+"env", joinPairs(s.GetProperties().GetEnv()))
	}
	w.field("tags", strings.Join(res.Tags, " "))
}

func botFields(w *tableWriter, b *pb.BotInfo) {
	w.field("bot", b.BotId)
	w.field("status", botStatus(b))
	w.field("maintenance", b.MaintenanceMsg)
	w.field("task", strings.TrimSpace(b.TaskId+" "+b.TaskName))
	w.field("first seen", timeCell(b.FirstSeenTs))
	w.field("last seen", timeCell(b.LastSeenTs))
	w.field("external ip", b.ExternalIp)
	w.field("authenticated", b.AuthenticatedAs)
	w.field("version", b.Version)
	w.field("termination", b.TerminationTaskId)
	for _, d := range b.Dimensions {
		w.field("dimension "+d.Key, strings.Join(d.Value, " | "))
	}
	w.field("state", cmp.Or(b.State, ""))
}

func joinPairs(list []*pb.StringPair) string {
	var out []string
	for _, p := range list {
		out = append(out, p.Key+"="+p.Value)
	}
	return strings.Join(out, " ")
}

// quoteCommand writes argv so that a shell reads it back.
func quoteCommand(argv []string) string {
	out := make([]string, len(argv))
	for i, a := range argv {
		out[i] = a
		if a == "" || strings.ContainsAny(a, " \t\n\"'\\$`*?[]{}()<>|&;#~!") {
			out[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
	}
	return strings.Join(out, " ")
}
