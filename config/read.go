package config

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

// maxFile bounds each .cfg file. Bytes.
const maxFile = 8 << 20

// maxDepth bounds how deep messages nest; the deepest of ours is far above.
const maxDepth = 32

// lines says in which line of its file each field stands, by its path.
type lines map[string]int

// read parses the protobuf text format into m and returns every fault, not
// only the first: prototext stops there. What it cannot make sense of it skips
// up to the next field. TestReaderAgrees and a fuzz target hold it to prototext.
func read(file, src string, m proto.Message) (lines, Faults) {
	r := &reader{file: file, scan: newScanner(src), lines: lines{}}
	switch {
	case len(src) > maxFile:
		return r.lines, Faults{{File: file, Text: fmt.Sprintf("has %d bytes, at most %d are allowed", len(src), maxFile)}}
	case !utf8.ValidString(src):
		r.fault(1+strings.Count(strings.ToValidUTF8(src, "\x00")[:firstInvalid(src)], "\n"), "", "is not valid UTF-8")
		return r.lines, r.faults
	}
	r.step()
	for {
		r.message(m.ProtoReflect(), "", 0)
		if r.tok.kind == tokenEnd || r.full() {
			break
		}
		r.fault(r.tok.line, "", "%s closes nothing", r.tok)
		r.step()
	}
	return r.lines, r.faults
}

func firstInvalid(s string) int {
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
	return len(s)
}

type reader struct {
	file   string
	scan   *scanner
	tok    token // the one looked at
	lines  lines
	faults Faults
	stop   bool // there is no sense in reading on
}

func (r *reader) step() { r.tok = r.scan.next() }

func (r *reader) full() bool { return r.stop || len(r.faults) > maxFaults }

func (r *reader) fault(line int, field, format string, args ...any) {
	switch {
	case len(r.faults) < maxFaults:
		r.faults = append(r.faults, Fault{File: r.file, Line: line, Field: field, Text: fmt.Sprintf(format, args...)})
	case len(r.faults) == maxFaults:
		r.faults = append(r.faults, Fault{File: r.file, Line: line, Text: "more faults are not shown"})
	}
}

// closes reports whether the token ends a message: the mark that was opened,
// or any other closing one, which its owner complains about.
func (r *reader) closes() bool {
	return r.tok.kind == tokenEnd || r.tok.is("}") || r.tok.is(">")
}

// message reads fields up to what closes the message, which stays.
// With m nil it only looks for faults of form.
func (r *reader) message(m protoreflect.Message, path string, depth int) {
	seen := map[protoreflect.FieldNumber]int{}
	for !r.closes() && !r.full() {
		if r.tok.is(",") || r.tok.is(";") { // prototext takes one behind a value only
			r.fault(r.tok.line, path, "%s stands where a field was expected", r.tok)
			r.step()
			continue
		}
		r.field(m, path, depth, seen)
	}
}

// field reads one "name: value" and the separator behind it.
func (r *reader) field(m protoreflect.Message, path string, depth int, seen map[protoreflect.FieldNumber]int) {
	name, line := r.tok, r.tok.line
	switch {
	case r.tok.is("["):
		r.fault(line, path, "extensions and Any are not known here")
		r.resync(line)
		return
	case r.tok.kind != tokenWord || !isIdentifier(r.tok.text):
		r.fault(line, path, "%s stands where a field was expected", r.tok)
		r.resync(line)
		return
	}
	r.step()
	at := join(path, name.text)
	var fd protoreflect.FieldDescriptor
	if m != nil {
		fields := m.Descriptor().Fields()
		if fd = fields.ByName(protoreflect.Name(name.text)); fd == nil {
			if m.Descriptor().ReservedNames().Has(protoreflect.Name(name.text)) {
				r.fault(line, at, "is obsolete; take it out")
			} else {
				r.fault(line, at, "is not a field of %s%s", m.Descriptor().Name(), suggest(name.text, fields))
			}
		}
	}
	colon := r.tok.is(":")
	if colon {
		r.step()
	}
	if fd != nil {
		r.once(m, fd, at, line, seen)
	}
	ok := true
	if r.tok.is("[") {
		ok = r.list(m, fd, at, colon, depth)
	} else {
		ok = r.value(m, fd, r.indexed(m, fd, at), colon, depth)
	}
	if !ok {
		r.resync(line)
		return
	}
	if r.tok.is(",") || r.tok.is(";") {
		r.step()
	}
}

