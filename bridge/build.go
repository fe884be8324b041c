package bridge

import (
	"bufio"
	"fmt"
	"net"
	"net/http"

	"github.com/gorilla/websocket"
)

// build gives a connection what its socket is read with, of which so many bytes have been dropped. The lock is held.
func (c *conn) build(dropped int64) {
	s := c.socket
	c.busy()
	s.buffer = bufio.NewReaderSize(s, readBuffer)
	if c.kept != nil && c.kept.live {
		l := newLook(c.kept, c.bridge.config.MaxMessage)
		s.hold(l, dropped)
		ahead := max(s.guard.offset-dropped, 0) // what came with the handshake is dropped before it is read
		s.raw.Control(func(fd uintptr) { l.prepare(int(fd), ahead) })
	}
	s.ws = c.bridge.upgradeAgain(s, c.record.Window > 0)
	s.ws.SetCloseHandler(func(int, string) error { return nil })
	s.ws.SetPongHandler(func(payload string) error { // of the pongs that the guard lets pass
		if len(payload) == 8 {
			c.ponged([8]byte([]byte(payload)))
		}
		return nil
	})
	s.ws.SetPingHandler(func(payload string) error {
		c.pong([]byte(payload))
		return nil
	})
}

// upgradeAgain returns gorilla's connection for a socket whose handshake has been: the same handshake again, whose answer is swallowed.
func (b *Bridge) upgradeAgain(s *socket, compressed bool) *websocket.Conn {
	r := &http.Request{Method: http.MethodGet, Header: handshakeAgain}
	upgrader := b.upgrader
	if upgrader.EnableCompression = compressed; compressed {
		r = &http.Request{Method: http.MethodGet, Header: handshakeCompressed}
	}
	ws, err := upgrader.Upgrade(again{s}, r, nil)
	if err != nil {
		panic(fmt.Sprintf("a handshake of ours is refused: %v", err)) // whatever the client
	}
	return ws
}

var (
	handshakeAgain = http.Header{
		"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"AAAAAAAAAAAAAAAAAAAAAA=="},
	}
	handshakeCompressed = http.Header{
		"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"AAAAAAAAAAAAAAAAAAAAAA=="},
		"Sec-Websocket-Extensions": {"permessage-deflate"},
	}
)

// again is the http.ResponseWriter of a handshake that has been.
type again struct{ socket *socket }

// Header returns nothing that is sent.
func (again) Header() http.Header { return http.Header{} }

// Write swallows.
func (again) Write(p []byte) (int, error) { return len(p), nil }

// WriteHeader swallows.
func (again) WriteHeader(int) {}

// Hijack returns the socket.
func (a again) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return a.socket, bufio.NewReadWriter(a.socket.buffer, bufio.NewWriterSize(a.socket, 16)), nil
}
