//go:build !linux

package runner

func startedEarly() *isolated { return nil }
