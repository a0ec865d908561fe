// Package machine brings pools of machines to what is declared and keeps them
// there: created, replaced at the end of their lifetime after finishing their
// work, drained when no longer wanted, destroyed once. spec/provider.md.
//
//   - What is wanted and what may exist is in the store: a record is written
//     before its instance is asked for, and goes after the instance has.
//   - Next decides what one machine needs, PoolChange what a pool needs. Both
//     are pure. The steps that they name do one thing each and may be run by
//     anybody, late or twice.
//   - A Reconciler runs them when something happened, at their time, and now
//     and then anyway. Several may share a store, each pool being one's.
package machine
