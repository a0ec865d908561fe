// Package swarmingpb holds the messages and enums of swarming.v2, the API that Swarming clients speak.
// The .proto files beside it are the source, are kept by hand, and describe every field; the Go files are
// generated from them. The services have no stubs: package api/prpc serves and calls them by descriptor.
package swarmingpb

//go:generate go -C ../.. tool -modfile=tools/go.mod buf generate
