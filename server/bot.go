package server

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api"
	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/internal/jsonscan"
	"github.com/skepdev/skep/scheduler"
)

var sessionIDForm = regexp.MustCompile(`^[a-z0-9\-_/]{1,50}$`)

// isRequestUUID reports whether s can be the key of a call.
func isRequestUUID(s string) bool {
	return len(s) <= 50 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_/") == ""
}

// maxBotID bounds the name of a bot, as for any dimension value.
const maxBotID = skep.MaxDimensionValue

// speaker is the bot that a call speaks for.
type speaker struct {
	id      skep.BotID
	session session // zero when the call carried none of ours
	bound   bool    // session is one of ours, for this bot
	leaving bool    // it may end what it runs, and no more: the rules under which it came in are gone
}

// speaks finds out which bot a call speaks for. named is what its body says;
// the header of existing bots says it where the body does not. A session of
// ours must be for that bot; any other text is no credential and changes
// nothing, as bots move between servers. decisions.md 9.
func (s *Server) speaks(r *http.Request, named, sessionText string) (speaker, error) {
	sp := speaker{id: skep.BotID(firstOf(named, r.Header.Get(botapi.HeaderBotID)))}
	sp.session, sp.bound = s.sessions.open(sessionText)
	if sp.id == "" && sp.bound {
		sp.id = sp.session.bot
	}
	if sp.id == "" {
		return sp, skep.Invalidf("id", "the call does not say which bot it is from")
	}
	if err := skep.CheckDimensionValue("id", "id", string(sp.id)); err != nil || clean(string(sp.id)) != string(sp.id) {
		return sp, skep.Invalidf("id", "%.80q cannot be a bot id", sp.id)
	}
	if sp.bound && sp.session.bot != sp.id {
		return sp, skep.Errorf(skep.Denied, "the session belongs to bot %s, the call speaks for %s", sp.session.bot, sp.id)
	}
	var err error
	sp.leaving, err = s.admit(r, sp)
	return sp, err
}

// botState is what the server reads of a bot's state.
type botState struct {
	SleepStreak float64         `json:"sleep_streak"`
	Quarantined json.RawMessage `json:"quarantined"`
	Maintenance json.RawMessage `json:"maintenance"`
	Skep        json.RawMessage `json:"skep"` // only our bots send it

	runningTime, uptime []byte // of bot and host, seconds as JSON; nil = not said
	broken              bool   // what it says cannot be understood
}

// read picks from a state what the server reads, and checks all of it.
func (st *botState) read(state []byte) error {
	return jsonscan.Members(state, func(name, value []byte) error {
		switch string(name) {
		case "sleep_streak":
			return json.Unmarshal(value, &st.SleepStreak)
		case "quarantined":
			st.Quarantined = value
		case "maintenance":
			st.Maintenance = value
		case "skep":
			st.Skep = value
		case "running_time":
			st.runningTime = value
		case "uptime":
			st.uptime = value
		}
		return nil
	})
}

// describe turns what a bot says of itself into its record. What is wrong with
// it quarantines the bot instead of failing the call, so that it is seen.
// spec scheduler.md §8.4.
func (s *Server) describe(r *http.Request, id skep.BotID, a *botapi.Attributes) (*skep.Bot, botState) {
	a.State = compacted(a.State)
	return s.describeKnown(r, id, a, false)
}

func compacted(state []byte) []byte {
	return jsonscan.AppendCompact(make([]byte, 0, len(state)), state)
}

