package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/server"
)

// adminSocket lets skep token reach the server that has the SQLite file open.
// Whoever may open it may read the state directory anyway.
const adminSocket = "admin.sock"

// listenAdmin listens at the socket in dir. The server holds the store's lock
// by then, so a socket file that exists is a dead server's.
func listenAdmin(dir string) (net.Listener, error) {
	path := filepath.Join(dir, adminSocket)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// refusal is an error on the socket.
type refusal struct {
	Kind skep.Kind `json:"kind"`
	Text string    `json:"text"`
}

// adminHandler serves tokens at the socket.
func adminHandler(tokens tokenStore) http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, do func(r *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			v, err := do(r)
			if err != nil {
				w.WriteHeader(http.StatusBadRequest)
				v = refusal{skep.KindOf(err), err.Error()}
			}
			_ = json.NewEncoder(w).Encode(v) // a caller that is gone asks again
		})
	}
	handle("GET /tokens", func(r *http.Request) (any, error) { return tokens.list(r.Context()) })
	handle("POST /tokens", func(r *http.Request) (any, error) {
		var n server.NewToken
		if err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&n); err != nil {
			return nil, skep.Errorf(skep.Invalid, "token: %v", err)
		}
		return tokens.create(r.Context(), n)
	})
	handle("DELETE /tokens/{id}", func(r *http.Request) (any, error) {
		return struct{}{}, tokens.revoke(r.Context(), r.PathValue("id"))
	})
	return mux
}

// remoteTokens are the tokens of a running server of the same state directory.
type remoteTokens struct{ http *http.Client }

func newRemoteTokens(dir string) remoteTokens {
	return remoteTokens{&http.Client{
		Timeout: 30 * time.Second,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, adminSocket))
		}},
	}}
}

func (t remoteTokens) close() error {
	t.http.CloseIdleConnections()
	return nil
}

func (t remoteTokens) create(ctx context.Context, n server.NewToken) (made newToken, err error) {
	err = t.call(ctx, http.MethodPost, "/tokens", n, &made)
	return made, err
}

func (t remoteTokens) list(ctx context.Context) (all []tokenInfo, err error) {
	err = t.call(ctx, http.MethodGet, "/tokens", nil, &all)
	return all, err
}

func (t remoteTokens) revoke(ctx context.Context, id string) error {
	return t.call(ctx, http.MethodDelete, "/tokens/"+url.PathEscape(id), nil, new(struct{}))
}

func (t remoteTokens) call(ctx context.Context, method, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://skep"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	res, err := t.http.Do(req)
	if err != nil {
		return fmt.Errorf("the server that has the state open does not answer: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusOK {
		return json.NewDecoder(res.Body).Decode(out)
	}
	var no refusal
	if err := json.NewDecoder(res.Body).Decode(&no); err != nil {
		return fmt.Errorf("the server that has the state open answers %s", res.Status)
	}
	return skep.Errorf(no.Kind, "%s", no.Text)
}
