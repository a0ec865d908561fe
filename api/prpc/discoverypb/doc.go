// Package discoverypb holds the messages of discovery.Discovery, the service by which a pRPC server
// describes itself. The .proto file beside it is the source; the Go file is generated (see package swarmingpb).
package discoverypb
