package bot

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/skepdev/skep"
)

// Files of a bot's TLS client certificate, in its directory, which is hidden
// from tasks. Who made them replaces them by a rename.
const (
	ClientCertFile = "client.crt"
	ClientKeyFile  = "client.key"
)

// ClientCert is the TLS client certificate that a bot shows where its server's
// bots.cfg requires one. It follows its files. Its methods may be called at
// once by many.
type ClientCert struct {
	cert, key string // paths

	mu   sync.Mutex
	when [2]time.Time // of the files, as they were read
	pem  [2][]byte
	pair *tls.Certificate
}

// OpenClientCert reads the certificate in a bot's directory; nil when there is
// none. A key that others may read is a Precondition error.
func OpenClientCert(dir string) (*ClientCert, error) {
	c := &ClientCert{cert: filepath.Join(dir, ClientCertFile), key: filepath.Join(dir, ClientKeyFile)}
	if _, err := os.Lstat(c.cert); errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // most bots have none
	}
	return c, c.read()
}

// read reads the files, if they are others than before.
func (c *ClientCert) read() error {
	var when [2]time.Time
	for i, name := range []string{c.cert, c.key} {
		st, err := os.Stat(name)
		if err != nil {
			return err
		}
		if i == 1 && runtime.GOOS != "windows" && st.Mode().Perm()&0o077 != 0 {
			return skep.Errorf(skep.Precondition, "%s can be read by others: chmod 600 it", name)
		}
		when[i] = st.ModTime()
	}
	if c.pair != nil && when == c.when {
		return nil
	}
	var pem [2][]byte
	for i, name := range []string{c.cert, c.key} {
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		pem[i] = data
	}
	pair, err := tls.X509KeyPair(pem[0], pem[1])
	if err != nil { // never its text: it may quote the file
		return skep.Errorf(skep.Precondition, "%s and %s are no certificate with its key", c.cert, c.key)
	}
	c.pair, c.pem, c.when = &pair, pem, when
	return nil
}

// Certificate returns what the next connection shows. Files that are bad leave
// the one before in use.
func (c *ClientCert) Certificate() (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.read(); err != nil && c.pair == nil {
		return nil, fmt.Errorf("client certificate: %w", err)
	}
	return c.pair, nil
}

// PEM returns certificate and key for a task's calls.
func (c *ClientCert) PEM() (cert, key []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.read()
	return c.pem[0], c.pem[1]
}
