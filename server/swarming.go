package server

import (
	"context"
	"runtime"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api"
	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/rollout"
)

func (s *Server) getDetails(ctx context.Context, _ *emptypb.Empty) (*pb.ServerDetails, error) {
	if err := s.mustServer(ctx, permPeek); err != nil {
		return nil, err
	}
	ru := s.rules()
	out := &pb.ServerDetails{ServerVersion: s.o.Version, DisplayServerUrlTemplate: ru.DisplayURL, CasViewerServer: ru.ViewerServer}
	if s.o.Code != nil && len(s.o.URLs) > 0 {
		b, err := s.o.Code.Code(ctx, "", rollout.Platform{OS: runtime.GOOS, Arch: runtime.GOARCH}, s.o.URLs[0])
		if err == nil { // else there is none
			out.BotVersion = b.Digest
		}
	}
	if out.CasViewerServer == "" && s.o.Blobs != nil && len(s.o.URLs) > 0 {
		out.CasViewerServer = s.o.URLs[0] // its pages: casViewer
	}
	return out, nil
}

// What a bootstrap token of GetToken is good for. spec bot.md §2.13.
const (
	bootstrapLife = time.Hour
	bootstrapUses = 1000
)

// getToken makes a bootstrap token for any bot. Who wants a narrower one uses
// skep token create.
func (s *Server) getToken(ctx context.Context, _ *emptypb.Empty) (*pb.BootstrapToken, error) {
	if err := s.mustServer(ctx, permCreateBot); err != nil {
		return nil, err
	}
	_, name, _ := strings.Cut(callerOf(ctx).identity, ":")
	text, _, err := CreateToken(ctx, s.store, NewToken{Name: name, Scope: ScopeBootstrap, Bots: []string{"*"}, Uses: bootstrapUses, Life: bootstrapLife})
	if err != nil {
		return nil, err
	}
	return &pb.BootstrapToken{BootstrapToken: text}, nil
}

// getPermissions says what the caller may do. spec api-v2.md §8.
func (s *Server) getPermissions(ctx context.Context, req *pb.PermissionsRequest) (*pb.ClientPermissions, error) {
	if _, err := api.Tags(req.Tags); err != nil {
		return nil, err
	}
	m, named := s.may(ctx), taggedPools(req.Tags)
	out := &pb.ClientPermissions{
		DeleteBot: m.server(permDeleteBot), TerminateBot: m.server(permTerminate),
		DeleteBots: m.allPools(permDeleteBot, named), CancelTasks: m.allPools(permCancelPool, named),
		GetBootstrapToken: m.server(permCreateBot),
	}
	out.CancelTask = out.CancelTasks
	if req.BotId != "" {
		out.DeleteBot = s.mustBot(ctx, permDeleteBot, skep.BotID(req.BotId)) == nil
		out.TerminateBot = s.mustBot(ctx, permTerminate, skep.BotID(req.BotId)) == nil
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
		out.CancelTask = s.mustTask(ctx, permCancelTask, r) == nil
	}
	pools, err := s.pools(ctx, m)
	if err != nil {
		return nil, err
	}
	for _, name := range pools {
		if m.pool(permListBots, name) {
			out.ListBots = append(out.ListBots, name)
		}
		if m.pool(permListTasks, name) {
			out.ListTasks = append(out.ListTasks, name)
		}
	}
	return out, nil
}

// pools returns the pools that exist: without pools.cfg, those that bots are
// in, and the default one.
func (s *Server) pools(ctx context.Context, m may) ([]string, error) {
	if m.rules.Pools != nil {
		return m.rules.Pools(), nil
	}
	if !m.pool(permListBots, "") && !m.pool(permListTasks, "") {
		return nil, nil
	}
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
