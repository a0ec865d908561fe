package server

import (
	"context"
	"strings"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/api/skeppb"
	pb "github.com/skepdev/skep/api/swarmingpb"
)

// getConfig tells which configuration is followed and what is refused.
func (s *Server) getConfig(ctx context.Context, _ *emptypb.Empty) (*skeppb.ConfigState, error) {
	if err := s.mustServer(ctx, permPeek); err != nil {
		return nil, err
	}
	if st := s.rules().State; st != nil {
		return st, nil
	}
	return &skeppb.ConfigState{}, nil
}

// configLines is what readyz says of the configuration. A refused change does
// not make the server less ready: the last good one is in force. Texts of
// faults may hold names of bots and tokens; who may see them asks Config.Get.
func (s *Server) configLines() string {
	st := s.rules().State
	if st == nil {
		return ""
	}
	var b strings.Builder
	b.WriteString("config " + st.Digest + "\n")
	for _, f := range st.Files {
		if f.RefusedSince != nil {
			b.WriteString("config refused: " + f.Name + " since " + f.RefusedSince.AsTime().Format("2006-01-02T15:04:05Z") + "; skep config show tells why\n")
		}
	}
	return b.String()
}

// tell adds to the answer to a handshake what the bot's group says, and its
// pools.
func (ru *Rules) tell(ans *botapi.HandshakeResponse, id skep.BotID, pools []string, foreign bool) {
	if ladder := ru.recovery(pools); ladder != nil && !foreign {
		ans.Skep = &botapi.HandshakeSkep{Recovery: ladder}
	}
	if ru.Group == nil {
		return
	}
	g := ru.Group(id)
	if g == nil {
		return
	}
	if g.Dimensions != nil {
		ans.BotGroupCfg.Dimensions = g.Dimensions
	}
	if script := g.Script(foreign); script.Name != "" {
		ans.BotConfig, ans.BotConfigName, ans.BotConfigRev = &script.Content, script.Name, script.Revision
	}
}

// place gives a new task its realm and holds it against the rules of its pool.
func (s *Server) place(ctx context.Context, r *skep.TaskRequest, pool string) error {
	m := s.may(ctx)
	if m.rules.Pool == nil {
		r.Realm = firstOf(r.Realm, defaultRealm)
	} else {
		p := m.rules.Pool(pool)
		if p == nil { // it was there a moment ago
			return skep.Errorf(skep.Denied, "there is no pool %s", pool)
		}
		if r.Realm = firstOf(r.Realm, p.DefaultTaskRealm); r.Realm == "" {
			return skep.Invalidf("realm", "is required in pool %s, which has no default_task_realm", pool)
		}
		for i := range r.Slices {
			for _, d := range r.Slices[i].Properties.Dimensions {
				if p.Informational(d.Key) {
					return skep.Invalidf("task_slices", "dimension %s only informs in pool %s; tasks cannot ask for it", d.Key, pool)
				}
			}
		}
	}
	if m.scope != ScopeAdmin && m.realm(permInRealm, r.Realm) == Refused {
		return m.refusal(permInRealm, "in realm "+r.Realm)
	}
	return nil
}

// isolation is what a skep-bot says of hiding its credential from tasks.
func (st *botState) isolation() string {
	var ours struct {
		Isolation string `json:"isolation"`
	}
	if len(st.Skep) == 0 || member([]byte("skep"), st.Skep, &ours) != nil {
		return ""
	}
	return ours.Isolation
}

// filteredPools are the pools that a filter of dimensions names.
func filteredPools(dims []*pb.StringPair) []string {
	var out []string
	for _, d := range dims {
		if d.Key == "pool" {
			out = append(out, strings.Split(d.Value, "|")...)
		}
	}
	return out
}
