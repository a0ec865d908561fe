package server

import (
	"net/http"
	"time"
)

// How long a client may take for a large answer: sendPatience, and what its
// bytes take at slowest bytes a second. One that reads nothing must not hold a
// connection for ever.
const slowest = 32 << 10

var sendPatience = 5 * time.Minute // changed by a test

// sending limits the time in which the answer, of size bytes, must have been
// taken. done must be called after it.
func sending(w http.ResponseWriter, size int64) (done func()) {
	conn := http.NewResponseController(w)
	_ = conn.SetWriteDeadline(time.Now().Add(sendPatience + time.Duration(size/slowest)*time.Second)) // without one where w has none
	return func() { _ = conn.SetWriteDeadline(time.Time{}) }
}
