// Package provider turns declared pools of machines into live bots and keeps
// them that way: Config → VM → instance → bot. spec/provider.md.
//
//   - A Config declares a pool; config reads it. It may change or vanish at any
//     moment, and never edits a machine that exists.
//   - A VM is the record of one machine that is wanted, exists or is being taken
//     away; the store keeps it. What it is was frozen when it was made.
//   - An Instance is what a cloud made of a VM; it is never edited.
//   - A Provider is one cloud: this host's processes, a container engine,
//     Compute Engine, or a program of a lab's own.
package provider
