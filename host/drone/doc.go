// Package drone keeps many bots alive on one host: those of a list, or those
// whose devices a queen assigns to it. spec/host.md §3.2 and §3.3.
//
// A Manager keeps the bots. An Agent says which: it holds a lease of its
// devices and stops their bots before it ends, so that no device is ever
// driven by two. A Door lets operators look and drain.
package drone
