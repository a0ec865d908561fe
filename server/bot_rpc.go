package server

import (
	"context"
	"maps"
	"slices"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api"
	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/store"
)

func botID(id string) (skep.BotID, error) {
	if id == "" {
		return "", &skep.Error{Kind: skep.Invalid, Field: "bot_id", Text: "bot_id is required"}
	}
	if len(id) > maxBotID || clean(id) != id {
		return "", skep.Errorf(skep.NotFound, "no such bot: %.100q", id)
	}
	return skep.BotID(id), nil
}

func (s *Server) getBot(ctx context.Context, req *pb.BotRequest) (*pb.BotInfo, error) {
	id, err := botID(req.BotId)
	if err != nil {
		return nil, err
	}
	if err := s.mustBot(ctx, permListBots, id); err != nil {
		return nil, err
	}
	b, err := s.store.Bot(ctx, id)
	if err == nil || skep.KindOf(err) != skep.NotFound {
		if err != nil {
			return nil, err
		}
		return api.Bot(b), nil
	}
	events, _, eventsErr := s.store.BotEvents(ctx, store.EventFilter{Bot: id, Limit: 1})
	if eventsErr != nil {
		return nil, eventsErr
	}
	if len(events) == 0 {
		return nil, err
	}
	e := events[0]
	return api.Bot(&skep.Bot{
		ID: id, Dimensions: e.Dimensions, State: e.State, Version: e.Version, SessionID: e.SessionID, Authenticated: e.Authn,
		ExternalIP: e.ExternalIP, LastSeen: e.At, Task: e.Task, Quarantined: e.Quarantined, Maintenance: e.Maintenance, Deleted: true,
	}), nil
}

func (s *Server) deleteBot(ctx context.Context, req *pb.BotRequest) (*pb.DeleteResponse, error) {
	id, err := botID(req.BotId)
	if err != nil {
		return nil, err
	}
	if err := s.mustBot(ctx, permDeleteBot, id); err != nil {
		return nil, err
	}
	if err := s.sched.Delete(ctx, id); err != nil {
		return nil, err
	}
	return &pb.DeleteResponse{Deleted: true}, nil
}

func (s *Server) terminateBot(ctx context.Context, req *pb.TerminateRequest) (*pb.TerminateResponse, error) {
	id, err := botID(req.BotId)
	if err != nil {
		return nil, err
	}
	if err := skep.CheckDimensionValue("bot_id", "id", req.BotId); err != nil {
		return nil, err
	}
	if len([]rune(req.Reason)) > 1000 {
		return nil, skep.Invalidf("reason", "has more than 1000 characters")
	}
	if err := s.mustBot(ctx, permTerminate, id); err != nil {
		return nil, err
	}
	task, err := s.sched.Terminate(ctx, id, callerOf(ctx).identity, clean(req.Reason))
	if err != nil {
		return nil, err
	}
	return &pb.TerminateResponse{TaskId: task.String()}, nil
}

func (s *Server) listBotEvents(ctx context.Context, req *pb.BotEventsRequest) (*pb.BotEventsResponse, error) {
	id, err := botID(req.BotId)
	if err != nil {
		return nil, err
	}
	if err := s.mustBot(ctx, permListBots, id); err != nil {
		return nil, err
	}
	f := store.EventFilter{Bot: id}
	if f.Limit, err = api.Limit(req.Limit); err != nil {
		return nil, err
	}
	if f.Start, err = api.Instant("start", req.Start); err != nil {
		return nil, err
	}
	if f.End, err = api.Instant("end", req.End); err != nil {
		return nil, err
	}
	c, err := s.cursors.open(cursorBotEvents, req.Cursor)
	if err != nil {
		return nil, err
	}
	f.From = c.Key
	events, next, err := s.store.BotEvents(ctx, f)
	if err != nil {
		return nil, err
	}
	if len(events) == 0 && req.Cursor == "" {
		if _, err := s.store.Bot(ctx, id); err != nil {
			return nil, err
		}
	}
	out := &pb.BotEventsResponse{Now: s.nowPB()}
	for _, e := range events {
		out.Items = append(out.Items, api.BotEvent(e))
	}
	if next != 0 {
		out.Cursor = s.cursors.seal(cursor{Kind: cursorBotEvents, Key: next})
	}
	return out, nil
}

// neverRuns are the filters that no run can match. spec api-v2.md §7.3.
var neverRuns = []pb.StateQuery{
	pb.StateQuery_QUERY_PENDING, pb.StateQuery_QUERY_PENDING_RUNNING, pb.StateQuery_QUERY_EXPIRED,
	pb.StateQuery_QUERY_DEDUPED, pb.StateQuery_QUERY_NO_RESOURCE, pb.StateQuery_QUERY_CANCELED,
}

