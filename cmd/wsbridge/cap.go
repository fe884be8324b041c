package main

import (
	"errors"
	"net"
	"sync/atomic"
	"syscall"
)

// cappedListener closes what is accepted over its maximum at once: sockets that never become connections must not use up the
// descriptors that the push side and the backend need.
type cappedListener struct {
	net.Listener
	max  int64
	open atomic.Int64
}

// Accept returns the next connection within the maximum.
func (l *cappedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) <= l.max {
			return &cappedConn{Conn: c, listener: l}, nil
		}
		l.open.Add(-1)
		c.Close()
	}
}

// cappedConn tells its listener when it is closed.
type cappedConn struct {
	net.Conn
	listener *cappedListener
	closed   atomic.Bool
}

// Close closes the connection and makes room for another.
func (c *cappedConn) Close() error {
	if !c.closed.Swap(true) {
		defer c.listener.open.Add(-1)
	}
	return c.Conn.Close()
}

// CloseWrite closes the sending side.
func (c *cappedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// SyscallConn gives access to the socket's options.
func (c *cappedConn) SyscallConn() (syscall.RawConn, error) {
	if raw, ok := c.Conn.(syscall.Conn); ok {
		return raw.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}
