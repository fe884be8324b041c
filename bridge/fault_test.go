package bridge_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/textproto"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"wsbridge/upstream"
)

// hostile is a backend on bare TCP, which can break every rule there is. When its test is over, it checks what it was sent against what holds
// whatever a backend does: see check.
type hostile struct {
	t     testing.TB
	url   string
	retry upstream.Retry
	act   func(*exchange) // answers an event whose head has come, in whatever way
	over  chan struct{}   // the test is

	mu      sync.Mutex
	port    net.Listener
	gone    bool // nobody listens
	conns   map[*net.TCPConn]struct{}
	seen    []*delivery
	times   map[string]int          // each event has come, by id
	opened  []string                // targets whose handshake was accepted
	refuse  func(*net.TCPConn) bool // does away with a connection; nil: none
	unseen  bool                    // an event may be lost before any of it is read
	changed chan struct{}           // closed and made anew when more is seen
	serving sync.WaitGroup
}

// delivery is an event that has come, or its head at least.
type delivery struct {
	target, kind, id, connection string
	sequence, attempt            int
	body                         string
	whole                        bool // it was read to its end
	declined                     bool // the answer says that it was not taken
	late                         bool // the bridge had given it up before it was read
}

func (d *delivery) String() string {
	body := d.body
	if len(body) > 40 {
		body = body[:40] + "…"
	}
	return fmt.Sprintf("%s %s %d, attempt %d, %q (whole %v, declined %v)", d.target, d.kind, d.sequence, d.attempt, body, d.whole, d.declined)
}

// newHostile starts a backend, which outlives the rig that is started behind it.
func newHostile(t testing.TB, retry upstream.Retry, act func(*exchange)) *hostile {
	t.Helper()
	l, err := bind("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &hostile{
		t: t, url: "http://" + l.Addr().String(), retry: retry, act: act, over: make(chan struct{}),
		port: l, conns: map[*net.TCPConn]struct{}{}, times: map[string]int{}, changed: make(chan struct{}),
	}
	h.serving.Go(func() { h.accept(l) })
	t.Cleanup(h.stop)
	return h
}

// stop ends the backend, whose rig is gone by now, and so are the rig's connections.
func (h *hostile) stop() {
	close(h.over)
	h.mu.Lock()
	h.port.Close()
	h.mu.Unlock()
	alarm := time.AfterFunc(patience, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.t.Errorf("%d connections to the backend were left open", len(h.conns))
		for conn := range h.conns {
			conn.Close()
		}
	})
	h.serving.Wait()
	alarm.Stop()
	h.check()
}

// bind listens on plain TCP: Go's own choice is Multipath TCP, which knows no filters. The connections hold little that was not read, so that a large
// message waits half sent for a backend that does not read it.
func bind(address string) (net.Listener, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 8<<10) })
	}}
	config.SetMultipathTCP(false)
	return config.Listen(context.Background(), "tcp", address)
}

// maxAnswer is the largest answer that is taken, in bytes.
const maxAnswer = 256 << 10

// config is that of a rig with this backend. Nothing in it is short: what takes long has failed.
func (h *hostile) config(further ...func(*options)) func(*options) {
	return func(o *options) {
		o.url, o.backend.Retry, o.backend.Timeout, o.backend.RetryFor = h.url, h.retry, patience, patience
		o.backend.MaxAnswer = maxAnswer
		o.bridge.PingInterval = 10_000 * time.Hour // within which the first one comes anywhere
		for _, change := range further {
			change(o)
		}
	}
}

// refusing sets which connections are done away with before anything is read.
func (h *hostile) refusing(refuse func(*net.TCPConn) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refuse, h.unseen = refuse, true
}

// away refuses connections for that long.
func (h *hostile) away(long time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.gone {
		return
	}
	h.gone = true
	address := h.port.Addr().String()
	h.port.Close()
	h.serving.Go(func() {
		for wait := long; ; wait = time.Millisecond {
			select {
			case <-time.After(wait):
			case <-h.over:
				return
			}
			// The port is still ours: connections that were accepted on it hold it.
			l, err := bind(address)
			if err != nil {
				continue
			}
			h.mu.Lock()
			h.port, h.gone = l, false
			select {
			case <-h.over:
				l.Close()
			default:
			}
			h.mu.Unlock()
			h.accept(l)
			return
		}
	})
}

func (h *hostile) accept(l net.Listener) {
	for {
		accepted, err := l.Accept()
		if err != nil {
			return
		}
		conn := accepted.(*net.TCPConn)
		h.mu.Lock()
		refuse := h.refuse
		h.mu.Unlock()
		if refuse != nil && refuse(conn) {
			continue
		}
		h.mu.Lock()
		h.conns[conn] = struct{}{}
		h.mu.Unlock()
		h.serving.Go(func() {
			h.serve(conn)
			conn.Close()
			h.mu.Lock()
			delete(h.conns, conn)
			h.mu.Unlock()
		})
	}
}

func (h *hostile) serve(conn *net.TCPConn) {
	r := bufio.NewReader(conn)
	for {
		x, err := h.receive(conn, r)
		if err != nil {
			return
		}
		if x == nil { // no event
			io.WriteString(conn, "HTTP/1.1 204 No Content\r\n\r\n")
			continue
		}
		if h.act(x); !x.whole {
			return
		}
	}
}

