package gcesim

import (
	"fmt"
	"strings"
)

// selection is which fields of an answer are wanted; nil = all below here.
type selection map[string]selection

// Bounds of a field selector.
const (
	maxFields      = 2000
	maxFieldsDepth = 16
)

// parseFields reads "a,b/c,d(e,f)", a partial response's selector.
func parseFields(text string) (selection, error) {
	if text == "" || text == "*" {
		return nil, nil
	}
	if len(text) > maxFields {
		return nil, fmt.Errorf("longer than %d characters", maxFields)
	}
	p := &fieldsParser{rest: text}
	s, err := p.list(0)
	if err == nil && p.rest != "" {
		err = fmt.Errorf("%q is left over", p.rest)
	}
	return s, err
}

type fieldsParser struct{ rest string }

func (p *fieldsParser) list(depth int) (selection, error) {
	if depth > maxFieldsDepth {
		return nil, fmt.Errorf("deeper than %d", maxFieldsDepth)
	}
	s := selection{}
	for {
		if err := p.path(s, depth); err != nil {
			return nil, err
		}
		if !strings.HasPrefix(p.rest, ",") {
			return s, nil
		}
		p.rest = p.rest[1:]
	}
}

func (p *fieldsParser) path(into selection, depth int) error {
	if depth > maxFieldsDepth {
		return fmt.Errorf("deeper than %d", maxFieldsDepth)
	}
	end := strings.IndexAny(p.rest, ",/()")
	if end < 0 {
		end = len(p.rest)
	}
	name := p.rest[:end]
	if name == "" {
		return fmt.Errorf("a name is missing before %q", p.rest)
	}
	p.rest = p.rest[end:]
	below, seen := into[name]
	switch {
	case strings.HasPrefix(p.rest, "/"):
		p.rest = p.rest[1:]
		if below == nil {
			below = selection{}
		}
		if err := p.path(below, depth+1); err != nil {
			return err
		}
	case strings.HasPrefix(p.rest, "("):
		p.rest = p.rest[1:]
		list, err := p.list(depth + 1)
		if err != nil {
			return err
		}
		if !strings.HasPrefix(p.rest, ")") {
			return fmt.Errorf("a bracket is not closed")
		}
		p.rest = p.rest[1:]
		for k, v := range below {
			list[k] = v
		}
		below = list
	default:
		below = nil // all of it
	}
	if seen && into[name] == nil {
		return nil // all of it was wanted already
	}
	into[name] = below
	return nil
}

// unknown returns a field of the selection that answers of this shape have not.
func (s selection) unknown(d *document, shape *schema) string {
	shape = d.resolve(shape)
	for shape != nil && shape.Type == "array" {
		shape = d.resolve(shape.Items)
	}
	for name, below := range s {
		if name == "*" {
			continue
		}
		var p *schema
		if shape != nil {
			if p = shape.Properties[name]; p == nil {
				p = shape.Additional
			}
		}
		if p == nil {
			return name
		}
		if u := below.unknown(d, p); u != "" {
			return name + "/" + u
		}
	}
	return ""
}

// wants reports whether a field is selected, and what of it.
func (s selection) wants(name string) (selection, bool) {
	if s == nil {
		return nil, true
	}
	if below, ok := s[name]; ok {
		return below, true
	}
	below, ok := s["*"]
	return below, ok
}

// cut returns what is selected of v.
func (s selection) cut(v any) any {
	if s == nil {
		return v
	}
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, item := range v {
			if below, ok := s.wants(k); ok {
				out[k] = below.cut(item)
			}
		}
		return out
	case []any:
		out := make([]any, 0, len(v))
		for _, item := range v {
			out = append(out, s.cut(item))
		}
		return out
	}
	return v
}
