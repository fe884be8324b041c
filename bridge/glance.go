package bridge

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"sync"
	"time"
)

// Nearly every message comes in one piece, is small and alone. Such are read within one wait of Go's poller: what has come is looked at once, and as it did not fill the
// buffer there is no more, and the wait goes on. A second look, which finds nothing, would be a system call more for each message, and to begin a wait anew as much again.
// Anything else is left to gorilla and the socket's Read, with what has been seen of it.

// glanceBuffer is the largest that such a message may be, in bytes, with its header, and one more.
const glanceBuffer = 2 << 10

var glanceBuffers = sync.Pool{New: func() any { return new([glanceBuffer]byte) }}

// glance is that way of reading of a connection.
type glance struct {
	run    func(fd uintptr) bool
	buffer *[glanceBuffer]byte // with what has been seen, if some of it is left; else nil: it is borrowed for each look
	letter letter
	why    *Close  // how a message ends the connection
	late   message // which came too soon for its client's rate
	wait   time.Duration
}

// glance takes messages as long as they come whole and one by one, and returns when something else has come, or happened. It reports whether the connection goes on.
func (c *conn) glance() (more bool) {
	s := c.socket
	if s.glance != nil && c.bounded && s.guard.atRest() {
		c.expectMore() // no more: the message that took several looks is whole
	}
	for s.mayGlance() {
		if s.held != nil {
			c.tidy()
		}
		g := s.glance
		s.awaiting = true
		err := s.raw.Read(g.run)
		s.awaiting = false
		if err != nil {
			if c.drowsy.Load() {
				return true // which is why there was an error
			}
			if !errors.Is(err, os.ErrDeadlineExceeded) || s.held == nil || !c.stalled() {
				s.failed = err
			}
		}
		why := g.why
		if g.wait > 0 {
			c.standFor(g.wait)
			why = c.accept(g.late, nil)
			g.late, g.wait = message{}, 0
		}
		if why != nil {
			return c.goesOn(why)
		}
	}
	return true
}

// mayGlance reports whether the stream stands where a message may come whole, and nothing of it has been seen.
func (s *socket) mayGlance() bool {
	return s.glance != nil && s.err == nil && s.failed == nil && s.broken == nil && len(s.early) == 0 && s.buffer.Buffered() == 0 && s.guard.atRest() && !s.owner.bounded &&
		(s.held == nil || s.held.budget-(s.guard.offset-s.held.dropped.Load()) >= glanceBuffer)
}

// glanceOnce looks at what has come, for Go's poller, and takes it if it is one whole message and nothing has to be waited for. The poller's lock on the descriptor is held,
// for which closing it waits.
func (c *conn) glanceOnce(fd uintptr) bool {
	s, l, g := c.socket, c.socket.held, c.socket.glance
	if g.buffer == nil {
		g.buffer = glanceBuffers.Get().(*[glanceBuffer]byte)
	}
	defer func() {
		if len(s.early) == 0 {
			glanceBuffers.Put(g.buffer)
			g.buffer = nil
		}
	}()
	if l != nil {
		l.busy.Store(true)
		if l.shut.Load() {
			l.busy.Store(false)
			return false
		}
	}
	n, unread, again, err := g.letter.receive(int(fd), g.buffer[:], l != nil)
	if l != nil {
		l.busy.Store(false)
	}
	if again {
		return false
	}
	if s.failed = err; err == nil && n == 0 {
		s.failed = io.EOF
	}
	s.early = g.buffer[:n]
	seen := int64(0) // of what is unread, which counts from where the buffer is dropped to
	if l != nil {
		seen = s.guard.offset + int64(n) - l.dropped.Load()
	}
	// The end of the stream counts as a byte: it may have come with the message, and would not be told of again.
	if s.failed != nil || unread != seen || headerOf(s.early) == 0 || !c.hasRoom(n) {
		return true
	}
	s.awaiting = false
	kind, r, err := c.socket.ws.NextReader()
	var m message
	if m, g.why = c.message(kind, r, err); g.why == nil && c.received(&m) {
		var wait time.Duration
		if wait, g.why = c.charge(len(m.body.Data)); wait > 0 {
			g.late, g.wait = m, wait
			return true
		}
		g.why = c.accept(m, g.why)
	}
	s.awaiting = true
	return g.why != nil || !s.mayGlance()
}

// headerOf returns how long the header of the frame p is, in bytes, if that is a whole message, not compressed, as clients send it; else 0.
func headerOf(p []byte) int {
	if len(p) < 6 || p[0] != finBit|opText && p[0] != finBit|opBinary {
		return 0
	}
	header, size := 6, int(p[1])-0x80
	if size == 126 && len(p) >= 8 {
		if header, size = 8, int(binary.BigEndian.Uint16(p[2:])); size < 126 {
			return 0 // which is for the guard to complain of
		}
	}
	if size < 0 || header == 6 && size > 125 || len(p) != header+size {
		return 0
	}
	return header
}

// hasRoom reports whether the inbox has room for a message of that many bytes.
func (c *conn) hasRoom(size int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.work == nil || len(c.inbox) == 0 || c.hasEnded() || c.inboxBytes+int64(size) < c.bridge.config.MaxMessage
}
