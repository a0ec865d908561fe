// Package warm is the service behind `skep pool`: it keeps containers started
// and checked ahead, and hands one out, a room, in a fraction of a millisecond.
//
//   - Plan says how many to make, from what is there and what was asked for.
//   - A Runtime makes and removes one container: host/warm/oci, host/warm/lxc,
//     and a fake in host/warm/warmtest, whose suite holds for all of them.
//   - The Service has the socket, the stock, the rooms that are out, and their
//     ends. wire: docs/wire/pool.md
//
// Whatever a room consists of is in the journal before it is made, and rooms
// end with the service: their first process (host/room) is connected to it.
// A start finds what a killed one left, by the journal and by name, and
// removes it. docs/adr/0053-rooms-end-with-their-pool.md
package warm
