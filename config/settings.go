package config

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/skepdev/skep/config/configpb"
)

// Settings are what settings.cfg says, with defaults for what it leaves out.
type Settings struct {
	BotDeath       time.Duration // silence that makes a bot dead
	MaxBotSleep    time.Duration // longest sleep of a bot that cannot wait
	RemoveDeadBots time.Duration // after so long a dead bot is forgotten
	ForceSleep     bool          // emergency stop: no bot gets a task
	DisplayURL     string        // URL with one %s for a task's id; ""
	ViewerServer   string        // URL of a viewer of trees; ""
	FrameSources   []string      // https URLs that pages may frame
	ForeignBots    ForeignBots
	Rollout        Rollout
	Queen          Queen
}

// Queen says how devices are assigned to drones.
type Queen struct {
	Lease             time.Duration // of a drone's devices
	MaxRemovedPercent int           // of a push of the inventory that is not confirmed
	MinVersion        int           // of drones
	RefuseUnknown     bool          // drones that say no number
}

// Rollout says how new bot code and hooks reach the fleet.
type Rollout struct {
	CanaryPercent   int           // 0 to 100; 0 = all at once
	Probation       time.Duration // until a bot must poll with the new version
	MaxCrashes      int           // so many crashed canaries halt it
	MaxCrashPercent int           // or this share of them
	Soak            time.Duration // how long the canaries must be well before the others follow
}

// ForeignBots says what to do with bots that are not a skep-bot.
type ForeignBots struct {
	Policy  ForeignPolicy
	Allowed []string // sorted SHA-256 digests in lower-case hexadecimal, for ForeignListed
}

// ForeignPolicy says whether foreign bots get tasks.
type ForeignPolicy string

// The policies; ForeignUnset is a pool that leaves it to the settings.
const (
	ForeignUnset  ForeignPolicy = ""
	ForeignAllow  ForeignPolicy = "allow"
	ForeignRefuse ForeignPolicy = "refuse"
	ForeignListed ForeignPolicy = "listed"
)

// Admits reports whether a foreign bot that runs version gets tasks.
func (f ForeignBots) Admits(version string) bool {
	switch f.Policy {
	case ForeignRefuse:
		return false
	case ForeignListed:
		_, ok := slices.BinarySearch(f.Allowed, strings.ToLower(version))
		return ok
	default:
		return true
	}
}

func seconds(n int64) time.Duration { return time.Duration(n) * time.Second }

// settings checks m and returns what it says. groups and everywhere are the
// groups and the rights on the whole server; nil means that it says nothing of
// rights.
func (d *document) settings(m *configpb.SettingsCfg) (s Settings, groups map[string][]string, everywhere grants) {
	d.check(m.ProtoReflect(), "")
	s = Settings{
		BotDeath:       seconds(number(m, "bot_death_timeout_secs")),
		MaxBotSleep:    seconds(number(m, "max_bot_sleep_time")),
		RemoveDeadBots: time.Duration(number(m, "remove_dead_bots_after_days")) * 24 * time.Hour,
		ForceSleep:     m.ForceBotsToSleepAndNotRunTask,
		DisplayURL:     m.DisplayServerUrlTemplate,
		ViewerServer:   strings.TrimRight(m.Cas.GetViewerServer(), "/"),
		FrameSources:   m.ExtraChildSrcCspUrl,
		ForeignBots:    d.foreignBots("foreign_bots", m.ForeignBots, ForeignAllow),
	}
	ro := m.GetRollout()
	if ro == nil {
		ro = &configpb.Rollout{}
	}
	s.Rollout = Rollout{
		CanaryPercent: int(number(ro, "canary_percent")), Probation: seconds(number(ro, "probation_secs")),
		MaxCrashes: int(number(ro, "max_crashes")), MaxCrashPercent: int(number(ro, "max_crash_percent")), Soak: seconds(number(ro, "soak_secs")),
	}
	q := m.GetQueen()
	if q == nil {
		q = &configpb.QueenPolicy{}
	}
	s.Queen = Queen{
		Lease: seconds(number(q, "lease_secs")), MaxRemovedPercent: int(number(q, "max_removed_percent")),
		MinVersion: int(number(q, "min_drone_version")), RefuseUnknown: q.RefuseUnknownVersions,
	}
	if d.given("bot_deployment.canary_percent") {
		if ro.CanaryPercent != nil {
			d.faultf("bot_deployment.canary_percent", "excludes rollout.canary_percent, which is given too")
		}
		s.Rollout.CanaryPercent = int(m.BotDeployment.CanaryPercent)
	}
	if t := m.DisplayServerUrlTemplate; t != "" {
		if strings.Count(t, "%") != 1 || strings.Count(t, "%s") != 1 {
			d.faultf("display_server_url_template", "%q has not exactly one %%s", clip(t))
		} else {
			d.httpsURL("display_server_url_template", strings.Replace(t, "%s", "x", 1))
		}
	}
	if m.Cas.GetViewerServer() != "" {
		d.httpsURL("cas.viewer_server", m.Cas.ViewerServer)
	}
	for i, u := range m.ExtraChildSrcCspUrl {
		at := fmt.Sprintf("extra_child_src_csp_url[%d]", i)
		if strings.ContainsAny(u, " ;,'\"") {
			d.faultf(at, "%q cannot be part of a content security policy", clip(u))
		} else if u != "" {
			d.httpsURL(at, u)
		}
	}
	groups = d.groups(m)
	return s, groups, d.everywhere(m, groups)
}

