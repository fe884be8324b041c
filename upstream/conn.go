package upstream

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxHeader bounds the headers of an answer, those of 1xx answers before it included, in bytes.
	maxHeader = 64 << 10
	// readAhead is the read buffer of a connection, in bytes.
	readAhead = 4 << 10
	// inlineWrite is the largest request that is written before its answer is looked for, in bytes: what a socket takes whole while nobody reads.
	// A backend may answer a larger one before it has read it, and then wait for us.
	inlineWrite = 16 << 10
	// maxInterim is how many 1xx answers may come before the answer.
	maxInterim = 20
)

var (
	errHeaderTooLarge = errors.New("the headers are larger than 64 KiB")
	// errStale says that nothing was asked on a connection that was idle.
	errStale = errors.New("the backend has closed the idle connection, or sent on it what nobody asked for")
)

// conn is one connection to the backend. It knows what has happened on it since a request began, which decides whether that may
// have been taken.
type conn struct {
	net.Conn         // requests are written to it: the socket, or TLS over it
	socket   *meter  // the socket itself
	direct   *direct // the way to it that is used; nil: net.Conn's
	reader   *bufio.Reader

	head     int64 // bytes that the head of the answer may still take
	limited  bool  // head counts
	answered bool  // a byte of the answer has come
	failure  error // of the last read, when it failed: the line broke, and not a rule
	reused   bool  // it has carried a request before
	era      int   // of the pool, when it was opened

	mu          sync.Mutex      // guards the following
	watched     context.Context // ends what is under way
	unwatch     func() bool     // no more
	interrupted atomic.Bool     // it has ended, or is about to end what is under way; set under the lock

	told  bool      // the kernel tells what its peer has acknowledged
	since time.Time // it is idle since
	until time.Time // it may be used again until
}

// meter counts what is written to a socket: under TLS that is more than was given to write.
type meter struct {
	net.Conn // the interface: its method set must not offer ways around Write
	written  int64
}

func (m *meter) Write(p []byte) (int, error) {
	n, err := m.Conn.Write(p)
	m.written += int64(n)
	return n, err
}

func newConn(socket net.Conn) *conn {
	c := &conn{socket: &meter{Conn: socket}}
	c.Conn = c.socket
	c.direct = newDirect(socket)
	_, c.told = unacknowledged(socket)
	c.reader = bufio.NewReaderSize(answerReader{c}, readAhead)
	return c
}

// begin lets the time and the context end what is done next. The context is that of nearly all requests, and watched on: to begin and to end that for each of them would
// take a tenth of what a request costs.
func (c *conn) begin(ctx context.Context, deadline time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.watched != ctx {
		if c.unwatch != nil {
			c.unwatch()
		}
		c.watched = ctx
		c.interrupted.Store(false)
		c.unwatch = context.AfterFunc(ctx, func() { c.interrupt(ctx) })
	}
	if !c.interrupted.Load() {
		c.SetDeadline(deadline)
	}
}

// interrupt ends what is under way, if it is that of the context still.
func (c *conn) interrupt(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.watched == ctx {
		c.interrupted.Store(true)
		c.SetDeadline(time.Unix(1, 0))
	}
}

// Close closes the connection.
func (c *conn) Close() error {
	c.mu.Lock()
	if c.unwatch != nil {
		c.unwatch()
	}
	c.mu.Unlock()
	return c.Conn.Close()
}

// secure puts TLS over the socket.
func (c *conn) secure(config *tls.Config) *tls.Conn {
	secure := tls.Client(c.socket, config)
	c.Conn, c.direct = secure, nil
	return secure
}

// answerReader reads for the parser of answers, and takes note of what that does not tell: whether anything came, and whether the
// line or a rule was broken.
type answerReader struct{ *conn }

func (r answerReader) Read(p []byte) (int, error) {
	if r.limited {
		if r.head <= 0 {
			return 0, errHeaderTooLarge
		}
		p = p[:min(int64(len(p)), r.head)]
	}
	n, err := r.read(p)
	r.head -= int64(n)
	r.answered = r.answered || n > 0
	if err != nil {
		r.failure = err
	}
	return n, err
}

// read reads from the connection, and where a request waits to be written does that before.
func (c *conn) read(p []byte) (n int, err error) {
	if c.direct == nil {
		return c.Conn.Read(p)
	}
	n, written, err := c.direct.read(p)
	if written > 0 { // or else somebody else may be writing
		c.socket.written = int64(written)
	}
	return n, err
}

