// Package botapi is Bot API v1 on the wire: the JSON messages that bots and
// server exchange, and the client side of their transport. It is used by both
// sides and stays free of protobuf, so that a bot stays small.
//
// Source: spec bot.md §2 and §3. Fields marked "skep" are ours: an existing
// bot neither sends nor reads them.
package botapi

import "encoding/json"

// Paths of the Bot API. spec bot.md §2.5.
const (
	PathServerPing = "/swarming/api/v1/bot/server_ping"
	PathHandshake  = "/swarming/api/v1/bot/handshake"
	PathPoll       = "/swarming/api/v1/bot/poll"
	PathClaim      = "/swarming/api/v1/bot/claim"
	PathEvent      = "/swarming/api/v1/bot/event"
	PathTaskUpdate = "/swarming/api/v1/bot/task_update" // also with /<run id>
	PathTaskError  = "/swarming/api/v1/bot/task_error"  // also with /<run id>
	PathOAuthToken = "/swarming/api/v1/bot/oauth_token"
	PathIDToken    = "/swarming/api/v1/bot/id_token"
	PathBotCode    = "/swarming/api/v1/bot/bot_code/" // + digest
)

// HeaderBotID names the bot that calls. spec bot.md §2.1.
const HeaderBotID = "X-Luci-Swarming-Bot-ID"

// SessionScheme, with the session after it, is the Authorization header of a
// bot that has no token, towards the content-addressed storage of its server.
const SessionScheme = "Session "

// Attributes are what a bot says of itself in handshake, poll and event.
type Attributes struct {
	Dimensions map[string][]string `json:"dimensions"`
	State      json.RawMessage     `json:"state"`   // a JSON object
	Version    string              `json:"version"` // digest of the bot's code
}

// HandshakeRequest opens a bot session. spec bot.md §2.6.
type HandshakeRequest struct {
	Attributes
	SessionID string `json:"session_id"` // ^[a-z0-9\-_/]{1,50}$; the same on each retry of one process

	Credential *CredentialRequest `json:"credential,omitempty"` // skep: it wants a credential of its own
}

// CredentialRequest asks that a token which the bot made be accepted as its
// credential from now on. The token itself stays with the bot. Repeating it
// changes nothing. decisions.md 10.
type CredentialRequest struct {
	ID   string `json:"id"`   // public part of the token
	Hash string `json:"hash"` // SHA-256 of the whole token, lowercase hex
}

// Credential says that the token asked for is accepted.
type Credential struct {
	ID      string `json:"id"`
	Expires int64  `json:"expires"` // Unix seconds
}

// HandshakeResponse is never an empty object.
type HandshakeResponse struct {
	Session       string      `json:"session"` // opaque token, echoed in every later request
	BotVersion    string      `json:"bot_version"`
	ServerVersion string      `json:"server_version"`
	Credential    *Credential `json:"credential,omitempty"` // skep: answers CredentialRequest; absent where no credential is needed
	BotConfig     *string     `json:"bot_config"`           // source of an injected hooks script
	BotConfigName string      `json:"bot_config_name"`
	BotConfigRev  string      `json:"bot_config_rev"`
	BotGroupCfg   BotGroupCfg `json:"bot_group_cfg"`

	Skep *HandshakeSkep `json:"skep,omitempty"` // skep: what only our bots read
}

// HandshakeSkep (skep) is what the configuration of a fleet tells our bots.
type HandshakeSkep struct {
	Recovery []Rung `json:"recovery,omitempty"` // what a sick bot tries, unless get_settings names a ladder of its own
}

// Rung (skep) is one step of a recovery ladder; docs/hooks.md has its meaning.
type Rung struct {
	Do          string   `json:"do"` // "run", "bot_restart", "host_reboot", "quarantine"
	Command     []string `json:"command,omitempty"`
	TimeoutSecs float64  `json:"timeout_secs,omitempty"`
	Times       int      `json:"times"`
	PerSecs     float64  `json:"per_secs"`
	WaitSecs    float64  `json:"wait_secs"`
}

// BotGroupCfg holds the dimensions that the server assigns; they replace the
// bot's own values key by key.
type BotGroupCfg struct {
	Dimensions map[string][]string `json:"dimensions"`
}

