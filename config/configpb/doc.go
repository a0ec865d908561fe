// Package configpb holds the messages of settings.cfg, pools.cfg and bots.cfg. The .proto files beside it are the
// source, are kept by hand, and describe every field with its unit and range; docs/configuration.md is printed from
// them. Names and numbers are those of spec/scheduler.md §13; skep's own fields have numbers from 1000. The Go files
// are generated (see package swarmingpb).
package configpb
