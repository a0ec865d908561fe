//go:build race

package drone

// drones come back in TestAThousandDronesComeBack. The race detector loses count
// of as many goroutines as a thousand make (a CHECK of its own fails now and then).
const drones = 50