// describeKnown is describe, for a state without white space and, if known,
// dimensions that the scheduler knows already.
func (s *Server) describeKnown(r *http.Request, id skep.BotID, a *botapi.Attributes, known bool) (*skep.Bot, botState) {
	b := &skep.Bot{
		ID: id, Dimensions: a.Dimensions, Version: clip(a.Version, 256), ExternalIP: peerIP(r), Authenticated: callerOf(r.Context()).identity,
	}
	if b.Authenticated != anonymous || s.rules().Group != nil {
		b.Authenticated = "bot:" + string(id)
	}
	var st botState
	var faults []string
	if b.Dimensions == nil {
		b.Dimensions = skep.Dimensions{}
	}
	if known {
		// Checked before, and nobody's to change.
	} else if err := b.Dimensions.Validate(); err != nil {
		faults = append(faults, err.Error())
		b.Dimensions = skep.Dimensions{"id": {string(id)}}
	} else if b.Dimensions["id"][0] != string(id) {
		faults = append(faults, fmt.Sprintf("dimension id is %q", b.Dimensions["id"][0]))
		b.Dimensions["id"] = []string{string(id)}
	}
	if err := st.read(a.State); err != nil {
		faults = append(faults, "state is not a JSON object of the expected form")
		b.State = json.RawMessage("{}")
	} else {
		b.State = a.State
	}
	if a.Version == "" {
		faults = append(faults, "version is missing")
	}
	st.broken = len(faults) > 0
	for _, q := range b.Dimensions["quarantined"] {
		if q == "true" || q == "1" {
			q = selfQuarantined
		}
		faults = append(faults, q)
	}
	if text, ok := truth(st.Quarantined); ok {
		faults = append(faults, firstOf(text, selfQuarantined))
	}
	for i, f := range faults {
		if i > 0 {
			b.Quarantined += "\n"
		}
		b.Quarantined += clip(f, 4096)
	}
	if text, ok := truth(st.Maintenance); ok {
		b.Maintenance = clip(firstOf(text, "in maintenance"), 4096)
	}
	return b, st
}

const selfQuarantined = "Bot self-quarantined."

// truth reports whether a JSON value counts as true, and its text if it is one.
func truth(raw json.RawMessage) (text string, ok bool) {
	var v any
	if len(raw) == 0 || json.Unmarshal(raw, &v) != nil {
		return "", false
	}
	switch v := v.(type) {
	case string:
		return v, v != ""
	case bool:
		return "", v
	case float64:
		return "", v != 0
	case []any:
		return "", len(v) > 0
	case map[string]any:
		return "", len(v) > 0
	default:
		return "", false
	}
}

func clip(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return clean(s)
}

func (s *Server) handshake(w http.ResponseWriter, r *http.Request) error {
	var req botapi.HandshakeRequest
	if err := read(w, r, maxDescription, &req); err != nil {
		return err
	}
	if req.SessionID == "" {
		req.SessionID = fmt.Sprintf("autogen-%d-%d", s.o.Now().UnixMilli(), rand.Uint32())
	}
	if !sessionIDForm.MatchString(req.SessionID) {
		return skep.Invalidf("session_id", "%.60q does not match %s", req.SessionID, sessionIDForm)
	}
	sp, err := s.speaks(r, first(req.Dimensions["id"]), "")
	if err != nil {
		return err
	}
	ru := s.rules()
	b, st := s.describe(r, sp.id, &req.Attributes)
	b.Dimensions = ru.force(sp.id, b.Dimensions)
	if who := ru.refusesForeign(b); who != "" && st.Skep == nil {
		return skep.Errorf(skep.Denied, "%s wants no bots but skep-bots (foreign_bots in pools.cfg or settings.cfg)", who)
	}
	b.SessionID = req.SessionID
	want, err := s.expected(r, b, &st, true)
	if err != nil {
		return err
	}
	pools := ru.poolsOf(sp.id, b.Dimensions)
	if err := s.judge(r.Context(), ru, b, &st, pools, b.Quarantined); err != nil {
		return err
	}
	scheduler.Obey(b, s.fleet.ordersOf(sp.id))
	b.State = handshaking(b.State, b.Dimensions)
	b.Dimensions = ru.force(sp.id, skep.Dimensions{"id": {string(sp.id)}})
	credential, err := s.credential(r.Context(), sp.id, req.Credential)
	if err != nil {
		return err
	}
	if err := s.sched.Connect(r.Context(), b); err != nil {
		return err
	}
	ans := &botapi.HandshakeResponse{
		Credential: credential,
		Session:    s.sessions.seal(session{bot: sp.id, process: req.SessionID, shake: ru.shake(sp.id, pools), auth: ru.auth(sp.id)}, 0),
		BotVersion: firstOf(want, req.Version), ServerVersion: s.o.Version,
		BotGroupCfg: botapi.BotGroupCfg{Dimensions: map[string][]string{}},
	}
	ru.tell(ans, sp.id, pools, st.Skep == nil)
	if st.Skep == nil && ans.BotConfigName == "" {
		ans.BotConfigName = "bot_config.py" // that of its own archive; existing bots make a dimension of it
	}
	return write(w, ans)
}

