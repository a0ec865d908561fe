// Package skeppb holds the messages of skep.v1: what skep offers its own clients beyond swarming.v2.
// The .proto file beside it is the source; the Go file is generated (see package swarmingpb).
package skeppb
