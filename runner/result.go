package runner

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"

	"github.com/skepdev/skep/api/botapi"
)

// result is isolated_result.json, version 5. spec bot.md §5.10.
type result struct {
	ExitCode        *int64               `json:"exit_code"`
	HadHardTimeout  bool                 `json:"had_hard_timeout"`
	InternalFailure *string              `json:"internal_failure"`
	Duration        *float64             `json:"duration"` // seconds
	Stats           resultStats          `json:"stats"`
	CIPDPins        *botapi.CIPDPins     `json:"cipd_pins,omitempty"`
	CASOutputRoot   *botapi.CASReference `json:"cas_output_root"`
	OutputsRef      *struct{}            `json:"outputs_ref"`
	MissingCAS      []botapi.MissingCAS  `json:"missing_cas,omitempty"`
	MissingCIPD     []botapi.CIPDPackage `json:"missing_cipd,omitempty"`
	Version         int                  `json:"version"`
}

type resultStats struct {
	TrimCaches  *botapi.OperationStats `json:"trim_caches,omitempty"`
	CIPD        *botapi.OperationStats `json:"cipd,omitempty"`
	Isolated    *botapi.IsolatedStats  `json:"isolated,omitempty"`
	NamedCaches *botapi.CachesStats    `json:"named_caches,omitempty"`
	Cleanup     *botapi.OperationStats `json:"cleanup,omitempty"`
}

const resultFile = "isolated_result.json"

func writeResult(dir string, r *result) error {
	r.Version = 5
	return rewriteJSON(filepath.Join(dir, resultFile), r)
}

// readResult returns nil when run_isolated left no result.
func readResult(dir string) (*result, error) {
	b, err := os.ReadFile(filepath.Join(dir, resultFile))
	if errors.Is(err, os.ErrNotExist) || err == nil && len(b) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r := &result{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, err
	}
	return r, nil
}

// rewriteJSON writes into the file that is there, if one is: a reader may see
// a part of it.
func rewriteJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}

// writeJSON writes beside and renames, so that a reader sees a whole file.
func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
