package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// The messages of spawn-tasks and collect, as far as they are used here.
type (
	spawnInput struct {
		Requests []taskRequest `json:"requests"`
	}
	taskRequest struct {
		Name     string   `json:"name"`
		Priority int      `json:"priority"`
		Tags     []string `json:"tags"`
		Slices   []slice  `json:"task_slices"`
	}
	slice struct {
		ExpirationSecs int        `json:"expiration_secs"`
		Properties     properties `json:"properties"`
	}
	properties struct {
		Command              []string   `json:"command"`
		Dimensions           []keyValue `json:"dimensions"`
		Env                  []keyValue `json:"env,omitempty"`
		ExecutionTimeoutSecs int        `json:"execution_timeout_secs"`
		GracePeriodSecs      int        `json:"grace_period_secs"`
	}
	keyValue struct {
		Key   string `json:"key"`
		Value string `json:"value"`
	}

	spawnOutput struct {
		Tasks []struct {
			ID      string `json:"task_id"`
			Request struct {
				Name string `json:"name"`
			} `json:"request"`
		} `json:"tasks"`
	}
	collected struct {
		Error   string `json:"error"`
		Output  string `json:"output"`
		Results struct {
			Name     string  `json:"name"`
			State    string  `json:"state"`
			ExitCode string  `json:"exit_code"` // absent when 0
			Duration float64 `json:"duration"`  // seconds
			BotID    string  `json:"bot_id"`
		} `json:"results"`
	}
)

// taskTimeout is far more than any package needs in short mode.
const taskTimeout = 5 * time.Minute

// spawn submits one task per package and returns which task is for which.
func (r *run) spawn(ctx context.Context, packages []*pkg, env map[string]string) (tasks map[string]*pkg, err error) {
	var in spawnInput
	byName := map[string]*pkg{}
	for _, p := range packages {
		byName[taskName(p)] = p
		in.Requests = append(in.Requests, request(p, env))
	}
	data, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(r.dir, "tasks.json")
	if err := os.WriteFile(file, data, 0o644); err != nil {
		return nil, err
	}
	if _, err := output(ctx, "", r.skep, "spawn-tasks", "--server", r.server, "--json-input", file, "--json-output", r.spawned()); err != nil {
		return nil, err
	}
	var out spawnOutput
	if err := readJSON(r.spawned(), &out); err != nil {
		return nil, err
	}
	tasks = map[string]*pkg{}
	for _, t := range out.Tasks {
		p := byName[t.Request.Name]
		if p == nil {
			return nil, fmt.Errorf("spawn-tasks made task %s named %q, which was not asked for", t.ID, t.Request.Name)
		}
		tasks[t.ID] = p
	}
	if len(tasks) != len(packages) {
		return nil, fmt.Errorf("spawn-tasks made %d tasks for %d packages", len(tasks), len(packages))
	}
	return tasks, nil
}

func (r *run) spawned() string { return filepath.Join(r.dir, "spawned.json") }

func taskName(p *pkg) string { return "go-std-tests/" + p.Path }

// request is the task that tests p: its test binary, run where the package's
// files are. The marks that test2json asks for tell a test's result from what
// the test prints.
func request(p *pkg, env map[string]string) taskRequest {
	props := properties{
		Command: []string{
			"sh", "-c", `cd "$1" && shift && exec "$@"`, "sh", p.Dir,
			p.binary, "-test.short", "-test.v=test2json", "-test.timeout=" + taskTimeout.String(),
		},
		Dimensions:           []keyValue{{"pool", "default"}},
		ExecutionTimeoutSecs: int(taskTimeout.Seconds()) + 30,
		GracePeriodSecs:      5,
	}
	for k, v := range env {
		props.Env = append(props.Env, keyValue{k, v})
	}
	return taskRequest{
		Name: taskName(p), Priority: 100, Tags: []string{"package:" + p.Path},
		Slices: []slice{{ExpirationSecs: 3600, Properties: props}},
	}
}

// collect waits for all tasks.
func (r *run) collect(ctx context.Context, tasks map[string]*pkg) (map[*pkg]verdict, error) {
	file := filepath.Join(r.dir, "collected.json")
	_, err := output(ctx, "", r.skep, "collect", "--server", r.server, "--requests-json", r.spawned(),
		"--task-output-stdout", "json", "--json-output", file, "--timeout", r.timeout.String())
	if err != nil {
		return nil, err
	}
	var entries map[string]collected
	if err := readJSON(file, &entries); err != nil {
		return nil, err
	}
	verdicts := map[*pkg]verdict{}
	for id, p := range tasks {
		e, ok := entries[id]
		if !ok {
			return nil, fmt.Errorf("collect says nothing of task %s, %s", id, p.Path)
		}
		verdicts[p] = e.verdict()
	}
	return verdicts, nil
}

// result is a line of the test binary: marked, and of no subtest.
var result = regexp.MustCompile(`\x16--- (PASS|FAIL|SKIP): ([^\s/]+) \(`)

func (c *collected) verdict() verdict {
	v := verdict{
		tests: map[string]string{},
		took:  time.Duration(c.Results.Duration * float64(time.Second)),
		bot:   c.Results.BotID,
	}
	for _, m := range result.FindAllStringSubmatch(c.Output, -1) {
		v.tests[m[2]] = strings.ToLower(m[1])
	}
	switch {
	case c.Error != "":
		v.note = c.Error
	case c.Results.State != "COMPLETED":
		v.note = c.Results.State
	case c.Results.ExitCode == "" || c.Results.ExitCode == "0":
		v.ok = true
	}
	if !v.ok {
		v.note = strings.TrimSpace(v.note + "\n" + lastLines(c.Output, 30))
	}
	return v
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(strings.ReplaceAll(s, "\x16", "")), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func readJSON(path string, to any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, to); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
