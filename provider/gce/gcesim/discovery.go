package gcesim

import (
	"bytes"
	"compress/gzip"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// The parts of Google's discovery documents that the simulator needs, cut out
// of the module google.golang.org/api. TestDiscovery holds that they are those
// of the version in go.mod.
//
//go:generate go test -run ^TestDiscovery$ . -update
//go:embed discovery.json.gz
var discovery []byte

// document is one version of the API.
type document struct {
	Revision   string
	Parameters map[string]*schema // of every method
	Methods    map[string]*method // by id without the version's own prefix, "compute.instances.insert"
	Schemas    map[string]*schema
}

type method struct {
	HTTPMethod string             `json:"httpMethod"`
	Path       string             `json:"path"`
	Parameters map[string]*schema `json:"parameters,omitempty"`
	Request    *schema            `json:"request,omitempty"`
	Response   *schema            `json:"response,omitempty"`
}

// schema is what the document says of a value.
type schema struct {
	Ref        string             `json:"$ref,omitempty"`
	Type       string             `json:"type,omitempty"`
	Format     string             `json:"format,omitempty"`
	Pattern    string             `json:"pattern,omitempty"`
	Enum       []string           `json:"enum,omitempty"`
	ReadOnly   bool               `json:"readOnly,omitempty"`
	Items      *schema            `json:"items,omitempty"`
	Properties map[string]*schema `json:"properties,omitempty"`
	Additional *schema            `json:"additionalProperties,omitempty"`

	// Of a parameter.
	Location string `json:"location,omitempty"`
	Required bool   `json:"required,omitempty"`
	Minimum  string `json:"minimum,omitempty"`
	Maximum  string `json:"maximum,omitempty"`

	Annotations struct {
		Required []string `json:"required,omitempty"` // ids of methods
	} `json:"annotations,omitzero"`

	compiled *regexp.Regexp
}

var documents = sync.OnceValue(func() map[string]*document {
	zr, err := gzip.NewReader(bytes.NewReader(discovery))
	if err != nil {
		panic(err)
	}
	text, err := io.ReadAll(zr)
	if err != nil {
		panic(err)
	}
	var docs map[string]*document
	if err := json.Unmarshal(text, &docs); err != nil {
		panic(err)
	}
	for _, d := range docs {
		for _, s := range d.Schemas {
			s.compile()
		}
		for _, m := range d.Methods {
			for _, p := range m.Parameters {
				p.compile()
			}
		}
	}
	return docs
})

func (s *schema) compile() {
	if s == nil {
		return
	}
	if s.Pattern != "" {
		s.compiled = regexp.MustCompile(`^(?:` + s.Pattern + `)$`)
		if s.Items != nil { // the document puts it at the list and means its items
			s.Items.compiled = s.compiled
		}
	}
	s.Items.compile()
	s.Additional.compile()
	for _, p := range s.Properties {
		p.compile()
	}
}

// resolve follows references.
func (d *document) resolve(s *schema) *schema {
	for s != nil && s.Ref != "" {
		s = d.Schemas[s.Ref]
	}
	return s
}

// checker holds a value against the document.
type checker struct {
	d      *document
	method string // id; "" = an answer, of which nothing is required
}

// check returns v without what is read only, or what the cloud says of it.
func (c checker) check(s *schema, v any, path string) (any, *refusal) {
	if v == nil { // null is not set
		return nil, nil
	}
	s = c.d.resolve(s)
	wrong := func(want string) (any, *refusal) {
		return nil, invalid("Invalid value at '%s' (%s), %s", path, want, clip(v))
	}
	switch s.Type {
	case "object":
		m, ok := v.(map[string]any)
		if !ok {
			return wrong("an object")
		}
		return c.object(s, m, path)
	case "array":
		list, ok := v.([]any)
		if !ok {
			return wrong("a list")
		}
		out := make([]any, 0, len(list))
		for i, item := range list {
			if item == nil {
				return wrong("a list without null")
			}
			item, r := c.check(s.Items, item, fmt.Sprintf("%s[%d]", path, i))
			if r != nil {
				return nil, r
			}
			out = append(out, item)
		}
		return out, nil
	case "boolean":
		if _, ok := v.(bool); !ok {
			return wrong("TYPE_BOOL")
		}
	case "integer":
		n, ok := v.(json.Number)
		if !ok {
			return wrong("TYPE_INT32")
		}
		i, err := strconv.ParseInt(n.String(), 10, 64)
		if err != nil || s.Format == "int32" && int64(int32(i)) != i || s.Format == "uint32" && int64(uint32(i)) != i {
			return wrong("TYPE_INT32")
		}
	case "number":
		n, ok := v.(json.Number)
		f, err := strconv.ParseFloat(n.String(), 64)
		if !ok || err != nil || math.IsInf(f, 0) {
			return wrong("TYPE_DOUBLE")
		}
	case "string":
		return c.text(s, v, path)
	}
	return v, nil
}

func (c checker) text(s *schema, v any, path string) (any, *refusal) {
	text, ok := v.(string)
	if n, number := v.(json.Number); number && (s.Format == "int64" || s.Format == "uint64") {
		text, ok = n.String(), true
	}
	var err error
	switch {
	case !ok:
		return nil, invalid("Invalid value at '%s' (TYPE_STRING), %s", path, clip(v))
	case s.Format == "int64":
		_, err = strconv.ParseInt(text, 10, 64)
	case s.Format == "uint64":
		_, err = strconv.ParseUint(text, 10, 64)
	case s.Format == "byte":
		if _, err = base64.StdEncoding.DecodeString(text); err != nil {
			_, err = base64.URLEncoding.DecodeString(text)
		}
	}
	if err != nil {
		return nil, invalid("Invalid value at '%s' (TYPE_%s), %s", path, strings.ToUpper(s.Format), clip(v))
	}
	if s.Enum != nil && !slices.Contains(s.Enum, text) {
		return nil, invalid("Invalid value for field '%s': '%s'. Acceptable values are %s.", path, clip(text), strings.Join(s.Enum, ", "))
	}
	if s.compiled != nil && !s.compiled.MatchString(text) {
		return nil, invalid("Invalid value for field '%s': '%s'. Must be a match of regex '%s'", path, clip(text), s.Pattern)
	}
	return text, nil
}

func (c checker) object(s *schema, m map[string]any, path string) (any, *refusal) {
	out := make(map[string]any, len(m))
	for _, key := range slices.Sorted(maps.Keys(m)) { // so that the same request is refused for the same reason
		p, known := s.Properties[key]
		at := path + "." + key
		switch {
		case !known && s.Additional == nil:
			return nil, invalid("Invalid JSON payload received. Unknown name %q at '%s': Cannot find field.", clip(key), path)
		case !known:
			p = s.Additional
			at = path + "[" + strconv.Quote(clip(key)) + "]"
		case p.ReadOnly && c.method != "": // what a client says of it is not heard
			continue
		}
		v, r := c.check(p, m[key], at)
		if r != nil {
			return nil, r
		}
		if v != nil {
			out[key] = v
		}
	}
	if c.method == "" {
		return out, nil
	}
	for key, p := range s.Properties {
		if slices.Contains(p.Annotations.Required, c.method) && (out[key] == nil || out[key] == "" && key != "value") { // a value of metadata may be empty
			return nil, refuse(400, "required", "Required field '%s.%s' not specified", path, key)
		}
	}
	return out, nil
}

// clip is how a value stands in a sentence.
func clip(v any) string {
	text := fmt.Sprint(v)
	if len(text) > 100 {
		text = strings.ToValidUTF8(text[:100], "") + "…"
	}
	return text
}
