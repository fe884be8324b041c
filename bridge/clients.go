package bridge

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"syscall"
	"time"
)

// Clients are the connections on which clients ask for a WebSocket. A plain handshake is read and answered here: net/http makes 8 KB of buffers for each,
// which it never sees again, and a goroutine that reads beside the handler. With anything else the connection is net/http's, with all that has been read of it.
type Clients struct {
	bridge *Bridge
	server *http.Server
	heads  sync.Pool // of *opening

	mu     sync.Mutex // guards the following
	open   map[net.Conn]struct{}
	closed bool
}

// Clients returns the connections of clients. The server, whose handler is the bridge and which keeps no connection alive, serves what is not plain; its ConnState hears of all.
func (b *Bridge) Clients(server *http.Server) *Clients {
	cs := &Clients{bridge: b, server: server, open: map[net.Conn]struct{}{}}
	cs.heads.New = func() any {
		return &opening{writer: bufio.NewWriterSize(nil, openingBuffer)}
	}
	return cs
}

// Serve accepts connections until the listener is closed, and returns why that ended.
func (cs *Clients) Serve(l net.Listener) error {
	return acceptAll(l, func(conn net.Conn) {
		if _, ok := conn.(syscall.Conn); !ok { // of TLS net/http knows more than what is read
			cs.server.Serve(&single{conn: conn})
			return
		}
		cs.tell(conn, http.StateNew)
		go cs.serve(conn)
	})
}

// Close closes all connections that have not been upgraded.
func (cs *Clients) Close() {
	cs.mu.Lock()
	cs.closed = true
	for conn := range cs.open {
		conn.Close()
	}
	cs.mu.Unlock()
	cs.server.Close()
}

func (cs *Clients) tell(conn net.Conn, state http.ConnState) {
	if cs.server.ConnState != nil {
		cs.server.ConnState(conn, state)
	}
}

// begin takes note of a connection that has not been upgraded.
func (cs *Clients) begin(conn net.Conn) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.open[conn] = struct{}{}
	if cs.closed {
		conn.Close()
	}
}

func (cs *Clients) end(conn net.Conn, state http.ConnState) {
	cs.mu.Lock()
	delete(cs.open, conn)
	cs.mu.Unlock()
	cs.tell(conn, state)
}

func (cs *Clients) serve(conn net.Conn) {
	o := cs.heads.Get().(*opening)
	o.clients, o.conn, o.have, o.taken, o.by = cs, conn, 0, false, time.Now().Add(cs.bridge.config.HandshakeTimeout)
	cs.begin(conn)
	defer func() {
		if failure := recover(); failure != nil { // as net/http's server does it
			cs.bridge.log.Error("a handshake has failed", "failure", fmt.Sprint(failure), "stack", string(debug.Stack()))
		}
		if !o.taken {
			conn.Close()
			cs.end(conn, http.StateClosed)
		}
		o.conn, o.header, o.body = nil, nil, nil
		o.handshake.forget()
		o.writer.Reset(nil)
		cs.heads.Put(o)
	}()
	if err := o.read(); err != nil && o.have == 0 {
		return
	}
	if o.handshake.read(o.buffer[:o.have]) {
		o.handshake.request.RemoteAddr = conn.RemoteAddr().String()
		o.answer(&o.handshake.request)
		return
	}
	o.taken = true
	cs.server.Serve(&single{conn: &passedOn{Conn: conn, early: bytes.Clone(o.buffer[:o.have]), by: o.by, done: func() {}}})
	cs.end(conn, http.StateClosed) // for us: the server has told of it as new
}

// openingBuffer is the largest head of a handshake that is read here, in bytes.
const openingBuffer = 4 << 10

// opening is a handshake that is read here, and its answer where that is no upgrade.
type opening struct {
	clients *Clients
	conn    net.Conn
	buffer  [openingBuffer]byte
	have    int
	by      time.Time // when the request must have come
	taken   bool      // the connection is somebody else's

	handshake plainHandshake

	header http.Header // of the answer, and so on
	status int
	body   []byte
	writer *bufio.Writer // of one that is no upgrade
}

// read reads until the head is there, or what is there is no plain handshake.
func (o *opening) read() error {
	if o.readAtOnce() {
		return nil
	}
	o.conn.SetReadDeadline(o.by)
	for {
		n, err := o.conn.Read(o.buffer[o.have:])
		o.have += n
		if err != nil {
			return err
		}
		if o.isThere() {
			o.conn.SetReadDeadline(time.Time{})
			return nil
		}
	}
}

// readAtOnce reads what has come already: most clients' requests are there by now, and no deadline has to be set.
func (o *opening) readAtOnce() (there bool) {
	raw, err := o.conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return false
	}
	raw.Control(func(fd uintptr) {
		if n, again, err := receiveNoWait(int(fd), o.buffer[:]); !again && err == nil {
			o.have = n
		}
	})
	return o.have > 0 && o.isThere()
}

// isThere reports whether nothing more is to be read here.
func (o *opening) isThere() bool {
	return o.have == len(o.buffer) || bytes.Contains(o.buffer[:o.have], []byte("\r\n\r\n")) || !bytes.HasPrefix(o.buffer[:o.have], []byte("GET /")[:min(o.have, 5)])
}

// answer lets the bridge answer the request, and sends what it says if that is no upgrade.
func (o *opening) answer(r *http.Request) {
	o.header, o.status, o.body = http.Header{}, 0, nil
	o.clients.bridge.ServeHTTP(o, r)
	if o.taken {
		return
	}
	if o.status == 0 {
		o.status = http.StatusOK
	}
	if o.header.Get("Content-Type") == "" && len(o.body) > 0 {
		o.header.Set("Content-Type", http.DetectContentType(o.body))
	}
	o.header.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	response := http.Response{
		StatusCode: o.status, ProtoMajor: 1, ProtoMinor: 1, Header: o.header, Body: io.NopCloser(bytes.NewReader(o.body)), ContentLength: int64(len(o.body)), Close: true,
	}
	o.conn.SetWriteDeadline(time.Now().Add(o.clients.bridge.config.WriteTimeout))
	o.writer.Reset(o.conn)
	if response.Write(o.writer) == nil {
		o.writer.Flush()
	}
}

// Header returns the header of the answer.
func (o *opening) Header() http.Header { return o.header }

// WriteHeader sets the status of the answer.
func (o *opening) WriteHeader(status int) {
	if o.status == 0 {
		o.status = status
	}
}

// Write adds to the body of the answer.
func (o *opening) Write(p []byte) (int, error) {
	o.WriteHeader(http.StatusOK)
	o.body = append(o.body, p...)
	return len(p), nil
}

// take gives the connection away. Nothing has been read that is not part of the request.
func (o *opening) take() net.Conn {
	o.taken = true
	o.clients.end(o.conn, http.StateHijacked)
	return o.conn
}
