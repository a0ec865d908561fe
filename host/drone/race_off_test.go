//go:build !race

package drone

// drones come back in TestAThousandDronesComeBack.
const drones = 1000
