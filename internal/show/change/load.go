package change

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	pb "github.com/skepdev/skep/api/swarmingpb"
)

// load keeps the fleet busy until it is judged.
type load struct {
	s      *show
	cancel context.CancelFunc
	done   chan struct{}

	mu  sync.Mutex
	ids []string
	err error
}

// load begins to submit tasks, about as many as half of the bots can run.
func (s *show) load(ctx context.Context) *load {
	l := &load{s: s, done: make(chan struct{})}
	going, cancel := context.WithCancel(ctx)
	l.cancel = cancel
	go func() {
		defer close(l.done)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		per := max(1, (s.sims+s.reals)/4)
		for n := 0; going.Err() == nil; {
			for range per {
				n++
				if err := l.submit(ctx, n); err != nil {
					l.mu.Lock()
					l.err = err
					l.mu.Unlock()
					return
				}
			}
			select {
			case <-tick.C:
			case <-going.Done():
				for n < s.tasks {
					n++
					if err := l.submit(ctx, n); err != nil {
						l.mu.Lock()
						l.err = err
						l.mu.Unlock()
						return
					}
				}
			}
		}
	}()
	return l
}

func (l *load) submit(ctx context.Context, n int) error {
	id := func() string { // some for real bots by name, so that they are busy too
		if n%5 == 0 && len(l.s.real) > 0 {
			return l.s.real[n/5%len(l.s.real)]
		}
		return ""
	}()
	dims := []*pb.StringPair{{Key: "pool", Value: "default"}}
	if id != "" {
		dims = append(dims, &pb.StringPair{Key: "id", Value: id})
	} else {
		dims = append(dims, &pb.StringPair{Key: "kind", Value: "simulated"})
	}
	secs := "1.5"
	if id != "" {
		secs = "0.5"
	}
	res, err := l.s.api.NewTask(ctx, &pb.NewTaskRequest{
		Name: fmt.Sprint("load ", n), Priority: 100, RequestUuid: fmt.Sprintf("change-%d", n), EvaluateOnly: false,
		TaskSlices: []*pb.TaskSlice{{
			ExpirationSecs: 600, WaitForCapacity: true,
			Properties: &pb.TaskProperties{Command: []string{"sleep", secs}, Dimensions: dims, ExecutionTimeoutSecs: 60, GracePeriodSecs: 30},
		}},
	})
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ids = append(l.ids, res.TaskId)
	return nil
}

// judge waits for all tasks: each ran to its end, once.
func (l *load) judge(ctx context.Context) error {
	l.cancel()
	<-l.done
	if l.err != nil {
		return fmt.Errorf("submit: %w", l.err)
	}
	counts := map[string]int{}
	deadline := time.Now().Add(3 * time.Minute)
	for left := l.ids; len(left) > 0; {
		n := min(len(left), 300)
		res, err := l.s.api.ListTaskStates(ctx, &pb.TaskStatesRequest{TaskId: left[:n]})
		if err != nil {
			return err
		}
		waiting := 0
		for _, st := range res.States {
			if st == pb.TaskState_PENDING || st == pb.TaskState_RUNNING {
				waiting++
			}
		}
		if waiting > 0 {
			if time.Now().After(deadline) {
				return fmt.Errorf("%d tasks do not end", waiting)
			}
			time.Sleep(200 * time.Millisecond)
			continue
		}
		for _, st := range res.States {
			counts[st.String()]++
		}
		left = left[n:]
	}
	fmt.Printf("%d tasks ran meanwhile: %v; %d were interrupted\n", len(l.ids), counts, l.s.interrupted.Load())
	if counts["COMPLETED"] != len(l.ids) || l.s.interrupted.Load() > 0 {
		return fmt.Errorf("not all tasks ended well: %v", counts)
	}
	return nil
}

func readAll(res *http.Response) ([]byte, error) {
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s", strings.TrimSpace(res.Status))
	}
	return io.ReadAll(res.Body)
}
