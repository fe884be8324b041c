package bridge

import (
	"errors"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"wsbridge/ratelimit"
	"wsbridge/upstream"
)

// closeWait is how long a client may take to answer our close frame, and then to close its side.
const closeWait = 3 * time.Second

// conn is one connection: a record, a socket, and what runs while something happens. Its reader lives while the connection
// is built (see park.go); the forwarder while messages wait for the backend; the writer while something waits for the client; the parting once, at the end.
//
//	reader → inbox → forwarder → backend → queue → writer → client
//	                             pushes  ↗
type conn struct {
	bridge *Bridge
	id     string                // the record's, which never changes
	ended  atomic.Pointer[Close] // why it has; a context would be a tenth of what an idle connection takes
	socket *socket
	rate   *ratelimit.Connection

	place       int32         // in the clock's heap, which guards it; 0: nothing is due
	seat        atomic.Uint32 // its slot in the table and one more; 0: none
	lastMessage atomic.Int64  // either way, Unix nanoseconds
	heard       atomic.Int64  // the last bytes from the client, Unix nanoseconds
	drowsy      atomic.Bool   // the reader has been called away: see fallsAsleep
	standing    atomic.Bool   // we have stopped reading: silence says nothing of the client

	mu       sync.Mutex // guards the following
	*work               // nil while nothing is under way
	record   record
	kept     *kept // nil where it does not outlive this process
	nextPing int64 // Unix nanoseconds
	pinged   int64 // when the first ping without an answer was written, or the last with one; 0: none was
	parked   int32 // the descriptor of a connection of which nothing is built; 0: it is
	opening  bool  // the 101 is not out yet
	accepted bool  // the backend has accepted it
	handing  bool  // another worker is to have it, as soon as it comes to rest
	handed   bool  // another worker has it
	arriving bool  // another worker has it still
	bounded  bool  // the reader has a deadline: it waits in the middle of a message
	sealed   bool  // the close frame is out, or never will be
	over     bool  // no task is started any more
}

// message is what a client sent.
type message struct {
	body     upstream.Payload
	position int64
	end      int64 // in the client's stream, behind it
	owed     *owed // nil where the connection does not outlive this process
	at       time.Time
}

// cost is what the message counts against the inbox: an empty one takes memory too.
func (m message) cost() int64 { return int64(len(m.body.Data)) + 64 }

func (b *Bridge) newConn(rec record) *conn {
	c := &conn{bridge: b, id: rec.ID, record: rec, opening: true, rate: b.rates.Connection()}
	c.lastMessage.Store(rec.Since.UnixNano())
	return c
}

// end ends the connection. The first reason counts; later calls do nothing.
func (c *conn) end(why *Close) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hasEnded() {
		return
	}
	if c.handed {
		return
	}
	if c.arriving {
		c.busy().why = why // which the worker that has it still does not know
		return
	}
	c.unpark()
	c.busy() // for good, now
	c.ended.Store(why)
	c.why = why
	c.kept.ends(why)
	c.forsake()
	if why.abandon {
		c.abandon() // under the same lock, so that the forwarder takes none of them
	}
	c.bridge.registry.remove(c)
	c.changed.Broadcast()
	if !c.opening {
		c.tasks.Go(c.part)
	}
}

// isOpening reports whether the backend has not accepted the connection yet.
func (c *conn) isOpening() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.opening && !c.accepted
}

// hasEnded reports whether the connection ends, or has.
func (c *conn) hasEnded() bool { return c.ended.Load() != nil }

// ending returns why the connection ends, or nil while it is open.
func (c *conn) ending() *Close {
	return c.ended.Load()
}

// verdict is how the connection ended in the end: where we promised the last answers and one of them failed, the client is told. The
// lock is held.
func (c *conn) verdict() *Close {
	why := c.ending()
	if why.answers == allAnswers && c.failed != nil {
		return c.failed
	}
	return why
}

// opened lets the queue go out: the 101 has been sent. It reports whether the connection, which was new, is parked.
func (c *conn) opened() (parked bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.opening = false
	if !c.hasEnded() {
		c.flush()
	}
	if c.socket.buffer == nil {
		if parked = c.lieDown(); !parked {
			c.build(int64(len(c.socket.early)))
		}
	}
	c.startClock(time.Now())
	if c.hasEnded() {
		c.tasks.Go(c.part)
	} else if c.waits() {
		c.startWriter()
	}
	c.hand()
	return parked
}

// greeting takes what waits first on a connection that opens, if it can go out with the 101. The lock is held.
func (c *conn) greeting(now time.Time) (f frame, ok bool) {
	if c.work == nil || len(c.out.messages) == 0 || len(c.out.messages[0].wire) > writeChunk || c.out.messages[0].expired(now) {
		return frame{}, false
	}
	return c.out.take(), true
}

