// Package remote is a client of a content-addressed storage that speaks the
// Remote Execution API v2 (REAPI): a skep server's own, or any other.
//
// It speaks gRPC itself, over net/http's HTTP/2, and reads and writes the dozen
// messages it needs with protowire: docs/adr/0015 says why not grpc-go. What it
// promises its callers: every byte read was hashed; no call fails because the
// server was away for less than Options.Patience, and transfers go on where
// they stopped; memory is bounded by Options.Parallel messages of 4 MiB; a
// server without zstd, without GetTree or with small limits works.
package remote
