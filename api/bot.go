package api

import (
	"github.com/skepdev/skep"
	pb "github.com/skepdev/skep/api/swarmingpb"
)

// Bot returns what the server knows of a bot.
func Bot(b *skep.Bot) *pb.BotInfo {
	out := &pb.BotInfo{
		BotId: string(b.ID), TaskId: b.Task.RunID(), ExternalIp: b.ExternalIP, AuthenticatedAs: b.Authenticated,
		FirstSeenTs: timestamp(b.FirstSeen), IsDead: b.Dead, LastSeenTs: timestamp(b.LastSeen), Quarantined: b.Quarantined != "",
		MaintenanceMsg: b.Maintenance, Dimensions: DimensionsPB(b.Dimensions), TaskName: b.TaskName, Version: b.Version,
		State: stateText(b.State), Deleted: b.Deleted, SessionId: b.SessionID,
	}
	if b.Dead {
		out.TerminationTaskId = b.Terminated.String()
	}
	return out
}

func stateText(s []byte) string {
	if len(s) == 0 {
		return "{}"
	}
	return string(s)
}

// BotEvent returns one line of a bot's history.
func BotEvent(e *skep.BotEvent) *pb.BotEventResponse {
	return &pb.BotEventResponse{
		Ts: timestamp(e.At), EventType: string(e.Type), Message: e.Message, Dimensions: DimensionsPB(e.Dimensions), State: stateText(e.State),
		ExternalIp: e.ExternalIP, AuthenticatedAs: e.Authn, Version: e.Version, Quarantined: e.Quarantined != "",
		MaintenanceMsg: e.Maintenance, TaskId: e.Task.RunID(), SessionId: e.SessionID,
	}
}