// PollRequest asks for a command. spec bot.md §2.7.
type PollRequest struct {
	Attributes
	Session     string  `json:"session"`
	RequestUUID string  `json:"request_uuid"`   // ^[a-zA-Z0-9\-_/]{0,50}$; the same until an answer arrived
	Wait        float64 `json:"wait,omitempty"` // skep: seconds the server may hold the answer, 0 to 50
}

// Commands of a poll answer. spec bot.md §3.1.
const (
	CmdSleep      = "sleep"
	CmdRun        = "run"
	CmdTerminate  = "terminate"
	CmdUpdate     = "update"
	CmdBotRestart = "bot_restart"
	CmdHostReboot = "host_reboot" // synonym: CmdRestart
	CmdRestart    = "restart"
	CmdSkip       = "skip" // answer to claim only
)

// PollResponse holds exactly one command; the other fields depend on it.
type PollResponse struct {
	Cmd         string    `json:"cmd"`
	Session     string    `json:"session,omitempty"`
	Duration    *float64  `json:"duration,omitempty"`    // sleep: seconds
	Quarantined *bool     `json:"quarantined,omitempty"` // sleep
	Manifest    *Manifest `json:"manifest,omitempty"`    // run
	TaskID      string    `json:"task_id,omitempty"`     // terminate: run id
	Version     string    `json:"version,omitempty"`     // update
	Message     string    `json:"message,omitempty"`     // bot_restart, host_reboot
	Reason      string    `json:"reason,omitempty"`      // skip
}

// Manifest is one task as its bot gets it. spec bot.md §3.3, scheduler.md §9.4.
type Manifest struct {
	TaskID             string              `json:"task_id"` // run id
	BotID              string              `json:"bot_id"`
	BotDimensions      map[string][]string `json:"bot_dimensions"`
	BotAuthenticatedAs string              `json:"bot_authenticated_as"` // identity kind:name
	Dimensions         map[string][]string `json:"dimensions"`           // as requested
	HardTimeout        int64               `json:"hard_timeout"`         // seconds, 0 = none
	GracePeriod        int64               `json:"grace_period"`         // seconds
	IOTimeout          int64               `json:"io_timeout"`           // seconds, 0 = none
	Command            []string            `json:"command"`
	RelativeCwd        string              `json:"relative_cwd"`
	Env                map[string]string   `json:"env"`
	EnvPrefixes        map[string][]string `json:"env_prefixes"`
	Caches             []Cache             `json:"caches"`
	CASInputRoot       *CASReference       `json:"cas_input_root"`
	CIPDInput          *CIPDInput          `json:"cipd_input"`
	Outputs            []string            `json:"outputs"`
	SecretBytes        *string             `json:"secret_bytes"` // standard base64
	Realm              *Realm              `json:"realm"`
	ResultDB           *ResultDB           `json:"resultdb"`
	ServiceAccounts    ServiceAccounts     `json:"service_accounts"`
	Containment        *Containment        `json:"containment"`
	Host               string              `json:"host"` // server URL for the task's life (row B19)
	Skep               *ManifestSkep       `json:"skep,omitempty"`
}

// ManifestSkep (skep) is what only a bot of ours reads of a task.
type ManifestSkep struct {
	CAS string `json:"cas,omitempty"` // grpc(s)://HOST[:PORT][/INSTANCE] of the storage; absent = at the bot's server

	// Trusted: tasks of this pool do not write to their inputs, though they could. decisions.md 26.
	Trusted bool `json:"trusted,omitempty"`

	Pool string `json:"pool,omitempty"` // socket of the warm pool in whose containers tasks of this pool run
}

// Cache is a named cache to mount; Hint is its expected size in bytes as
// decimal text, "-1" when unknown.
type Cache struct {
	Name string `json:"name"`
	Path string `json:"path"`
	Hint string `json:"hint"`
}

// CASReference names a tree in content-addressed storage.
type CASReference struct {
	Instance string    `json:"cas_instance"`
	Digest   CASDigest `json:"digest"`
}

