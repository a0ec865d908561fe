// Package cas holds the nouns of content-addressed storage as the Remote
// Execution API v2 (REAPI) defines them: a blob's Digest, and the Directory
// messages that make a tree of blobs.
//
// What does something with them lies below: disk keeps blobs for a server,
// reapi serves them, remote asks such a service, archive turns a directory
// into blobs, and cache keeps what a machine fetched and turns a tree back into
// a directory. This package and what skep-bot links of it (remote, archive,
// cache) speak the few messages they need themselves: the generated ones
// cost each start of skep-bot a millisecond, and every task starts it twice.
package cas
