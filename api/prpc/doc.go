// Package prpc is RPC over plain HTTP, server and client: one POST, one message in the body, one message or a line
// of text in the answer (spec/prpc.md). It needs no generated stubs: a service is a descriptor and one handler per
// method, and it knows nothing of what the services are about.
package prpc