// CASDigest names a blob: SHA-256 in lower-case hex, and its size.
type CASDigest struct {
	Hash      string `json:"hash"`
	SizeBytes int64  `json:"size_bytes"`
}

// CIPDInput lists the packages to install before the command runs.
type CIPDInput struct {
	Server        string        `json:"server"`
	ClientPackage *CIPDPackage  `json:"client_package"`
	Packages      []CIPDPackage `json:"packages"`
}

// CIPDPackage is one package; Status is set only in task_error.
type CIPDPackage struct {
	PackageName string `json:"package_name"`
	Version     string `json:"version"`
	Path        string `json:"path,omitempty"`
	Status      string `json:"status,omitempty"`
}

// Realm names the task's realm, "project:name".
type Realm struct {
	Name string `json:"name,omitempty"`
}

// ResultDB is passed through to the task's LUCI_CONTEXT.
type ResultDB struct {
	Hostname          string `json:"hostname"`
	CurrentInvocation struct {
		Name        string `json:"name"`
		UpdateToken string `json:"update_token"`
	} `json:"current_invocation"`
}

// ServiceAccounts names the accounts of bot and task: "none", "bot" or an
// e-mail address.
type ServiceAccounts struct {
	System ServiceAccount `json:"system"`
	Task   ServiceAccount `json:"task"`
}

// ServiceAccount is one account.
type ServiceAccount struct {
	ServiceAccount string `json:"service_account"`
}

// Containment is how the task's processes are to be confined. Types: 0 unset,
// 1 none, 2 auto, 3 job object.
type Containment struct {
	ContainmentType           int   `json:"containment_type"`
	LowerPriority             bool  `json:"lower_priority,omitempty"`
	LimitProcesses            int64 `json:"limit_processes,omitempty"`
	LimitTotalCommittedMemory int64 `json:"limit_total_committed_memory,omitempty"` // bytes
}

// ClaimRequest is accepted and always answered with skip: it belongs to a
// remote scheduler that skep does not have. spec bot.md §2.8.
type ClaimRequest struct {
	Session string `json:"session"`
	ClaimID string `json:"claim_id"`
	TaskID  string `json:"task_id"`
}

// Events a bot may post. spec bot.md §2.9.
const (
	EventError     = "bot_error"
	EventLog       = "bot_log"
	EventRebooting = "bot_rebooting"
	EventShutdown  = "bot_shutdown"
)

// EventRequest reports something worth listing on the bot's page. The answer
// is {}.
type EventRequest struct {
	Attributes
	Session     string `json:"session"`
	Event       string `json:"event"`
	Message     string `json:"message"`
	RequestUUID string `json:"request_uuid,omitempty"` // a repeat is recorded once
}

// TaskUpdate reports output, progress or the end of a task. It is a final
// report when ExitCode is set or one of the flags is true.
// spec bot.md §2.10, scheduler.md §9.5.
type TaskUpdate struct {
	ID      string `json:"id,omitempty"` // bot id
	TaskID  string `json:"task_id"`      // run id
	Session string `json:"session"`

	CostUSD          *float64 `json:"cost_usd,omitempty"`
	Output           []byte   `json:"output,omitempty"` // base64 on the wire
	OutputChunkStart int64    `json:"output_chunk_start,omitempty"`

	Duration         *float64        `json:"duration,omitempty"` // seconds; with ExitCode or not at all
	ExitCode         *int64          `json:"exit_code,omitempty"`
	HardTimeout      bool            `json:"hard_timeout,omitempty"`
	IOTimeout        bool            `json:"io_timeout,omitempty"`
	Canceled         bool            `json:"canceled,omitempty"` // stopped before the command started
	BotOverhead      *float64        `json:"bot_overhead,omitempty"`
	CASOutputRoot    *CASReference   `json:"cas_output_root,omitempty"`
	CIPDPins         *CIPDPins       `json:"cipd_pins,omitempty"`
	IsolatedStats    *IsolatedStats  `json:"isolated_stats,omitempty"`
	CIPDStats        *OperationStats `json:"cipd_stats,omitempty"`
	NamedCachesStats *CachesStats    `json:"named_caches_stats,omitempty"`
	CacheTrimStats   *OperationStats `json:"cache_trim_stats,omitempty"`
	CleanupStats     *OperationStats `json:"cleanup_stats,omitempty"`

	// Wait (skep) makes an otherwise empty update a question: the server
	// answers when the task must stop, when Watched changes from the value
	// sent, or after Wait seconds (0 to 50).
	Wait    float64 `json:"wait,omitempty"`
	Watched bool    `json:"watched,omitempty"`
}

