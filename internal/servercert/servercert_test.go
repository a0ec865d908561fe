package servercert

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// clock is a time that tests move.
type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func leaf(t *testing.T, s Source) *x509.Certificate {
	t.Helper()
	pair, err := s(nil)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestAuthority(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tls")
	c := &clock{time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	a, err := OpenAuthority(dir, c.now)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(a.PEM()) {
		t.Fatal("the authority's certificate is not PEM")
	}
	source := a.Source([]string{"localhost", "127.0.0.1", "lab.example"})
	first := leaf(t, source)
	for _, host := range []string{"localhost", "127.0.0.1", "lab.example"} {
		if _, err := first.Verify(x509.VerifyOptions{DNSName: host, Roots: roots, CurrentTime: c.t}); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	if _, err := first.Verify(x509.VerifyOptions{DNSName: "other.example", Roots: roots, CurrentTime: c.t}); err == nil {
		t.Error("the certificate is good for a name that was not asked for")
	}
	if again := leaf(t, source); !again.Equal(first) {
		t.Error("a second handshake got another certificate")
	}
	c.t = c.t.Add(leafLife - leafRenew + time.Minute)
	if again := leaf(t, source); again.Equal(first) {
		t.Error("a certificate near its end is not replaced")
	}

	b, err := OpenAuthority(dir, c.now)
	if err != nil {
		t.Fatal(err)
	}
	if string(b.PEM()) != string(a.PEM()) {
		t.Error("the second opening made another authority")
	}
	info, err := os.Stat(filepath.Join(dir, "ca.key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("ca.key has mode %v, %v; want 0600", info.Mode(), err)
	}
	c.t = c.t.Add(authorityLife)
	if _, err := OpenAuthority(dir, c.now); err == nil {
		t.Error("an authority that has ended was opened")
	}
}

func TestFilesAreReloaded(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	c := &clock{time.Now()}
	a, err := OpenAuthority(filepath.Join(dir, "ca"), c.now)
	if err != nil {
		t.Fatal(err)
	}
	write := func(host string, stamp time.Time, parts ...string) {
		pair, err := a.issue([]string{host})
		if err != nil {
			t.Fatal(err)
		}
		key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range parts {
			path, block := certFile, &pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]}
			if part == "key" {
				path, block = keyFile, &pem.Block{Type: "PRIVATE KEY", Bytes: key}
			}
			if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(path, stamp, stamp); err != nil {
				t.Fatal(err)
			}
		}
	}
	write("one", c.t, "cert", "key")
	source, err := Files(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name string
		do   func()
		want string
	}{
		{"as read at first", func() {}, "one"},
		{"a certificate without its key", func() { write("two", c.t.Add(time.Second), "cert") }, "one"},
		{"a new pair", func() { write("three", c.t.Add(2*time.Second), "cert", "key") }, "three"},
		{"gone", func() { os.Remove(keyFile) }, "three"},
	} {
		step.do()
		if got := leaf(t, source).DNSNames[0]; got != step.want {
			t.Errorf("%s: got the certificate of %s, want that of %s", step.name, got, step.want)
		}
	}
	if _, err := Files(certFile, keyFile); err == nil {
		t.Error("a missing key is no error")
	}
}
