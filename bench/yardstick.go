package bench

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// Yardsticks are medians, in ms, of what the machine itself costs. Figures of
// skep are read as multiples of them.
type Yardsticks struct {
	ForkExec float64 `json:"fork_exec_ms"` // fork, exec and wait of /bin/true
	Fsync4K  float64 `json:"fsync_4k_ms"`  // write of 4 KiB over existing bytes, and fsync
	HTTPRTT  float64 `json:"http_rtt_ms"`  // one request on an open loopback connection, answered by net/http
}

func measureYardsticks(dir string) (y Yardsticks, err error) {
	if y.ForkExec, err = forkExec(); err != nil {
		return y, fmt.Errorf("yardstick fork+exec: %w", err)
	}
	if y.Fsync4K, err = fsync4K(dir); err != nil {
		return y, fmt.Errorf("yardstick fsync: %w", err)
	}
	if y.HTTPRTT, err = httpRTT(); err != nil {
		return y, fmt.Errorf("yardstick HTTP: %w", err)
	}
	return y, nil
}

// medianOf calls do n times, after a few calls that do not count.
func medianOf(n int, do func(i int) error) (float64, error) {
	took := make([]float64, 0, n)
	for i := -n / 10; i < n; i++ {
		start := time.Now()
		if err := do(max(i, 0)); err != nil {
			return 0, err
		}
		if i >= 0 {
			took = append(took, ms(time.Since(start)))
		}
	}
	return quantile(took, 0.5), nil
}

func forkExec() (float64, error) {
	path, err := truePath()
	if err != nil {
		return 0, err
	}
	return medianOf(200, func(int) error {
		p, err := os.StartProcess(path, []string{"true"}, &os.ProcAttr{Files: []*os.File{nil, nil, nil}})
		if err != nil {
			return err
		}
		_, err = p.Wait()
		return err
	})
}

// truePath returns the program that does nothing.
func truePath() (string, error) {
	for _, path := range []string{"/bin/true", "/usr/bin/true"} {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("this machine has no /bin/true")
}

func fsync4K(dir string) (float64, error) {
	const pages = 64
	f, err := os.Create(filepath.Join(dir, "yardstick"))
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	page := make([]byte, 4096)
	for range pages {
		if _, err := f.Write(page); err != nil {
			return 0, err
		}
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	return medianOf(300, func(i int) error {
		page[0]++
		if _, err := f.WriteAt(page, int64(i%pages)*4096); err != nil {
			return err
		}
		return f.Sync()
	})
}

func httpRTT() (float64, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	srv := &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") }),
		ReadHeaderTimeout: time.Minute,
	}
	go func() { _ = srv.Serve(l) }() // ends with Close
	defer srv.Close()
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	c := &http.Client{Transport: tr}
	return medianOf(1000, func(int) error {
		res, err := c.Get("http://" + l.Addr().String())
		if err != nil {
			return err
		}
		defer res.Body.Close()
		_, err = io.Copy(io.Discard, res.Body)
		return err
	})
}
