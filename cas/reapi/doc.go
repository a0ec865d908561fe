// Package reapi serves content-addressed storage as the Remote Execution API
// v2 defines it: Capabilities, ContentAddressableStorage and the ByteStream
// service, over gRPC, on a store that it is given. The only digest function is
// SHA-256; every instance name is served alike (decisions.md 14).
//
// A call holds a bounded amount of memory, whatever it is sent: messages have
// 4 MiB at most, a stream is handled chunk by chunk, and a compressed blob is
// never unpacked beyond the size that its digest says.
package reapi