// flush writes what waits as far as the socket takes it at once. What the backend has said to a new connection is all that most are ever sent, and then it needs no
// writer. The lock is held.
func (c *conn) flush() {
	if c.work == nil {
		return
	}
	now := time.Now()
	for q := &c.out; len(q.messages) > 0 && q.torn.wire == nil && len(q.pongs) == 0 && !q.ping && !q.shut; {
		f := q.messages[0]
		if f.expired(now) {
			c.drop(q.take(), lossExpired)
			continue
		}
		n := c.writeAtOnce(f, now, nil)
		if n == 0 {
			return
		}
		q.take()
		if n == len(f.wire) {
			c.bridge.metrics.sent(f.messages, f.payload)
		}
	}
}

// leave ends the connection, if nothing has, and returns when nothing of it is left: its reader has come here, and all its tasks have
// returned.
func (c *conn) leave(why *Close) {
	c.end(why)
	c.mu.Lock()
	if c.handed {
		c.mu.Unlock()
		return
	}
	for !c.sealed {
		c.changed.Wait()
	}
	c.mu.Unlock()
	c.socket.finish(closeWait)
	c.stopClock()
	c.bridge.upgraded.Add(-1)

	c.mu.Lock()
	c.over = true // whoever starts a task does so under the lock, so none starts behind the Wait
	c.mu.Unlock()
	c.tasks.Wait()
	c.bridge.registry.release(c)
	c.bridge.conns.Done()
}

// part is the end of the conversation: the answers that are still due, what is queued, the close frame, and the disconnect event behind
// the last message. None of it waits for the client to close its side.
func (c *conn) part() {
	c.seal()
	c.mu.Lock()
	for c.pending > 0 {
		c.changed.Wait()
	}
	c.mu.Unlock()
	c.bridge.goodbye(c)
}

// seal sends the close frame, as soon as the connection's ending lets it, or finds that it can't be sent.
func (c *conn) seal() {
	why := c.ending()
	if why.silent {
		c.mu.Lock()
		c.out.discard()
		c.seals()
		c.mu.Unlock()
		c.socket.Conn.Close() // a write that is under way ends now
		return
	}
	c.mu.Lock()
	if why.answers > 0 && c.pending > 0 {
		expired := false
		var alarm *time.Timer
		if why.answers < allAnswers {
			alarm = time.AfterFunc(why.answers, func() {
				c.mu.Lock()
				expired = true
				c.mu.Unlock()
				c.changed.Broadcast()
			})
		}
		for c.pending > 0 && !expired && !c.out.shut {
			c.changed.Wait()
		}
		if alarm != nil {
			alarm.Stop()
		}
	}
	if !c.out.shut {
		c.out.end(controlFrame(nil, opClose, c.verdict().body()), why.urgent)
		c.startWriter()
	}
	// What is queued may take too long to go out. The socket's end ends the writer, and that seals.
	alarm := time.AfterFunc(c.bridge.config.WriteTimeout, func() { c.socket.Conn.Close() })
	for !c.sealed {
		c.changed.Wait()
	}
	c.mu.Unlock()
	alarm.Stop()
	c.socket.SetReadDeadline(time.Now().Add(closeWait))
}

// seals says that no more is written. The lock is held.
func (c *conn) seals() {
	c.sealed = true
	c.changed.Broadcast()
}

// enqueue sends a parcel to the client, now or behind what waits. It returns false when the connection has ended, or ends by this, its
// queue being full.
func (c *conn) enqueue(p *parcel) bool {
	c.mu.Lock()
	if c.handing && !p.own || c.work != nil && (c.out.shut || c.why != nil && (c.why.answers == 0 || p.receipt != nil)) {
		c.mu.Unlock()
		return false
	}
	f := p.frame(c.record.Window)
	if f.owed = p.owed; f.owed != nil {
		f.owed.carried = true
	}
	if f.receipt != nil {
		f.receipt.expect()
		c.busy()
		// Of a client that answers no pings nothing piles up. One that is over behind one that is not may yet be what a pong names.
		for len(c.receipts) > 0 && c.receipts[0].isOver() {
			c.receipts = c.receipts[1:]
		}
		c.receipts = append(c.receipts, f.receipt)
	}
	ok := c.sendNow(f, p)
	if !ok {
		c.unpark()
		ok = c.busy().out.add(f, c.bridge.config.SendBuffer, c.bridge.config.SlowClient, c.drop)
	}
	if !ok {
		c.unexpect(f)
	} else if c.waits() {
		c.startWriter()
	}
	c.mu.Unlock()
	if !ok {
		c.end(closeSlow(nil))
	}
	return ok
}

