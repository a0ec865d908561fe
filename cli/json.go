package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// protoJSON is a message as protobuf JSON with original field names, compact.
// Its spacing is stable, unlike protojson's own. spec/cli-and-ui.md §1.4.
func protoJSON(m proto.Message) (json.RawMessage, error) {
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	var out bytes.Buffer
	if err := json.Compact(&out, b); err != nil {
		return nil, fmt.Errorf("encode %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	return out.Bytes(), nil
}

// protoJSONList is a list of messages; an empty one is [], never null.
func protoJSONList[M proto.Message](list []M) ([]json.RawMessage, error) {
	out := make([]json.RawMessage, 0, len(list))
	for _, m := range list {
		raw, err := protoJSON(m)
		if err != nil {
			return nil, err
		}
		out = append(out, raw)
	}
	return out, nil
}

// writeJSON writes v with one space per level and a trailing newline to the
// file at path, or to stdout when path is "-".
func writeJSON(stdout io.Writer, path string, v any) error {
	var compact, out bytes.Buffer
	enc := json.NewEncoder(&compact)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("encode the output: %w", err)
	}
	if err := json.Indent(&out, bytes.TrimSpace(compact.Bytes()), "", " "); err != nil {
		return fmt.Errorf("encode the output: %w", err)
	}
	out.WriteByte('\n')
	if path == "-" {
		_, err := stdout.Write(out.Bytes())
		return err
	}
	if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
		return fmt.Errorf("--json-output: %w", err)
	}
	return nil
}
