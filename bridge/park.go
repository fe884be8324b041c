package bridge

import (
	"strings"
	"time"

	"wsbridge/holder"
	"wsbridge/upstream"
)

// A connection at rest needs nothing until something happens to it: it is parked. That is one that is new, one that an earlier worker has left so, and one that has not needed
// more for a while. Its record is known, so that pushes find it, and its socket is among those that one goroutine watches; it has no goroutine, no buffer and nothing of gorilla's.
// Whatever can be done without those is: a frame that the socket takes at once is written, pings are sent and pongs taken note of, and a small message that comes alone is
// read (see stir.go). With anything else from its client, a frame that has to wait or its end it is built as others are. That is what makes an idle connection small, a
// message cheap, and it a matter of milliseconds to take over ten thousand.

// linger is how long a connection stays built that does not need it any more, and one that is parked awake that nobody uses. One that is new is not: whether its client will say anything is open, and building it costs
// little beside its handshake.
const linger = 5 * time.Second

// atRest reports whether nothing was under way on the connection.
func (k *kept) atRest() bool {
	slot := k.slot
	done := slot.Progressed().Done.Load()
	return slot.Log.Load() == 0 && slot.DropFrom.Load() == slot.DropTo.Load() && slot.Ended.Load() == 0 && slot.Posted.Load() <= done && slot.Large.Load() <= done
}

// dropped returns how much of the client's stream is no more in the buffer of its socket, or will not be at once, in bytes.
func (k *kept) dropped() int64 { return int64(k.slot.DropTo.Load() - k.slot.Base.Load()) }

// park leaves the socket that the descriptor stands for to the common watch. It returns false where that can't be. The lock is held.
func (c *conn) park(fd int) bool {
	if !c.kept.atRest() || c.bridge.parking.add(fd, c) != nil {
		return false
	}
	c.parked, c.kept.live = int32(fd), true
	c.opening = false
	// The strings of a record that was read are parts of one: the others are not kept in memory for the id.
	r := &c.record
	c.id = strings.Clone(c.id)
	r.ID, r.Subprotocol, r.User, r.State = c.id, strings.Clone(r.Subprotocol), strings.Clone(r.User), strings.Clone(r.State)
	for i, group := range r.Groups {
		r.Groups[i] = strings.Clone(group)
	}
	c.putAway()
	c.startClock(time.Now())
	return true
}

// unpark builds a connection that is parked, and begins to read. The lock is held.
func (c *conn) unpark() {
	if c.parked == 0 {
		return
	}
	c.recall()
	var read int64
	if !c.owesNothing() {
		read = c.owed[len(c.owed)-1].end + c.behind
		c.behind = 0
	}
	fd := c.leaveParked()
	c.bridge.built.Add(1)
	c.kept.know(fd)
	c.adoptAt(fd, place{tcp: c.kept.tcp, dropped: c.kept.dropped(), done: int64(c.kept.slot.Progressed().Done.Load()), read: read})
	c.schedule(time.Now())
	go c.serve()
}

// putAway leaves what nobody asks a parked connection for to its record in the table. The lock is held.
func (c *conn) putAway() {
	if !c.kept.stale {
		c.record.Handshake = nil
	}
}

// recall takes it back. The lock is held, and the slot is this worker's.
func (c *conn) recall() { c.record.Handshake = c.handshake() }

// handshake returns what the connection was opened with. The lock is held.
func (c *conn) handshake() *upstream.Handshake {
	if h := c.record.Handshake; h != nil {
		return h
	}
	r, err := decodeRecord(c.kept.in.table.Bytes(holder.Block(c.kept.slot.Record.Load())))
	if err != nil { // nobody else writes there
		c.bridge.log.Error("a connection's record can't be read", "id", c.id, "error", err)
		return new(upstream.Handshake)
	}
	return r.Handshake
}

// know looks at the socket of a parked connection that another worker has left, once.
func (k *kept) know(fd int) {
	if k.known {
		return
	}
	k.known, k.tcp = true, countsBytes(fd)
	if !k.in.old {
		lookFrom(fd, 0) // a dead worker may have looked further
	}
}

// leaveParked returns a parked connection's descriptor, which is not watched any more. The lock is held.
func (c *conn) leaveParked() (fd int) {
	fd = int(c.parked)
	c.bridge.parking.remove(fd)
	c.parked = 0
	return fd
}

// maySleep reports whether the connection is one that is parked when nobody uses it, and is not. The lock is held.
func (c *conn) maySleep() bool {
	return c.kept != nil && c.kept.live && c.parked == 0 && !c.opening && !c.handing && !c.hasEnded()
}

