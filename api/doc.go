// Package api translates between the wire and the nouns of package skep: it
// is the only place that knows both. What comes in is validated here; what it
// returns is complete and sorted.
package api
