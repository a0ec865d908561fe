package runner

import (
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestBaseEnviron(t *testing.T) {
	got := baseEnviron([]string{
		"PATH=/bin", "path=/x", "LC_TIME=C", "LCX=1", "HTTP_PROXY=p", "no_proxy=n", "SSL_CERT_FILE=f", "TOKEN=t", "=x", "novalue",
		"MY_A=1", "MY=2", "ONE=1", "ONEX=2",
	}, []string{"MY_*", "ONE"})
	want := []string{"PATH=/bin", "LC_TIME=C", "HTTP_PROXY=p", "no_proxy=n", "SSL_CERT_FILE=f", "MY_A=1", "ONE=1"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestCommandPlaceholders(t *testing.T) {
	d := dirs{run: "/w/ir", out: "/w/io1", agent: "/w/it1/agent", botFile: "/w/it1/bot"}
	got := d.command([]string{
		"tool${EXECUTABLE_SUFFIX}", "--out=${ISOLATED_OUTDIR}/a/b", "${SWARMING_TASK_ID}-${SWARMING_TASK_ID}", "${SWARMING_BOT_FILE}",
		agentPlaceholder, "x" + agentPlaceholder, agentPlaceholder, "${OTHER} $HOME ${platform}",
	}, "11")
	want := []string{
		"tool", "--out=/w/io1/a/b", "11-11", "/w/it1/bot", "/w/it1/agent", "x" + agentPlaceholder, agentPlaceholder, "${OTHER} $HOME ${platform}",
	}
	if filepath.Separator == '/' {
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	if got := (&dirs{}).replace("${SWARMING_BOT_FILE}${SWARMING_TASK_ID}", ""); got != "${SWARMING_BOT_FILE}${SWARMING_TASK_ID}" {
		t.Errorf("without values: %q", got)
	}
}
