package botcli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"github.com/skepdev/skep/bot"
)

// slotOf returns the slot that a bot started as name runs from, "" if name is a
// slot itself or no bot's. decisions.md 22, spec bot.md §1.2 item 5.
func slotOf(name string) string {
	switch name {
	case "swarming_bot":
		return "swarming_bot.1"
	case "swarming_bot.exe":
		return "swarming_bot.1.exe"
	case "swarming_bot.zip":
		return "swarming_bot.1.zip"
	}
	return ""
}

// enterSlot copies the executable to slot 1 and goes on there, so that the
// file which an init system starts stays free for others to replace. It returns
// nil when this process already runs from a slot.
func (s *site) enterSlot(lock *bot.Lock) error {
	name := slotOf(filepath.Base(s.exe))
	if name == "" {
		return nil
	}
	slot := filepath.Join(s.dir, name)
	if err := copyFile(s.exe, slot); err != nil {
		return fmt.Errorf("copy this bot to %s: %w", slot, err)
	}
	return replace(lock, slot, os.Environ())
}

// replace runs exe with our arguments in place of this process. The lock goes
// over to it. It returns only on failure, or never.
func replace(lock *bot.Lock, exe string, env []string) error {
	if fd, err := lock.Keep(); err == nil {
		env = append(env, envLockFD+"="+strconv.FormatUint(uint64(fd), 10))
	} else if errors.Is(err, errors.ErrUnsupported) {
		if err := lock.Release(); err != nil {
			return err
		}
	} else {
		return err
	}
	return execSelf(exe, append([]string{exe}, os.Args[1:]...), env)
}

// copyFile makes to an executable copy of from with the same modification time,
// which spares the copy when to is one already. It replaces to in one step.
func copyFile(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	st, err := src.Stat()
	if err != nil {
		return err
	}
	if old, err := os.Stat(to); err == nil && old.Size() == st.Size() && old.ModTime().Equal(st.ModTime()) && old.Mode()&0o100 != 0 {
		return nil
	}
	tmp := to + ".tmp"
	_ = os.Remove(tmp)
	dst, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	if err = errors.Join(err, dst.Close()); err != nil {
		_ = os.Remove(tmp)
		return err
	}
	if err := os.Chtimes(tmp, st.ModTime(), st.ModTime()); err != nil {
		return err
	}
	return os.Rename(tmp, to)
}
