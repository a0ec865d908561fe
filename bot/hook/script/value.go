package script

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"slices"
	"strings"
	"unicode/utf8"

	"go.starlark.net/starlark"

	"github.com/skepdev/skep/bot/hook"
)

// maxDepth bounds nesting: values may contain themselves.
const maxDepth = 32

// fromJSON returns JSON as a value of the hook's own, which it may change.
func fromJSON(raw json.RawMessage) (starlark.Value, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("more than one JSON value")
	}
	return fromGo(v), nil
}

func fromGo(v any) starlark.Value {
	switch v := v.(type) {
	case nil:
		return starlark.None
	case bool:
		return starlark.Bool(v)
	case string:
		return starlark.String(v)
	case float64:
		return starlark.Float(v)
	case json.Number:
		if i, ok := new(big.Int).SetString(v.String(), 10); ok {
			return starlark.MakeBigInt(i)
		}
		f, _ := v.Float64()
		return starlark.Float(f)
	case []any:
		l := make([]starlark.Value, len(v))
		for i, e := range v {
			l[i] = fromGo(e)
		}
		return starlark.NewList(l)
	case map[string]any:
		d := starlark.NewDict(len(v))
		keys := make([]string, 0, len(v))
		for k := range v {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		for _, k := range keys {
			_ = d.SetKey(starlark.String(k), fromGo(v[k]))
		}
		return d
	}
	panic(fmt.Sprintf("value of type %T", v)) // nothing else comes out of JSON
}

// toJSON encodes a value; the error says which one JSON cannot hold.
func toJSON(v starlark.Value) (json.RawMessage, error) {
	var b bytes.Buffer
	if err := encode(&b, v, 0); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func encode(b *bytes.Buffer, v starlark.Value, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("it is nested more than %d levels deep", maxDepth)
	}
	if b.Len() > hook.MaxAnswer {
		return fmt.Errorf("it is longer than %d bytes as JSON", hook.MaxAnswer)
	}
	switch v := v.(type) {
	case starlark.NoneType:
		b.WriteString("null")
	case starlark.Bool:
		fmt.Fprint(b, bool(v))
	case starlark.String:
		return encodeString(b, string(v))
	case starlark.Int:
		i, ok := v.Int64()
		if !ok {
			return errors.New("a number is too large")
		}
		fmt.Fprint(b, i)
	case starlark.Float:
		f := float64(v)
		if math.IsNaN(f) || math.IsInf(f, 0) {
			return fmt.Errorf("JSON has no number %v", f)
		}
		data, err := json.Marshal(f)
		if err != nil {
			return err
		}
		b.Write(data)
	case *starlark.Dict:
		b.WriteByte('{')
		for i, kv := range v.Items() {
			k, ok := kv[0].(starlark.String)
			if !ok {
				return fmt.Errorf("a key of a dict is a %s, want a string: %s", kv[0].Type(), show(kv[0]))
			}
			if i > 0 {
				b.WriteByte(',')
			}
			if err := encodeString(b, string(k)); err != nil {
				return err
			}
			b.WriteByte(':')
			if err := encode(b, kv[1], depth+1); err != nil {
				return fmt.Errorf("%s: %w", clip(string(k), 80), err)
			}
		}
		b.WriteByte('}')
	case starlark.Iterable: // lists, tuples, sets
		if _, ok := v.(starlark.HasAttrs); !ok {
			if _, ok := v.(starlark.Tuple); !ok {
				return fmt.Errorf("JSON cannot hold a %s", v.Type())
			}
		}
		b.WriteByte('[')
		it := v.Iterate()
		defer it.Done()
		var e starlark.Value
		for i := 0; it.Next(&e); i++ {
			if i > 0 {
				b.WriteByte(',')
			}
			if err := encode(b, e, depth+1); err != nil {
				return err
			}
		}
		b.WriteByte(']')
	default:
		return fmt.Errorf("JSON cannot hold a %s", v.Type())
	}
	return nil
}

func encodeString(b *bytes.Buffer, s string) error {
	if len(s) > hook.MaxAnswer {
		return fmt.Errorf("it is longer than %d bytes as JSON", hook.MaxAnswer)
	}
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	b.Write(data)
	return nil
}

// show is a value in an error text.
func show(v starlark.Value) string {
	switch v.(type) {
	case starlark.String, starlark.Int, starlark.Float, starlark.Bool, starlark.NoneType:
		return clip(v.String(), 80)
	}
	return "a " + v.Type() // its text may be huge
}

// result checks what a hook returned and returns it as JSON.
func (r *run) result(rule hook.Rule, bot *hook.Bot, v starlark.Value) (json.RawMessage, error) {
	wrong := func(got string) error { return &typeError{fmt.Sprintf("returned %s, want %s", got, rule.Want)} }
	switch rule.Name {
	case hook.SetupBot:
		return toJSON(v.Truth())
	case hook.GetDimensions:
		if err := checkDimensions(v, bot.ID); err != nil {
			return nil, wrong(err.Error())
		}
	case hook.GetState, hook.GetSettings:
		if _, ok := v.(*starlark.Dict); !ok {
			return nil, wrong(show(v))
		}
	case hook.GetAuthenticationHeaders:
		if err := checkHeaders(v); err != nil {
			return nil, wrong(err.Error())
		}
	default:
		return json.RawMessage("null"), nil
	}
	data, err := toJSON(v)
	if err == nil && len(data) > hook.MaxAnswer {
		err = fmt.Errorf("it is longer than %d bytes as JSON", hook.MaxAnswer)
	}
	if err != nil {
		return nil, wrong(fmt.Sprintf("a %s that is none: %v", v.Type(), err))
	}
	return data, nil
}

func checkDimensions(v starlark.Value, id string) error {
	d, ok := v.(*starlark.Dict)
	if !ok {
		return errors.New(show(v))
	}
	for _, kv := range d.Items() {
		k, ok := kv[0].(starlark.String)
		if !ok {
			return fmt.Errorf("a dict with the key %s", show(kv[0]))
		}
		l, ok := kv[1].(starlark.Sequence)
		if _, isDict := kv[1].(*starlark.Dict); !ok || isDict {
			return fmt.Errorf("a dict with %s: %s", k, show(kv[1]))
		}
		it := l.Iterate()
		defer it.Done()
		var e starlark.Value
		for it.Next(&e) {
			if _, ok := e.(starlark.String); !ok {
				return fmt.Errorf("a dict with %s: a list with %s in it", k, show(e))
			}
			if string(k) == "id" && string(e.(starlark.String)) != id {
				return fmt.Errorf("a dict with id: [%s] for the bot %q", show(e), id)
			}
		}
	}
	return nil
}

func checkHeaders(v starlark.Value) error {
	t, ok := v.(starlark.Tuple)
	if !ok || len(t) != 2 {
		return errors.New(show(v))
	}
	switch d := t[0].(type) {
	case starlark.NoneType:
	case *starlark.Dict:
		for _, kv := range d.Items() {
			_, ok1 := kv[0].(starlark.String)
			_, ok2 := kv[1].(starlark.String)
			if !ok1 || !ok2 {
				// Not the value: it may be a credential.
				return fmt.Errorf("headers of a dict of %s to %s", kv[0].Type(), kv[1].Type())
			}
		}
	default:
		return fmt.Errorf("headers as a %s", d.Type())
	}
	switch t[1].(type) {
	case starlark.NoneType, starlark.Int, starlark.Float:
		return nil
	}
	return fmt.Errorf("an expiry as a %s", t[1].Type())
}
