package bridge

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"

	"wsbridge/upstream"
)

// Pushers are the connections on which the backend and operators call the push side. Each is read here as long as plain pushes come over it, see plainPush; they cost half of
// what net/http takes for them. With the first request that is anything else the connection is net/http's, with all that has been read of it.
type Pushers struct {
	bridge *Bridge
	server *http.Server

	open sync.WaitGroup // connections, of both kinds

	mu       sync.Mutex // guards the following
	plain    map[*pusher]bool
	stopping bool
}

// Pushers returns the connections of the push side. The server, whose handler is that of Push, serves what is not plain.
func (b *Bridge) Pushers(server *http.Server) *Pushers {
	return &Pushers{bridge: b, server: server, plain: map[*pusher]bool{}}
}

// Serve accepts connections until the listener is closed, and returns why that ended.
func (ps *Pushers) Serve(l net.Listener) error {
	return acceptAll(l, func(conn net.Conn) {
		ps.open.Add(1)
		go ps.serve(conn)
	})
}

// Wait waits until no connection is left.
func (ps *Pushers) Wait() { ps.open.Wait() }

// Shutdown ends the connections, each behind the request that is under way on it, or all when the context ends. Serve must have returned, or be about to.
func (ps *Pushers) Shutdown(ctx context.Context) {
	ps.mu.Lock()
	ps.stopping = true
	for p := range ps.plain {
		p.conn.SetReadDeadline(time.Unix(1, 0))
	}
	ps.mu.Unlock()
	if ps.server.Shutdown(ctx) != nil {
		ps.server.Close()
	}
}

// pusherIdle is how long a connection is kept over which nothing comes, and up to twice that.
const pusherIdle = 2 * time.Minute

// pusherBuffer is the largest request that is read here, in bytes.
const pusherBuffer = 4 << 10

// pusher is a connection while it is read here.
type pusher struct {
	of     *Pushers
	conn   net.Conn
	raw    syscall.RawConn
	buffer [pusherBuffer]byte
	have   int // bytes of a request
	answer []byte
	left   []byte // of it, to be written
	busy   bool   // something has come since the deadline was set
	other  bool   // what has come is for net/http
	err    error
	types  string // the Content-Type of the request before
}

func (ps *Pushers) serve(conn net.Conn) {
	counted := &passedOn{Conn: conn, done: ps.open.Done}
	if holder, ok := conn.(syscall.Conn); ok {
		if raw, err := holder.SyscallConn(); err == nil {
			p := &pusher{of: ps, conn: conn, raw: raw}
			if !p.serve() {
				counted.Close()
				return
			}
			counted.early = p.buffer[:p.have]
		}
	}
	conn.SetReadDeadline(time.Time{})
	ps.server.Serve(&single{conn: counted})
}

// serve answers plain pushes. It reports whether the connection goes on as net/http's.
func (p *pusher) serve() (goesOn bool) {
	ps := p.of
	ps.mu.Lock()
	ps.plain[p] = true
	if ps.stopping {
		p.conn.SetReadDeadline(time.Unix(1, 0))
	} else {
		p.conn.SetReadDeadline(time.Now().Add(pusherIdle))
	}
	ps.mu.Unlock()
	defer func() {
		ps.mu.Lock()
		delete(ps.plain, p)
		ps.mu.Unlock()
	}()
	for run := p.step; ; {
		err := p.raw.Read(run)
		last := errors.Is(err, os.ErrDeadlineExceeded)
		if last && p.stays() {
			continue
		}
		if last { // what has come already is answered
			err = p.raw.Control(func(fd uintptr) { p.step(fd) })
		}
		if p.other {
			return true
		}
		if err != nil || p.err != nil || last && len(p.left) == 0 {
			return false
		}
		if _, err := p.conn.Write(p.left); err != nil { // the socket did not take it at once
			return false
		}
		p.left = nil
	}
}

// stays reports whether the connection goes on though its deadline has come, and sets the next.
func (p *pusher) stays() bool {
	p.of.mu.Lock()
	defer p.of.mu.Unlock()
	if p.of.stopping || !p.busy {
		return false
	}
	p.busy = false
	p.conn.SetReadDeadline(time.Now().Add(pusherIdle))
	return true
}

// step reads what has come and answers it, for Go's poller, until nothing is left: the end of the stream may come with a request, and nothing would tell of it again. It
// returns true when there is something else to do than to wait for more.
func (p *pusher) step(fd uintptr) bool {
	for {
		n, again, err := receiveNoWait(int(fd), p.buffer[p.have:])
		if again {
			return false
		}
		if err == nil && n == 0 {
			err = io.EOF
		}
		if p.err = err; err != nil {
			return true
		}
		p.have += n
		p.busy = true
		request, state := readPlain(p.buffer[:p.have])
		if state == plainMore && p.have < len(p.buffer) {
			continue
		}
		if state == plainWhole {
			state = p.push(&request)
		}
		if state != plainWhole {
			p.other = true
			return true
		}
		p.have = 0
		if p.left = p.answer[sendNoWait(int(fd), p.answer):]; len(p.left) > 0 {
			return true
		}
	}
}

// push does what a plain push asks for, and makes the answer; or leaves it to net/http.
func (p *pusher) push(request *plainPush) plainState {
	b := p.of.bridge
	if string(request.contentType) != p.types {
		p.types = string(request.contentType)
	}
	if b.next.Load() != nil || !b.allows(p.conn.LocalAddr(), string(request.host), string(request.authorization)) {
		return plainNot
	}
	v := b.push(request.target, upstream.NewPayload(p.types, false, request.body), options{})
	if v.elsewhere() {
		return plainNot
	}
	p.answer = v.append(p.answer[:0], time.Now())
	return plainWhole
}
