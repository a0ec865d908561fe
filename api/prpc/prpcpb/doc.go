// Package prpcpb holds the error details that the pRPC layer itself raises.
// The .proto file beside it is the source; the Go file is generated (see package swarmingpb).
package prpcpb