func first(vs []string) string {
	if len(vs) == 0 {
		return ""
	}
	return vs[0]
}

// handshaking adds to a bot's state what only the server writes there.
func handshaking(state json.RawMessage, dims skep.Dimensions) json.RawMessage {
	var m map[string]json.RawMessage
	if json.Unmarshal(state, &m) != nil || m == nil {
		m = map[string]json.RawMessage{}
	}
	m["handshaking"] = json.RawMessage("true")
	if d, err := json.Marshal(dims); err == nil {
		m["initial_dimensions"] = d
	}
	out, err := json.Marshal(m)
	if err != nil {
		return state
	}
	return out
}

// ask is a poll as the server understood it.
type ask struct {
	scheduler.Poll
	ru      *Rules
	sp      speaker
	pools   []string
	session string // as it was sent
	streak  float64
	ourBot  bool
	ends    bool   // by itself, after this
	update  string // the version that it is to become; "" = none
	restart bool
	tired   tiredness
}

// poll is where thousands of bots are at once, so understanding them and
// answering them are calls that leave nothing on the stack meanwhile.
func (s *Server) poll(w http.ResponseWriter, r *http.Request) error {
	a, err := s.hear(w, r)
	if a == nil || err != nil {
		return err
	}
	cmd, err := s.sched.Poll(r.Context(), a.Poll)
	if err != nil {
		return err
	}
	return s.answer(w, r, a, &cmd)
}

// hear reads a poll. It returns nil after it has answered it.
func (s *Server) hear(w http.ResponseWriter, r *http.Request) (*ask, error) {
	var req botapi.PollRequest
	var source scheduler.Source
	changes := s.sched.Changes() // before what may change
	ru, known := s.rules(), false
	if err := readWith(w, r, maxDescription, func(body []byte) (err error) {
		source, known, err = s.decodePoll(body, &req, ru)
		return err
	}); err != nil {
		return nil, err
	}
	switch {
	case !isRequestUUID(req.RequestUUID):
		return nil, skep.Invalidf("request_uuid", "%.60q is not at most 50 letters, digits, -, _ or /", req.RequestUUID)
	case req.Wait < 0 || math.IsNaN(req.Wait):
		return nil, skep.Invalidf("wait", "is %v, want 0 to %v seconds", req.Wait, scheduler.MaxWait.Seconds())
	}
	sp, err := s.speaks(r, first(req.Dimensions["id"]), req.Session)
	if err != nil {
		return nil, err
	}
	if sp.bound && s.sessions.expired(sp.session) {
		return nil, write(w, &botapi.PollResponse{Cmd: botapi.CmdBotRestart, Message: "The session has expired; shake hands anew."})
	}
	b, st := s.describeKnown(r, sp.id, &req.Attributes, known)
	if !known {
		b.Dimensions = ru.force(sp.id, b.Dimensions)
	}
	said, pools := b.Quarantined, ru.poolsOf(sp.id, b.Dimensions)
	if reason := ru.unfit(b, st.Skep == nil, st.isolation); reason != "" {
		b.Quarantined = strings.TrimPrefix(b.Quarantined+"\n"+reason, "\n")
	}
	b.SessionID = sp.session.process
	if b.Quarantined != "" {
		source = scheduler.Source{} // perhaps because of its dimensions
	}
	a := &ask{ru: ru, pools: pools, session: req.Session, streak: st.SleepStreak, ourBot: len(st.Skep) > 0, ends: b.Maintenance != ""}
	if !a.ends {
		want, err := s.expected(r, b, &st, false)
		if err != nil {
			return nil, err
		}
		if want != b.Version {
			a.update = want
		}
	}
	a.restart = sp.bound && sp.session.shake != ru.shake(sp.id, pools)
	if err := s.judge(r.Context(), ru, b, &st, pools, said); err != nil {
		return nil, err
	}
	scheduler.Obey(b, s.fleet.ordersOf(sp.id))
	a.tired = s.tired(ru, b, &st, pools)
	if !sp.bound {
		sp.session.bot = sp.id
	}
	a.sp = sp
	a.Poll = scheduler.Poll{
		Bot: b, Key: req.RequestUUID, Wait: min(time.Duration(req.Wait*float64(time.Second)), scheduler.MaxWait), Source: source,
		Changes: changes,
		NoWork:  a.update != "" || a.restart || a.tired.cmd != "" || ru.ForceSleep, End: !a.ends,
	}
	return a, nil
}

