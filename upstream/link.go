package upstream

import (
	"net"
	"sync"
)

// link is a connection to the backend that knows when nothing more is to come on it. An answer may be followed by more than its length says
// (a script that counts wrongly, or worse), and net/http hands a connection on before it has looked: the rest would then answer
// the next POST, which is another client's.
type link struct {
	net.Conn

	mu      sync.Mutex // guards the following
	changed *sync.Cond
	reading bool // the reader has looked at everything that came, and waits for more
	closed  bool
	sent    bool // something was sent since ready
	ended   bool // nothing more comes: the other side has closed or reset it
}

func newLink(conn net.Conn) *link {
	l := &link{Conn: conn}
	l.changed = sync.NewCond(&l.mu)
	return l
}

// ready waits until a request may be sent, or the link is closed, which it is soon when there are bytes that nobody asked for: net/http
// always has a read under way on a connection that it doesn't use.
func (l *link) ready() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for !l.reading && !l.closed {
		l.changed.Wait()
	}
	l.sent = false
}

// silent reports whether nothing was sent since the link was ready.
func (l *link) silent() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.sent
}

// broken reports whether the other side has ended the link.
func (l *link) broken() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ended
}

func (l *link) set(flag *bool, to bool) {
	l.mu.Lock()
	*flag = to
	l.mu.Unlock()
	l.changed.Broadcast()
}

func (l *link) Read(p []byte) (int, error) {
	l.set(&l.reading, true)
	n, err := l.Conn.Read(p)
	if err != nil {
		l.set(&l.ended, true)
	}
	l.set(&l.reading, false)
	return n, err
}

func (l *link) Write(p []byte) (int, error) {
	first := l.silent()
	l.set(&l.sent, true)
	n, err := l.Conn.Write(p)
	if first && n == 0 {
		l.set(&l.sent, false)
	}
	return n, err
}

func (l *link) Close() error {
	l.set(&l.closed, true)
	return l.Conn.Close()
}
