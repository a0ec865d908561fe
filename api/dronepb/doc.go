// Package dronepb holds the messages of drone_queen, by which drones get devices and an inventory says which there are.
// The .proto file beside it is the source (spec/host.md §3.4; numbers from 1000 are ours); the Go file is generated (see
// package swarmingpb).
package dronepb
