package server

import (
	"cmp"
	"context"
	"runtime"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/skeppb"
	"github.com/skepdev/skep/rollout"
)

func (s *Server) getRollout(ctx context.Context, _ *skeppb.GetRolloutRequest) (*skeppb.Rollout, error) {
	if err := s.mustServer(ctx, permPeek); err != nil {
		return nil, err
	}
	return s.rolloutNow(ctx)
}

func (s *Server) haltRollout(ctx context.Context, req *skeppb.HaltRolloutRequest) (*skeppb.Rollout, error) {
	if err := s.mustServer(ctx, permCreateBot); err != nil {
		return nil, err
	}
	if len(req.Reason) > 1000 {
		return nil, skep.Invalidf("reason", "has %d bytes, want 1000 at most", len(req.Reason))
	}
	if s.o.Code != nil {
		if err := s.o.Code.Halt(ctx, cmp.Or(clean(req.Reason), "halted by "+callerOf(ctx).identity)); err != nil {
			return nil, err
		}
	}
	return s.rolloutNow(ctx)
}

func (s *Server) resumeRollout(ctx context.Context, _ *skeppb.ResumeRolloutRequest) (*skeppb.Rollout, error) {
	if err := s.mustServer(ctx, permCreateBot); err != nil {
		return nil, err
	}
	if s.o.Code != nil {
		if err := s.o.Code.Resume(ctx); err != nil {
			return nil, err
		}
	}
	return s.rolloutNow(ctx)
}

func (s *Server) rolloutNow(ctx context.Context) (*skeppb.Rollout, error) {
	if s.o.Code == nil {
		return nil, skep.Errorf(skep.Precondition, "this server hands out no bot code; start it with --bot-dir")
	}
	st, err := s.o.Code.Status(ctx)
	if err != nil {
		return nil, err
	}
	out := &skeppb.Rollout{
		StableRelease: st.Stable, NextRelease: st.Next, Stage: st.Stage, Halted: st.Halted,
		Waiting: int32(st.Waiting), Confirmed: int32(st.Confirmed), Crashed: int32(st.Crashed), Quarantined: int32(st.Ill),
	}
	if !st.Since.IsZero() {
		out.Since = timestamppb.New(st.Since)
	}
	for _, b := range st.Crashes {
		out.CrashedBots = append(out.CrashedBots, string(b))
	}
	for _, b := range st.Others {
		out.MismatchedBots = append(out.MismatchedBots, string(b))
	}
	p := rollout.Platform{OS: runtime.GOOS, Arch: runtime.GOARCH}
	out.StableVersion = s.o.Code.Version(ctx, st.Stable, p)
	out.NextVersion = s.o.Code.Version(ctx, st.Next, p)
	return out, nil
}
