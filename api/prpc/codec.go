package prpc

import (
	"bytes"
	"errors"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
)

// jsonPrefix comes before the JSON of an answer, so that no page can load it as a script.
const jsonPrefix = ")]}'\n"

// unmarshal reads a message in format f. Fields that are not known are ignored, and kept in binary. It keeps
// nothing of b.
func unmarshal(f Format, b []byte, m proto.Message) error {
	switch f {
	case JSON:
		if len(bytes.TrimSpace(b)) == 0 {
			return errors.New("it is empty; the empty message is {}")
		}
		return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(b, m)
	case Text:
		return prototext.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(b, m)
	case Binary:
	}
	return proto.Unmarshal(b, m)
}

// marshal appends a message in format f to b, with what an answer has around it.
func marshal(f Format, b []byte, m proto.Message) ([]byte, error) {
	switch f {
	case JSON:
		b, err := protojson.MarshalOptions{}.MarshalAppend(append(b, jsonPrefix...), m)
		return append(b, '\n'), err
	case Text:
		return prototext.MarshalOptions{Multiline: true}.MarshalAppend(b, m)
	case Binary:
	}
	return proto.MarshalOptions{}.MarshalAppend(b, m)
}

// marshalDetail writes an error detail: as an answer, but JSON without prefix.
func marshalDetail(f Format, m proto.Message) ([]byte, error) {
	if f == JSON {
		return protojson.Marshal(m)
	}
	return marshal(f, nil, m)
}

// plainText makes one line of an error text: the protobuf packages write odd spaces to keep texts from being compared.
func plainText(s string) string {
	return strings.ReplaceAll(s, "\u00a0", " ")
}
