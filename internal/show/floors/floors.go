// Package floors measures what a small machine must reach and judges it.
package floors

// Main runs the demonstration.
func Main(args []string) int { return 1 }