// sendNow writes a frame at once, if nothing waits and the socket takes it: most do, and then nobody has to be woken to write it, which would be
// most of the work. What the socket does not take is left to the writer. The lock is held.
func (c *conn) sendNow(f frame, p *parcel) bool {
	if c.opening || c.over || c.work != nil && (c.writing || !c.out.empty()) {
		return false
	}
	n := c.writeAtOnce(f, p.at, &p.lease)
	if n == len(f.wire) {
		p.sentNow++
	}
	return n > 0
}

// writeAtOnce writes what the socket takes of a frame without waiting, and returns how much that was. The rest of one that has begun to go out is left to the writer, for
// which the connection is built. The lock is held, and nothing is under way.
func (c *conn) writeAtOnce(f frame, at time.Time, lease *lease) int {
	c.kept.begin(f.wire, f.owed, lease)
	n := c.tryWrite(f.wire)
	if n > 0 && n < len(f.wire) {
		c.unpark()
		f.wire = f.wire[n:]
		c.busy().out.torn = f
		return n
	}
	if n > 0 && !f.control {
		c.sent(f, at)
	}
	c.kept.finish(n > 0, f.wire, lease)
	return n
}

// sent takes note of what has gone out. The lock is held.
func (c *conn) sent(f frame, at time.Time) {
	c.record.MessagesOut += uint64(f.messages)
	c.record.BytesOut += uint64(f.payload)
	c.lastMessage.Store(at.UnixNano())
	if c.kept != nil {
		c.kept.slot.MessagesOut.Store(c.record.MessagesOut)
		c.kept.slot.BytesOut.Store(c.record.BytesOut)
		c.answered(f.owed)
	}
}

// startWriter starts the writer unless there is one. The lock is held.
func (c *conn) startWriter() {
	if !c.writing && !c.opening && !c.over && !c.handed {
		c.writing = true
		c.tasks.Go(c.write)
	}
}

// write is the writer: it lives while something waits.
func (c *conn) write() {
	for {
		c.mu.Lock()
		torn := c.out.torn.wire != nil
		if c.out.empty() {
			c.writing = false
			c.hand()
			c.drowse(time.Now()) // it may have been a ping that kept it awake
			c.mu.Unlock()
			return
		}
		var wire []byte
		var f frame
		ping := false
		switch q := &c.out; {
		case q.torn.wire != nil:
			f, q.torn = q.torn, frame{}
			wire = f.wire
		case len(q.pongs) > 0:
			wire, q.pongs = q.pongs, nil
		case q.ping:
			wire, q.ping, ping = controlFrame(nil, opPing, c.heartbeat()), false, true
		default:
			f = q.take()
			if f.expired(time.Now()) {
				c.drop(f, lossExpired)
				c.mu.Unlock()
				continue
			}
			wire = f.wire
		}
		if f.wire != nil && !f.control {
			c.socket.needed = time.Now().UnixNano()
		}
		if !torn { // of which the whole is noted already
			c.kept.begin(wire, f.owed, nil)
		}
		c.mu.Unlock()

		began := time.Now()
		if err := c.socket.send(wire, c.bridge.config.WriteTimeout); err != nil {
			c.writeFailed(err)
			return
		}
		c.mu.Lock()
		switch {
		case f.messages > 0:
			c.sent(f, time.Now())
			c.bridge.metrics.sent(f.messages, f.payload)
		case ping:
			if !c.silent() { // the first ping without an answer counts
				c.pinged = began.UnixNano()
			}
			c.schedule(time.Now())
		case f.wire != nil && !f.control: // the close frame
			c.out.discard()
			c.kept.said()
			c.seals()
		}
		c.kept.finish(true, wire, nil)
		c.mu.Unlock()
	}
}

// heartbeat returns the payload of a heartbeat's ping: that of the ping before it whose pong is awaited, since a client may answer only the last of
// several. The lock is held.
func (c *conn) heartbeat() []byte {
	for _, r := range slices.Backward(c.awaited()) {
		if !slices.ContainsFunc(c.out.messages, func(f frame) bool { return f.receipt == r }) {
			return r.ping[:]
		}
	}
	return nil
}

// writeFailed is the end of all writing: a frame may be torn, so not even a close frame can follow.
func (c *conn) writeFailed(err error) {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.end(closeSlow(err))
	} else {
		c.end(closeVanished(err))
	}
	c.mu.Lock()
	c.out.discard()
	c.writing = false
	c.seals()
	c.mu.Unlock()
	c.socket.Conn.Close()
}
