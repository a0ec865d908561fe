package prpc

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
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
		o := protojson.UnmarshalOptions{DiscardUnknown: true}
		err := o.Unmarshal(b, m)
		if err == nil {
			return nil
		}
		rest, masks := objectMasks(b, m.ProtoReflect().Descriptor())
		if len(masks) == 0 || o.Unmarshal(rest, m) != nil {
			return err
		}
		for fd, paths := range masks {
			m.ProtoReflect().Set(fd, protoreflect.ValueOfMessage((&fieldmaskpb.FieldMask{Paths: paths}).ProtoReflect()))
		}
		return nil
	case Text:
		return prototext.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(b, m)
	case Binary:
	}
	return proto.Unmarshal(b, m)
}

// objectMasks takes field masks out of a JSON object that some clients write as
// objects, {"paths": ["a.b_c"]}, in place of the string "a.bC".
func objectMasks(b []byte, d protoreflect.MessageDescriptor) (rest []byte, masks map[protoreflect.FieldDescriptor][]string) {
	var fields map[string]json.RawMessage
	if json.Unmarshal(b, &fields) != nil {
		return b, nil
	}
	for name, value := range fields {
		fd := d.Fields().ByJSONName(name)
		if fd == nil {
			fd = d.Fields().ByName(protoreflect.Name(name))
		}
		if fd == nil || fd.IsList() || fd.IsMap() || fd.Message() == nil || fd.Message().FullName() != "google.protobuf.FieldMask" {
			continue
		}
		var mask struct{ Paths []string }
		if value[0] != '{' || json.Unmarshal(value, &mask) != nil {
			continue
		}
		if masks == nil {
			masks = map[protoreflect.FieldDescriptor][]string{}
		}
		masks[fd] = mask.Paths
		delete(fields, name)
	}
	rest, err := json.Marshal(fields)
	if err != nil {
		return b, nil
	}
	return rest, masks
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
