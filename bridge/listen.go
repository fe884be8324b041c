package bridge

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// acceptAll accepts connections until the listener is closed, and returns why that ended.
func acceptAll(l net.Listener, each func(net.Conn)) error {
	for pause := time.Duration(0); ; {
		conn, err := l.Accept()
		if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() || errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ECONNABORTED) {
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			time.Sleep(pause)
			continue
		}
		if err != nil {
			return err
		}
		pause = 0
		each(conn)
	}
}

// passedOn is a connection as net/http has it, of which something has been read.
type passedOn struct {
	net.Conn
	early []byte    // what has been read of it
	by    time.Time // when its request must have come, whatever net/http grants it anew; zero: that is for net/http to say
	done  func()    // called once it is closed
	once  sync.Once
}

// Read reads.
func (c *passedOn) Read(p []byte) (int, error) {
	if len(c.early) > 0 {
		n := copy(p, c.early)
		c.early = c.early[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// Close closes.
func (c *passedOn) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.done)
	return err
}

// SetReadDeadline sets until when a read may wait.
func (c *passedOn) SetReadDeadline(t time.Time) error {
	if !c.by.IsZero() && t.After(c.by) {
		t = c.by
	}
	return c.Conn.SetReadDeadline(t)
}

// CloseWrite ends what is written. Net/http does so before it closes a connection of which it has not read all.
func (c *passedOn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// single is a listener to which one connection comes.
type single struct {
	conn net.Conn
}

// Accept returns it, and then the end.
func (s *single) Accept() (conn net.Conn, err error) {
	if s.conn == nil {
		return nil, io.EOF
	}
	conn, s.conn = s.conn, nil
	return conn, nil
}

// Close closes it, if nobody has accepted it.
func (s *single) Close() error {
	if s.conn != nil {
		return s.conn.Close()
	}
	return nil
}

// Addr returns nil: nobody asks.
func (s *single) Addr() net.Addr { return nil }
