//go:build !linux

package chaos

import "errors"

// process is one line of the process table.
type process struct {
	PID int
	Cmd string
}

func (p process) String() string { return p.Cmd }

func (p process) alive() bool { return false }

func (p process) kill() error { return errors.ErrUnsupported }

func readProcess(int) (process, bool) { return process{}, false }

func marked(string) ([]process, error) { return nil, errors.ErrUnsupported }

func below(int) []process { return nil }

func (k *keeper) rest() (wake func()) { return func() {} }
