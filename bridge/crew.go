package bridge

import "sync"

// crewRests is how many goroutines of a crew may wait for something to do.
const crewRests = 64

// crew runs forwarders, in goroutines that have run others before: a new one would begin with a small stack and have it copied twice on the way to the backend, which is a
// twentieth of what a message costs.
type crew struct {
	mu   sync.Mutex   // guards the following
	idle []chan *conn // the latest used last
	over bool         // nobody waits any more
}

// forward runs the connection's forwarder. It is one of its tasks. The connection's lock is held.
func (w *crew) forward(c *conn) {
	c.tasks.Add(1)
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(w.idle) - 1
	if n < 0 {
		go w.work(c)
		return
	}
	w.idle[n] <- c // it waits there, and there is room
	w.idle = w.idle[:n]
}

func (w *crew) work(c *conn) {
	for next := make(chan *conn, 1); c != nil; c = <-next {
		c.forward()
		w.rest(next)
		c.tasks.Done()
	}
}

// rest makes a goroutine known as one that has nothing to do, or ends it.
func (w *crew) rest(next chan *conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over || len(w.idle) == crewRests {
		next <- nil
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
		next <- nil
	}
	w.idle = nil
}
