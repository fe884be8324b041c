package upstream

import (
	"context"
	"sync"
	"syscall"
	"time"
)

// How long idle connections are kept. A prefork worker that waits for the next request of one serves nobody else meanwhile, so surplus
// ones go soon. And a server's close should not meet a POST at all: what was acknowledged tells the two from each other most of the time, but
// Tomcat's half-close acknowledges what it never reads, and so does the kernel for a server that takes more than 40 ms to close. Where the backend does not say
// how long it keeps a connection, that is less than any server's own limit.
const (
	idleUntold  = 500 * time.Millisecond
	idleMargin  = 500 * time.Millisecond // less than the backend says
	idleSurplus = 2 * time.Second        // from then on at most idleKept are left, whatever it says
	idleLast    = 5 * time.Second        // and from then on none
	idleKept    = 2                      // connections
)

// pool holds the idle connections to the backend.
type pool struct {
	dial func(context.Context) (*conn, error)

	mu     sync.Mutex // guards the following
	idle   []*conn    // the latest used last
	timer  *time.Timer
	due    time.Time // of the timer; zero when it is not set
	closed bool
	era    int // how often the connections were given up
}

// take returns the idle connection that was used last and still stands, or nil. Whether a direct one does is seen when it is used.
func (p *pool) take(now time.Time) *conn {
	for {
		p.mu.Lock()
		last := len(p.idle) - 1
		if last < 0 {
			p.mu.Unlock()
			return nil
		}
		c := p.idle[last]
		p.idle[last] = nil
		p.idle = p.idle[:last]
		p.mu.Unlock()
		if now.Before(c.until) && (c.direct != nil || c.silent()) {
			return c
		}
		c.Close()
	}
}

// fresh returns a new connection.
func (p *pool) fresh(ctx context.Context) (*conn, error) {
	p.mu.Lock()
	era := p.era
	p.mu.Unlock()
	c, err := p.dial(ctx)
	if err != nil {
		return nil, err
	}
	c.era = era
	return c, nil
}

// renew gives up the connections that there are. A backend that is down may still answer on them, while it stops: that is no way to learn
// whether it takes new ones.
func (p *pool) renew() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.era++
	for _, c := range p.idle {
		c.Close()
	}
	p.idle = nil
}

// put keeps a connection for the next request.
func (p *pool) put(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || c.era != p.era {
		c.Close()
		return
	}
	p.idle = append(p.idle, c)
	p.schedule(earliest(c.until, c.since.Add(idleSurplus)))
}

// schedule sees to it that trim comes at that time, or before. The lock is held.
func (p *pool) schedule(at time.Time) {
	if !p.due.IsZero() && !at.Before(p.due) {
		return
	}
	p.due = at
	if wait := time.Until(at); p.timer == nil {
		p.timer = time.AfterFunc(wait, p.trim)
	} else {
		p.timer.Reset(wait)
	}
}

// trim closes the connections that have been idle for too long.
func (p *pool) trim() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.due = time.Time{}
	now := time.Now()
	kept := p.idle[:0]
	for i, c := range p.idle {
		limit := c.until
		if i < len(p.idle)-idleKept {
			limit = earliest(limit, c.since.Add(idleSurplus))
		}
		if !now.Before(limit) {
			c.Close()
			continue
		}
		kept = append(kept, c)
		p.schedule(limit)
	}
	clear(p.idle[len(kept):])
	p.idle = kept
}

// close closes the idle connections, and those that are put back later.
func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.timer != nil {
		p.timer.Stop()
	}
	for _, c := range p.idle {
		c.Close()
	}
	p.idle = nil
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// silent reports whether an idle connection is as it was left: not closed by the backend, and with nothing in it that nobody asked for, which
// would else be taken for the answer to the next request. Of what is no socket nothing is known.
func (c *conn) silent() bool {
	holder, ok := c.socket.Conn.(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := holder.SyscallConn()
	if err != nil {
		return false
	}
	is := false
	err = raw.Control(func(fd uintptr) { is = quiet(fd) })
	return is && err == nil
}
