package runner

import (
	"encoding/json"
	"io"
	"os"

	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/internal/proc"
)

// What runs for the first time in a process costs page faults and the building
// of JSON tables: some milliseconds in all. A process that was started ahead
// does everything once for nothing, then gives the memory back and waits.

const warmManifest = `{"task_id":"10","bot_id":"b","bot_dimensions":{"id":["b"]},"hard_timeout":1,"grace_period":1,"io_timeout":1,
"command":["true"],"env":{"A":"b"},"env_prefixes":{"P":["x"]},"caches":[],"service_accounts":{"system":{"service_account":"none"}}}`

func warmRunner() []func() {
	return []func(){
		func() {
			m, _ := parseManifest(json.RawMessage(warmManifest))
			ctx, _ := taskContext(nil, m, "http://127.0.0.1", nil)
			_ = json.NewEncoder(io.Discard).Encode(isolatedJob{Command: m.Command, Env: m.Env, Context: ctx})
		},
		func() {
			_ = json.NewEncoder(io.Discard).Encode(isolatedWord{Go: true})
			code, secs := int64(0), 1.0
			_ = json.NewEncoder(io.Discard).Encode(runnerNews{Summary: &summaryOnWire{}, Update: &botapi.TaskUpdate{
				ExitCode: &code, Duration: &secs, BotOverhead: &secs, IsolatedStats: &botapi.IsolatedStats{}, NamedCachesStats: &botapi.CachesStats{},
				CacheTrimStats: &botapi.OperationStats{}, CleanupStats: &botapi.OperationStats{}, Output: []byte("x"),
			}})
			for _, v := range []any{&Job{}, &runnerWord{}, &result{}, &isolatedNews{}} {
				_ = json.Unmarshal([]byte(`{"Manifest":{},"Announced":{},"Delivered":{},"exit_code":0,"stats":{"cleanup":{"duration":1}},"done":true}`), v)
			}
		},
	}
}

func (r *isolatedRun) warm() []func() {
	return []func(){
		func() {
			for _, v := range []any{&isolatedJob{}, &isolatedWord{}} {
				_ = json.Unmarshal([]byte(`{"Command":["a"],"Env":{"a":"b"},"Environ":["a=b"],"Context":{"a":{}},"go":true}`), v)
			}
		},
		func() {
			_ = taskEnviron(&isolatedJob{Environ: []string{"A=b"}}, r.dirs)
			_, _ = lookup("true", r.dirs.run, "/bin", r.mayExecute)
			// A directory is no program: this forks, and nothing runs.
			_, _ = proc.Start(&proc.Cmd{Path: "/", Args: []string{"/"}, Dir: r.dirs.run, User: r.User, Files: []*os.File{nil, nil, nil}})
		},
		func() {
			if _, err := os.Lstat(r.Storage.Cache); err == nil && r.cas == nil {
				r.cas, _ = openStorage(r.Storage, r.log) // its state is read again if it changes
			}
		},
		func() {
			code, secs := int64(0), 1.0
			_, _ = json.Marshal(result{ExitCode: &code, Duration: &secs, Stats: resultStats{Isolated: &botapi.IsolatedStats{}}})
			_ = json.NewEncoder(io.Discard).Encode(isolatedNews{Started: true})
		},
	}
}