// receive reads the head of a request.
func (h *hostile) receive(conn *net.TCPConn, r *bufio.Reader) (*exchange, error) {
	text := textproto.NewReader(r)
	line, err := text.ReadLine()
	if err != nil {
		return nil, err
	}
	header, err := text.ReadMIMEHeader()
	if err != nil {
		return nil, err
	}
	method, rest, _ := strings.Cut(line, " ")
	target, _, _ := strings.Cut(rest, " ")
	length, err := strconv.Atoi(header.Get("Content-Length"))
	switch {
	case err != nil:
		h.t.Errorf("%s: Content-Length = %q", line, header.Get("Content-Length"))
		return nil, err
	case method == http.MethodOptions:
		return nil, nil
	case method != http.MethodPost:
		h.t.Errorf("request = %q, want a POST or OPTIONS", line)
	}
	number := func(name string) int {
		n, err := strconv.Atoi(header.Get(name))
		if err != nil {
			h.t.Errorf("%s: %s = %q", line, name, header.Get(name))
		}
		return n
	}
	d := &delivery{
		target: target, kind: strings.TrimPrefix(header.Get("ce-type"), "wsbridge."), id: header.Get("ce-id"), connection: header.Get("ce-connectionid"),
		sequence: number("ce-sequence"), attempt: number("ce-attempt"),
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	d.late = abandoned(conn) // asked under the lock: what the bridge does then is seen behind this
	h.seen = append(h.seen, d)
	h.times[d.id]++
	h.tell()
	return &exchange{TCPConn: conn, delivery: d, backend: h, reader: r, length: length, times: h.times[d.id]}, nil
}

// tell wakes who waits for something to be seen. The lock is held.
func (h *hostile) tell() {
	close(h.changed)
	h.changed = make(chan struct{})
}

// events returns what has come so far.
func (h *hostile) events() []delivery {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]delivery, len(h.seen))
	for i, d := range h.seen {
		all[i] = *d
	}
	return all
}

// attempts returns those at which the event has come, in order.
func (h *hostile) attempts(target string, sequence int) []int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return attempts(h.seen, target, sequence)
}

func attempts(seen []*delivery, target string, sequence int) (all []int) {
	for _, d := range seen {
		if d.target == target && d.sequence == sequence {
			all = append(all, d.attempt)
		}
	}
	return all
}

// all returns the connections that the backend has not closed.
func (h *hostile) all() []*net.TCPConn {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Collect(maps.Keys(h.conns))
}

// awaitGoodbyes waits until every connection that was accepted has been taken leave of.
func (h *hostile) awaitGoodbyes() {
	h.t.Helper()
	h.await(func() string {
		for _, target := range h.opened {
			if !slices.ContainsFunc(h.seen, func(d *delivery) bool { return d.target == target && d.kind == "disconnect" && d.whole && !d.declined }) {
				return "no disconnect event for " + target
			}
		}
		return ""
	})
}

// await waits until nothing is missing any more of what has been seen.
func (h *hostile) await(missing func() string) {
	h.t.Helper()
	alarm := time.After(patience)
	for {
		h.mu.Lock()
		changed, what := h.changed, missing()
		h.mu.Unlock()
		if what == "" {
			return
		}
		select {
		case <-changed:
		case <-alarm:
			h.t.Error(what)
			return
		}
	}
}

// check says what has come that must not come from anybody, however the backend behaves.
func (h *hostile) check() {
	last := map[string]*delivery{}  // of each connection
	taken := map[string]*delivery{} // by id
	owner := map[string]string{}    // connections, by target
	goodbyes := map[string]string{} // ids, by connection
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range h.seen {
		if d.late {
			continue
		}
		before := last[d.connection]
		if before == nil {
			before = &delivery{}
		}
		if other, found := owner[d.target]; found && other != d.connection {
			h.t.Errorf("%v: of another connection than the events before it", d)
		}
		owner[d.target] = d.connection
		switch {
		case d.id == before.id:
			if d.sequence != before.sequence || d.kind != before.kind || d.attempt < before.attempt || d.whole && before.whole && d.body != before.body {
				h.t.Errorf("%v came again as %v", before, d)
			}
			if before.whole && d.attempt == before.attempt {
				h.t.Errorf("%v came again as the same attempt", d)
			}
		case d.sequence == before.sequence+1:
		case d.sequence == before.sequence+2 && d.kind == "disconnect" && h.unseen:
		default:
			h.t.Errorf("%v came behind %v", d, before)
		}
		last[d.connection] = d
		if d.kind == "disconnect" {
			if id, found := goodbyes[d.connection]; found && id != d.id {
				h.t.Errorf("%v: a second disconnect event", d)
			}
			goodbyes[d.connection] = d.id
			continue
		}
		if first := taken[d.id]; first != nil && h.retry != upstream.RetryAlways {
			h.t.Errorf("%v was taken before: %v", d, first)
		}
		if d.whole && !d.declined {
			taken[d.id] = d
		}
	}
	for _, target := range h.opened {
		if goodbyes[owner[target]] == "" {
			h.t.Errorf("%s: no disconnect event", target)
		}
	}
}

// exchange is an event on its way, with its connection.
type exchange struct {
	*net.TCPConn
	*delivery
	backend *hostile
	reader  *bufio.Reader
	length  int // of the body
	times   int // it has come, this time included
}

// take reads the event to its end, and reports whether it has all come.
func (x *exchange) take() bool {
	body := make([]byte, x.length)
	_, err := io.ReadFull(x.reader, body)
	x.backend.mu.Lock()
	defer x.backend.mu.Unlock()
	if err == nil {
		x.body, x.whole = x.body+string(body), true
		x.backend.tell()
	}
	return x.whole
}

// takeHalf reads half of the body.
func (x *exchange) takeHalf() {
	half := make([]byte, x.length/2)
	io.ReadFull(x.reader, half)
	x.backend.mu.Lock()
	defer x.backend.mu.Unlock()
	x.body, x.length = string(half), x.length-len(half)
}

