package bridge

import (
	"encoding/binary"
	"slices"
	"sync"
	"time"
)

// receipt is what a push that is to be confirmed waits for: behind its message goes a ping, and a client that answers that has received what
// came before it (RFC 6455, 5.5.3). It is one for all the connections of a push.
type receipt struct {
	ping [8]byte // payload of the ping

	mu        sync.Mutex // guards the following
	pending   int        // connections whose word is still out, and one while they are being sent to
	confirmed int
	left      int           // connections that ended before
	over      bool          // nobody waits any more
	done      chan struct{} // closed when pending is 0
}

func (b *Bridge) newReceipt() *receipt {
	r := &receipt{pending: 1, done: make(chan struct{})}
	binary.BigEndian.PutUint64(r.ping[:], b.receipts.Add(1))
	return r
}

// expect counts a connection in.
func (r *receipt) expect() {
	r.mu.Lock()
	r.pending++
	r.mu.Unlock()
}

// settle counts a connection out, or ends the sending.
func (r *receipt) settle(confirmed, left int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.confirmed += confirmed
	r.left += left
	if r.pending--; r.pending == 0 {
		close(r.done)
	}
}

// wait waits until every connection has confirmed or can't any more, at most for the given time.
func (r *receipt) wait(limit time.Duration) (confirmed, left int) {
	r.settle(0, 0)
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-r.done:
	case <-timer.C:
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	return r.confirmed, r.left
}

func (r *receipt) isOver() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.over
}

// ponged takes note of a pong: what was sent before its ping has been received, earlier pings' messages included, whose pongs a client may
// leave out.
func (c *conn) ponged(payload [8]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.awaited(), func(r *receipt) bool { return r.ping == payload })
	if i < 0 {
		return
	}
	for _, r := range c.receipts[:i+1] {
		r.settle(1, 0)
	}
	c.receipts = slices.Delete(c.receipts, 0, i+1)
	if len(c.receipts) == 0 {
		c.receipts = nil
		c.hand()
		if c.parked != 0 {
			c.unburden()
		}
	}
}

// drop takes note of a message that does not go out. The lock is held.
func (c *conn) drop(f frame, why loss) {
	if why == lossSlow {
		c.record.Dropped += uint64(f.messages)
	}
	c.bridge.metrics.lost[why].Add(float64(f.messages))
	c.answered(f.owed)
	c.unexpect(f)
}

// unexpect ends the waiting for the client's word on a message that does not go out. The lock is held.
func (c *conn) unexpect(f frame) {
	if i := slices.Index(c.awaited(), f.receipt); f.receipt != nil && i >= 0 {
		c.receipts = slices.Delete(c.receipts, i, i+1)
		f.receipt.settle(0, 0)
	}
}

// forsake ends the waiting of all pushes that wait for this client's word: it has left. The lock is held.
func (c *conn) forsake() {
	for _, r := range c.awaited() {
		r.settle(0, 1)
	}
	if c.work != nil {
		c.receipts = nil
	}
}
