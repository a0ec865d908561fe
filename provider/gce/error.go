package gce

import (
	"errors"
	"net/http"
	"slices"
	"strings"

	compute "google.golang.org/api/compute/v1"
	"google.golang.org/api/googleapi"

	"github.com/skepdev/skep/provider"
)

// A rate limit arrives as 403, like a lack of permission, so that its text is
// asked first. spec §7.3.
func rateLimited(message, reason string) bool {
	return strings.Contains(message, "Rate Limit Exceeded") ||
		strings.Contains(message, "rateLimitExceeded") ||
		strings.Contains(message, "Queries per user per 100 seconds") ||
		strings.Contains(strings.ToLower(reason), "ratelimitexceeded") // userRateLimitExceeded too
}

// callError is the error of a call that the cloud refused, or that did not
// reach it.
func callError(err error) error {
	var refused *googleapi.Error
	if !errors.As(err, &refused) {
		return &provider.Error{Class: provider.Transient, Reason: "connection", Text: shorten(err.Error())}
	}
	e := &provider.Error{Code: refused.Code, Reason: http.StatusText(refused.Code), Text: shorten(refused.Message)}
	if e.Text == "" {
		e.Text = shorten(refused.Body)
	}
	limited := rateLimited(refused.Message, "")
	for i, item := range refused.Errors {
		if i == 0 && item.Reason != "" {
			e.Reason = item.Reason
		}
		limited = limited || rateLimited(item.Message, item.Reason)
	}
	if len(refused.Errors) == 0 { // a proxy of the cloud answers as it likes
		limited = limited || strings.Contains(refused.Body, "rateLimitExceeded")
	}
	switch {
	case limited:
		e.Class = provider.RateLimit
	case refused.Code == http.StatusTooManyRequests, refused.Code == http.StatusRequestTimeout, refused.Code >= 500, refused.Code < 400:
		e.Class = provider.Transient
	case e.Reason == "quotaExceeded", e.Reason == "limitExceeded":
		e.Class = provider.Quota
	case e.Reason == "resourceNotReady": // it is being made or taken away
		e.Class = provider.Transient
	case refused.Code == http.StatusUnauthorized, refused.Code == http.StatusForbidden:
		e.Class = provider.Permission
	case refused.Code == http.StatusNotFound:
		e.Class = provider.NotFound
	case refused.Code == http.StatusConflict:
		e.Class = provider.Conflict
	default:
		e.Class = provider.Invalid
	}
	return e
}

// Classes of the errors that an operation ends with, by a part of their code.
// The first that fits is taken.
var operationClasses = []struct {
	part  string
	class provider.Class
}{
	{"RATE_LIMIT", provider.RateLimit},
	{"OPERATION_RATE_EXCEEDED", provider.RateLimit},
	{"POOL_EXHAUSTED", provider.Exhausted}, // ZONE_RESOURCE_POOL_EXHAUSTED, …_WITH_DETAILS
	{"STOCKOUT", provider.Exhausted},
	{"QUOTA", provider.Quota}, // QUOTA_EXCEEDED
	{"LIMIT_EXCEEDED", provider.Quota},
	{"PERMISSION", provider.Permission},
	{"FORBIDDEN", provider.Permission},
	{"ALREADY_EXISTS", provider.Conflict},
	{"NOT_READY", provider.Transient},
	{"IN_USE", provider.Transient},
	{"INTERNAL", provider.Transient},
	{"BACKEND", provider.Transient},
	{"TIMEOUT", provider.Transient},
	{"UNAVAILABLE", provider.Transient},
}

// operationError is the error that an operation ended with.
func operationError(list []*compute.OperationErrorErrors) error {
	first := list[0]
	e := &provider.Error{Class: provider.Invalid, Code: http.StatusOK, Reason: first.Code, Text: shorten(first.Message)}
	for _, item := range list {
		if rateLimited(item.Message, item.Code) {
			e.Class = provider.RateLimit
			return e
		}
	}
	for _, c := range operationClasses {
		if i := slices.IndexFunc(list, func(item *compute.OperationErrorErrors) bool { return strings.Contains(item.Code, c.part) }); i >= 0 {
			e.Class, e.Reason, e.Text = c.class, list[i].Code, shorten(list[i].Message)
			break
		}
	}
	return e
}

// shorten bounds a text of others, which goes into the log and the store.
func shorten(text string) string {
	const limit = 1000
	text = strings.ToValidUTF8(text, "\uFFFD")
	if len(text) > limit {
		text = strings.ToValidUTF8(text[:limit], "") + "…"
	}
	return text
}
