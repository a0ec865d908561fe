// Package clipb holds the messages of swarming.cli: the JSON files that the command line reads and writes.
// The .proto file beside it is the source; the Go file is generated (see package swarmingpb).
package clipb
