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

	permReportDrone   permission = "skep.drones.report"  // be a drone
	permDeclareDuts   permission = "skep.drones.declare" // say which devices there are
	permInspectDrones permission = "skep.drones.inspect" // see drones and devices

	permInspectMachines permission = "skep.machines.inspect" // see machines and their pools
	permSteerMachines   permission = "skep.machines.steer"   // drain, resize and replace them
)

// userMay is what scope user allows: it creates and reads tasks, cancels its
// own, and lists bots. decisions.md 9.
var userMay = []permission{permPeek, permCreateTask, permListTasks, permListBots, permGetTask, permInspectDrones, permInspectMachines}

// Scopes drone and inventory allow one thing each.
var (
	droneMay     = []permission{permReportDrone}
	inventoryMay = []permission{permDeclareDuts, permInspectDrones}
)

// can reports whether c has p everywhere.
func (c *caller) can(p permission) bool {
	switch c.scope {
	case ScopeAdmin:
		return true
	case ScopeUser:
		return slices.Contains(userMay, p)
	case ScopeDrone:
		return slices.Contains(droneMay, p)
	case ScopeInventory:
		return slices.Contains(inventoryMay, p)
	default:
		return false
	}
}
