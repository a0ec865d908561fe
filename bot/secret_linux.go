package bot

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/skepdev/skep/internal/proc"
)

// HideProcess keeps other processes of the same user out of this one: no
// /proc/<pid>/mem or environ, no ptrace, no core dump. decisions.md 11.
func HideProcess() error {
	return proc.HideSelf()
}

// TakeSecret returns the environment variable name and removes it, also from
// what /proc shows of this process: the kernel keeps the environment as it was
// at exec, so that block is overwritten.
func TakeSecret(name string) (string, error) {
	v, ok := os.LookupEnv(name)
	if !ok {
		return "", nil
	}
	if err := os.Unsetenv(name); err != nil {
		return "", err
	}
	if err := wipeEnviron(name); err != nil {
		return v, fmt.Errorf("wipe %s from the environment block: %w", name, err)
	}
	return v, nil
}

func wipeEnviron(name string) error {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return err
	}
	// env_start and env_end are fields 50 and 51; the name in field 2 may hold
	// blanks and ends with the last parenthesis. proc_pid_stat(5).
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 49 {
		return errors.New("/proc/self/stat has too few fields")
	}
	start, err1 := strconv.ParseInt(fields[47], 10, 64)
	end, err2 := strconv.ParseInt(fields[48], 10, 64)
	if err1 != nil || err2 != nil || start <= 0 || end < start {
		return errors.New("/proc/self/stat does not tell where the environment is")
	}
	mem, err := os.OpenFile("/proc/self/mem", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer mem.Close()
	block := make([]byte, end-start)
	if _, err := mem.ReadAt(block, start); err != nil {
		return err
	}
	at := 0
	for kv := range bytes.SplitSeq(block, []byte{0}) {
		if v, ok := bytes.CutPrefix(kv, []byte(name+"=")); ok {
			zero := bytes.Repeat([]byte{'x'}, len(v))
			if _, err := mem.WriteAt(zero, start+int64(at+len(name)+1)); err != nil {
				return err
			}
		}
		at += len(kv) + 1
	}
	clear(block)
	return nil
}
