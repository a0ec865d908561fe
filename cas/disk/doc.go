// Package disk keeps the blobs of a server's content-addressed storage in a
// directory that one process owns.
//
// A blob of at most 64 KiB is a record of an append-only pack file; a larger
// one is a file of its own. Nothing is acknowledged before it is durable, and
// nothing is handed out that was not checked against a checksum since it was
// read: what fails goes to the quarantine and is missing from then on. The
// layout, and why a process may be killed at any byte, stands in
// docs/adr/0017-content-on-disk.md.
//
// Memory is 70 to 110 bytes for a small blob and 120 to 165 for a large one, as
// the index grows in steps: 10 million small blobs need about 1 GB.
package disk
