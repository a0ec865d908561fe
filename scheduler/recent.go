package scheduler

import (
	"sync"

	"github.com/skepdev/skep"
)

// recent keeps the requests that came in lately until a bot takes them: most
// tasks are claimed soon after, by the server that they were handed to.
// Requests never change.
type recent struct {
	mu    sync.Mutex
	byID  map[skep.TaskID]*skep.TaskRequest
	order []skep.TaskID // ring: what to forget next
	next  int
}

// maxRecent bounds how many are kept; a request is about 1 KiB.
const maxRecent = 2048

func newRecent() *recent {
	return &recent{byID: map[skep.TaskID]*skep.TaskRequest{}, order: make([]skep.TaskID, maxRecent)}
}

func (r *recent) put(req *skep.TaskRequest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.byID, r.order[r.next])
	r.order[r.next] = req.ID
	r.next = (r.next + 1) % maxRecent
	r.byID[req.ID] = req
}

// get returns the requests that are at hand, and which are not.
func (r *recent) get(ids []skep.TaskID) (found map[skep.TaskID]*skep.TaskRequest, missing []skep.TaskID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	found = make(map[skep.TaskID]*skep.TaskRequest, len(ids))
	for _, id := range ids {
		if req := r.byID[id]; req != nil {
			found[id] = req
		} else {
			missing = append(missing, id)
		}
	}
	return found, missing
}

func (r *recent) drop(id skep.TaskID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.byID, id)
}
