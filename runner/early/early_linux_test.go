package early

import (
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// TestMain makes the test binary a task_runner that lets its run_isolated
// repeat a word, and that run_isolated.
func TestMain(m *testing.M) {
	switch args := strings.Join(os.Args[1:], " "); {
	case args == "run_isolated":
		_, err := io.Copy(os.Stdout, os.Stdin)
		if syscall.Getpgrp() != os.Getpid() || err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	case strings.Contains(args, "task_runner"):
		os.Exit(asRunner())
	}
	os.Exit(m.Run())
}

func asRunner() int {
	if Child == nil {
		_, _ = os.Stdout.WriteString("none")
		return 0
	}
	words, output := os.NewFile(uintptr(Child.Words), "words"), os.NewFile(uintptr(Child.Output), "output")
	_, _ = words.WriteString("a word")
	_ = words.Close()
	_, _ = io.Copy(os.Stdout, output)
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(Child.Pid, &ws, 0, nil); err != nil || ws != 0 {
		return 2
	}
	return 0
}

func TestOnlyATaskRunnerStartsIt(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		life bool
		want string
	}{
		{"a task_runner", []string{"task_runner"}, true, "a word"},
		{"one that a person starts", []string{"task_runner"}, false, "none"},
		{"with an argument", []string{"task_runner", "x"}, true, "none"},
		{"as a later argument", []string{"x", "task_runner"}, true, "none"},
		{"a longer word", []string{"xtask_runner"}, true, "none"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), os.Args[0], c.args...)
			if c.life {
				r, w, err := os.Pipe()
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				defer w.Close()
				cmd.ExtraFiles = []*os.File{r}
			}
			out, err := cmd.Output()
			if err != nil || string(out) != c.want {
				t.Errorf("it says %q, %v, want %q", out, err, c.want)
			}
		})
	}
}
