package systemd

import (
	"context"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/skepdev/skep/internal/stage/metadata"
)

const (
	vmName    = "vm-0-ab12"
	vmDir     = "/srv/vm"
	vmProject = "lab"
	vmKills   = 25
	vmBound   = 2 * time.Minute // from the last start to a bot, whatever failed. promise P26
)

// cloud is the metadata server of a machine, of whose answers one in five is
// none, and the keys that it signs with.
type cloud struct {
	listener net.Listener
	http     *http.Server
	server   string // address of the bots' server
}

func newCloud() (*cloud, error) {
	keys, err := metadata.NewKeys()
	if err != nil {
		return nil, err
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c := &cloud{server: free.Addr().String()}
	if c.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	if err := free.Close(); err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("/certs", keys)
	mux.Handle("/", &metadata.Machine{
		Keys: keys, Project: vmProject, Zone: "us-central1-a", Name: vmName, Attributes: map[string]string{"swarming-server": "http://" + c.server}, Failing: 0.2,
	})
	c.http = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = c.http.Serve(c.listener) }() // until close
	return c, nil
}

func (c *cloud) close() { _ = c.http.Close() }

func (c *cloud) botsCfg() string {
	return fmt.Sprintf(`bot_group { bot_id: %q auth { require_token {} } dimensions: "pool:default" }
bot_group {
  bot_id_prefix: "vm-"
  auth { require_gce_vm_token { project: %q jwks_url: "http://%s/certs" audience: "http://%s" } }
  dimensions: "pool:default"
}
`, botID, vmProject, c.listener.Addr(), c.server)
}

// machine has a new virtual machine become a bot, with nothing but what its
// metadata server signs; the program that does it is killed again and again.
func (s *show) machine(ctx context.Context) error {
	if err := copyFile(filepath.Join(filepath.Dir(s.skep), "skep-bot"), filepath.Join(s.c.root, "usr/local/bin/skep-bot")); err != nil {
		return err
	}
	if _, err := s.c.run(ctx, "", "sh", "-c", fmt.Sprintf("rm -rf /run/systemd/system/%s.d %s; systemctl daemon-reload", unit, vmDir)); err != nil {
		return err
	}
	bootstrap := []string{
		"skep-bot", "bootstrap-vm", "--dir", vmDir, "--user", account, "--server", ":metadata", "--metadata-host", s.cloud.listener.Addr().String(), "--patience", vmBound.String(),
	}
	// Each try gets a little further than most before it is killed.
	for n := range vmKills {
		after := fmt.Sprintf("%.3f", 0.02+mathrand.Float64()*0.05*float64(n+1))
		_, _ = s.c.run(ctx, "", append([]string{"timeout", "-s", "KILL", after}, bootstrap...)...) // it was killed, or came through
	}
	start := time.Now()
	if _, err := s.c.run(ctx, "", bootstrap...); err != nil {
		return err
	}
	b, err := s.connectedAs(ctx, vmName, "")
	if err != nil {
		return err
	}
	took := time.Since(start)
	fmt.Printf("bootstrap-vm, killed %d times, one in five answers of the metadata server none: a bot after %v   bound %v\n", vmKills, took.Round(time.Millisecond), vmBound)
	if took > vmBound {
		return errors.New("that is too late")
	}
	left, err := s.c.run(ctx, "", "sh", "-c", "ls -d "+vmDir+"*; stat -c %U "+vmDir+"/swarming_bot; systemctl is-enabled "+unit)
	if err != nil || left != vmDir+"\n"+account+"\nenabled" {
		return fmt.Errorf("it left %q: %w", left, err)
	}
	out, err := s.c.run(ctx, "", "sh", "-c", "systemd-analyze verify /etc/systemd/system/"+unit+" 2>&1")
	if err != nil || out != "" {
		return fmt.Errorf("systemd-analyze verify: %q, %w", out, err)
	}

	pid, err := s.c.outside(s.c.property(ctx, "MainPID"))
	if err != nil {
		return err
	}
	start = time.Now()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	if _, err := s.connectedAs(ctx, vmName, b.SessionId); err != nil {
		return err
	}
	took = time.Since(start)
	fmt.Printf("kill -9 of that bot: connected again after %v   bound %v\n", took.Round(time.Millisecond), backBound)
	if took > backBound {
		return errors.New("that is too late")
	}

	// What is in place and damaged is replaced. D9.
	if b, err = s.connectedAs(ctx, vmName, ""); err != nil {
		return err
	}
	if _, err := s.c.run(ctx, "", "sh", "-c", "systemctl stop "+unit+" && truncate -s -1000 "+vmDir+"/swarming_bot"); err != nil {
		return err
	}
	if _, err := s.c.run(ctx, "", bootstrap...); err != nil {
		return err
	}
	if _, err := s.connectedAs(ctx, vmName, b.SessionId); err != nil {
		return err
	}
	fmt.Println("a damaged bot was replaced and runs")
	return nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755) //nolint:gosec // a program
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
