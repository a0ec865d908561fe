package simbot

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// Wire is one HTTP/1.1 connection with the least that such a client can do.
// Generator and server share the machine, and every instruction of the
// generator is one that the server does not get.
type Wire struct {
	host string
	conn net.Conn
	in   *bufio.Reader
	out  []byte
	body []byte
}

// DialWire connects to a server's URL.
func DialWire(url string) (*Wire, error) {
	host := strings.TrimPrefix(url, "http://")
	conn, err := net.DialTimeout("tcp", host, 10*time.Second)
	if err != nil {
		return nil, err
	}
	return &Wire{host: host, conn: conn, in: bufio.NewReaderSize(conn, 4096)}, nil
}

// Close hangs up.
func (w *Wire) Close() error { return w.conn.Close() }

// Content types of requests. One to PRPC asks for an answer in the same.
const (
	JSON = "application/json; charset=UTF-8"
	PRPC = "application/prpc; encoding=binary"
)

// Post sends a request and returns the body of its answer, which is valid
// until the next call. An answer other than 200 is an error.
func (w *Wire) Post(path, contentType string, body []byte) ([]byte, error) {
	if err := w.send(path, contentType, body); err != nil {
		return nil, err
	}
	return w.receive(path)
}

func (w *Wire) send(path, contentType string, body []byte) error {
	b := append(w.out[:0], "POST "...)
	b = append(b, path...)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, w.host...)
	b = append(b, "\r\nContent-Type: "...)
	b = append(b, contentType...)
	if contentType == PRPC {
		b = append(b, "\r\nAccept: "+PRPC...)
	}
	b = append(b, "\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(len(body)), 10)
	b = append(b, "\r\n\r\n"...)
	b = append(b, body...)
	w.out = b
	_, err := w.conn.Write(b)
	return err
}

func (w *Wire) receive(path string) ([]byte, error) {
	status, size, err := w.head()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if size < 0 {
		err = w.chunks()
	} else {
		w.body = grown(w.body[:0], size)
		_, err = io.ReadFull(w.in, w.body)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if status != 200 {
		return nil, fmt.Errorf("%s: status %d: %.300s", path, status, w.body)
	}
	return w.body, nil
}

// head reads status and header; size is -1 for a body in chunks.
func (w *Wire) head() (status, size int, err error) {
	line, err := w.line()
	if err != nil {
		return 0, 0, err
	}
	if len(line) < 12 || !bytes.HasPrefix(line, []byte("HTTP/1.1 ")) {
		return 0, 0, fmt.Errorf("not HTTP: %q", line)
	}
	if status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, 0, err
	}
	for {
		if line, err = w.line(); err != nil {
			return 0, 0, err
		}
		if len(line) == 0 {
			return status, size, nil
		}
		switch {
		case hasFold(line, "content-length: "):
			if size, err = strconv.Atoi(string(line[len("content-length: "):])); err != nil {
				return 0, 0, err
			}
		case hasFold(line, "transfer-encoding: chunked"):
			size = -1
		case hasFold(line, "connection: close"):
			return 0, 0, errors.New("the server closes the connection")
		}
	}
}

func hasFold(line []byte, prefix string) bool {
	return len(line) >= len(prefix) && bytes.EqualFold(line[:len(prefix)], []byte(prefix))
}

func (w *Wire) chunks() error {
	w.body = w.body[:0]
	for {
		line, err := w.line()
		if err != nil {
			return err
		}
		n, err := strconv.ParseUint(string(line), 16, 31)
		if err != nil {
			return err
		}
		from := len(w.body)
		w.body = grown(w.body, int(n))
		if _, err := io.ReadFull(w.in, w.body[from:]); err != nil {
			return err
		}
		if _, err := w.line(); err != nil { // after the data, or the empty trailer
			return err
		}
		if n == 0 {
			return nil
		}
	}
}

// line returns the next line without its end, valid until the next read.
func (w *Wire) line() ([]byte, error) {
	b, err := w.in.ReadSlice('\n')
	return bytes.TrimRight(b, "\r\n"), err
}

// grown returns b with n more bytes, whose content does not matter.
func grown(b []byte, n int) []byte {
	if free := cap(b) - len(b); free < n {
		b = append(b[:cap(b)], make([]byte, n-free)...)[:len(b)]
	}
	return b[:len(b)+n]
}

// jsonText returns the text value of the first member with this name. It is
// good for values that need no escapes, which ids and sessions never do.
func jsonText(doc []byte, name string) []byte {
	_, rest, ok := bytes.Cut(doc, []byte(`"`+name+`":"`))
	if !ok {
		return nil
	}
	value, _, _ := bytes.Cut(rest, []byte{'"'})
	return value
}