// Final reports whether u ends the task.
func (u *TaskUpdate) Final() bool {
	return u.ExitCode != nil || u.Canceled || u.HardTimeout || u.IOTimeout
}

// CIPDPins are the resolved packages.
type CIPDPins struct {
	ClientPackage *CIPDPackage  `json:"client_package,omitempty"`
	Packages      []CIPDPackage `json:"packages,omitempty"`
}

// OperationStats is the time of one step, in seconds.
type OperationStats struct {
	Duration float64 `json:"duration"`
}

// IsolatedStats are the transfers of inputs and outputs.
type IsolatedStats struct {
	Download *TransferStats `json:"download,omitempty"`
	Upload   *TransferStats `json:"upload,omitempty"`
}

// TransferStats is one transfer; the items are packed sizes, spec bot.md §5.9.
type TransferStats struct {
	Duration           float64 `json:"duration,omitempty"`
	InitialNumberItems int32   `json:"initial_number_items,omitempty"`
	InitialSize        int64   `json:"initial_size,omitempty"`
	ItemsCold          []byte  `json:"items_cold,omitempty"`
	ItemsHot           []byte  `json:"items_hot,omitempty"`
}

// CachesStats are the times of mounting and unmounting named caches.
type CachesStats struct {
	Install   OperationStats `json:"install"`
	Uninstall OperationStats `json:"uninstall"`
}

// TaskUpdateResponse is never an empty object.
type TaskUpdateResponse struct {
	OK         bool   `json:"ok"`
	MustStop   bool   `json:"must_stop"`
	StopReason string `json:"stop_reason,omitempty"`
	Session    string `json:"session,omitempty"`
	Watched    bool   `json:"watched,omitempty"` // skep: somebody reads the output now
}

// TaskErrorRequest ends a task that the bot could not run. The answer is {}.
// spec bot.md §2.11.
type TaskErrorRequest struct {
	ID          string       `json:"id,omitempty"`
	TaskID      string       `json:"task_id"`
	Session     string       `json:"session"`
	Message     string       `json:"message"`
	ClientError *ClientError `json:"client_error,omitempty"`
}

// ClientError says which inputs of the requester do not exist.
type ClientError struct {
	MissingCAS  []MissingCAS  `json:"missing_cas"`
	MissingCIPD []CIPDPackage `json:"missing_cipd"`
}

// MissingCAS is one missing tree; Digest is "<hash>/<size>".
type MissingCAS struct {
	Status   string `json:"status"`
	Digest   string `json:"digest"`
	Instance string `json:"instance"`
}

// TokenRequest asks for a token of an account. spec bot.md §2.12.
type TokenRequest struct {
	AccountID string   `json:"account_id"` // "system" or "task"
	ID        string   `json:"id,omitempty"`
	TaskID    string   `json:"task_id,omitempty"`
	Session   string   `json:"session"`
	Scopes    []string `json:"scopes,omitempty"`   // oauth_token
	Audience  string   `json:"audience,omitempty"` // id_token
}

// TokenResponse names the account; "none" and "bot" carry no token.
type TokenResponse struct {
	ServiceAccount string `json:"service_account"`
	AccessToken    string `json:"access_token,omitempty"`
	IDToken        string `json:"id_token,omitempty"`
	Expiry         int64  `json:"expiry,omitempty"` // Unix seconds
}

// ErrorResponse is the body of every refusal (4xx and 5xx), always with
// Content-Type application/json: existing bots retry an /api/ 404 of another
// type for minutes. spec bot.md §2.17.
type ErrorResponse struct {
	Error  string `json:"error"`           // what to do, for a person
	Reason string `json:"reason"`          // skep.Kind as a word
	Field  string `json:"field,omitempty"` // the field an invalid request broke
}