// answer tells a bot what to do.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, a *ask, cmd *scheduler.Command) error {
	b := a.Bot
	ans := &botapi.PollResponse{Session: s.sessions.renew(a.sp.session, a.session, 0)}
	switch {
	case cmd.Task == nil && a.update != "":
		ans.Cmd, ans.Version = botapi.CmdUpdate, a.update
	case cmd.Task == nil && a.restart:
		ans.Cmd, ans.Message = botapi.CmdBotRestart, "The configuration of this bot has changed; shake hands anew."
	case cmd.Task == nil && a.tired.cmd != "":
		s.fleet.asked(a.sp.id, a.tired)
		ans.Cmd, ans.Message = a.tired.cmd, a.tired.why
	case cmd.Task == nil && a.ru.ForceSleep:
		return sleep(w, ans, a.ru.idleSleep(a.streak), true)
	case cmd.Task == nil && b.Quarantined != "" && a.ourBot: // the version that mends it may come any moment
		return sleep(w, ans, 10+rand.Float64()*10, true)
	case cmd.Task == nil && b.Quarantined != "":
		return sleep(w, ans, 60+rand.Float64()*180, true)
	case cmd.Task == nil && b.Maintenance != "" && a.ourBot && !a.ends: // drained by an operator, who may change their mind
		return sleep(w, ans, 2+rand.Float64()*3, false)
	case cmd.Task == nil && b.Maintenance != "":
		return sleep(w, ans, 10+rand.Float64()*50, false)
	case cmd.Task == nil && a.Wait > 0:
		return sleep(w, ans, 0, false)
	case cmd.Task == nil:
		return sleep(w, ans, a.ru.idleSleep(a.streak), false)
	case cmd.Request.IsTermination():
		ans.Cmd, ans.TaskID = botapi.CmdTerminate, cmd.Task.ID.RunID()
	default:
		p := &cmd.Request.Slices[cmd.Task.Slice].Properties
		ans.Cmd = botapi.CmdRun
		ans.Session = s.sessions.renew(a.sp.session, a.session, p.ExecutionTimeout+p.GracePeriod+300*time.Second)
		o := api.ManifestOptions{CASInstance: s.o.CASInstance, CAS: s.o.CAS, Host: s.hostOf(r), Secret: cmd.Secret, Trusted: a.ru.trusts(a.pools), WarmPool: a.ru.warmPool(poolOf(p))}
		if len(p.Caches) > 0 {
			o.CacheSize = s.hinter(r.Context(), poolOf(p), b)
		}
		ans.Manifest = api.Manifest(cmd.Request, cmd.Task, o)
	}
	return write(w, ans)
}

