// Package archive turns a directory into a tree of blobs (package cas) and
// uploads what a storage lacks of it. Hashing and uploading overlap; a file of
// remembered hashes spares reading what did not change; nothing outside of the
// directory is read unless the caller asks for what symlinks point at.
package archive