// decline says that the event was not taken.
func (x *exchange) decline() {
	x.backend.mu.Lock()
	defer x.backend.mu.Unlock()
	x.declined = true
}

// say writes an answer, or any part of one.
func (x *exchange) say(answer string) { io.WriteString(x.TCPConn, answer) }

// reply is the proper answer: a message is sent back, and all else is taken.
func (x *exchange) reply(header ...string) {
	head := "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n" + strings.Join(append(header, ""), "\r\n")
	if x.kind != "message" {
		x.say(head + "Content-Length: 0\r\n\r\n")
		return
	}
	x.say(fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", head, len(x.body), x.body))
}

// end closes the connection, with what has come acknowledged.
func (x *exchange) end() {
	acknowledge(x.TCPConn)
	x.Close()
}

// reset is an end without manners.
func (x *exchange) reset() {
	acknowledge(x.TCPConn)
	x.SetLinger(0)
	x.Close()
}

// hang says no more, but keeps the connection until its test is over.
func (x *exchange) hang() { <-x.backend.over }

// forever says the same again and again, until the connection is closed. It gives up where the bridge would take whatever comes.
func (x *exchange) forever(more string) {
	piece := []byte(strings.Repeat(more, max(1, 4096/len(more))))
	for left := 256 << 20; left > 0; left -= len(piece) {
		if _, err := x.Write(piece); err != nil {
			return
		}
	}
}

// talk is what a client says and hears.
type talk struct {
	messages []string
	atOnce   bool // rather than each behind the answer to the one before

	answers []string
	code    int   // of the close frame; 0 where the connection stayed until the client left
	err     error // what should not have been
}

func (t *talk) String() string {
	return fmt.Sprintf("%d of %d answers, close code %d, %v", len(t.answers), len(t.messages), t.code, t.err)
}

// talks returns scripts of numbered messages, one for each client. Every second client does not wait for its answers.
func talks(clients, messages int, large func(client, n int) bool) []*talk {
	all := make([]*talk, clients)
	for i := range all {
		all[i] = &talk{atOnce: i%2 == 1}
		for n := range messages {
			message := fmt.Sprintf("message %d of client %d", n, i)
			if large != nil && large(i, n) {
				message += strings.Repeat(".", 60<<10-len(message))
			}
			all[i].messages = append(all[i].messages, message)
		}
	}
	return all
}

// open says that a handshake was accepted.
func (h *hostile) open(target string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.opened = append(h.opened, target)
}

// dial opens a WebSocket connection at a target that no other has.
func (h *hostile) dial(r *rig, target string) *client {
	h.t.Helper()
	c := r.dial(h.t, target)
	h.open(target)
	return c
}

// talkAll lets clients talk side by side, each at /ws/ and its number, and leave. It returns when each of them was taken leave of.
func (h *hostile) talkAll(r *rig, talks []*talk) []*talk {
	h.t.Helper()
	clients := make([]*client, len(talks))
	for i := range talks {
		clients[i] = h.dial(r, fmt.Sprintf("/ws/%d", i))
	}
	var all sync.WaitGroup
	for i, c := range clients {
		all.Go(func() {
			if talks[i].with(c); talks[i].code == 0 && talks[i].err == nil {
				talks[i].err = c.bye()
			}
			c.Close()
		})
	}
	all.Wait()
	h.awaitGoodbyes()
	return talks
}

// with sends the messages and reads the answers, up to the last or to a close.
func (t *talk) with(c *client) {
	if t.atOnce {
		var all []frame
		for _, message := range t.messages {
			all = append(all, text(message))
		}
		if t.err = c.send(all...); t.err != nil {
			return
		}
	}
	for _, message := range t.messages {
		if !t.atOnce {
			if t.err = c.send(text(message)); t.err != nil {
				return
			}
		}
		f, err := c.read()
		switch {
		case err != nil:
			t.err = err
			return
		case f.op == opClose:
			t.code, t.err = c.closed(f)
			return
		case f.op != opText:
			t.err = fmt.Errorf("got = %v, want text or a close frame", f)
			return
		}
		t.answers = append(t.answers, string(f.payload))
	}
}

// send is write for those who are not the test's own goroutine.
func (c *client) send(frames ...frame) error {
	c.SetWriteDeadline(time.Now().Add(patience))
	_, err := c.Write(wire(frames...))
	return err
}

// closed answers a close frame and returns its code, 1005 where it has none, once the connection has ended.
func (c *client) closed(f frame) (code int, err error) {
	if code = 1005; len(f.payload) >= 2 {
		code = int(binary.BigEndian.Uint16(f.payload))
	}
	c.send(frame{op: opClose, payload: f.payload})
	if f, err := c.read(); err != io.EOF {
		return code, fmt.Errorf("behind the close frame came %v, %v, want EOF", f, err)
	}
	return code, nil
}

// bye leaves in good order.
func (c *client) bye() error {
	if err := c.send(goodbye(1000, "")); err != nil {
		return err
	}
	f, err := c.read()
	if err != nil || f.op != opClose {
		return fmt.Errorf("got = %v, %v, want a close frame", f, err)
	}
	if f, err := c.read(); err != io.EOF {
		return fmt.Errorf("behind the close frame came %v, %v, want EOF", f, err)
	}
	return nil
}

// fate is what becomes of a message, by the contract's table.
type fate int

const (
	answered fate = iota // at its first attempt
	later                // it was not taken: it is sent again
	torn                 // lost, or, where nothing of it was acknowledged on a connection that was idle, sent again at once
	lost                 // it may have been taken: it is sent again where the backend keeps ids, or else its connection closes with 1011
	final                // its connection closes, with a code of the fault's
)

// fault is what a backend does to an event.
type fault struct {
	name    string
	take    func(*exchange) // how much of the request is read first; nil: all
	do      func(*exchange)
	becomes fate
	code    int    // of the close, with final
	says    string // the answer, with answered; empty: the message
	hangs   bool   // it takes a timeout
	floods  bool   // it is about memory
	stays   bool   // it is also tried at each delivery
}

func (f *fault) strike(x *exchange) {
	if f.take == nil {
		x.take()
	} else {
		f.take(x)
	}
	if f.becomes == later {
		x.decline()
	}
	f.do(x)
}

// faults returns one of everything.
func faults() (all []fault) {
	nothing := func(*exchange) {}
	half := (*exchange).takeHalf
	// An answer may break off anywhere, and in any way.
	const chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n"
	for _, point := range []struct {
		name string
		take func(*exchange)
		said string
	}{
		{"nothing of the message read", nothing, ""},
		{"half of the message read", half, ""},
		{"all of it read", nil, ""},
		{"100 Continue", nil, "HTTP/1.1 100 Continue\r\n\r\n"},
		{"half a status line", nil, "HTTP/1.1 20"},
		{"a status line", nil, "HTTP/1.1 200 OK\r\n"},
		{"half a header", nil, "HTTP/1.1 200 OK\r\nContent-Le"},
		{"the headers", nil, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"},
		{"half a body", nil, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel"},
		{"half a body of which there is far more", nil, "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\nhel"},
		{"half an error page", nil, "HTTP/1.1 500 Oops\r\nContent-Length: 50\r\n\r\n<h1>"},
		{"no chunk", nil, chunked},
		{"half a chunk's size", nil, chunked + "1"},
		{"half a chunk", nil, chunked + "5\r\nhel"},
		{"a chunk", nil, chunked + "5\r\nhello\r\n"},
		{"the last chunk but for its end", nil, chunked + "5\r\nhello\r\n0\r\n"},
		{"half a trailer", nil, chunked + "5\r\nhello\r\n0\r\nX: y"},
	} {
		for _, way := range []struct {
			name string
			do   func(*exchange)
		}{{"then the end", (*exchange).end}, {"then a reset", (*exchange).reset}, {"then no more", (*exchange).hang}} {
			f := fault{name: point.name + ", " + way.name, take: point.take, becomes: lost, hangs: way.name == "then no more", stays: point.name == "all of it read", do: func(x *exchange) {
				x.say(point.said)
				way.do(x)
			}}
			if f.take != nil && !f.hangs {
				f.becomes = torn // no reader can have a rest acknowledged that it has not read
			}
			all = append(all, f)
		}
	}
	all = append(all,
		fault{name: "a body up to a reset", becomes: lost, do: func(x *exchange) { x.say("HTTP/1.1 200 OK\r\n\r\nhello"); x.reset() }},
		fault{name: "a body up to an end that does not come", becomes: lost, hangs: true, do: func(x *exchange) { x.say("HTTP/1.1 200 OK\r\n\r\nhello"); x.hang() }},
		fault{name: "a header that comes by and by", becomes: lost, hangs: true, do: func(x *exchange) {
			x.say("HTTP/1.1 200 OK\r\nX: ")
			for beat := time.NewTicker(20 * time.Millisecond); ; <-beat.C {
				if _, err := x.Write([]byte("y")); err != nil {
					return
				}
			}
		}},
	)

	say := func(becomes fate, code int, name, answer string) {
		all = append(all, fault{name: name, becomes: becomes, code: code, stays: becomes != final, do: func(x *exchange) { x.say(answer) }})
	}
	hangUp := func(becomes fate, code int, name, answer string) {
		all = append(all, fault{name: name, becomes: becomes, code: code, stays: becomes != final, do: func(x *exchange) { x.say(answer); x.end() }})
	}
	forever := func(code int, name, head, more string) {
		all = append(all, fault{name: name, becomes: final, code: code, floods: true, do: func(x *exchange) { x.say(head); x.forever(more) }})
	}
	hears := func(name, says, answer string) {
		all = append(all, fault{name: name, says: says, do: func(x *exchange) { x.say(strings.ReplaceAll(answer, "{}", x.body)) }})
	}
	early := func(becomes fate, code int, name, says, answer string) {
		for _, part := range []struct {
			name string
			take func(*exchange)
		}{{"nothing", nothing}, {"half", half}} {
			name := fmt.Sprintf("%s when %s of the message was read", name, part.name)
			all = append(all,
				fault{name: name, take: part.take, becomes: becomes, code: code, says: says, do: func(x *exchange) { x.say(answer); x.take() }},
				fault{name: name + ", and the end", take: part.take, becomes: becomes, code: code, says: says, do: func(x *exchange) { x.say(answer); x.end() }})
		}
	}

	say(final, 1011, "a negative length", "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello")
	say(final, 1011, "two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!")
	say(final, 1011, "a length that is no number", "HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello")
	say(final, 1011, "a chunk without a size", chunked+"x\r\nhello\r\n0\r\n\r\n")
	say(final, 1011, "a chunk of a negative size", chunked+"-5\r\nhello\r\n0\r\n\r\n")
	say(final, 1011, "a chunk of a size that nobody can write", chunked+"fffffffffffffffff\r\nhello\r\n0\r\n\r\n")
	say(final, 1011, "a chunk that is longer than its size", chunked+"2\r\nhello\r\n0\r\n\r\n")
	say(final, 1011, "a chunk whose size has a long comment", chunked+"5;"+strings.Repeat("x", 64<<10)+"\r\nhello\r\n0\r\n\r\n")
	say(final, 1011, "two transfer encodings", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
	say(final, 1011, "no HTTP", "220 mail.example.org ESMTP\r\n\r\n")
	say(final, 1011, "TLS", "\x15\x03\x01\x00\x02\x02\x46\r\n\r\n")
	say(final, 1011, "a header without a colon", "HTTP/1.1 200 OK\r\nnonsense\r\n\r\n")
	say(final, 1011, "a header over 64 KiB", "HTTP/1.1 200 OK\r\nX: "+strings.Repeat("x", 64<<10)+"\r\nContent-Length: 5\r\n\r\nhello")
	say(final, 1011, "headers of 64 KiB in all", "HTTP/1.1 200 OK\r\n"+strings.Repeat("X: "+strings.Repeat("x", 59)+"\r\n", 1<<10)+"Content-Length: 5\r\n\r\nhello")
	say(final, 1011, "101", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	say(final, 1011, "an answer larger than the largest", fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", maxAnswer+1, strings.Repeat("x", maxAnswer+1)))
	bomb := squeezed()
	say(final, 1011, "gzip that nobody asked for", fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", len(bomb), bomb))
	all[len(all)-1].floods = true
	for _, status := range []string{"301 Moved Permanently", "302 Found", "303 See Other", "307 Temporary Redirect", "308 Permanent Redirect"} {
		say(final, 1011, status, "HTTP/1.1 "+status+"\r\nLocation: /ws/elsewhere\r\nContent-Length: 0\r\n\r\n")
	}
	say(final, 1011, "500", "HTTP/1.1 500 Oops\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\ntrace")
	say(final, 1008, "404", "HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nno")
	say(final, 1008, "an error page of a refusal", "HTTP/1.1 422 No\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nno")
	say(final, 1013, "503 for longer than a message is held", "HTTP/1.1 503 No\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n")
	hangUp(final, 1011, "no HTTP and the end", "go away\r\n")

	forever(1011, "headers without end", "HTTP/1.1 200 OK\r\n", "X: y\r\n")
	forever(1011, "a header without end", "HTTP/1.1 200 OK\r\nX: ", "y")
	forever(1011, "a status line without end", "HTTP/1.1 200 ", "OK")
	forever(1011, "1xx without end", "", "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
	forever(1011, "a body without end", "HTTP/1.1 200 OK\r\n\r\n", "hello")
	forever(1011, "a body whose end is far", "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", "hello")
	forever(1011, "chunks without end", chunked, "5\r\nhello\r\n")
	forever(1011, "a chunk without end", chunked+"fffffffffff\r\n", "hello")
	forever(1011, "a chunk's size without end", chunked, "0")
	forever(1011, "trailers without end", chunked+"0\r\n", "X: y\r\n")
	forever(1011, "an error page without end", "HTTP/1.1 500 Oops\r\nContent-Type: text/html\r\n\r\n", "<p>")
	forever(1008, "a refusal without end", "HTTP/1.1 422 No\r\nContent-Type: text/plain\r\n\r\n", "no")

	say(lost, 0, "408", "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
	hangUp(lost, 0, "408 and the end", "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
	say(lost, 0, "502", "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
	hangUp(lost, 0, "504 and the end", "HTTP/1.1 504 Gateway Timeout\r\n\r\n<h1>no</h1>")
	say(later, 0, "425", "HTTP/1.1 425 Too Early\r\nContent-Length: 0\r\n\r\n")
	say(later, 0, "429", "HTTP/1.1 429 Too Many\r\nContent-Length: 0\r\n\r\n")
	say(later, 0, "503", "HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")
	hangUp(later, 0, "503 and the end", "HTTP/1.1 503 No\r\nRetry-After: 0\r\n\r\n<h1>no</h1>")

	hears("a length that is too short", "hel", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhello")
	hears("rubbish behind the answer", "", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n15\r\n{}\r\n0\r\n\r\nrubbish")
	hears("another answer behind the answer", "hello", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
	hears("1xx before the answer", "hello", strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 15)+"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
	hears("chunks and a trailer", "hello", chunked+"2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nX: y\r\n\r\n")
	hears("a refusal", "no", "HTTP/1.1 422 No\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nno")

	early(answered, 0, "a refusal", "too big", "HTTP/1.1 413 Content Too Large\r\nContent-Type: text/plain\r\nContent-Length: 7\r\n\r\ntoo big")
	early(answered, 0, "an answer", "hello", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
	early(final, 1008, "an error page of a refusal", "", "HTTP/1.1 413 Content Too Large\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nno")
	early(final, 1011, "500", "", "HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n")
	early(lost, 0, "408", "", "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
	early(later, 0, "503", "", "HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")
	return all
}

// squeezed returns gzip of at most maxAnswer, and 1,000 times that when it is inflated: members may follow each other.
func squeezed() string {
	var member bytes.Buffer
	w, _ := gzip.NewWriterLevel(&member, gzip.BestCompression) // a good level, and a buffer: neither fails
	w.Write(make([]byte, 1<<20))
	w.Close()
	return strings.Repeat(member.String(), maxAnswer/member.Len())
}

const (
	talkers = 4 // clients that meet no fault
	talked  = 7 // messages of each client
	struck  = 3 // the number of the one that meets a fault
)

// meet returns the script of a backend whose faults meet one message of a client each: the first ones meet the first. All others are echoed.
func meet(faults []fault, each bool, header ...string) func(*exchange) {
	return func(x *exchange) {
		n, err := strconv.Atoi(strings.TrimPrefix(x.target, "/ws/"))
		if err == nil && n < len(faults) && x.kind == "message" && x.sequence == struck+2 && (each || x.times == 1) {
			faults[n].strike(x)
		} else if x.take() {
			x.reply(header...)
		}
	}
}

// chat lets as many clients talk as there are faults, and others beside them.
func (h *hostile) chat(r *rig, faults []fault) []*talk {
	h.t.Helper()
	return h.talkAll(r, talks(len(faults)+talkers, talked, func(client, n int) bool { return n == struck && client < len(faults) && faults[client].take != nil }))
}

// wantFate checks what a client has heard when one of its messages met the fault, and at which attempts that has come.
func (f *fault) wantFate(h *hostile, i int, talk *talk) {
	h.t.Helper()
	want, code, attempts := slices.Clone(talk.messages), 0, []int{1}
	switch becomes := f.becomes; {
	case becomes == answered:
		if f.says != "" {
			want[struck] = f.says
		}
	case becomes == final:
		want, code = want[:struck], f.code
	case becomes == later, h.retry == upstream.RetryAlways:
		attempts = []int{1, 2}
	default:
		want, code = want[:struck], 1011
	}
	got := h.attempts(fmt.Sprintf("/ws/%d", i), struck+2)
	if f.becomes == torn && slices.Equal(got, []int{1, 1}) {
		want, code, attempts = talk.messages, 0, got
	}
	talk.want(h.t, f.name, want, code)
	if !slices.Equal(got, attempts) {
		h.t.Errorf("%s: the message came at attempts %d, want %d", f.name, got, attempts)
	}
}

// wantFates checks what became of a chat.
func wantFates(h *hostile, faults []fault, talks []*talk) {
	h.t.Helper()
	for i, talk := range talks {
		if i < len(faults) {
			faults[i].wantFate(h, i, talk)
		} else {
			talk.want(h.t, "no fault", talk.messages, 0)
		}
	}
}

// want checks what a client has heard.
func (t *talk) want(tb testing.TB, name string, answers []string, code int) {
	tb.Helper()
	if t.err != nil || t.code != code || len(t.answers) != len(answers) {
		tb.Errorf("%s: %v, want %d answers and code %d", name, t, len(answers), code)
	}
	for n := range min(len(t.answers), len(answers)) {
		if t.answers[n] != answers[n] {
			tb.Errorf("%s: answer %d = %.60q, want %.60q", name, n, t.answers[n], answers[n])
		}
	}
}

// sideBySide runs subtests that mostly wait, more of them at once than there are processors.
func sideBySide(t *testing.T, start func(run func(name string, test func(t *testing.T)))) {
	var all sync.WaitGroup
	defer all.Wait()
	slots := make(chan struct{}, 8)
	start(func(name string, test func(t *testing.T)) {
		slots <- struct{}{}
		all.Go(func() {
			t.Run(name, test)
			<-slots
		})
	})
}

// faultsThat returns the faults of which this is true.
func faultsThat(are func(f fault) bool) []fault {
	return slices.DeleteFunc(faults(), func(f fault) bool { return !are(f) })
}

// Each fault meets one message of one client, at its first delivery. Whom it does not meet, hears nothing of it; nor does it matter that several are
// met at once, and the backend counts as down for a moment.
func TestFaultAmidAChatHasTheFateOfTheTable(t *testing.T) {
	t.Parallel()
	sideBySide(t, func(run func(string, func(*testing.T))) {
		for some := range slices.Chunk(faultsThat(func(f fault) bool { return !f.hangs }), 8) {
			for _, retry := range []upstream.Retry{upstream.RetrySafe, upstream.RetryAlways} {
				for _, header := range []string{"Connection: keep-alive", "Connection: close"} {
					run(fmt.Sprintf("%s and others, %s, %s", some[0].name, retry, header), func(t *testing.T) {
						h := newHostile(t, retry, meet(some, false, header))
						wantFates(h, some, h.chat(start(t, h.config()), some))
					})
				}
			}
		}
	})
}

func TestFaultThatHangsEndsWithTheTimeout(t *testing.T) {
	t.Parallel()
	hanging := faultsThat(func(f fault) bool { return f.hangs })
	sideBySide(t, func(run func(string, func(*testing.T))) {
		for _, retry := range []upstream.Retry{upstream.RetrySafe, upstream.RetryAlways} {
			run(string(retry), func(t *testing.T) {
				h := newHostile(t, retry, meet(hanging, false))
				r := start(t, h.config(func(o *options) {
					o.backend.Timeout = 3 * time.Second // long enough for any answer that comes
					o.backend.MaxConcurrent = len(hanging) + talkers
				}))
				wantFates(h, hanging, h.chat(r, hanging))
			})
		}
	})
}

// A fault that meets a message at each of its deliveries is in the end its client's alone: 1013, where the message was held.
func TestFaultThatStaysEndsOneConnection(t *testing.T) {
	t.Parallel()
	staying := faultsThat(func(f fault) bool { return f.stays && !f.hangs })
	sideBySide(t, func(run func(string, func(*testing.T))) {
		for i := range staying {
			one := staying[i : i+1]
			for _, retry := range []upstream.Retry{upstream.RetrySafe, upstream.RetryAlways} {
				run(fmt.Sprintf("%s, %s", one[0].name, retry), func(t *testing.T) {
					h := newHostile(t, retry, meet(one, true))
					r := start(t, h.config(func(o *options) { o.backend.RetryFor = 250 * time.Millisecond }))
					talks := h.chat(r, one)
					for _, talk := range talks[1:] {
						talk.want(t, "no fault", talk.messages, 0)
					}
					code, least := 1013, 2
					if one[0].becomes != later && retry == upstream.RetrySafe {
						code, least = 1011, 1
					}
					talks[0].want(t, one[0].name, talks[0].messages[:struck], code)
					got := h.attempts("/ws/0", struck+2)
					if len(got) < least || least == 1 && len(got) > 1 {
						t.Errorf("the message came at attempts %d", got)
					}
					for n, attempt := range got {
						if attempt != n+1 {
							t.Errorf("the message came at attempts %d, want each in turn", got)
						}
					}
				})
			}
		}
	})
}

// A connection may end before any of the request on it is read. Whether anything was sent by then is a matter of luck.
func TestFaultOfAFreshConnectionIsOneMessagesAtMost(t *testing.T) {
	t.Parallel()
	const hits = 5
	sideBySide(t, func(run func(string, func(*testing.T))) {
		for name, end := range map[string]func(*net.TCPConn){
			"the end": func(conn *net.TCPConn) { conn.Close() },
			"a reset": func(conn *net.TCPConn) { conn.SetLinger(0); conn.Close() },
		} {
			for _, retry := range []upstream.Retry{upstream.RetrySafe, upstream.RetryAlways} {
				run(fmt.Sprintf("%s, %s", name, retry), func(t *testing.T) {
					var left atomic.Int32
					h := newHostile(t, retry, func(x *exchange) {
						if x.take() {
							if x.kind == "message" && x.sequence == struck+1 && x.times == 1 {
								left.CompareAndSwap(0, hits+1) // and never again: the last one stays
							}
							x.reply("Connection: close")
						}
					})
					h.refusing(func(conn *net.TCPConn) bool {
						if left.Load() <= 1 {
							return false
						}
						left.Add(-1)
						end(conn)
						return true
					})
					closed := 0
					for _, talk := range h.talkAll(start(t, h.config()), talks(talkers, talked, nil)) {
						if talk.code == 1011 && retry == upstream.RetrySafe {
							closed++
							talk.want(t, name, talk.messages[:len(talk.answers)], 1011)
						} else {
							talk.want(t, name, talk.messages, 0)
						}
					}
					if closed > hits {
						t.Errorf("%d connections were closed for %d faults", closed, hits)
					}
				})
			}
		}
	})
}

// What a backend does to a connection that nobody uses, has to do with nobody.
func TestFaultOfAnIdleConnectionIsNotSeen(t *testing.T) {
	t.Parallel()
	const forged = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
	const tooLate = "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"
	sideBySide(t, func(run func(string, func(*testing.T))) {
		for _, retry := range []upstream.Retry{upstream.RetrySafe, upstream.RetryAlways, upstream.RetryNever} {
			run(string(retry), func(t *testing.T) {
				h := newHostile(t, retry, func(x *exchange) {
					if x.take() {
						x.reply()
					}
				})
				c := h.dial(start(t, h.config()), "/ws")
				sequence := 1
				for _, fault := range []struct{ name, said, end string }{
					{"the end", "", "end"},
					{"a reset", "", "reset"},
					{"another answer", forged, ""},
					{"another answer and the end", forged, "end"},
					{"half an answer", forged[:20], ""},
					{"rubbish", "\x00", ""},
					{"100 Continue", "HTTP/1.1 100 Continue\r\n\r\n", ""},
					{"408", tooLate, ""},
					{"408 and the end", tooLate, "end"},
					{"408 and a reset", tooLate, "reset"},
				} {
					for range 3 {
						sequence++
						message := text(fmt.Sprintf("event %d", sequence))
						c.write(message)
						c.want(message)
						if got := h.attempts("/ws", sequence); !slices.Equal(got, []int{1}) {
							t.Errorf("%s: event %d came at attempts %d, want 1", fault.name, sequence, got)
						}
						// The answer has come to its client, so the connection is idle.
						for _, conn := range h.all() {
							io.WriteString(conn, fault.said)
							for !arrived(conn) {
								time.Sleep(time.Millisecond)
							}
							switch fault.end {
							case "end":
								conn.CloseWrite()
							case "reset":
								conn.SetLinger(0)
								conn.Close()
							}
						}
					}
				}
				if err := c.bye(); err != nil {
					t.Error(err)
				}
				h.awaitGoodbyes()
			})
		}
	})
}

// A connect event is sent again while the handshake can wait, if it may be; a disconnect event always is, under its own id.
func TestFaultOfAConnectOrADisconnectEventMakesNoOther(t *testing.T) {
	t.Parallel()
	const broken, slow = http.StatusBadGateway, http.StatusGatewayTimeout
	status := func(status int) func(*exchange) {
		return func(x *exchange) {
			x.say(fmt.Sprintf("HTTP/1.1 %d No\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", status))
		}
	}
	rows := []struct {
		name         string
		do           func(*exchange)
		safe, always int   // status of the handshake
		goodbyes     []int // attempts of a disconnect event
	}{
		{"the end", (*exchange).end, broken, 101, []int{1, 2}},
		{"a reset", (*exchange).reset, broken, 101, []int{1, 2}},
		{"half a status line", func(x *exchange) { x.say("HTTP/1.1 20"); x.end() }, broken, 101, []int{1, 2}},
		{"half a body", func(x *exchange) { x.say("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel"); x.end() }, broken, 101, []int{1}}, // a goodbye's answer is its status
		{"no answer", (*exchange).hang, slow, 101, []int{1, 2}},
		{"502", status(502), 502, 101, []int{1, 2}},
		{"503", func(x *exchange) { x.decline(); status(503)(x) }, 101, 101, []int{1, 2}},
		{"500", status(500), 500, 500, []int{1, 2}},
		{"307", status(307), 307, 307, []int{1, 2}},
		{"410", status(410), 410, 410, []int{1}},
		{"no HTTP", func(x *exchange) { x.say("hello\r\n\r\n") }, broken, broken, []int{1, 2}},
		{"headers without end", func(x *exchange) { x.say("HTTP/1.1 200 OK\r\n"); x.forever("X: y\r\n") }, broken, broken, []int{1, 2}},
		{"two lengths", func(x *exchange) { x.say("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!") }, broken, broken, []int{1, 2}},
	}
	sideBySide(t, func(run func(string, func(*testing.T))) {
		for _, retry := range []upstream.Retry{upstream.RetrySafe, upstream.RetryAlways} {
			for _, kind := range []string{"connect", "disconnect"} {
				run(fmt.Sprintf("%s, %s", kind, retry), func(t *testing.T) {
					h := newHostile(t, retry, func(x *exchange) {
						if n, err := strconv.Atoi(strings.TrimPrefix(x.target, "/ws/")); !x.take() {
							return
						} else if err == nil && x.kind == kind && x.times == 1 {
							rows[n].do(x)
						} else {
							x.reply()
						}
					})
					r := start(t, h.config(func(o *options) { o.backend.Timeout = 4 * time.Second }))
					for i, row := range rows {
						target, want := fmt.Sprintf("/ws/%d", i), 101
						if kind == "connect" {
							if want = row.safe; retry == upstream.RetryAlways {
								want = row.always
							}
						}
						c := r.connect(t)
						c.raw([]byte(handshake(target)))
						got := c.answered().StatusCode
						if got != want {
							t.Errorf("%s: status = %d, want %d", row.name, got, want)
						}
						if got == 101 {
							h.open(target)
							c.write(text("hello"))
							c.want(text("hello"))
							if err := c.bye(); err != nil {
								t.Errorf("%s: %v", row.name, err)
							}
						}
						c.Close()
					}
					h.awaitGoodbyes()
					if kind == "connect" {
						return
					}
					h.await(func() string {
						for i, row := range rows {
							if got := attempts(h.seen, fmt.Sprintf("/ws/%d", i), 3); !slices.Equal(got, row.goodbyes) {
								return fmt.Sprintf("%s: the disconnect event came at attempts %d, want %d", row.name, got, row.goodbyes)
							}
						}
						return ""
					})
				})
			}
		}
	})
}

// What is left of a message that was answered before all of it was sent, must not be taken for the next request.
func TestFaultOfAnAnswerAmidAMessageConcernsNoOther(t *testing.T) {
	t.Parallel()
	const large = 4 << 20 // bytes: more than sockets hold
	for name, then := range map[string]func(*exchange){"it reads on": func(x *exchange) { x.take() }, "it reads no more": (*exchange).hang, "it ends": (*exchange).end} {
		t.Run(name, func(t *testing.T) {
			h := newHostile(t, upstream.RetryNever, func(x *exchange) {
				switch {
				case x.length == large:
					x.say("HTTP/1.1 413 Content Too Large\r\nContent-Type: text/plain\r\nContent-Length: 7\r\n\r\ntoo big")
					then(x)
				case x.take():
					x.reply()
				}
			})
			c := h.dial(start(t, h.config(func(o *options) { o.bridge.MaxMessage = large })), "/ws")
			c.write(text("before"), text(strings.Repeat(".", large)), text("behind"))
			c.want(text("before"), text("too big"), text("behind"))
			if err := c.bye(); err != nil {
				t.Error(err)
			}
			h.awaitGoodbyes()
		})
	}
}

// A message that is given up while the backend is down concerns its own client. Who waits to be accepted then is told in HTTP.
func TestFaultThatAMessageIsGivenUpForLeavesHandshakesAnAnswer(t *testing.T) {
	t.Parallel()
	var hangs atomic.Bool
	h := newHostile(t, upstream.RetryAlways, func(x *exchange) {
		if hangs.Load() {
			x.hang()
		} else if x.take() {
			x.reply()
		}
	})
	h.unseen = true
	r := start(t, h.config(func(o *options) {
		o.backend.Timeout, o.backend.RetryFor = 300*time.Millisecond, 250*time.Millisecond // so that the second attempt is the last
	}))
	clients := []*client{h.dial(r, "/ws/0"), h.dial(r, "/ws/1")}
	hangs.Store(true)
	defer hangs.Store(false)
	for _, c := range clients { // two, so that the backend counts as down
		c.write(text("hello"))
	}
	for _, c := range clients {
		if f, err := c.read(); err != nil || f.op != opClose {
			t.Errorf("got = %v, %v, want a close frame", f, err)
		} else if code, err := c.closed(f); err != nil || code != 1013 {
			t.Errorf("close code = %d, %v, want 1013", code, err)
		}
	}
	var handshakes []*client
	for i := range 3 { // the first is the probe
		c := r.connect(t)
		c.raw([]byte(handshake(fmt.Sprintf("/ws/late/%d", i))))
		handshakes = append(handshakes, c)
	}
	for _, c := range handshakes {
		if status := c.answered().StatusCode; status != http.StatusBadGateway && status != http.StatusGatewayTimeout {
			t.Errorf("status = %d, want 502 or 504", status)
		}
	}
	hangs.Store(false)
	h.awaitGoodbyes()
}

// However much a backend says, little of it is kept: what is allocated at all, is an upper bound of that.
func TestFaultThatFloodsTakesLittleMemory(t *testing.T) {
	const most = 16 << 20 // bytes; the faults offer 256 MiB each
	for _, f := range faultsThat(func(f fault) bool { return f.floods }) {
		t.Run(f.name, func(t *testing.T) {
			same := slices.Repeat([]fault{f}, 4)
			h := newHostile(t, upstream.RetrySafe, meet(same, false))
			r := start(t, h.config())
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			talks := h.chat(r, same)
			runtime.ReadMemStats(&after)
			wantFates(h, same, talks)
			if got := after.TotalAlloc - before.TotalAlloc; got > most {
				t.Errorf("%d bytes were allocated, want at most %d", got, most)
			}
		})
	}
}
