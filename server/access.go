package server

import (
	"context"
	"slices"

	"github.com/skepdev/skep"
)

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

// must returns a Denied error unless the caller has p. Callers without any
// credentials are told to bring some.
func must(ctx context.Context, p permission) error {
	c := callerOf(ctx)
	if c.can(p) {
		return nil
	}
	if c.scope == "" {
		return skep.Errorf(skep.Unauthenticated, "%s has no permission %s; send a token (SKEP_TOKEN)", c.identity, p)
	}
	return skep.Errorf(skep.Denied, "%s has no permission %s", c.identity, p)
}

// mustForTask is must for one task, whose submitter has more rights.
func mustForTask(ctx context.Context, p permission, r *skep.TaskRequest) error {
	if c := callerOf(ctx); c.scope == ScopeUser && r.Authenticated == c.identity {
		return nil
	}
	return must(ctx, p)
}
