package bridge

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// memoryListener hands over in-memory connections, which time in a synctest bubble can wait for.
type memoryListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newMemoryListener() *memoryListener {
	return &memoryListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *memoryListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *memoryListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *memoryListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8080} }

// dial returns the client's end of a new connection; buffer is what each direction holds, in bytes.
func (l *memoryListener) dial(buffer int) (net.Conn, error) {
	a, b := newStream(buffer), newStream(buffer)
	client, server := &memoryConn{in: a, out: b}, &memoryConn{in: b, out: a}
	select {
	case l.conns <- server:
		return client, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// memoryConn is one end: like TCP it has a buffer each way, deadlines and a close of each side.
type memoryConn struct{ in, out *stream }

func (c *memoryConn) Read(p []byte) (int, error)  { return c.in.read(p) }
func (c *memoryConn) Write(p []byte) (int, error) { return c.out.write(p) }
func (c *memoryConn) CloseWrite() error           { c.out.end(io.EOF); return nil }
func (c *memoryConn) Close() error                { c.out.end(io.EOF); c.in.end(net.ErrClosed); return nil }
func (c *memoryConn) LocalAddr() net.Addr {
	return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8080}
}
func (c *memoryConn) RemoteAddr() net.Addr {
	return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 50000}
}
func (c *memoryConn) SetDeadline(t time.Time) error {
	c.in.setDeadline(&c.in.readBy, t)
	c.out.setDeadline(&c.out.writeBy, t)
	return nil
}
func (c *memoryConn) SetReadDeadline(t time.Time) error  { return c.in.setDeadline(&c.in.readBy, t) }
func (c *memoryConn) SetWriteDeadline(t time.Time) error { return c.out.setDeadline(&c.out.writeBy, t) }

// stream is one direction.
type stream struct {
	mu              sync.Mutex
	changed         sync.Cond
	buffer          []byte
	limit           int
	ended           error // what a reader of the empty buffer gets; nothing more is written
	readBy, writeBy time.Time
}

func newStream(limit int) *stream {
	s := &stream{limit: limit}
	s.changed.L = &s.mu
	return s
}

func (s *stream) setDeadline(field *time.Time, t time.Time) error {
	s.mu.Lock()
	*field = t
	s.mu.Unlock()
	s.changed.Broadcast()
	if wait := time.Until(t); !t.IsZero() && wait > 0 {
		time.AfterFunc(wait, s.changed.Broadcast)
	}
	return nil
}

func past(t time.Time) bool { return !t.IsZero() && !time.Now().Before(t) }

func (s *stream) read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.ended == net.ErrClosed:
			return 0, net.ErrClosed
		case past(s.readBy):
			return 0, os.ErrDeadlineExceeded
		case len(s.buffer) > 0:
			n := copy(p, s.buffer)
			s.buffer = s.buffer[n:]
			s.changed.Broadcast()
			return n, nil
		case s.ended != nil:
			return 0, s.ended
		}
		s.changed.Wait()
	}
}

func (s *stream) write(p []byte) (written int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(p) > 0 {
		switch n := min(len(p), s.limit-len(s.buffer)); {
		case s.ended != nil:
			return written, net.ErrClosed
		case past(s.writeBy):
			return written, os.ErrDeadlineExceeded
		case n > 0:
			s.buffer = append(s.buffer, p[:n]...)
			p, written = p[n:], written+n
			s.changed.Broadcast()
			continue
		}
		s.changed.Wait()
	}
	return written, nil
}

func (s *stream) end(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended != net.ErrClosed {
		s.ended = why
	}
	s.changed.Broadcast()
}
