package bridge

import (
	"sync"

	"wsbridge/upstream"
)

// crewRests is how many goroutines of a crew may wait for something to do.
const crewRests = 64

// crew runs forwarders, in goroutines that have run others before: a new one would begin with a small stack and have it copied twice on the way to the backend, which is a
// twentieth of what a message costs.
type crew struct {
	mu   sync.Mutex    // guards the following
	idle []chan errand // the latest used last
	over bool          // nobody waits any more
}

// errand is a message's turn at the backend, or why it has none.
type errand struct {
	conn *conn
	turn *upstream.Turn
	none *upstream.Reply
}

// run lets a goroutine of the crew see to an errand.
func (w *crew) run(e errand) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(w.idle) - 1
	if n < 0 {
		go w.work(e)
		return
	}
	w.idle[n] <- e // it waits there, and there is room
	w.idle = w.idle[:n]
}

func (w *crew) work(e errand) {
	for next := make(chan errand, 1); e.conn != nil; e = <-next {
		for e.conn != nil {
			e = e.conn.forward(e)
		}
		w.rest(next)
	}
}

// rest makes a goroutine known as one that has nothing to do, or ends it.
func (w *crew) rest(next chan errand) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over || len(w.idle) == crewRests {
		next <- errand{}
		return
	}
	w.idle = append(w.idle, next)
}

// dismiss ends the goroutines that have nothing to do, and others as they come to that.
func (w *crew) dismiss() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
	for _, next := range w.idle {
		next <- errand{}
	}
	w.idle = nil
}
