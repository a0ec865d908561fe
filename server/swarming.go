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
	if err := must(ctx, permPeek); err != nil {
		return nil, err
	}
	out := &pb.ServerDetails{ServerVersion: s.o.Version}
	if s.o.Code != nil && len(s.o.URLs) > 0 {
		b, err := s.o.Code.Code(ctx, "", rollout.Platform{OS: runtime.GOOS, Arch: runtime.GOARCH}, s.o.URLs[0])
		if err == nil { // else there is none
			out.BotVersion = b.Digest
		}
	}
	if s.o.Blobs != nil && len(s.o.URLs) > 0 {
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
	if err := must(ctx, permCreateBot); err != nil {
		return nil, err
	}
	_, name, _ := strings.Cut(callerOf(ctx).identity, ":")
	text, _, err := CreateToken(ctx, s.store, NewToken{Name: name, Scope: ScopeBootstrap, Bots: []string{"*"}, Uses: bootstrapUses, Life: bootstrapLife})
	if err != nil {
		return nil, err
	}
	return &pb.BootstrapToken{BootstrapToken: text}, nil
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