// once refuses a second value of what has one.
func (r *reader) once(m protoreflect.Message, fd protoreflect.FieldDescriptor, at string, line int, seen map[protoreflect.FieldNumber]int) {
	if fd.IsList() || fd.IsMap() {
		return
	}
	if first, ok := seen[fd.Number()]; ok {
		r.fault(line, at, "is given twice, first in line %d", first)
	} else if o := fd.ContainingOneof(); o != nil && m.WhichOneof(o) != nil {
		r.fault(line, at, "excludes %s, which is given too", m.WhichOneof(o).Name())
	}
	seen[fd.Number()] = line
}

// indexed is the path of the next value of fd.
func (r *reader) indexed(m protoreflect.Message, fd protoreflect.FieldDescriptor, at string) string {
	switch {
	case fd != nil && fd.IsList():
		return fmt.Sprintf("%s[%d]", at, m.Get(fd).List().Len())
	case fd != nil && fd.IsMap():
		return fmt.Sprintf("%s[%d]", at, m.Get(fd).Map().Len())
	}
	return at
}

// list reads [a, b].
func (r *reader) list(m protoreflect.Message, fd protoreflect.FieldDescriptor, at string, colon bool, depth int) bool {
	if fd != nil && !fd.IsList() && !fd.IsMap() {
		r.fault(r.tok.line, at, "is one value, not a list")
		fd = nil
	}
	r.step()
	if r.tok.is("]") {
		if !colon && (fd == nil || fd.Message() == nil) {
			r.fault(r.tok.line, at, "lacks a colon before its value")
		}
		r.step()
		return true
	}
	for {
		if r.tok.is("[") || r.closes() {
			r.fault(r.tok.line, at, "%s stands in the list where a value was expected", r.tok)
			return false
		}
		if !r.value(m, fd, r.indexed(m, fd, at), colon, depth) {
			return false
		}
		switch {
		case r.tok.is("]"):
			r.step()
			return true
		case r.tok.is(","):
			r.step()
		default:
			r.fault(r.tok.line, at, "%s stands in the list where a comma or ] was expected", r.tok)
			return false
		}
	}
}

// value reads one value of fd, or of an unknown field. It reports whether the
// place behind it is where the next field may begin.
func (r *reader) value(m protoreflect.Message, fd protoreflect.FieldDescriptor, at string, colon bool, depth int) bool {
	line := r.tok.line
	if _, ok := r.lines[at]; !ok {
		r.lines[at] = line
	}
	if r.tok.is("{") || r.tok.is("<") {
		return r.nested(m, fd, at, depth)
	}
	if !colon {
		r.fault(line, at, "lacks a colon before its value")
	}
	v, ok := r.scalar(at)
	if !ok {
		return false
	}
	if fd == nil {
		return true
	}
	if fd.Message() != nil {
		r.fault(line, at, "is %s, want a message in { }", v)
		if fd.IsList() && !fd.IsMap() { // keeps the places of those behind it
			m.Mutable(fd).List().AppendMutable()
		}
		return true
	}
	got, bad := v.as(fd)
	if bad != "" {
		r.fault(line, at, "is %s, want %s", v, bad)
		if got = fd.Default(); fd.IsList() {
			got = zero(fd)
		}
	}
	switch {
	case fd.IsList():
		m.Mutable(fd).List().Append(got)
	case bad == "":
		m.Set(fd, got)
	}
	return true
}

func zero(fd protoreflect.FieldDescriptor) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(false)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(0)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(0)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(0)
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(nil)
	default:
		return protoreflect.ValueOfString("")
	}
}

