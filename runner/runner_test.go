package runner

import (
	"testing"
)

func TestRun(t *testing.T) {
	for _, ahead := range []bool{false, true} {
		server, s := newTaskServer(t), newStarter(t)
		if ahead {
			if err := s.Prepare(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		sum := run(t, s, server, sh("echo hi; echo there >&2; exit 3"))
		if sum.ExitCode == nil || *sum.ExitCode != 3 || sum.InternalError != "" {
			t.Errorf("summary %+v", sum)
		}
		out, _, errs := server.got()
		if out != "hi\nthere\n" || len(errs) > 0 {
			t.Errorf("output %q, errors %v", out, errs)
		}
		if u := server.final(t); *u.ExitCode != 3 || u.Duration == nil || u.BotOverhead == nil {
			t.Errorf("final update %+v", u)
		}
		t.Log(s.Method())
		t.Log(s.Isolation())
	}
}

func botMain([]string) int { return 0 }
