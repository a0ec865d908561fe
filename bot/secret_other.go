//go:build !linux

package bot

import "os"

// HideProcess does nothing on this system.
func HideProcess() error { return nil }

// TakeSecret returns the environment variable name and removes it.
func TakeSecret(name string) (string, error) {
	v := os.Getenv(name)
	return v, os.Unsetenv(name)
}