// nested reads a message in { } or < >.
func (r *reader) nested(m protoreflect.Message, fd protoreflect.FieldDescriptor, at string, depth int) bool {
	open := r.tok
	end := map[string]string{"{": "}", "<": ">"}[open.text]
	var inner protoreflect.Message
	switch {
	case fd == nil:
	case fd.Message() == nil:
		r.fault(open.line, at, "is a message, want %s", kindName(fd))
	case fd.IsMap():
		inner = dynamicpb.NewMessage(fd.Message()) // with the fields key and value
	case fd.IsList():
		inner = m.Mutable(fd).List().AppendMutable().Message()
	default:
		inner = m.Mutable(fd).Message()
	}
	if depth >= maxDepth {
		r.fault(open.line, at, "is more than %d messages deep", maxDepth)
		r.stop = true
		return true
	}
	r.step()
	r.message(inner, at, depth+1)
	switch {
	case r.tok.is(end):
		r.step()
	case r.tok.kind == tokenEnd:
		if !r.full() {
			r.fault(open.line, at, "is opened here with %q and not closed", open.text)
		}
	case !r.full():
		r.fault(r.tok.line, at, "is closed with %s, want %q", r.tok, end)
		r.step()
	}
	if fd != nil && fd.IsMap() {
		r.entry(m.Mutable(fd).Map(), inner, fd, at, open.line)
	}
	return true
}

// entry puts what was read of a map's entry into the map. Rules know it by its
// key: its line is that of "field[key]" too.
func (r *reader) entry(into protoreflect.Map, read protoreflect.Message, fd protoreflect.FieldDescriptor, at string, line int) {
	key := read.Get(fd.MapKey()).MapKey()
	if into.Has(key) {
		r.fault(line, at, "has the key %s, which is there already", strconv.Quote(clip(key.String())))
		return
	}
	value := read.Get(fd.MapValue())
	if fd.MapValue().Message() != nil {
		typed := into.NewValue()
		proto.Merge(typed.Message().Interface(), value.Message().Interface())
		value = typed
	}
	into.Set(key, value)
	r.lines[entryPath(at[:strings.LastIndexByte(at, '[')], key)] = line
}

// entryPath is the path of a map's entry.
func entryPath(at string, key protoreflect.MapKey) string {
	return fmt.Sprintf("%s[%s]", at, clip(key.String()))
}

// resync skips to where a field may begin: the first word of a later line, or
// what closes a message. Braces in between are skipped whole.
func (r *reader) resync(line int) {
	open := 0
	for r.tok.kind != tokenEnd {
		switch {
		case r.tok.is("{") || r.tok.is("<"):
			open++
		case r.tok.is("}") || r.tok.is(">"):
			if open == 0 {
				return
			}
			open--
		case open == 0 && r.tok.first && r.tok.line > line && r.tok.kind == tokenWord && isIdentifier(r.tok.text):
			return
		}
		r.step()
	}
}

func join(path, name string) string {
	name = clip(name)
	if path == "" {
		return name
	}
	return path + "." + name
}

func isIdentifier(s string) bool {
	return s != "" && (s[0] < '0' || s[0] > '9') && !strings.Contains(s, ".")
}

// literal is a scalar as written.
type literal struct {
	text   string
	quoted bool
	minus  bool
}

func (l literal) String() string {
	switch {
	case l.quoted:
		return "the text " + strconv.Quote(clip(l.text))
	case l.minus:
		return "-" + clip(l.text)
	default:
		return clip(l.text)
	}
}

// scalar reads a number, a word, or texts side by side.
func (r *reader) scalar(at string) (l literal, ok bool) {
	if r.tok.is("-") {
		l.minus = true
		r.step()
	}
	switch r.tok.kind {
	case tokenWord:
		l.text = r.tok.text
		r.step()
		if r.tok.kind == tokenWord && !r.tok.first && r.tok.text[0] == '.' {
			r.fault(r.tok.line, at, "%s is not a value", r.tok)
			return l, false
		}
		return l, true
	case tokenString:
		if l.minus {
			r.fault(r.tok.line, at, "a text has no sign")
			return l, false
		}
		l.quoted = true
		var b strings.Builder
		for r.tok.kind == tokenString {
			b.WriteString(r.tok.text)
			r.step()
		}
		if r.tok.kind == tokenBad {
			r.fault(r.tok.line, at, "%s is not allowed", r.tok)
			return l, false
		}
		l.text = b.String()
		return l, true
	case tokenBad:
		r.fault(r.tok.line, at, "%s is not allowed", r.tok)
		return l, false
	default:
		r.fault(r.tok.line, at, "%s stands where a value was expected", r.tok)
		return l, false
	}
}

