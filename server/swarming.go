package server

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"time"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api"
	pb "github.com/skepdev/skep/api/swarmingpb"
)

func (s *Server) getDetails(ctx context.Context, _ *emptypb.Empty) (*pb.ServerDetails, error) {
	if err := must(ctx, permPeek); err != nil {
		return nil, err
	}
	return &pb.ServerDetails{ServerVersion: s.o.Version, BotVersion: s.o.BotVersion}, nil
}

// bootstrapLife is how long a bootstrap token is good for.
const bootstrapLife = time.Hour

// getToken makes a bootstrap token: who asked for it, when, and a MAC.
// spec bot.md §2.13.
func (s *Server) getToken(ctx context.Context, _ *emptypb.Empty) (*pb.BootstrapToken, error) {
	if err := must(ctx, permCreateBot); err != nil {
		return nil, err
	}
	key, err := s.store.ServerKey(ctx, "bootstrap")
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(map[string]any{"_i": s.o.Now().UnixMilli(), "_x": bootstrapLife.Milliseconds(), "for": callerOf(ctx).identity})
	if err != nil {
		return nil, err
	}
	b := append([]byte{1}, body...)
	m := hmac.New(sha256.New, key)
	m.Write(b)
	return &pb.BootstrapToken{BootstrapToken: base64.RawURLEncoding.EncodeToString(m.Sum(b))}, nil
}

func (s *Server) getPermissions(ctx context.Context, req *pb.PermissionsRequest) (*pb.ClientPermissions, error) {
	c := callerOf(ctx)
	out := &pb.ClientPermissions{
		DeleteBot: c.can(permDeleteBot), DeleteBots: c.can(permDeleteBot), TerminateBot: c.can(permTerminate),
		CancelTask: c.can(permCancelPool), CancelTasks: c.can(permCancelPool), GetBootstrapToken: c.can(permCreateBot),
	}
	if req.TaskId != "" {
		id, err := skep.ParseTaskID(req.TaskId)
		if err != nil {
			return nil, err
		}
		r, err := s.store.Request(ctx, id)
		if err != nil {
			return nil, err
		}
		out.CancelTask = mustForTask(ctx, permCancelTask, r) == nil
	}
	if _, err := api.Tags(req.Tags); err != nil {
		return nil, err
	}
	if !c.can(permListBots) && !c.can(permListTasks) {
		return out, nil
	}
	pools, err := s.pools(ctx)
	if err != nil {
		return nil, err
	}
	if c.can(permListBots) {
		out.ListBots = pools
	}
	if c.can(permListTasks) {
		out.ListTasks = pools
	}
	return out, nil
}

// pools returns the pools that exist: without configuration, those that bots
// are in, and the default one.
func (s *Server) pools(ctx context.Context) ([]string, error) {
	d := skep.Dimensions{"pool": {"default"}}
	seen := map[string]bool{"default": true}
	err := s.each(ctx, "", func(b *skep.Bot) bool {
		for _, p := range b.Dimensions["pool"] {
			if !seen[p] {
				seen[p] = true
				d["pool"] = append(d["pool"], p)
			}
		}
		return true
	})
	return api.DimensionsPB(d)[0].Value, err
}
