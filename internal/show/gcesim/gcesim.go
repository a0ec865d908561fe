// Package gcesim serves a simulated Compute Engine to play with, as a process
// of its own: whoever uses it may be killed, and it stays. docs/gcesim.md
package gcesim

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/skepdev/skep/provider/gce/gcesim"
)

// Main serves until it is interrupted, and prints what was asked of it then.
func Main(args []string) int {
	flags := flag.NewFlagSet("gcesim", flag.ExitOnError)
	listen := flags.String("listen", "127.0.0.1:0", "address")
	seed := flags.Uint64("seed", uint64(time.Now().UnixNano()), "of faults and delays")
	faults := flags.Float64("faults", 0, "share of calls that something happens to, spread over every kind")
	insert := flags.Duration("insert", 10*time.Second, "how long an insert takes")
	remove := flags.Duration("delete", 5*time.Second, "how long a delete takes")
	_ = flags.Parse(args)
	o := gcesim.Options{Seed: *seed, History: true, Settings: gcesim.Settings{Insert: *insert, Delete: *remove, Spread: *insert / 2, Slow: 5 * time.Second}}
	if *faults > 0 {
		o.Settings.Faults = gcesim.EveryFault(*faults)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := serve(ctx, *listen, *seed, gcesim.New(o)); err != nil {
		fmt.Fprintln(os.Stderr, "show gcesim:", err)
		return 1
	}
	return 0
}

func serve(ctx context.Context, listen string, seed uint64, sim *gcesim.Sim) error {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: handler(sim), ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	fmt.Printf("a simulated Compute Engine is at http://%s, seed %d\n  /sim/counts   what was asked of it\n  /sim/made     what it made\n  /sim/settings PUT other settings\n", l.Addr(), seed)
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	err = srv.Close()
	if served := <-ended; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	text, _ := json.MarshalIndent(sim.Counts(), "", "  ")
	fmt.Println(string(text))
	return err
}

// handler is the simulator's, and beside it what tells of it and changes it.
func handler(sim *gcesim.Sim) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", sim)
	tell := func(w http.ResponseWriter, v any) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	}
	mux.HandleFunc("GET /sim/counts", func(w http.ResponseWriter, _ *http.Request) { tell(w, sim.Counts()) })
	mux.HandleFunc("GET /sim/made", func(w http.ResponseWriter, _ *http.Request) { tell(w, sim.Made()) })
	mux.HandleFunc("PUT /sim/settings", func(w http.ResponseWriter, r *http.Request) {
		var s gcesim.Settings
		dec := json.NewDecoder(io.LimitReader(r.Body, 1<<20))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&s); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		sim.Set(func(now *gcesim.Settings) { *now = s })
	})
	return mux
}