// as returns the literal as a value of fd, or what is wanted instead.
func (l literal) as(fd protoreflect.FieldDescriptor) (v protoreflect.Value, want string) {
	want = kindName(fd)
	switch fd.Kind() {
	case protoreflect.StringKind, protoreflect.BytesKind:
		if !l.quoted {
			return v, want
		}
		if fd.Kind() == protoreflect.BytesKind {
			return protoreflect.ValueOfBytes([]byte(l.text)), ""
		}
		if !utf8.ValidString(l.text) {
			return v, "valid UTF-8"
		}
		return protoreflect.ValueOfString(l.text), ""
	case protoreflect.BoolKind:
		if !l.quoted && !l.minus {
			switch l.text {
			case "true", "True", "t":
				return protoreflect.ValueOfBool(true), ""
			case "false", "False", "f":
				return protoreflect.ValueOfBool(false), ""
			}
			if n, err := strconv.ParseUint(l.text, 0, 64); err == nil && n < 2 && isInteger(l.text) {
				return protoreflect.ValueOfBool(n == 1), ""
			}
		}
		return v, want
	case protoreflect.EnumKind:
		if l.quoted {
			return v, want
		}
		if !l.minus {
			if ev := fd.Enum().Values().ByName(protoreflect.Name(l.text)); ev != nil {
				return protoreflect.ValueOfEnum(ev.Number()), ""
			}
		}
		// A number that no name has is as wrong as a name that does not exist.
		if n, ok := l.integer(32); ok && fd.Enum().Values().ByNumber(protoreflect.EnumNumber(n)) != nil {
			return protoreflect.ValueOfEnum(protoreflect.EnumNumber(n)), ""
		}
		return v, want
	case protoreflect.Int32Kind:
		if n, ok := l.integer(32); ok {
			return protoreflect.ValueOfInt32(int32(n)), ""
		}
		return v, want
	case protoreflect.Int64Kind:
		if n, ok := l.integer(64); ok {
			return protoreflect.ValueOfInt64(n), ""
		}
		return v, want
	default:
		panic("config: no field has kind " + fd.Kind().String())
	}
}

// isInteger excludes what strconv takes and the format does not.
func isInteger(s string) bool {
	if strings.Contains(s, "_") || len(s) > 1 && s[0] == '0' && strings.ContainsAny(s[1:2], "bBoO") {
		return false
	}
	return s[0] >= '0' && s[0] <= '9'
}

func (l literal) integer(bits int) (int64, bool) {
	if l.quoted || !isInteger(l.text) {
		return 0, false
	}
	text := l.text
	if l.minus {
		text = "-" + text
	}
	n, err := strconv.ParseInt(text, 0, bits)
	return n, err == nil
}

// kindName says for a person what a field wants.
func kindName(fd protoreflect.FieldDescriptor) string {
	switch fd.Kind() {
	case protoreflect.StringKind, protoreflect.BytesKind:
		return `a text in quotes`
	case protoreflect.BoolKind:
		return "true or false"
	case protoreflect.Int32Kind, protoreflect.Int64Kind:
		return "a whole number"
	case protoreflect.EnumKind:
		var names []string
		for i := range fd.Enum().Values().Len() {
			if v := fd.Enum().Values().Get(i); v.Number() != 0 {
				names = append(names, string(v.Name()))
			}
		}
		return "one of " + strings.Join(names, ", ")
	default:
		return "a message in { }"
	}
}

// suggest names the field that is most like an unknown one, if any is.
func suggest(name string, fields protoreflect.FieldDescriptors) string {
	best, at := "", len(name)/3+1
	for i := range fields.Len() {
		if f := string(fields.Get(i).Name()); len(name) <= 100 {
			if d := distance(name, f); d < at || d == at && best == "" {
				best, at = f, d
			}
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %s?", best)
}

// distance counts the letters to add, drop or change between a and b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
