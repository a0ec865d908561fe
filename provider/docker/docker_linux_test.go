package docker_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/skepdev/skep/internal/stage/ownengine"
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/provider/docker"
	"github.com/skepdev/skep/provider/providertest"
)

// tiny makes an image and returns its digest.
func tiny(t *testing.T, e *ownengine.Engine, entrypoint ...string) string {
	t.Helper()
	if err := e.Tiny(t.Context(), "tiny:1", "1", entrypoint...); err != nil {
		t.Fatal(err)
	}
	i, err := e.Image(t.Context(), "tiny:1")
	if err != nil {
		t.Fatal(err)
	}
	return i.ID
}

func TestSuiteEngine(t *testing.T) {
	e := ownengine.ForTest(t)
	id := tiny(t, e, "/bin/busybox", "sleep", "600")
	providertest.Run(t, providertest.Suite{Fresh: func(t *testing.T) providertest.Subject {
		p := docker.New(docker.Options{Engine: e.Engine, Network: "none"})
		t.Cleanup(p.Close)
		return providertest.Subject{Provider: p, Order: order("", id), Bad: order("bad", "tiny:1")}
	}})
}

// TestBotImage holds that a container of deploy/bot-image asks the order's
// server for its bot, under the machine's name.
func TestBotImage(t *testing.T) {
	e := ownengine.ForTest(t)
	dir := t.TempDir()
	bot := filepath.Join(dir, "skep-bot")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bot, "../../cmd/skep-bot")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build skep-bot: %v: %s", err, out)
	}
	build = exec.Command("../../deploy/bot-image/build.sh", bot, "bot:1")
	build.Env = append(os.Environ(), "DOCKER_HOST="+e.Host())
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the image: %v: %s", err, out)
	}
	image, err := e.Image(t.Context(), "bot:1")
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan string, 100)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case asked <- r.URL.Path:
		default:
		}
		http.Error(w, "no bot today", http.StatusServiceUnavailable)
	}))
	defer srv.Close()
	p := docker.New(docker.Options{Engine: e.Engine, Network: "host"})
	defer p.Close()
	o := order("bot-of-pool-0", image.ID)
	o.Server = srv.URL
	if done, err := p.Create(t.Context(), o); !done || err != nil {
		t.Fatal(done, err)
	}
	select {
	case path := <-asked:
		if path != "/bot_code" {
			t.Errorf("asked for %s", path)
		}
	case <-time.After(time.Minute):
		log, err := e.Log(t.Context(), o.Name, 1000)
		t.Fatalf("nothing asked for a bot: %s %v", log, err)
	}
	host, err := e.Docker(t.Context(), "inspect", "--format", "{{.Config.Hostname}}", o.Name)
	if err != nil || host != o.Name {
		t.Errorf("host name is %q, %v; want %s", host, err, o.Name)
	}
	if done, err := p.Delete(t.Context(), provider.Ref{Name: o.Name}, "d"); !done || err != nil {
		t.Fatal(done, err)
	}
}
