// Package chaos is replaced by its builder.
package chaos

// Main runs the demonstration.
func Main(args []string) int { return 1 }
