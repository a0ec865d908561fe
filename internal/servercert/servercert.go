// Package servercert gives a TLS server its certificate: from files that may
// be replaced while it runs, or from an authority of its own (decisions.md 8).
package servercert

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/skepdev/skep/internal/atomicfile"
)

// Source answers a TLS handshake; it fits tls.Config.GetCertificate.
type Source func(*tls.ClientHelloInfo) (*tls.Certificate, error)

// Files reads a certificate chain and its key, both PEM. They are read again
// when one of them changes; while the new pair does not fit together, as when
// only one has been replaced yet, the old pair is used.
func Files(certFile, keyFile string) (Source, error) {
	f := &files{cert: certFile, key: keyFile}
	if err := f.load(); err != nil {
		return nil, err
	}
	return f.get, nil
}

type files struct {
	cert, key string

	mu      sync.Mutex
	stamp   [2]stamp
	current *tls.Certificate
}

// stamp tells whether a file changed.
type stamp struct {
	mtime time.Time
	size  int64
}

func (f *files) stamps() (out [2]stamp, err error) {
	for i, path := range []string{f.cert, f.key} {
		info, err := os.Stat(path)
		if err != nil {
			return out, err
		}
		out[i] = stamp{info.ModTime(), info.Size()}
	}
	return out, nil
}

func (f *files) load() error {
	now, err := f.stamps()
	if err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return fmt.Errorf("certificate %s with key %s: %w", f.cert, f.key, err)
	}
	f.stamp, f.current = now, &pair
	return nil
}

func (f *files) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now, err := f.stamps(); err == nil && now != f.stamp {
		_ = f.load() // the next handshake tries again
	}
	return f.current, nil
}

const (
	authorityLife = 10 * 365 * 24 * time.Hour
	leafLife      = 365 * 24 * time.Hour
	leafRenew     = 30 * 24 * time.Hour // this long before its end a leaf is replaced
	clockSkew     = time.Hour           // certificates begin this long ago
)

// Authority signs certificates for one server. Its key stays in its
// directory; its own certificate is what clients trust.
type Authority struct {
	dir  string
	now  func() time.Time
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte

	mu   sync.Mutex
	leaf *tls.Certificate
}

// OpenAuthority reads the authority in dir, ca.pem and ca.key, or makes it at
// the first time. An authority that has ended is an error: whoever trusts it
// must be told by a person.
func OpenAuthority(dir string, now func() time.Time) (*Authority, error) {
	a := &Authority{dir: dir, now: now}
	certFile, keyFile := a.CertFile(), filepath.Join(dir, "ca.key")
	_, certErr := os.Stat(certFile)
	_, keyErr := os.Stat(keyFile)
	if errors.Is(certErr, fs.ErrNotExist) || errors.Is(keyErr, fs.ErrNotExist) {
		if err := a.create(certFile, keyFile); err != nil {
			return nil, fmt.Errorf("make an authority in %s: %w", dir, err)
		}
	}
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("authority %s: %w", certFile, err)
	}
	if a.cert, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
		return nil, fmt.Errorf("authority %s: %w", certFile, err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !a.cert.IsCA {
		return nil, fmt.Errorf("authority %s is not one that skep made", certFile)
	}
	if now().After(a.cert.NotAfter) {
		return nil, fmt.Errorf("authority %s ended on %s; remove it and its key, and give bots and clients the new one", certFile, a.cert.NotAfter.Format(time.DateOnly))
	}
	a.key = key
	a.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
	return a, nil
}

// CertFile is the path of the authority's certificate, for --ca-file.
func (a *Authority) CertFile() string { return filepath.Join(a.dir, "ca.pem") }

// PEM is the authority's certificate.
func (a *Authority) PEM() []byte { return bytes.Clone(a.pem) }

func (a *Authority) create(certFile, keyFile string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	host, _ := os.Hostname()
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: "skep authority of " + host},
		NotBefore:             a.now().Add(-clockSkew),
		NotAfter:              a.now().Add(authorityLife),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(a.dir, 0o700); err != nil {
		return err
	}
	if err := atomicfile.Write(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600); err != nil {
		return err
	}
	return atomicfile.Write(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}

// Source answers with a certificate for hosts, names or addresses, signed by
// the authority. It is kept in memory and replaced before it ends.
func (a *Authority) Source(hosts []string) Source {
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.leaf != nil && a.now().Before(a.leaf.Leaf.NotAfter.Add(-leafRenew)) {
			return a.leaf, nil
		}
		leaf, err := a.issue(hosts)
		if err != nil {
			return nil, fmt.Errorf("issue a certificate: %w", err)
		}
		a.leaf = leaf
		return leaf, nil
	}
}

func (a *Authority) issue(hosts []string) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{CommonName: "skep"},
		NotBefore:    a.now().Add(-clockSkew),
		NotAfter:     a.now().Add(leafLife),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if template.NotAfter.After(a.cert.NotAfter) {
		template.NotAfter = a.cert.NotAfter
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else if !slices.Contains(template.DNSNames, h) {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

func serial() *big.Int {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}