// poolOf returns the pool that a task asks for.
func poolOf(p *skep.Properties) string {
	for _, c := range p.Dimensions {
		if c.Key == "pool" {
			return c.Value()
		}
	}
	return ""
}

// decodePoll reads a poll. It is the largest and the most frequent of all
// calls, and most of it is as the time before: dimensions that the scheduler
// knows from this very text are not decoded again.
func (s *Server) decodePoll(body []byte, req *botapi.PollRequest, ru *Rules) (source scheduler.Source, known bool, err error) {
	err = jsonscan.Members(body, func(name, value []byte) error {
		switch string(name) {
		case "dimensions":
			source = scheduler.SourceOf(value)
			for i := range source { // what is made of a text is due to the rules too
				source[i] ^= ru.Salt[i]
			}
			if req.Dimensions, known = s.sched.Dimensions(source); known {
				return nil
			}
			return member(name, value, &req.Dimensions)
		case "state":
			req.State = compacted(value)
		case "version":
			return member(name, value, &req.Version)
		case "session":
			return member(name, value, &req.Session)
		case "request_uuid":
			return member(name, value, &req.RequestUUID)
		case "wait":
			return member(name, value, &req.Wait)
		}
		return nil
	})
	return source, known, badBody(err)
}

func sleep(w http.ResponseWriter, ans *botapi.PollResponse, secs float64, quarantined bool) error {
	ans.Cmd, ans.Duration, ans.Quarantined = botapi.CmdSleep, &secs, &quarantined
	return write(w, ans)
}

// idleSleep is how long a bot that cannot wait sleeps: longer the longer it
// has been idle, and now and then short. spec scheduler.md §9.3.
func (ru *Rules) idleSleep(streak float64) float64 {
	most := ru.MaxBotSleep.Seconds()
	if most == 0 {
		most = 60
	}
	if rand.Float64() < 0.05 {
		return min(most, 1)
	}
	return min(most, math.Pow(1.5, min(max(streak, 0), 10)+1))
}

// claim always says skip: reservations belong to a remote scheduler, and the
// bots of this server are never told to use one.
func (s *Server) claim(w http.ResponseWriter, r *http.Request) error {
	var req botapi.ClaimRequest
	if err := read(w, r, maxDescription, &req); err != nil {
		return err
	}
	if _, err := s.speaks(r, "", req.Session); err != nil {
		return err
	}
	return write(w, &botapi.PollResponse{Cmd: botapi.CmdSkip, Reason: "This server hands out tasks with poll only."})
}

func (s *Server) event(w http.ResponseWriter, r *http.Request) error {
	var req botapi.EventRequest
	if err := read(w, r, maxDescription, &req); err != nil {
		return err
	}
	switch req.Event {
	case botapi.EventError, botapi.EventLog, botapi.EventRebooting, botapi.EventShutdown:
	default:
		return skep.Invalidf("event", "%.60q is not bot_error, bot_log, bot_rebooting or bot_shutdown", req.Event)
	}
	if !isRequestUUID(req.RequestUUID) {
		return skep.Invalidf("request_uuid", "%.60q is not at most 50 letters, digits, -, _ or /", req.RequestUUID)
	}
	sp, err := s.speaks(r, first(req.Dimensions["id"]), req.Session)
	if err != nil {
		return err
	}
	b, _ := s.describe(r, sp.id, &req.Attributes)
	b.SessionID = sp.session.process
	if s.metrics.event(req.Event, req.Message) && s.o.Code != nil {
		if err := s.o.Code.Mismatched(r.Context(), sp.id); err != nil {
			return err
		}
	}
	if req.Event == botapi.EventError {
		s.log.WarnContext(r.Context(), "bot error", "bot", string(sp.id), "message", clip(req.Message, 4096))
	}
	if err := s.sched.Event(r.Context(), b, skep.EventType(req.Event), api.Clip(req.Message), req.RequestUUID); err != nil {
		return err
	}
	return write(w, empty{})
}
