package prpc

import (
	"encoding/base64"
	"errors"
	"fmt"
	"html"
	"io"
	"mime"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// maxErrorText is how much of an error text a client keeps, in bytes.
const maxErrorText = 4096

// readAnswer reads what a server sent, at most limit bytes of a message, into resp. last says that another attempt
// would not help although the code looks as if.
func readAnswer(r *http.Response, limit int64, resp proto.Message) (failure *Error, last bool) {
	number := r.Header.Get(headerCode)
	if number == "" {
		return notPRPC(r)
	}
	n, err := strconv.ParseInt(number, 10, 32)
	if err != nil {
		return answerError(r, code.Code_INTERNAL, "header %s: %q is not a number", headerCode, number), true
	}
	if n != int64(code.Code_OK) {
		e := &Error{Code: code.Code(n), Text: errorText(r.Body), HTTP: r.StatusCode}
		if e.Details, err = readDetails(r.Header[headerDetails]); err != nil {
			return answerError(r, code.Code_INTERNAL, "header %s: %w", headerDetails, err), true
		}
		return e.explain(nil), isTooBig(e)
	}
	if !isBinaryMessage(r.Header.Get("Content-Type")) {
		return answerError(r, code.Code_INTERNAL, "the answer is %q, not %s", r.Header.Get("Content-Type"), mediaTypes[Binary]), true
	}
	return readMessage(r, limit, resp)
}

func readMessage(r *http.Response, limit int64, resp proto.Message) (failure *Error, last bool) {
	body := getBuffer()
	defer putBuffer(body)
	err := readBody(body, r.Body, r.ContentLength, limit)
	switch {
	case errors.Is(err, errTooLarge):
		e := &Error{Code: code.Code_UNAVAILABLE, HTTP: r.StatusCode, Details: tooBigDetails(max(r.ContentLength, 0), limit)}
		e.Text = fmt.Sprintf("the answer is larger than the %d bytes that this client accepts", limit)
		return e.explain(nil), true
	case err != nil && r.Request != nil:
		return connectionError(r.Request.URL.Scheme+"://"+r.Request.URL.Host, err)
	case err != nil:
		return connectionError("the server", err)
	}
	proto.Reset(resp)
	if err := proto.Unmarshal(body.Bytes(), resp); err != nil {
		return answerError(r, code.Code_INTERNAL, "decoding the answer: %w", err), true
	}
	return nil, false
}

func answerError(r *http.Response, c code.Code, format string, args ...any) *Error {
	e := Errorf(c, format, args...)
	e.HTTP = r.StatusCode
	return e
}

// notPRPC judges an answer without a code: something between us and the server, or no server of ours at all.
func notPRPC(r *http.Response) (failure *Error, last bool) {
	text := errorText(r.Body)
	if media, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); media == "text/html" {
		text = htmlText(text)
	}
	switch s := r.StatusCode; {
	case s == http.StatusUnauthorized:
		return answerError(r, code.Code_UNAUTHENTICATED, "%s", firstOf(text, "not authenticated (HTTP 401)")), true
	case s == http.StatusForbidden:
		return answerError(r, code.Code_PERMISSION_DENIED, "%s", firstOf(text, "not allowed (HTTP 403)")), true
	case s == http.StatusServiceUnavailable, s == http.StatusTooManyRequests:
		return answerError(r, code.Code_UNAVAILABLE, "%s", firstOf(text, fmt.Sprintf("not available (HTTP %d)", s))), false
	case s >= 500:
		return answerError(r, code.Code_INTERNAL, "HTTP %d: %s", s, firstOf(text, http.StatusText(s))), false
	default:
		// The same answer would come again: retrying, as older clients do, only hides it for minutes.
		return answerError(r, code.Code_INTERNAL, "HTTP %d from %s, which does not look like a pRPC server", s, hostOf(r)), true
	}
}

func hostOf(r *http.Response) string {
	if r.Request == nil {
		return "the other side"
	}
	return r.Request.URL.Host
}

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// errorText reads the text of an error, cut at maxErrorText.
func errorText(body io.Reader) string {
	b, _ := io.ReadAll(io.LimitReader(body, maxErrorText+1)) // what came of it is better than nothing
	text := strings.TrimSpace(strings.ToValidUTF8(string(b), "\ufffd"))
	if len(text) <= maxErrorText {
		return text
	}
	cut := maxErrorText
	for !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + "..."
}

var (
	htmlHidden = regexp.MustCompile(`(?is)<(script|style|head)\b.*?</(script|style|head)\s*>|<!--.*?-->`)
	htmlTag    = regexp.MustCompile(`(?s)<[^>]*>`)
)

// htmlText reduces a page to its words.
func htmlText(page string) string {
	page = htmlHidden.ReplaceAllString(page, " ")
	page = htmlTag.ReplaceAllString(page, " ")
	return strings.Join(strings.Fields(html.UnescapeString(page)), " ")
}

// readDetails decodes X-Prpc-Status-Details-Bin, whose values may be lists with commas.
func readDetails(values []string) ([]*anypb.Any, error) {
	var details []*anypb.Any
	for _, v := range values {
		for item := range strings.SplitSeq(v, ",") {
			b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(item))
			if err != nil {
				return nil, err
			}
			d := &anypb.Any{}
			if err := proto.Unmarshal(b, d); err != nil {
				return nil, err
			}
			details = append(details, d)
		}
	}
	return details, nil
}

func isBinaryMessage(contentType string) bool {
	if contentType == mediaTypes[Binary] {
		return true
	}
	f, ok := requestFormat(contentType)
	return ok && f == Binary && contentType != ""
}
