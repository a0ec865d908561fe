// Package skeppb holds the messages of skep.v1: what skep offers its own clients beyond swarming.v2.
// The .proto files beside it are the source; the Go files are generated (see package swarmingpb).
package skeppb
