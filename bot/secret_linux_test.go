package bot

import (
	"bytes"
	"os"
	"os/exec"
	"testing"
)

// TestMain is also the process whose environment TestTakeSecret looks at.
func TestMain(m *testing.M) {
	if os.Getenv("SKEP_TEST_HELPER") == "secret" {
		v, err := TakeSecret("SKEP_TEST_SECRET")
		if err != nil || v != "hunter2" || os.Getenv("SKEP_TEST_SECRET") != "" {
			os.Exit(2)
		}
		env, err := os.ReadFile("/proc/self/environ")
		if err != nil || bytes.Contains(env, []byte("hunter2")) || !bytes.Contains(env, []byte("SKEP_TEST_AFTER=kept")) {
			os.Exit(3)
		}
		if HideProcess() != nil {
			os.Exit(4)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestTakeSecret(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = []string{"SKEP_TEST_HELPER=secret", "SKEP_TEST_SECRET=hunter2", "SKEP_TEST_AFTER=kept"}
	if err := cmd.Run(); err != nil {
		t.Errorf("helper: %v (2: not taken, 3: still in /proc, 4: not hidden)", err)
	}
	if v, err := TakeSecret("SKEP_TEST_NOT_SET"); v != "" || err != nil {
		t.Errorf("a variable that is not set: %q, %v", v, err)
	}
}
