// Package ownpool runs a warm pool of one's own, a real `skep pool start` with an
// image of busybox, for demonstrations and benchmarks. It is for Linux.
package ownpool
