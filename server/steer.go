package server

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/skeppb"
	"github.com/skepdev/skep/store"
)

const maxDrain = 365 * 24 * time.Hour

func (s *Server) drainBot(ctx context.Context, req *skeppb.DrainRequest) (*skeppb.BotOrders, error) {
	var limit time.Duration
	if req.Deadline != nil {
		if limit = req.Deadline.AsDuration(); req.Deadline.CheckValid() != nil || limit < 0 || limit > maxDrain {
			return nil, skep.Invalidf("deadline", "is %v, want 0 to %v", limit, maxDrain)
		}
	}
	return s.steer(ctx, req.BotId, req.Reason, "drained", func(o *store.Orders, order *store.Order) {
		if req.Deadline != nil {
			order.Until = order.Since.Add(limit)
		}
		if o.Drain != nil {
			order.Since = o.Drain.Since
		}
		o.Drain = order
	})
}

func (s *Server) undrainBot(ctx context.Context, req *skeppb.SteerRequest) (*skeppb.BotOrders, error) {
	return s.steer(ctx, req.BotId, req.Reason, "not drained any more", func(o *store.Orders, _ *store.Order) { o.Drain = nil })
}

func (s *Server) quarantineBot(ctx context.Context, req *skeppb.SteerRequest) (*skeppb.BotOrders, error) {
	return s.steer(ctx, req.BotId, req.Reason, "quarantined", func(o *store.Orders, order *store.Order) { o.Quarantine = order })
}

func (s *Server) unquarantineBot(ctx context.Context, req *skeppb.SteerRequest) (*skeppb.BotOrders, error) {
	return s.steer(ctx, req.BotId, req.Reason, "not quarantined any more", func(o *store.Orders, _ *store.Order) { o.Quarantine = nil })
}

// steer changes what a bot was told, durably, and lets it know.
func (s *Server) steer(ctx context.Context, name, reason, what string, edit func(*store.Orders, *store.Order)) (*skeppb.BotOrders, error) {
	id, err := botID(name)
	if err != nil {
		return nil, err
	}
	if len(reason) > 1000 {
		return nil, skep.Invalidf("reason", "has %d bytes, want 1000 at most", len(reason))
	}
	if err := s.mustBot(ctx, permTerminate, id); err != nil {
		return nil, err
	}
	by := callerOf(ctx).identity
	note := what + " by " + by
	if reason = clean(reason); reason != "" {
		note += ": " + reason
	}
	o, err := s.sched.Steer(ctx, id, note, func(o *store.Orders, now time.Time) {
		edit(o, &store.Order{Reason: reason, By: by, Since: now})
	})
	if err != nil {
		return nil, err
	}
	s.log.InfoContext(ctx, "bot steered", "bot", string(id), "what", note)
	if err := s.fleet.readOrders(ctx); err != nil {
		return nil, err
	}
	s.sched.Wake(id) // a poll that came in before may wait with the orders of before
	return ordersPB(o), nil
}

func (s *Server) getOrders(ctx context.Context, req *skeppb.SteerRequest) (*skeppb.BotOrders, error) {
	id, err := botID(req.BotId)
	if err != nil {
		return nil, err
	}
	if err := s.mustBot(ctx, permListBots, id); err != nil {
		return nil, err
	}
	if o := s.fleet.ordersOf(id); o != nil {
		return ordersPB(o), nil
	}
	return &skeppb.BotOrders{BotId: req.BotId}, nil
}

func ordersPB(o *store.Orders) *skeppb.BotOrders {
	one := func(o *store.Order) *skeppb.BotOrder {
		if o == nil {
			return nil
		}
		out := &skeppb.BotOrder{Reason: o.Reason, By: o.By, Since: timestamppb.New(o.Since)}
		if !o.Until.IsZero() {
			out.Until = timestamppb.New(o.Until)
		}
		return out
	}
	return &skeppb.BotOrders{BotId: string(o.Bot), Drain: one(o.Drain), Quarantine: one(o.Quarantine)}
}

func (s *Server) listAlarms(ctx context.Context, _ *emptypb.Empty) (*skeppb.Alarms, error) {
	if err := s.mustServer(ctx, permPeek); err != nil {
		return nil, err
	}
	out := &skeppb.Alarms{}
	for _, a := range s.fleet.view.Load().alarms {
		out.Alarms = append(out.Alarms, &skeppb.Alarm{
			Kind: a.Kind, Pool: a.Pool, BotId: string(a.Bot), Text: a.Text, Since: timestamppb.New(a.Since),
		})
	}
	return out, nil
}