func (s *Server) listBotTasks(ctx context.Context, req *pb.BotTasksRequest) (*pb.TaskListResponse, error) {
	id, err := botID(req.BotId)
	if err != nil {
		return nil, err
	}
	if err := s.mustBot(ctx, permListTasks, id); err != nil {
		return nil, err
	}
	f := store.BotTaskFilter{Bot: id}
	if f.Limit, err = api.Limit(req.Limit); err != nil {
		return nil, err
	}
	if slices.Contains(neverRuns, req.State) {
		return nil, skep.Invalidf("state", "%s can never match a task that ran on a bot", req.State)
	}
	if f.State, err = stateFilter(req.State); err != nil {
		return nil, err
	}
	switch req.Sort {
	case pb.SortQuery_QUERY_CREATED_TS:
		f.Order = store.ByCreated
		f.Start, f.End, err = api.Range(req.Start, req.End)
	case pb.SortQuery_QUERY_STARTED_TS, pb.SortQuery_QUERY_COMPLETED_TS:
		f.Order = store.ByStarted
		if req.Sort == pb.SortQuery_QUERY_COMPLETED_TS {
			f.Order = store.ByCompleted
		}
		if req.State != pb.StateQuery_QUERY_ALL {
			return nil, skep.Invalidf("sort", "%s is possible with QUERY_ALL only", req.Sort)
		}
		if f.Start, err = api.Instant("start", req.Start); err == nil {
			f.End, err = api.Instant("end", req.End)
		}
	default:
		return nil, skep.Invalidf("sort", "%s is not possible here", req.Sort)
	}
	if err != nil {
		return nil, err
	}
	c, err := s.cursors.open(cursorBotTasks, req.Cursor)
	if err != nil {
		return nil, err
	}
	f.AfterKey, f.AfterID = c.Key, c.Task
	items, err := s.store.ListBotTasks(ctx, f)
	if err != nil {
		return nil, err
	}
	out := &pb.TaskListResponse{Now: s.nowPB()}
	for _, l := range items {
		out.Items = append(out.Items, api.RunResult(l.Request, l.Task, req.IncludePerformanceStats))
	}
	if len(items) == f.Limit {
		last := items[len(items)-1].Task
		out.Cursor = s.cursors.seal(cursor{Kind: cursorBotTasks, Key: f.SortKey(last), Task: last.ID})
	}
	return out, nil
}

// each calls fn for all bots with ids above after, in order, until it returns
// false.
func (s *Server) each(ctx context.Context, after skep.BotID, fn func(*skep.Bot) bool) error {
	const page = 500
	for {
		bots, err := s.store.BotsAfter(ctx, after, page)
		if err != nil {
			return err
		}
		for _, b := range bots {
			if !fn(b) {
				return nil
			}
			after = b.ID
		}
		if len(bots) < page {
			return nil
		}
	}
}

func wants(q pb.NullableBool, have bool) bool {
	return q == pb.NullableBool_NULL || (q == pb.NullableBool_TRUE) == have
}

func (s *Server) listBots(ctx context.Context, req *pb.BotsRequest) (*pb.BotInfoListResponse, error) {
	if err := s.mustPools(ctx, permListBots, filteredPools(req.Dimensions)); err != nil {
		return nil, err
	}
	limit, err := api.Limit(req.Limit)
	if err != nil {
		return nil, err
	}
	dims, err := api.Dimensions(req.Dimensions)
	if err != nil {
		return nil, err
	}
	c, err := s.cursors.open(cursorBots, req.Cursor)
	if err != nil {
		return nil, err
	}
	out := &pb.BotInfoListResponse{Now: s.nowPB(), DeathTimeout: int32(s.sched.BotDeath().Seconds())}
	err = s.each(ctx, c.Bot, func(b *skep.Bot) bool {
		if dims.Match(b.Dimensions) && wants(req.Quarantined, b.Quarantined != "") && wants(req.InMaintenance, b.Maintenance != "") &&
			wants(req.IsDead, b.Dead) && wants(req.IsBusy, !b.Idle()) {
			out.Items = append(out.Items, api.Bot(b))
			if len(out.Items) == limit {
				out.Cursor = s.cursors.seal(cursor{Kind: cursorBots, Bot: b.ID})
				return false
			}
		}
		return true
	})
	return out, err
}

func (s *Server) countBots(ctx context.Context, req *pb.BotsCountRequest) (*pb.BotsCount, error) {
	if err := s.mustPools(ctx, permListBots, filteredPools(req.Dimensions)); err != nil {
		return nil, err
	}
	dims, err := api.Dimensions(req.Dimensions)
	if err != nil {
		return nil, err
	}
	out := &pb.BotsCount{Now: s.nowPB()}
	count := func(n *int32, yes bool) {
		if yes {
			*n++
		}
	}
	err = s.each(ctx, "", func(b *skep.Bot) bool {
		if dims.Match(b.Dimensions) {
			out.Count++
			count(&out.Quarantined, b.Quarantined != "")
			count(&out.Maintenance, b.Maintenance != "")
			count(&out.Dead, b.Dead)
			count(&out.Busy, !b.Idle())
		}
		return true
	})
	return out, err
}

// getBotDimensions tells what the bots of a pool are, or of all pools whose
// bots the caller may list: none is no error then. spec api-v2.md §7.2.
func (s *Server) getBotDimensions(ctx context.Context, req *pb.BotsDimensionsRequest) (*pb.BotsDimensions, error) {
	m := s.may(ctx)
	everywhere := m.server(permListBots)
	visible := func(pool string) bool { return pool == req.Pool }
	if req.Pool == "" {
		visible = func(pool string) bool { return m.pool(permListBots, pool) }
	} else if err := s.mustPool(ctx, permListBots, req.Pool); err != nil {
		return nil, err
	}
	all := map[string]map[string]bool{}
	err := s.each(ctx, "", func(b *skep.Bot) bool {
		if !(req.Pool == "" && everywhere) && !slices.ContainsFunc(b.Dimensions["pool"], visible) {
			return true
		}
		for k, vs := range b.Dimensions {
			if k == "id" {
				continue
			}
			if all[k] == nil {
				all[k] = map[string]bool{}
			}
			for _, v := range vs {
				all[k][v] = true
			}
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	d := skep.Dimensions{}
	for k, vs := range all {
		d[k] = slices.Collect(maps.Keys(vs))
	}
	return &pb.BotsDimensions{BotsDimensions: api.DimensionsPB(d), Ts: s.nowPB()}, nil
}
