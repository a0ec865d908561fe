package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/skepdev/skep/config/configpb"
)

// Permissions, by the names that the API has for them. spec/scheduler.md §12.
const (
	CreateTask         = "swarming.pools.createTask"
	CreateHighPriority = "swarming.pools.createHighPriorityTask"
	ListTasks          = "swarming.pools.listTasks"
	CancelPoolTask     = "swarming.pools.cancelTask"
	CreateBot          = "swarming.pools.createBot"
	ListBots           = "swarming.pools.listBots"
	TerminateBot       = "swarming.pools.terminateBot"
	DeleteBot          = "swarming.pools.deleteBot"
	CreateInRealm      = "swarming.tasks.createInRealm"
	ActAs              = "swarming.tasks.actAs"
	GetTask            = "swarming.tasks.get"
	CancelTask         = "swarming.tasks.cancel"
	Peek               = "swarming.servers.peek"
)

var permissionNames = map[configpb.RealmPermission]string{
	configpb.RealmPermission_REALM_PERMISSION_POOLS_CREATE_TASK:               CreateTask,
	configpb.RealmPermission_REALM_PERMISSION_TASKS_CREATE_IN_REALM:           CreateInRealm,
	configpb.RealmPermission_REALM_PERMISSION_TASKS_ACT_AS:                    ActAs,
	configpb.RealmPermission_REALM_PERMISSION_POOLS_LIST_TASKS:                ListTasks,
	configpb.RealmPermission_REALM_PERMISSION_POOLS_CANCEL_TASK:               CancelPoolTask,
	configpb.RealmPermission_REALM_PERMISSION_POOLS_CREATE_BOT:                CreateBot,
	configpb.RealmPermission_REALM_PERMISSION_POOLS_LIST_BOTS:                 ListBots,
	configpb.RealmPermission_REALM_PERMISSION_POOLS_TERMINATE_BOT:             TerminateBot,
	configpb.RealmPermission_REALM_PERMISSION_POOLS_DELETE_BOT:                DeleteBot,
	configpb.RealmPermission_REALM_PERMISSION_TASKS_GET:                       GetTask,
	configpb.RealmPermission_REALM_PERMISSION_TASKS_CANCEL:                    CancelTask,
	configpb.RealmPermission_REALM_PERMISSION_POOLS_CREATE_HIGH_PRIORITY_TASK: CreateHighPriority,
	configpb.RealmPermission_REALM_PERMISSION_SERVERS_PEEK:                    Peek,
}

var (
	readerMay    = []string{Peek, ListTasks, ListBots, GetTask}
	submitterMay = append([]string{CreateTask, CreateInRealm}, readerMay...)
	operatorMay  = append([]string{CreateHighPriority, CancelPoolTask, CancelTask, TerminateBot, DeleteBot, CreateBot}, submitterMay...)
)

var roleNames = map[configpb.Role][]string{
	configpb.Role_ROLE_READER: readerMay, configpb.Role_ROLE_SUBMITTER: submitterMay, configpb.Role_ROLE_OPERATOR: operatorMay,
}

// grant is one Grant with its groups resolved.
type grant struct {
	to  []string // identities, or prefixes ending in *
	may []string
}

// grants are rights in one place.
type grants []grant

// allow reports whether they give permission to identity, which is kind:name.
func (gs grants) allow(identity, permission string) bool {
	return slices.ContainsFunc(gs, func(g grant) bool {
		return slices.Contains(g.may, permission) && slices.ContainsFunc(g.to, func(to string) bool { return covers(to, identity) })
	})
}

// covers reports whether pattern, an identity or a prefix ending in *, is of
// identity.
func covers(pattern, identity string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(identity, prefix)
	}
	return pattern == identity
}

// identityFault says what is wrong with an identity or prefix, "" if nothing.
func identityFault(s string) string {
	kind, name, ok := strings.Cut(s, ":")
	switch {
	case !ok || kind != "user" && kind != "bot":
		return fmt.Sprintf("%q is not user:NAME or bot:NAME", clip(s))
	case name == "":
		return fmt.Sprintf("%q has no name; %s:* is every one", clip(s), kind)
	case strings.Contains(strings.TrimSuffix(name, "*"), "*"):
		return fmt.Sprintf("%q has a * that is not its end", clip(s))
	}
	return ""
}

// grants reads the grants at path, a list. groups are those of settings.cfg.
func (d *document) grants(path string, list []*configpb.Grant, groups map[string][]string) grants {
	var out grants
	for i, g := range list {
		at := fmt.Sprintf("%s[%d]", path, i)
		var one grant
		for j, to := range g.To {
			toAt := fmt.Sprintf("%s.to[%d]", at, j)
			if name, ok := strings.CutPrefix(to, "group:"); ok {
				members, known := groups[name]
				if !known {
					d.faultOther(fileSettings, toAt, "settings.cfg has no group %q", clip(name))
				}
				one.to = append(one.to, members...)
				continue
			}
			if fault := identityFault(to); fault != "" && to != "" {
				d.faultf(toAt, "%s, or group:NAME", fault)
			}
			one.to = append(one.to, to)
		}
		for _, p := range g.Permission {
			one.may = append(one.may, permissionNames[p])
		}
		for _, r := range g.Role {
			one.may = append(one.may, roleNames[r]...)
		}
		if len(one.may) == 0 {
			d.faultf(at, "allows nothing; give it a permission or a role")
		}
		out = append(out, one)
	}
	return out
}

// faultOther is faultf for a rule that another file takes part in.
func (d *document) faultOther(other, path, format string, args ...any) {
	if other == d.file {
		d.faultf(path, format, args...)
		return
	}
	d.faultWith(path, []string{other}, format, args...)
}
