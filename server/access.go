package server

import "slices"

// permission names something that a caller may be allowed to do.
// spec scheduler.md §12.1.
type permission string

const (
	permPeek       permission = "swarming.servers.peek"
	permCreateTask permission = "swarming.pools.createTask"
	permHighPrio   permission = "swarming.pools.createHighPriorityTask"
	permListTasks  permission = "swarming.pools.listTasks"
	permCancelPool permission = "swarming.pools.cancelTask"
	permListBots   permission = "swarming.pools.listBots"
	permCreateBot  permission = "swarming.pools.createBot"
	permDeleteBot  permission = "swarming.pools.deleteBot"
	permTerminate  permission = "swarming.pools.terminateBot"
	permGetTask    permission = "swarming.tasks.get"
	permCancelTask permission = "swarming.tasks.cancel"
	permInRealm    permission = "swarming.tasks.createInRealm"
)

// userMay is what scope user allows: it creates and reads tasks, cancels its
// own, and lists bots. decisions.md 9.
var userMay = []permission{permPeek, permCreateTask, permListTasks, permListBots, permGetTask}

// can reports whether c has p everywhere.
func (c *caller) can(p permission) bool {
	switch c.scope {
	case ScopeAdmin:
		return true
	case ScopeUser:
		return slices.Contains(userMay, p)
	default:
		return false
	}
}
