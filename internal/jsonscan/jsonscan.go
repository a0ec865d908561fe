// Package jsonscan walks JSON without decoding it: where a large document is
// mostly passed on, only its few interesting members are worth decoding.
package jsonscan

import (
	"bytes"
	"errors"
	"unicode/utf8"
)

// ErrSyntax says that a document is not JSON.
var ErrSyntax = errors.New("not valid JSON")

// ErrNotObject says that a document is JSON, but no object.
var ErrNotObject = errors.New("not a JSON object")

// maxDepth bounds nesting, as encoding/json does.
const maxDepth = 10_000

// Members calls visit for each member of the object that doc is, in order,
// with the name between its quotes, escapes as they are, and the value, which
// are parts of doc. It checks the whole document, also behind an error of
// visit, which it returns; documents that encoding/json calls invalid and
// those that are not UTF-8 are ErrSyntax.
func Members(doc []byte, visit func(name, value []byte) error) error {
	if !utf8.Valid(doc) {
		return ErrSyntax
	}
	s := scanner{doc: doc}
	s.space()
	if s.peek() != '{' {
		s.value(0)
		if s.space(); s.bad || s.at != len(doc) {
			return ErrSyntax
		}
		return ErrNotObject
	}
	var failed error
	s.object(0, func(name, value []byte) {
		if failed == nil {
			failed = visit(name, value)
		}
	})
	if s.space(); s.bad || s.at != len(doc) {
		return ErrSyntax
	}
	return failed
}

// AppendCompact appends valid JSON without the white space between its tokens.
func AppendCompact(to, doc []byte) []byte {
	from := 0
	for i := 0; i < len(doc); i++ {
		switch doc[i] {
		case '"':
			i = closing(doc, i)
		case ' ', '\t', '\n', '\r':
			to = append(to, doc[from:i]...)
			from = i + 1
		}
	}
	return append(to, doc[from:]...)
}

// closing returns where the string ends that begins at i.
func closing(doc []byte, i int) int {
	for i++; i < len(doc); i++ {
		n := bytes.IndexByte(doc[i:], '"')
		if n < 0 {
			break
		}
		slash := bytes.IndexByte(doc[i:i+n], '\\')
		if slash < 0 {
			return i + n
		}
		i += slash + 1 // what it escapes ends nothing
	}
	return len(doc)
}

// scanner reads one document; once it is bad it stays so.
type scanner struct {
	doc []byte
	at  int
	bad bool
}

// peek returns the next byte, 0 at the end.
func (s *scanner) peek() byte {
	if s.at < len(s.doc) {
		return s.doc[s.at]
	}
	return 0
}

func (s *scanner) space() {
	for s.at < len(s.doc) {
		switch s.doc[s.at] {
		case ' ', '\t', '\n', '\r':
			s.at++
		default:
			return
		}
	}
}

// fail always returns false.
func (s *scanner) fail() bool {
	s.bad = true
	return false
}

// value reads one value.
func (s *scanner) value(depth int) bool {
	if depth > maxDepth {
		return s.fail()
	}
	switch c := s.peek(); {
	case c == '{':
		return s.object(depth, nil)
	case c == '[':
		return s.array(depth)
	case c == '"':
		return s.text()
	case c == '-' || c >= '0' && c <= '9':
		return s.number()
	case c == 't':
		return s.word("true")
	case c == 'f':
		return s.word("false")
	case c == 'n':
		return s.word("null")
	default:
		return s.fail()
	}
}

func (s *scanner) word(w string) bool {
	if len(s.doc)-s.at < len(w) || string(s.doc[s.at:s.at+len(w)]) != w {
		return s.fail()
	}
	s.at += len(w)
	return true
}

func (s *scanner) object(depth int, visit func(name, value []byte)) bool {
	if depth >= maxDepth {
		return s.fail()
	}
	s.at++
	if s.space(); s.peek() == '}' {
		s.at++
		return true
	}
	for {
		s.space()
		from := s.at
		if s.peek() != '"' || !s.text() {
			return s.fail()
		}
		name := s.doc[from+1 : s.at-1]
		if s.space(); s.peek() != ':' {
			return s.fail()
		}
		s.at++
		s.space()
		from = s.at
		if !s.value(depth + 1) {
			return false
		}
		if visit != nil {
			visit(name, s.doc[from:s.at])
		}
		s.space()
		switch s.peek() {
		case ',':
			s.at++
		case '}':
			s.at++
			return true
		default:
			return s.fail()
		}
	}
}

func (s *scanner) array(depth int) bool {
	if depth >= maxDepth {
		return s.fail()
	}
	s.at++
	if s.space(); s.peek() == ']' {
		s.at++
		return true
	}
	for {
		s.space()
		if !s.value(depth + 1) {
			return false
		}
		s.space()
		switch s.peek() {
		case ',':
			s.at++
		case ']':
			s.at++
			return true
		default:
			return s.fail()
		}
	}
}

// text reads a string with its quotes.
func (s *scanner) text() bool {
	i := s.at + 1
	for i < len(s.doc) {
		switch c := s.doc[i]; {
		case c == '"':
			s.at = i + 1
			return true
		case c < ' ':
			return s.fail()
		case c != '\\':
			i++
		case i+1 == len(s.doc):
			return s.fail()
		default:
			switch s.doc[i+1] {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
				i += 2
			case 'u':
				if len(s.doc)-i < 6 || !isHex(s.doc[i+2:i+6]) {
					return s.fail()
				}
				i += 6
			default:
				return s.fail()
			}
		}
	}
	return s.fail()
}

func isHex(b []byte) bool {
	for _, c := range b {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') && (c < 'A' || c > 'F') {
			return false
		}
	}
	return true
}

func (s *scanner) number() bool {
	if s.peek() == '-' {
		s.at++
	}
	if s.peek() == '0' {
		s.at++
	} else if !s.digits() {
		return false
	}
	if s.peek() == '.' {
		s.at++
		if !s.digits() {
			return false
		}
	}
	if c := s.peek(); c == 'e' || c == 'E' {
		s.at++
		if c := s.peek(); c == '+' || c == '-' {
			s.at++
		}
		return s.digits()
	}
	return true
}

// digits reads at least one.
func (s *scanner) digits() bool {
	from := s.at
	for c := s.peek(); c >= '0' && c <= '9'; c = s.peek() {
		s.at++
	}
	if s.at == from {
		return s.fail()
	}
	return true
}
