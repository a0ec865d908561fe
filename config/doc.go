// Package config reads the files that an operator edits: settings.cfg,
// pools.cfg, bots.cfg and scripts/. It is strict: unknown fields, wrong types
// and broken rules are faults that name file, line and field, and all of them
// are told at once. What is read is one Snapshot that never changes; a Store
// keeps the newest good one, file by file.
//
// Fields and numbers: spec/scheduler.md §13, our own from 1000 (package
// configpb). Only cli imports this package; others get values, or a func() T
// over the current snapshot.
package config
