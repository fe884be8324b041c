package bridge

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"github.com/gorilla/websocket"
)

// readBuffer is gorilla's read buffer, in bytes: the smallest that holds a control frame whole. A connection keeps it for as long as it is built.
const readBuffer = 288

// writeChunk is how much is written under one deadline, in bytes: a large message on a slow line is fine as long as it gets on.
const writeChunk = 16 << 10

// socket is the client's socket as gorilla sees it, which reads from it; whatever gorilla would write (it closes on protocol errors by itself) is
// swallowed, for frames are written by the connection alone: by its writer, or at once by who sends.
type socket struct {
	net.Conn // the interface, not *net.TCPConn: its method set would give gorilla a way around our Write

	ws       *websocket.Conn // reads; never written to
	buffer   *bufio.Reader   // gorilla's, over this socket; nil until the connection is built
	early    []byte          // what has been read or looked at already: what the client sent behind its handshake, or what glance has left
	failed   error           // what the next read returns behind that
	glance   *glance         // nil where messages are not read so
	err      error           // of the last read, when it failed
	guard    guard
	broken   error           // the rule that the client's next frame breaks
	raw      syscall.RawConn // of the socket; nil where there is something else between, such as TLS
	owner    *conn           // hears of pongs
	held     *look           // how it is read where it outlives this process; or nil
	awaiting bool            // the reader waits where it can be called away
	needed   int64           // when it last was for something that a parked connection can't do, Unix nanoseconds; the connection's lock guards it
}

// takeOver takes the connection of a request over.
func takeOver(w http.ResponseWriter) (*socket, error) {
	if o, ok := w.(*opening); ok {
		return newSocket(o.take(), nil), nil
	}
	hijacker, ok := w.(http.Hijacker)
	if !ok {
		return nil, fmt.Errorf("%T can't hand over its connection", w)
	}
	raw, brw, err := hijacker.Hijack()
	if err != nil {
		return nil, err
	}
	early := make([]byte, brw.Reader.Buffered())
	io.ReadFull(brw.Reader, early) // it is buffered: it can't fail
	if p, ok := raw.(*passedOn); ok {
		raw, early = p.Conn, append(early, p.early...)
	}
	return newSocket(raw, early), nil
}

// newSocket returns the socket of a connection whose client has sent something behind its handshake already.
func newSocket(conn net.Conn, early []byte) *socket {
	s := &socket{Conn: conn, early: early}
	if holder, ok := conn.(syscall.Conn); ok {
		s.raw, _ = holder.SyscallConn() // without it the writer writes
	}
	return s
}

// Read reads for gorilla, up to the first frame that breaks a rule. It remembers the socket's own error, so that a broken rule can be told
// from a broken line.
func (s *socket) Read(p []byte) (n int, err error) {
	if s.err != nil {
		return 0, s.err // a reset socket would say EOF the second time
	}
	for n == 0 && err == nil {
		if len(s.early) > 0 {
			n = copy(p, s.early)
			s.early = s.early[n:]
		} else if s.failed != nil {
			err = s.failed
		} else if s.broken == nil {
			n, err = s.receive(p)
		}
		n, err = s.looked(p[:n], err)
	}
	return n, err
}

// receive reads from the socket.
func (s *socket) receive(p []byte) (int, error) {
	if s.held == nil {
		return s.Conn.Read(p)
	}
	s.owner.tidy()
	return s.look(p)
}

// looked takes what has come through the guard.
func (s *socket) looked(p []byte, err error) (int, error) {
	if s.broken != nil {
		return 0, s.broken
	}
	if s.err = err; len(p) == 0 {
		return 0, err
	}
	s.owner.heard.Store(time.Now().UnixNano())
	s.guard.calm = s.awaiting
	n, broken := s.guard.scan(p)
	if s.guard.echoed {
		s.guard.echoed = false
		s.owner.ponged(s.guard.echo)
	}
	for _, payload := range s.guard.asked {
		s.owner.pong(payload)
	}
	s.guard.asked = nil
	if s.broken = broken; broken != nil {
		s.err, err = nil, nil
	}
	return n, err
}

// await waits until there is something to read, or an error, which the next read returns. It is the place where a connection spends its
// life: less deep in the stack than gorilla's.
func (s *socket) await() {
	s.awaiting = true
	s.buffer.Peek(1)
	s.awaiting = false
}

// Write swallows what gorilla writes: its answer to a handshake that has been, and its close frames.
func (s *socket) Write(p []byte) (int, error) { return len(p), nil }

// SetWriteDeadline does nothing for gorilla: the deadlines are the writer's.
func (s *socket) SetWriteDeadline(time.Time) error { return nil }

// open writes the 101, and with it what waits first for the client: for most what the backend has said to them as they came, and a segment and a system call of its own otherwise. The timeout
// bounds how long it may make no progress.
func (s *socket) open(p []byte, timeout time.Duration) error {
	c := s.owner
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	f, greeted := c.greeting(now)
	if greeted {
		p = append(p, f.wire...)
	}
	c.kept.begin(p, nil, nil)
	if n := s.tryWrite(p); n < len(p) {
		c.mu.Unlock()
		err := s.send(p[n:], timeout)
		c.mu.Lock()
		if err != nil {
			return err
		}
	}
	if c.kept != nil {
		c.kept.opens()
	}
	if greeted {
		c.sent(f, now)
		c.bridge.metrics.sent(f.messages, f.payload)
	}
	c.kept.finish(true, p, nil)
	return nil
}

// position is how much of the client's stream has been read, in bytes.
func (s *socket) position() int64 { return s.guard.offset }

// send writes to the client. The timeout bounds how long it may make no progress.
func (s *socket) send(p []byte, timeout time.Duration) error {
	for len(p) > 0 {
		n := min(len(p), writeChunk)
		if err := s.Conn.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
			return err
		}
		if _, err := s.Conn.Write(p[:n]); err != nil {
			return err
		}
		p = p[n:]
	}
	return s.Conn.SetWriteDeadline(time.Time{}) // TLS writes by itself, at times
}

// attempt is a write that does not wait. Its function is made once and used again: made anew it would be garbage for each message.
type attempt struct {
	wire []byte
	n    int
	run  func(fd uintptr) bool
}

var attempts = sync.Pool{New: func() any {
	a := &attempt{}
	a.run = func(fd uintptr) bool {
		a.n = sendNoWait(int(fd), a.wire)
		return true
	}
	return a
}}

// tryWrite writes what the socket takes at once, and returns how much that was. Why it was not all is for a real write to say.
func (s *socket) tryWrite(p []byte) int {
	if s.raw == nil {
		return 0
	}
	a := attempts.Get().(*attempt)
	a.wire, a.n = p, 0
	s.raw.Write(a.run)
	n := a.n
	a.wire = nil
	attempts.Put(a)
	return n
}

// finish closes the socket after the close frames: our side first, then, so that unread data does not turn the end into a reset that
// takes the close frame with it, whatever the client still sends, for a moment.
func (s *socket) finish(patience time.Duration) {
	if half, ok := s.Conn.(interface{ CloseWrite() error }); ok && s.err == nil && half.CloseWrite() == nil {
		s.Conn.SetReadDeadline(time.Now().Add(patience))
		io.Copy(io.Discard, io.LimitReader(s.Conn, 1<<20))
	}
	s.Conn.Close()
}
