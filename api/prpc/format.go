package prpc

import (
	"fmt"
	"math"
	"mime"
	"strconv"
	"strings"
)

// Format is how a message is written in a body (spec/prpc.md §2).
type Format uint8

// The formats, in order of preference when a caller accepts several alike.
const (
	Binary Format = iota // protobuf wire format
	JSON                 // canonical protobuf JSON; answers begin with jsonPrefix
	Text                 // text proto
)

var mediaTypes = [...]string{
	Binary: "application/prpc; encoding=binary",
	JSON:   "application/json",
	Text:   "application/prpc; encoding=text",
}

// MediaType returns the Content-Type of an answer in format f.
func (f Format) MediaType() string { return mediaTypes[f] }

func (f Format) String() string { return [...]string{"binary", "JSON", "text"}[f] }

// formatOf returns the format that a media type without quality names, and whether there is one.
func formatOf(media string, params map[string]string) (Format, bool) {
	switch media {
	case "", "*/*", "application/*", "application/grpc":
		return Binary, true
	case "application/json":
		return JSON, true
	case "application/prpc":
		encoding, ok := params["encoding"]
		if len(params) == 0 {
			return Binary, true
		}
		if !ok || len(params) > 1 {
			return 0, false
		}
		switch encoding {
		case "binary":
			return Binary, true
		case "json":
			return JSON, true
		case "text":
			return Text, true
		}
	}
	return 0, false
}

// requestFormat reads Content-Type. What it does not understand is a 415.
func requestFormat(contentType string) (Format, bool) {
	switch contentType { // what clients send, at no cost
	case "", mediaTypes[Binary]:
		return Binary, true
	case mediaTypes[JSON]:
		return JSON, true
	}
	if strings.TrimSpace(contentType) == "" {
		return Binary, true
	}
	media, params, err := mime.ParseMediaType(contentType)
	if err != nil {
		return 0, false
	}
	return formatOf(media, params)
}

// responseFormat reads Accept, the lines of the header. ok is false when none of its items is understood (406); an
// error says that it is malformed (400).
func responseFormat(accept []string) (f Format, ok bool, err error) {
	switch {
	case len(accept) == 0:
		return Binary, true, nil
	case len(accept) == 1:
		switch accept[0] {
		case "", mediaTypes[Binary]:
			return Binary, true, nil
		case mediaTypes[JSON]:
			return JSON, true, nil
		}
	}
	all := strings.Join(accept, ",")
	if strings.TrimSpace(all) == "" {
		return Binary, true, nil
	}
	best := math.Inf(-1)
	for item := range strings.SplitSeq(all, ",") {
		if strings.TrimSpace(item) == "" {
			continue
		}
		media, params, err := mime.ParseMediaType(item)
		if err != nil {
			return 0, false, fmt.Errorf("%q: %w", strings.TrimSpace(item), err)
		}
		q, err := quality(params)
		if err != nil {
			return 0, false, fmt.Errorf("%q: %w", strings.TrimSpace(item), err)
		}
		g, known := formatOf(media, params)
		if known && (q > best || q == best && g < f) {
			f, ok, best = g, true, q
		}
	}
	return f, ok, nil
}

// quality takes parameter q out of params and returns its value, 1 when it is absent.
func quality(params map[string]string) (float64, error) {
	text, ok := params["q"]
	if !ok {
		return 1, nil
	}
	delete(params, "q")
	q, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(q) || math.IsInf(q, 0) || q < 0 {
		return 0, fmt.Errorf("q=%s is not a number from 0", text)
	}
	return q, nil
}

// acceptsGzip reads Accept-Encoding: whether an answer may be compressed, or an error when it is malformed.
func acceptsGzip(header []string) (bool, error) {
	switch {
	case len(header) == 0:
		return false, nil
	case len(header) == 1 && header[0] == "gzip":
		return true, nil
	}
	found := false
	for _, line := range header {
		for item := range strings.SplitSeq(line, ",") {
			coding, param, hasParam := strings.Cut(item, ";")
			coding = strings.TrimSpace(coding)
			if coding == "" && !hasParam {
				continue
			}
			q := 1.0
			if hasParam {
				name, value, _ := strings.Cut(param, "=")
				if !strings.EqualFold(strings.TrimSpace(name), "q") {
					return false, fmt.Errorf("%q: only q may follow a coding", item)
				}
				var err error
				if q, err = quality(map[string]string{"q": strings.TrimSpace(value)}); err != nil {
					return false, fmt.Errorf("%q: %w", item, err)
				}
			}
			if coding == "" || strings.ContainsAny(coding, " \t\"=") {
				return false, fmt.Errorf("%q is not a coding", item)
			}
			if strings.EqualFold(coding, "gzip") && q > 0 {
				found = true
			}
		}
	}
	return found, nil
}