// exchange sends a request and reads its answer: the head, and of the body at most one byte more than limit. What has come, it returns also
// beside an error. The caller has set the deadline.
func (c *conn) exchange(request []byte, limit int64) (answer *head, body []byte, err error) {
	c.socket.written, c.answered, c.failure = 0, false, nil
	if len(request) <= inlineWrite {
		if c.direct != nil {
			c.direct.request, c.direct.reused = request, c.reused
		} else {
			c.write(request)
		}
		return c.answer(limit)
	}
	if c.direct != nil && c.reused && !c.silent() {
		return nil, nil, errStale
	}
	written := make(chan struct{})
	go func() {
		c.write(request)
		close(written)
	}()
	answer, body, err = c.answer(limit)
	select {
	case <-written:
	default:
		// An answer to half a request is an answer, and the rest is for nobody. Closing ends the write.
		c.Conn.SetDeadline(time.Unix(1, 0))
		<-written
		if err == nil {
			answer.close = true
		}
	}
	return answer, body, err
}

// write sends a request. Its error is not needed: the answer may be there all the same, and if not, reading says so.
func (c *conn) write(request []byte) {
	if _, err := c.Conn.Write(request); err != nil && c.socket.written == 0 {
		c.Conn.SetReadDeadline(time.Unix(1, 0)) // nothing was asked, so nothing answers
	}
}

// answer reads one answer.
func (c *conn) answer(limit int64) (answer *head, body []byte, err error) {
	c.limited, c.head = true, maxHeader
	if _, err := c.reader.Peek(1); err == io.EOF {
		return nil, nil, io.ErrUnexpectedEOF
	} else if err != nil {
		return nil, nil, err // a socket that was reset would say EOF the second time
	}
	if answer = plainAnswer(c.reader, limit); answer != nil {
		c.limited = false
		body = make([]byte, answer.length)
		_, err = io.ReadFull(c.reader, body)
		return answer, body, err
	}
	var response *http.Response
	for range maxInterim {
		if response, err = http.ReadResponse(c.reader, nil); err != nil {
			return nil, nil, err
		}
		if response.StatusCode >= 200 || response.StatusCode == http.StatusSwitchingProtocols {
			break
		}
	}
	answer = newHead(response)
	switch {
	case answer.code == http.StatusSwitchingProtocols:
		return answer, nil, errors.New("the backend answered 101 to a request without Upgrade")
	case answer.code < 200:
		return nil, nil, errors.New("too many 1xx answers")
	}
	c.limited = false
	if answer.length < 0 || answer.length > limit {
		body, err = io.ReadAll(io.LimitReader(response.Body, limit+1))
		if int64(len(body)) > limit {
			answer.close = true
		}
		return answer, body, err
	}
	body = make([]byte, answer.length)
	_, err = io.ReadFull(response.Body, body)
	return answer, body, err
}

// untaken reports whether the request of an exchange that ended so was certainly not taken. This is the one place that decides it.
//
// Nothing was sent: that is certain anywhere. The other case is a connection that was idle, and that the backend closed just as the request was
// sent: no byte of an answer came, and the kernel still waits for the acknowledgement of the whole request. A backend that has read it has
// acknowledged it by the time it closes; where it resets the connection within the time of a delayed acknowledgement (40 ms), after reading the
// request, it can't be told from one that has not.
func (c *conn) untaken(err error) bool {
	if err == nil || c.answered {
		return false
	}
	if c.socket.written == 0 {
		return true
	}
	if !c.reused || errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	waiting, ok := unacknowledged(c.socket.Conn)
	return ok && int64(waiting) >= c.socket.written
}

// garbled reports whether an exchange failed because what came breaks the rules of HTTP, rather than that it broke off or took too long.
func (c *conn) garbled() bool { return c.failure == nil }

// reusable reports whether the connection can carry another request behind this answer, and until when it should.
func (c *conn) reusable(answer *head, now time.Time) bool {
	if answer.close || c.failure != nil || c.reader.Buffered() > 0 { // nobody asked for what is behind an answer
		return false
	}
	keep, requests := keepAlive(answer.fields)
	if !c.told {
		keep = min(keep, idleUntold)
	}
	c.reused, c.since, c.until = true, now, now.Add(keep)
	return keep > 0 && requests > 0
}

// keepAlive reads how long an idle connection is kept and how many requests it may still carry, as far as the backend says so
// (RFC 2068, 19.7.1.1).
func keepAlive(header fields) (keep time.Duration, requests int) {
	keep, requests = idleUntold, 1
	for _, field := range header {
		if field.Name != "Keep-Alive" {
			continue
		}
		for parameter := range strings.SplitSeq(field.Value, ",") {
			name, value, _ := strings.Cut(strings.TrimSpace(parameter), "=")
			n, err := strconv.ParseUint(strings.Trim(value, `"`), 10, 31)
			switch {
			case err != nil:
			case strings.EqualFold(name, "timeout"):
				// The backend's clock began a moment before ours, and a request takes a moment to arrive.
				limit := time.Duration(n) * time.Second
				keep = min(idleLast, limit-min(limit/2, idleMargin))
			case strings.EqualFold(name, "max"):
				requests = int(n)
			}
		}
	}
	return keep, requests
}
