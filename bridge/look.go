package bridge

import (
	"errors"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Reading from a socket that outlives this process leaves what is read in the kernel's buffer, until the message it belongs to is done with: the
// buffer is the log of what is owed to the client. Positions in it:
//
//	dropped ≤ looked at (guard.offset) ≤ received
//
// What is between dropped and received the next worker finds as well, if this one is killed.
type look struct {
	kept     *kept
	kernel   bool // it remembers where we look (SO_PEEK_OFF; Linux 6.9 for TCP)
	budget   int64
	most     int // bytes that the socket's buffer may grow to
	dropped  atomic.Int64
	run      func(fd uintptr) bool
	drop     func(fd uintptr)
	dropping int // bytes, by drop
	into     []byte
	n        int
	err      error
	skip     func() int // bytes from dropped to where we look, without the kernel's help
	mu       sync.Mutex // held while bytes are dropped, and while they are looked at without the kernel's help
	busy     atomic.Bool
	shut     atomic.Bool // nothing is read any more: another worker does
}

// errHanded ends the reading of a connection that another worker has.
var errHanded = errors.New("the connection is with another worker")

const (
	// lookAhead is how much may lie unanswered in a socket's buffer, in bytes, where no larger message is allowed than that; headers are extra.
	lookAhead = 64 << 10
	// mostAhead is the largest that it is made for larger messages.
	mostAhead = 200 << 10
	// headers is room for those of a message's frames.
	headers = 4 << 10
	// mostBuffer is how far a socket's buffer grows for a message that does not fit in otherwise, in bytes, if the kernel allows it (net.core.rmem_max).
	mostBuffer = 1 << 20
	// bufferShare is how much of a socket's buffer that may be. The buffer also holds what the kernel keeps with the bytes, about as much; full, it would
	// stop the client in the middle of a message.
	bufferShare = 7.0 / 16
)

// read looks at what comes next in the client's stream.
func (s *socket) look(p []byte) (int, error) {
	l := s.held
	if s.owner.bounded || !s.guard.atRest() {
		s.owner.expectMore()
	}
	for {
		if l.shut.Load() {
			return 0, errHanded
		}
		room := l.budget - (s.guard.offset - l.dropped.Load())
		if room > 0 {
			p = p[:min(int64(len(p)), room)]
			break
		}
		if !s.owner.makeRoom() {
			return 0, errHanded
		}
		if s.guard.offset-l.dropped.Load() >= l.budget {
			p = p[:min(len(p), readBuffer)] // the message's end is there, and little behind it
			break
		}
	}
	l.into, l.n, l.err = p, 0, nil
	err := s.raw.Read(l.run)
	for errors.Is(err, os.ErrDeadlineExceeded) && s.owner.stalled() {
		err = s.raw.Read(l.run)
	}
	l.into = nil
	if err == nil {
		err = l.err
	}
	if err == nil && l.n == 0 {
		err = io.EOF
	}
	return l.n, err
}

// once is one look, for the runtime's poller.
func (l *look) once(fd uintptr) bool {
	l.busy.Store(true)
	defer l.busy.Store(false)
	if l.shut.Load() {
		return false
	}
	var again bool
	if l.kernel {
		l.n, again, l.err = lookAt(int(fd), l.into)
	} else {
		l.mu.Lock()
		l.n, again, l.err = lookBehind(int(fd), l.into, l.skip())
		l.mu.Unlock()
	}
	return !again
}

// stop ends the looking, and returns when nobody looks.
func (l *look) stop() {
	l.shut.Store(true)
	for l.busy.Load() { // a look takes as long as a system call
		runtime.Gosched()
	}
}

// drop takes what is before the position out of the socket's buffer: it is done with. The connection's lock is held.
func (s *socket) drop(to int64) {
	l := s.held
	n := to - l.dropped.Load()
	if n <= 0 {
		return
	}
	slot := l.kept.slot
	at := slot.Base.Load() + uint64(to)
	slot.DropTo.Store(at)
	l.mu.Lock()
	l.dropping = int(n)
	s.raw.Control(l.drop)
	l.dropped.Store(to)
	l.mu.Unlock()
	slot.DropFrom.Store(at)
}

// makeRoom waits until there is room for more of the client's stream. Where the message being read does not leave any by itself it is dropped as it
// comes, and until it is done with its connection can't outlive this process. It returns false when the connection is with another worker.
func (c *conn) makeRoom() bool {
	s := c.socket
	c.mu.Lock()
	defer c.mu.Unlock()
	standing := false
	for s.guard.offset-s.held.dropped.Load() >= s.held.budget {
		if c.handed || s.held.shut.Load() {
			return false
		}
		k := c.kept
		if c.hasEnded() || c.owesNothing() && !c.handing {
			if !c.hasEnded() {
				k.isLarge(s.guard.current())
			}
			if c.hasEnded() {
				s.drop(s.guard.offset) // messages are let go
			} else {
				s.drop(s.guard.within())
			}
			break
		}
		if !standing {
			standing = true
			c.stand()
		}
		c.busy().changed.Wait()
	}
	if standing {
		c.goOn()
	}
	return true
}

// isLarge takes note that the message which begins there is dropped from the socket's buffer as it comes.
func (k *kept) isLarge(start int64) {
	if !k.large {
		k.large = true
		k.slot.Large.Store(uint64(start) + 1)
	}
}

// stallTime is how long the rest of a message may take to come until it is looked whether its client can write it at all. What the kernel keeps with
// the bytes depends on the pieces that they come in, and may be several times as much as the bytes: then a buffer is full before its message is there.
const stallTime = 50 * time.Millisecond

// expectMore bounds how long the reader waits in the middle of a message.
func (c *conn) expectMore() {
	s := c.socket
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hasEnded() {
		return // behind the end the deadline is another one
	}
	if c.kept.large {
		s.drop(s.guard.within())
	}
	if c.bounded = !s.guard.atRest(); c.bounded {
		s.Conn.SetReadDeadline(time.Now().Add(stallTime))
	} else {
		s.Conn.SetReadDeadline(time.Time{})
	}
}

// stalled makes room for the rest of a message that has none, in a larger buffer or by dropping what has come of it, and reports whether that is why the reader has been woken. Nobody can ask a unix socket
// whether there is room: there it is every message that takes its time.
func (c *conn) stalled() bool {
	s, k := c.socket, c.kept
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.drowsy.Load() {
		if !s.awaiting { // gorilla would take it for the end
			c.goOnWaiting()
		}
		return !s.awaiting
	}
	if c.hasEnded() {
		return false
	}
	full, grown := true, false
	if k.tcp {
		s.raw.Control(func(fd uintptr) {
			if full = bufferFull(int(fd)); full {
				grown = growBuffer(int(fd), s.held.most)
			}
		})
	}
	if !full { // it becomes so only by what comes, and that wakes the reader
		s.Conn.SetReadDeadline(time.Time{})
		return true
	}
	if !grown && c.owesNothing() && !c.handing {
		k.isLarge(s.guard.current())
		s.drop(s.guard.within())
	}
	s.Conn.SetReadDeadline(time.Now().Add(stallTime))
	return true
}

// tidy drops control frames that have been dealt with and that no message stands before.
func (c *conn) tidy() {
	s := c.socket
	if s.guard.offset == s.held.dropped.Load() || !s.guard.atRest() || s.buffer.Buffered() > 0 {
		return
	}
	c.mu.Lock()
	if c.owesNothing() && !c.handing {
		s.drop(s.guard.offset)
	}
	c.mu.Unlock()
}

// keep gives the socket to the keeper, as the 101 is about to be written.
func (s *socket) keep(k *kept) error {
	early := len(s.early)
	var err error
	failed := s.raw.Control(func(fd uintptr) {
		received, written, tcp := positions(int(fd))
		k.known, k.tcp = true, tcp
		slot := k.slot
		slot.Base.Store(received - uint64(early))
		slot.DropFrom.Store(received)
		slot.DropTo.Store(received)
		slot.Wrote.Store(written)
		slot.Large.Store(uint64(early)) // what came with the handshake is in no buffer any more
		if !k.in.old {
			lookFrom(int(fd), 0)
		}
		err = k.in.Keep(k.index, slot.Gen.Load(), int(fd))
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return err
	}
	k.live = true
	s.Conn = heldConn{s.Conn, s.raw}
	return nil
}

// newLook returns how the socket of a connection is looked at whose largest message has that many bytes.
func newLook(k *kept, largest int64) *look {
	return &look{kept: k, budget: min(max(largest, lookAhead), mostAhead) + headers, most: mostBuffer}
}

// prepare sets the socket's options for looking, from where it is dropped to plus so many bytes.
func (l *look) prepare(fd int, ahead int64) {
	l.kernel = !l.kept.in.old && lookFrom(fd, int(ahead))
	if l.kept.tcp {
		// The kernel lets a buffer grow for those who take out what has come, which we don't, for a while.
		l.budget = min(l.budget, int64(float64(receiveBuffer(fd, int(2*l.budget)))*bufferShare))
	}
}

// hold makes the socket one that is looked at, of which so many bytes have been dropped.
func (s *socket) hold(l *look, dropped int64) {
	l.dropped.Store(dropped)
	l.run = l.once
	l.drop = func(fd uintptr) { dropBytes(int(fd), l.dropping, l.kept.tcp) }
	l.skip = func() int { return int(s.guard.offset - l.dropped.Load()) }
	s.held = l
}
