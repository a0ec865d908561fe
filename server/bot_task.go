package server

import (
	"math"
	"net/http"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api"
	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/scheduler"
)

func (s *Server) taskUpdate(w http.ResponseWriter, r *http.Request) error {
	var req botapi.TaskUpdate
	if err := readWith(w, r, maxUpdate, func(body []byte) error {
		return decodeMembers(body, func(name []byte) any { return updateField(&req, name) })
	}); err != nil {
		return err
	}
	if req.Wait < 0 || math.IsNaN(req.Wait) {
		return skep.Invalidf("wait", "is %v, want 0 to %v seconds", req.Wait, scheduler.MaxWait.Seconds())
	}
	sp, err := s.speaks(r, req.ID, req.Session)
	if err != nil {
		return err
	}
	rep, err := api.Report(sp.id, &req)
	if err != nil {
		return err
	}
	var ans scheduler.Answer
	if req.Wait > 0 && rep.Ending == nil && len(rep.Output) == 0 {
		wait := min(time.Duration(req.Wait*float64(time.Second)), scheduler.MaxWait)
		ans, err = s.sched.Control(r.Context(), sp.id, rep.Task, req.Watched, wait)
	} else {
		ans, err = s.sched.Report(r.Context(), rep)
	}
	if err != nil {
		return err
	}
	out := &botapi.TaskUpdateResponse{OK: ans.OK, MustStop: ans.MustStop, StopReason: ans.Reason, Watched: ans.Watched}
	if sp.bound && !sp.leaving {
		// An update never shortens the life that the claim gave.
		out.Session = s.sessions.renew(sp.session, req.Session, 0)
	}
	return write(w, out)
}

func (s *Server) taskError(w http.ResponseWriter, r *http.Request) error {
	var req botapi.TaskErrorRequest
	if err := read(w, r, maxUpdate, &req); err != nil {
		return err
	}
	sp, err := s.speaks(r, req.ID, req.Session)
	if err != nil {
		return err
	}
	rep, err := api.ErrorReport(sp.id, &req)
	if err != nil {
		return err
	}
	s.log.WarnContext(r.Context(), "task error", "bot", string(sp.id), "task", rep.Task.String(), "message", clip(req.Message, 4096))
	if _, err := s.sched.Report(r.Context(), rep); err != nil {
		return err
	}
	return write(w, empty{}) // anything else without "resp" crashes an existing bot
}

// token answers oauth_token and id_token. Without accounts to mint for, only
// "none" and "bot" can be given; a refusal is a 400 with "error", which
// existing bots take as final. spec bot.md §2.12.
func (s *Server) token(w http.ResponseWriter, r *http.Request) error {
	var req botapi.TokenRequest
	if err := read(w, r, maxDescription, &req); err != nil {
		return err
	}
	sp, err := s.speaks(r, req.ID, req.Session)
	if err != nil {
		return err
	}
	switch {
	case r.URL.Path == botapi.PathOAuthToken && len(req.Scopes) == 0:
		return skep.Invalidf("scopes", "is required")
	case r.URL.Path == botapi.PathIDToken && req.Audience == "":
		return skep.Invalidf("audience", "is required")
	}
	account := "none"
	switch req.AccountID {
	case "system":
	case "task":
		id, err := skep.ParseTaskID(req.TaskID)
		if err != nil {
			return err
		}
		task, err := s.store.Task(r.Context(), id)
		if err != nil && skep.KindOf(err) != skep.NotFound {
			return err
		}
		if err != nil || task.Bot != sp.id || task.State != skep.Running {
			return skep.Invalidf("task_id", "bot %s does not run task %s", sp.id, id)
		}
		request, err := s.store.Request(r.Context(), id)
		if err != nil {
			return err
		}
		account = request.ServiceAccount
	default:
		return skep.Invalidf("account_id", "%.40q is not system or task", req.AccountID)
	}
	if account != "none" && account != "bot" {
		return skep.Errorf(skep.Precondition, "this server cannot mint tokens of %s", account)
	}
	return write(w, &botapi.TokenResponse{ServiceAccount: account})
}
