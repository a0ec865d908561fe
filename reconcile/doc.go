// Package reconcile is the one loop that keeps things as they are wanted: the
// containers of a host, a pool of warm ones, the bots of a drone, rented
// machines. Its users say what one step for one key is; the loop says when.
//
//   - A Loop wakes keys by events and looks at all of them now and then. One
//     step a key at a time, at most one more waiting, a pause after failures.
//   - A Journal remembers what was begun with things that outlive the process.
//   - A Lease is the right to a key until an instant, with a generation, so
//     that late work of an earlier holder is known for what it is.
//   - A Circuit pauses what fails for one cause, whoever meets it.
//
// A step observes, decides and acts, and may be run twice, late, or after it
// was cut short anywhere. Decisions belong into pure functions of their own.
package reconcile
