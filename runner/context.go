package runner

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/skepdev/skep/api/botapi"
)

// localAuth is the section of LUCI_CONTEXT that names the token server.
type localAuth struct {
	RPCPort          int            `json:"rpc_port"`
	Secret           string         `json:"secret"`
	Accounts         []localAccount `json:"accounts"`
	DefaultAccountID string         `json:"default_account_id,omitempty"`
}

type localAccount struct {
	ID    string `json:"id"`
	Email string `json:"email"`
}

// taskContext edits the context that the bot was given into the task's, all
// but the deadline, which counts from the command's start. spec bot.md §4.4.
func taskContext(inherited json.RawMessage, m *botapi.Manifest, server string, auth *localAuth) (map[string]json.RawMessage, error) {
	ctx := map[string]json.RawMessage{}
	if len(inherited) > 0 && string(inherited) != "null" {
		if err := json.Unmarshal(inherited, &ctx); err != nil {
			return nil, fmt.Errorf("the bot's own LUCI_CONTEXT: %w", err)
		}
	}
	put := func(key string, v any) {
		ctx[key], _ = json.Marshal(v) // maps, strings and numbers
	}
	delete(ctx, "local_auth")
	delete(ctx, "deadline")
	if auth != nil {
		put("local_auth", auth)
	}
	var dims []string
	for k, vs := range m.BotDimensions {
		for _, v := range vs {
			dims = append(dims, k+":"+v)
		}
	}
	slices.Sort(dims)
	swarming := map[string]any{"task": map[string]any{
		"server": server, "task_id": summaryID(m.TaskID), "bot_dimensions": dims,
	}}
	if m.SecretBytes != nil {
		swarming["secret_bytes"] = *m.SecretBytes
	}
	put("swarming", swarming)
	if m.Realm != nil && m.Realm.Name != "" {
		merged := section(ctx["realm"])
		merged["name"] = m.Realm.Name
		put("realm", merged)
	}
	if m.ResultDB != nil {
		merged := section(ctx["resultdb"])
		var own map[string]any
		b, _ := json.Marshal(m.ResultDB)
		_ = json.Unmarshal(b, &own)
		maps.Copy(merged, own)
		put("resultdb", merged)
	}
	return ctx, nil
}

func section(raw json.RawMessage) map[string]any {
	m := map[string]any{}
	_ = json.Unmarshal(raw, &m)
	if m == nil {
		m = map[string]any{}
	}
	return m
}

// deadline is LUCI_CONTEXT's section of that name; a soft deadline of 0 is
// none.
type deadline struct {
	SoftDeadline float64 `json:"soft_deadline"` // Unix seconds
	GracePeriod  float64 `json:"grace_period"`  // seconds
}

// summaryID turns a run id into its task's.
func summaryID(run string) string {
	if run == "" {
		return ""
	}
	return run[:len(run)-1] + "0"
}

// agentContext is the file behind ${BUILDBUCKET_AGENT_CONTEXT_FILE}, nil when
// the command does not ask for it. spec bot.md §4.4.
func agentContext(m *botapi.Manifest) (json.RawMessage, error) {
	if !slices.Contains(m.Command, agentPlaceholder) {
		return nil, nil
	}
	if m.SecretBytes == nil || *m.SecretBytes == "" {
		return nil, fmt.Errorf("the command names %s, but the task has no secret bytes", agentPlaceholder)
	}
	compact := strings.Map(func(r rune) rune {
		if r == '\n' || r == '\r' {
			return -1
		}
		return r
	}, *m.SecretBytes)
	raw, err := base64.StdEncoding.DecodeString(compact)
	if err != nil {
		return nil, fmt.Errorf("secret bytes for %s: %w", agentPlaceholder, err)
	}
	secrets, err := decodeBuildSecrets(raw)
	if err != nil {
		return nil, fmt.Errorf("secret bytes for %s: %w", agentPlaceholder, err)
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(map[string]any{"taskId": summaryID(m.TaskID), "secrets": secrets}); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}
