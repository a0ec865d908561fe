package config

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// kind of a token of the protobuf text format.
type tokenKind uint8

const (
	tokenEnd    tokenKind = iota
	tokenWord             // identifier, keyword or number; text is as written
	tokenString           // text is unquoted
	tokenMark             // one of : { } < > [ ] , ; - / .
	tokenBad              // text says what is wrong
)

type token struct {
	kind  tokenKind
	text  string
	line  int
	first bool // nothing but blanks stands before it in its line
}

func (t token) is(mark string) bool { return t.kind == tokenMark && t.text == mark }

// String says what is there, for a message.
func (t token) String() string {
	switch t.kind {
	case tokenEnd:
		return "the end of the file"
	case tokenString:
		return fmt.Sprintf("the text %q", clip(t.text))
	case tokenBad:
		return t.text
	default:
		return fmt.Sprintf("%q", clip(t.text))
	}
}

// scanner cuts a file into tokens. It never fails: what cannot be one is a
// tokenBad, and the next token is looked for behind it.
type scanner struct {
	src  string
	pos  int
	line int
	last int // line of the token before
	any  bool
}

func newScanner(src string) *scanner { return &scanner{src: src, line: 1} }

func (s *scanner) next() token {
	s.blanks()
	t := token{line: s.line, first: !s.any || s.last != s.line}
	s.any = true
	defer func() { s.last = s.line }()
	if s.pos == len(s.src) {
		return t
	}
	switch c := s.src[s.pos]; {
	case strings.IndexByte(":{}<>[],;-/", c) >= 0:
		t.kind, t.text = tokenMark, s.src[s.pos:s.pos+1]
		s.pos++
	case c == '"' || c == '\'':
		text, bad := s.quoted(c)
		if t.kind, t.text = tokenString, text; bad != "" {
			t.kind, t.text = tokenBad, bad
		}
	case isWord(c):
		start := s.pos
		for s.pos < len(s.src) && s.inWord(start) {
			s.pos++
		}
		t.kind, t.text = tokenWord, s.src[start:s.pos]
	default:
		r, n := utf8.DecodeRuneInString(s.src[s.pos:])
		s.pos += n
		t.kind, t.text = tokenBad, fmt.Sprintf("the character %q", r)
	}
	return t
}

func isWord(c byte) bool {
	return c == '_' || c == '.' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// inWord reports whether the byte at pos continues the word from start: a
// number may hold a sign behind its exponent.
func (s *scanner) inWord(start int) bool {
	c := s.src[s.pos]
	if isWord(c) {
		return true
	}
	if c != '+' && c != '-' || s.pos == start {
		return false
	}
	word := s.src[start:s.pos]
	before := word[len(word)-1]
	return (word[0] >= '0' && word[0] <= '9' || word[0] == '.') && (before == 'e' || before == 'E') &&
		!strings.HasPrefix(word, "0x") && !strings.HasPrefix(word, "0X")
}

func (s *scanner) blanks() {
	for s.pos < len(s.src) {
		switch s.src[s.pos] {
		case '\n':
			s.line++
		case ' ', '\t', '\r':
		case '#':
			for s.pos < len(s.src) && s.src[s.pos] != '\n' {
				s.pos++
			}
			continue
		default:
			return
		}
		s.pos++
	}
}

// quoted reads a string up to its closing quote. One that the line does not
// close ends with the line.
func (s *scanner) quoted(quote byte) (text, bad string) {
	s.pos++
	var b []byte
	for s.pos < len(s.src) {
		c := s.src[s.pos]
		switch c {
		case quote:
			s.pos++
			return string(b), bad
		case '\n':
			return "", "a text that its line does not close"
		case 0:
			bad = "a text with a zero byte"
			s.pos++
		case '\\':
			var ok bool
			if b, ok = s.escape(b); !ok && bad == "" {
				bad = "a text with an escape that does not exist"
			}
		default:
			b = append(b, c)
			s.pos++
		}
	}
	return "", "a text that the file does not close"
}

// escape reads one escape and appends what it stands for.
func (s *scanner) escape(b []byte) ([]byte, bool) {
	s.pos++
	if s.pos == len(s.src) || s.src[s.pos] == '\n' {
		return b, false
	}
	c := s.src[s.pos]
	s.pos++
	switch c {
	case '"', '\'', '\\', '?':
		return append(b, c), true
	case 'n':
		return append(b, '\n'), true
	case 'r':
		return append(b, '\r'), true
	case 't':
		return append(b, '\t'), true
	case 'a':
		return append(b, '\a'), true
	case 'b':
		return append(b, '\b'), true
	case 'f':
		return append(b, '\f'), true
	case 'v':
		return append(b, '\v'), true
	case 'x':
		v, n := s.digits(16, 2)
		return append(b, byte(v)), n > 0
	case 'u', 'U':
		want := 4
		if c == 'U' {
			want = 8
		}
		v, n := s.digits(16, want)
		if n == want && v >= 0xd800 && v < 0xdc00 && strings.HasPrefix(s.src[s.pos:], `\u`) && c == 'u' {
			s.pos += 2
			low, m := s.digits(16, 4)
			if m != 4 || low < 0xdc00 || low > 0xdfff {
				return b, false
			}
			v = (v-0xd800)<<10 + low - 0xdc00 + 0x10000
		}
		if n != want || v > utf8.MaxRune || v >= 0xd800 && v <= 0xdfff {
			return b, false
		}
		return utf8.AppendRune(b, rune(v)), true
	}
	if c >= '0' && c <= '7' {
		s.pos--
		v, _ := s.digits(8, 3)
		return append(b, byte(v)), v < 256
	}
	return b, false
}

func (s *scanner) digits(base uint32, most int) (v uint32, n int) {
	for n < most && s.pos < len(s.src) {
		c := s.src[s.pos]
		var d uint32
		switch {
		case c >= '0' && c <= '9':
			d = uint32(c - '0')
		case c >= 'a' && c <= 'f':
			d = uint32(c-'a') + 10
		case c >= 'A' && c <= 'F':
			d = uint32(c-'A') + 10
		default:
			return v, n
		}
		if d >= base {
			return v, n
		}
		v = v*base + d
		n++
		s.pos++
	}
	return v, n
}
