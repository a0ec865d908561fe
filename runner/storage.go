package runner

import (
	"crypto/x509"
	"fmt"
	"maps"
	"strings"

	"github.com/skepdev/skep/api/botapi"
)

// storage says where the task's inputs and outputs are: where the manifest
// says, else at the bot's own server. The bot's credential goes to its own
// server only. nil: the manifest names no instance.
func (r *taskRunner) storage() *casJob {
	in := r.manifest.CASInputRoot
	if in == nil {
		return nil
	}
	j := &casJob{Instance: in.Instance, RootCAs: r.RootCAs}
	if in.Digest.SizeBytes != 0 {
		j.Root = fmt.Sprintf("%s/%d", in.Digest.Hash, in.Digest.SizeBytes)
	}
	if s := r.manifest.Skep; s != nil {
		j.Trusted = s.Trusted
	}
	if s := r.manifest.Skep; s != nil && s.CAS != "" {
		j.URL = s.CAS
		return j
	}
	j.URL, j.Own, j.Headers = taskServer(r.manifest.Host, r.Server), true, r.storageHeaders(r.authHeaders())
	return j
}

// storageHeaders are headers for the storage of the bot's server: a bot without
// a token proves who it is by its session.
func (r *taskRunner) storageHeaders(headers map[string]string) map[string]string {
	session := r.Session
	if s := r.renewed.Load(); s != nil {
		session = *s
	}
	if session == "" || authorizes(headers) {
		return headers
	}
	out := map[string]string{"Authorization": botapi.SessionScheme + session}
	maps.Copy(out, headers)
	return out
}

func authorizes(headers map[string]string) bool {
	for k := range headers {
		if strings.EqualFold(k, "Authorization") {
			return true
		}
	}
	return false
}

// renew notes the session that an answer brought: the one before may end before
// the outputs are uploaded.
func (r *taskRunner) renew(session string) {
	if session == "" {
		return
	}
	if old := r.renewed.Swap(&session); old != nil && *old == session || old == nil && session == r.Session {
		return
	}
	if h := r.authHeaders(); !authorizes(h) {
		r.passHeaders(h)
	}
}

// passHeaders gives run_isolated new headers: the old ones may end before the
// task does.
func (r *taskRunner) passHeaders(headers map[string]string) {
	if !r.handed.Load() {
		return // they go with the job
	}
	r.word(isolatedWord{Headers: r.storageHeaders(headers)})
}

// pool returns the system's certificates and pem's; nil, the system's, without
// pem.
func pool(pem []byte) *x509.CertPool {
	if len(pem) == 0 {
		return nil
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	roots.AppendCertsFromPEM(pem)
	return roots
}
