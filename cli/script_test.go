package cli_test

import (
	"os"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/botcli"
	"github.com/skepdev/skep/cli"
)

func TestMain(m *testing.M) {
	bot := func() { os.Exit(botcli.Main()) }
	testscript.Main(m, map[string]func(){
		"skep":     func() { os.Exit(cli.Main()) },
		"skep-bot": bot, "swarming_bot": bot, "swarming_bot.1": bot, "swarming_bot.2": bot,
		"swarming_bot.zip": bot, "swarming_bot.1.zip": bot, "swarming_bot.2.zip": bot, // of a drone
		"cloud": cloudMain, "fetch": fetchMain,
	})
}

// TestScripts runs the command line as users type it, against a fake server
// of its own per script. A script named flaky_* gets one whose calls fail
// every third time; one named token_* asks for the token "secret".
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/script",
		UpdateScripts: os.Getenv("SKEP_UPDATE_SCRIPTS") != "",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"waitfor": func(ts *testscript.TestScript, _ bool, args []string) { // waitfor TASK STATE
				ts.Value("fake").(*fake).waitFor(args[0], pb.TaskState(pb.TaskState_value[args[1]]))
			},
		},
		Setup: func(env *testscript.Env) error {
			f := newFake()
			env.Values["fake"] = f
			script := env.Getenv("WORK")
			switch {
			case strings.Contains(script, "script-flaky"):
				f.flaky = true
			case strings.Contains(script, "script-token"):
				f.token = "secret"
			}
			env.Setenv("SKEP_SERVER", f.serve(env.T().(testing.TB)).URL)
			env.Setenv("USER", "ann")
			env.Setenv("GORACE", os.Getenv("GORACE"))
			return nil
		},
	})
}
