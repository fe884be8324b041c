package bridge

import (
	"sync"
)

// work is what a connection has while something is under way on it. One that is parked, and of which nothing is awaited, has none: it would be half of what that takes. Its connection's
// lock guards it; who lives in the middle of it, as the reader and the tasks do, knows that it is there.
type work struct {
	tasks   sync.WaitGroup // forwarder, writer, parting
	changed sync.Cond      // inbox, pending, sealed, the end
	why     *Close         // how the connection ends, or will once another worker has given it up
	changes []func()       // to what the connection is, that wait until it has arrived

	inbox      []message
	first      [1]message // where the inbox begins: mostly it has one
	inboxBytes int64
	pending    int32   // messages read and not settled: in the inbox, under way, or held by the rate
	unposted   int32   // messages that were not posted, since the one before them ended the connection
	owed       []*owed // messages that were read and are not done with, in order, where the connection outlives this process
	behind     int64   // bytes of heartbeats behind the message of a parked connection that is under way, which have been dealt with
	posted     int64   // what an earlier worker had sent to the backend, up to that position
	attempt    int     // of the last of it
	failed     *Close  // how the connection would have ended on a reply, had it not been ending already
	forwarding bool

	writing  bool
	out      queue
	receipts []*receipt // of pushes whose ping is in the queue or out, in that order
}

// busy returns the connection's work, which begins if there was none. The lock is held.
func (c *conn) busy() *work {
	if c.work == nil {
		c.work = &work{}
		c.changed.L = &c.mu
	}
	return c.work
}

// unburden lets go of the work of a connection that is parked, if nothing is left of it. Tasks may be returning still, which know it. The lock is held.
func (c *conn) unburden() {
	if c.isQuiet() && len(c.awaited()) == 0 && c.owesNothing() {
		c.work = nil
	}
}

// tell wakes who waits for a change. The lock is held.
func (c *conn) tell() {
	if c.work != nil {
		c.changed.Broadcast()
	}
}

// waits reports whether something waits to be written. The lock is held.
func (c *conn) waits() bool { return c.work != nil && !c.out.empty() }

// unsettled returns how many messages are read and not settled. The lock is held.
func (c *conn) unsettled() int32 {
	if c.work == nil {
		return 0
	}
	return c.pending
}

// owesNothing reports whether all messages that were read are done with. The lock is held.
func (c *conn) owesNothing() bool { return c.work == nil || len(c.owed) == 0 }

// awaited returns the receipts that wait for the client's word. The lock is held.
func (c *conn) awaited() []*receipt {
	if c.work == nil {
		return nil
	}
	return c.receipts
}

// isQuiet reports whether nothing is under way between the backend and the client. The lock is held.
func (c *conn) isQuiet() bool {
	return c.work == nil || c.pending == 0 && !c.forwarding && !c.writing && c.out.empty()
}