// isAwake reports whether the connection is one that is parked, of which more is in memory than it needs at rest. The lock is held.
func (c *conn) isAwake() bool { return c.parked != 0 && c.record.Handshake != nil }

// isIdle reports whether nothing is under way. The lock is held.
func (c *conn) isIdle() bool {
	return c.isQuiet() && !c.bounded && c.kept.atRest()
}

// drowse lets go of what the connection has not needed for a while: it calls the reader away, which parks it, or puts away what a message has needed. The lock is held.
func (c *conn) drowse(now time.Time) {
	if !c.maySleep() && !c.isAwake() || !c.isIdle() || now.Before(c.lastNeed().Add(c.bridge.linger)) {
		return
	}
	if c.parked != 0 {
		c.unburden()
		c.putAway()
		return
	}
	c.drowsy.Store(true)
	c.socket.Conn.SetReadDeadline(now)
}

// fallsAsleep parks the connection, if still nothing is under way. Its reader, which calls it, has nothing more to do then.
func (c *conn) fallsAsleep() bool {
	s := c.socket
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.handed {
		return true // there is nothing to read any more
	}
	s.err = nil // it was the deadline, if there was something
	c.goOnWaiting()
	if !c.lieDown() {
		s.needed = time.Now().UnixNano() // something has just come: calling the reader away costs too much to be tried at each message
		return false
	}
	return true
}

// lieDown parks a connection that is built, or is new, if it can be. The lock is held.
func (c *conn) lieDown() bool {
	s := c.socket
	if !c.maySleep() || !c.isIdle() || len(s.early) > 0 || s.broken != nil || !s.guard.atRest() {
		return false
	}
	if s.held != nil && (s.buffer.Buffered() > 0 || s.guard.offset != s.held.dropped.Load()) {
		return false
	}
	fd, leave := s.detach()
	if fd < 0 {
		return false
	}
	if c.bridge.parking.add(fd, c) != nil {
		leave(false)
		return false
	}
	if s.held != nil {
		s.held.stop()
	}
	leave(true)
	c.parked, c.socket = int32(fd), nil
	c.unburden()
	c.putAway()
	return true
}

// detach returns a descriptor for the common watch, or one below 0, and what is to be told whether it is watched: then nothing else is left of the socket here, else all is as it was.
func (s *socket) detach() (fd int, leave func(watched bool)) {
	conn := s.Conn.(heldConn).Conn
	if bare, ok := conn.(interface {
		surrender() (fd int)
		takeBack(fd int)
	}); ok {
		if fd = bare.surrender(); fd >= 0 {
			return fd, func(watched bool) {
				if !watched {
					bare.takeBack(fd)
				}
			}
		}
	}
	fd = duplicate(s.raw)
	return fd, func(watched bool) {
		if watched {
			conn.Close() // the descriptor alone
		} else {
			closeDuplicate(fd)
		}
	}
}

// goOnWaiting gives the reader, which was to be called away, the deadline that it had. The lock is held.
func (c *conn) goOnWaiting() {
	c.drowsy.Store(false)
	switch {
	case c.sealed:
		c.socket.Conn.SetReadDeadline(time.Now().Add(closeWait))
	case c.bounded && !c.hasEnded():
		c.socket.Conn.SetReadDeadline(time.Now().Add(stallTime))
	default:
		c.socket.Conn.SetReadDeadline(time.Time{})
	}
}

// tryWrite writes what the socket takes at once, and returns how much that was. The lock is held.
func (c *conn) tryWrite(p []byte) int {
	if c.parked != 0 {
		return sendNoWait(int(c.parked), p)
	}
	return c.socket.tryWrite(p)
}

// controlAsleep sends a control frame to the client of a parked connection, which is built where the frame has to wait. It reports whether the frame is out. The lock is
// held.
func (c *conn) controlAsleep(opcode byte, payload []byte) bool {
	if c.parked == 0 {
		return false
	}
	n := c.writeAtOnce(frame{wire: controlFrame(nil, opcode, payload), control: true}, time.Time{}, nil)
	if n == 0 {
		c.unpark()
	} else if c.waits() {
		c.startWriter()
	}
	return n > 0
}

// pingAsleep pings the client of a parked connection. It reports whether the ping is out. The lock is held.
func (c *conn) pingAsleep(now time.Time) bool {
	if !c.controlAsleep(opPing, c.heartbeat()) {
		return false
	}
	if !c.silent() { // the first ping without an answer counts
		c.pinged = now.UnixNano()
	}
	return true
}
