// Package health judges a fleet: whether so many bots fall ill at once that the
// change is to be doubted rather than the bots, and which bots should be there
// and are not. It only judges; package server acts, and tells people.
package health