// httpsURL checks a URL; plain http is for this machine only.
func (d *document) httpsURL(at, raw string) {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Host == "" || u.User != nil:
		d.faultf(at, "%q is not an https URL", clip(raw))
	case u.Scheme == "https":
	case u.Scheme == "http" && (u.Hostname() == "localhost" || net.ParseIP(u.Hostname()).IsLoopback()):
	default:
		d.faultf(at, "%q is not an https URL", clip(raw))
	}
}

var groupName = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,100}$`)

func (d *document) groups(m *configpb.SettingsCfg) map[string][]string {
	out := map[string][]string{}
	for i, g := range m.Group {
		at := fmt.Sprintf("group[%d]", i)
		if g.Name != "" && !groupName.MatchString(g.Name) {
			d.faultf(at+".name", "%q does not match %s", clip(g.Name), groupName)
		}
		if _, ok := out[g.Name]; ok {
			d.faultf(at+".name", "a group %q is there already", clip(g.Name))
		}
		for j, member := range g.Member {
			if fault := identityFault(member); fault != "" && member != "" {
				d.faultf(fmt.Sprintf("%s.member[%d]", at, j), "%s", fault)
			}
		}
		out[g.Name] = g.Member
	}
	return out
}

// everywhere are the rights on the whole server: those that the groups of auth
// have, spec/api-v2.md §3, and those of grants.
func (d *document) everywhere(m *configpb.SettingsCfg, groups map[string][]string) grants {
	out := d.grants("grant", m.Grant, groups)
	a := m.Auth
	if a == nil {
		return out
	}
	admins := d.authGroup("auth.admins_group", a.AdminsGroup, groups, nil)
	for _, g := range []struct {
		field, name string
		may         []string
	}{
		{"users_group", a.UsersGroup, []string{Peek}},
		{"privileged_users_group", a.PrivilegedUsersGroup, []string{Peek, GetTask, ListTasks, ListBots}},
		{"view_all_tasks_group", a.ViewAllTasksGroup, []string{Peek, GetTask, ListTasks}},
		{"view_all_bots_group", a.ViewAllBotsGroup, []string{Peek, ListBots}},
		{"bot_bootstrap_group", a.BotBootstrapGroup, []string{Peek, CreateBot}},
	} {
		out = append(out, grant{to: d.authGroup("auth."+g.field, g.name, groups, admins), may: g.may})
	}
	return append(out, grant{to: admins, may: []string{
		Peek, GetTask, ListTasks, ListBots, CreateBot, CancelTask, CancelPoolTask, DeleteBot, TerminateBot, CreateHighPriority,
	}})
}

// authGroup returns the members of a group that auth names, those of the
// admins when it names none.
func (d *document) authGroup(at, name string, groups map[string][]string, admins []string) []string {
	if name == "" {
		return admins
	}
	members, ok := groups[name]
	if !ok {
		d.faultf(at, "there is no group %q; add group { name: %[1]q member: \"user:NAME\" }", clip(name))
	}
	return members
}

func (d *document) foreignBots(at string, m *configpb.ForeignBots, unset ForeignPolicy) ForeignBots {
	f := ForeignBots{Policy: unset}
	switch m.GetPolicy() {
	case configpb.ForeignBots_POLICY_ALLOW:
		f.Policy = ForeignAllow
	case configpb.ForeignBots_POLICY_REFUSE:
		f.Policy = ForeignRefuse
	case configpb.ForeignBots_POLICY_LISTED:
		f.Policy = ForeignListed
	default:
	}
	for i, digest := range m.GetAllowedDigest() {
		if b, err := hex.DecodeString(digest); digest != "" && (err != nil || len(b) != 32) {
			d.faultf(fmt.Sprintf("%s.allowed_digest[%d]", at, i), "%q is not a SHA-256 digest in hexadecimal", clip(digest))
		}
		f.Allowed = append(f.Allowed, strings.ToLower(digest))
	}
	slices.Sort(f.Allowed)
	switch {
	case len(f.Allowed) > 0 && f.Policy != ForeignListed:
		d.faultf(at+".allowed_digest", "is for POLICY_LISTED only")
	case len(f.Allowed) == 0 && f.Policy == ForeignListed:
		d.faultf(at+".allowed_digest", "is required with POLICY_LISTED")
	}
	return f
}
