package main

import (
	"net"
	"net/http"
	"sync/atomic"
)

// cappedListener closes what is accepted over its maximum at once: sockets that never become connections must not use up the
// descriptors that the push side and the backend need. It counts those that have not become one; the others are counted
// where they are limited.
type cappedListener struct {
	net.Listener
	max         int64
	connections func() int // that have left the server
	waiting     atomic.Int64
}

// Accept returns the next connection within the maximum.
func (l *cappedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.waiting.Load()+int64(l.connections()) < l.max {
			arrivals.Add(1)
			return c, nil
		}
		c.Close()
	}
}

// track is the server's ConnState: a connection waits from its first byte's expectation to its upgrade or its end.
func (l *cappedListener) track(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		l.waiting.Add(1)
	case http.StateHijacked, http.StateClosed:
		l.waiting.Add(-1)
	}
}
