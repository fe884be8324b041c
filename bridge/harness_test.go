package bridge_test

import (
	"bufio"
	"bytes"
	"compress/flate"
	"context"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"wsbridge/bridge"
	"wsbridge/ratelimit"
	"wsbridge/upstream"
)

// patience is how long a test waits for what must come. Only a failing test waits that long.
const patience = time.Minute

// unheard is an interval of pings within which no test meets one: the first comes anywhere in it.
const unheard = 10_000 * time.Hour

// options are what a test may change before its rig starts.
type options struct {
	bridge  bridge.Config
	rates   ratelimit.Config
	backend upstream.Config
	answer  func(w http.ResponseWriter, e event) // the backend; it echoes unless a test says otherwise
	url     string                               // of a backend of the test's own, in place of that one
}

// event is what the backend was sent.
type event struct {
	kind   string // connect, message or disconnect
	target string
	header http.Header
	body   []byte
	gone   <-chan struct{} // closed when the bridge has given the POST up
}

// echo is a backend that sends every message back and takes everything else.
func echo(w http.ResponseWriter, e event) {
	if e.kind != "message" {
		return
	}
	w.Header().Set("Content-Type", e.header.Get("Content-Type"))
	w.Header().Set("Ws-Messages", "one")
	w.Write(e.body)
}

// rig is a bridge between a client side on loopback and a backend that writes down what it is sent.
type rig struct {
	address string // of the client side
	push    string // URL of the push side

	mu     sync.Mutex
	record []event
	change chan struct{} // closed and made anew with every event
}

var rigs atomic.Int64

// start starts a rig. When the test ends it drains the bridge, and checks that nothing of it is left running.
func start(t testing.TB, change func(*options)) *rig {
	t.Helper()
	o := options{
		bridge: bridge.Config{
			Paths: []bridge.Path{"/ws", "/ws/*"}, TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, MaxConnections: 10_000,
			HandshakeTimeout: 10 * time.Second, MaxMessage: 64 << 10, Compression: "off", PingInterval: unheard, PongTimeout: time.Hour,
			SendBuffer: 256 << 10, SlowClient: bridge.SlowClose, WriteTimeout: 10 * time.Second, PushMaxBody: 1 << 20,
			GoodbyeFor: time.Hour, GoodbyeMax: 100_000, GoodbyeBytes: 64 << 20,
		},
		rates: ratelimit.Config{Policy: ratelimit.Wait},
		backend: upstream.Config{
			TextType: "text/plain; charset=utf-8", ForwardHeaders: []string{"Cookie", "Authorization", "Origin", "User-Agent", "Accept-Language"},
			Events: upstream.Types{upstream.Connect, upstream.Message, upstream.Disconnect}, Timeout: 30 * time.Second,
			Retry: upstream.RetrySafe, RetryFor: 2 * time.Minute, MaxConcurrent: 16, MaxAnswer: 1 << 20,
		},
		answer: echo,
	}
	if change != nil {
		change(&o)
	}
	r := &rig{change: make(chan struct{})}
	backend := httptest.NewServer(r.backend(o.answer))
	if o.url == "" {
		o.url = backend.URL
	}
	if err := o.backend.URL.UnmarshalText([]byte(o.url)); err != nil {
		t.Fatal(err)
	}

	clients, pushes := bridge.Unpolled(listen(t)), listen(t)
	r.address, r.push = clients.Addr().String(), "http://"+pushes.Addr().String()
	var b *bridge.Bridge
	var client *upstream.Client
	var clientServer, pushServer *http.Server
	var pushers *bridge.Pushers
	var accepted *bridge.Clients
	var servers sync.WaitGroup
	// Goroutines inherit the label of the one that starts them: so those of this rig are told from those of tests that run beside it.
	label := strconv.FormatInt(rigs.Add(1), 10)
	pprof.Do(context.Background(), pprof.Labels("rig", label), func(context.Context) {
		var err error
		if client, err = upstream.New(o.backend, "test", nil, nil); err != nil {
			t.Fatal(err)
		}
		if b, err = bridge.New(o.bridge, o.rates, client, slog.New(slog.DiscardHandler), nil, bridge.NewTestKeeper(t)); err != nil {
			t.Fatal(err)
		}
		quiet := slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
		clientServer = &http.Server{Handler: b, ReadHeaderTimeout: o.bridge.HandshakeTimeout, MaxHeaderBytes: 16 << 10, ErrorLog: quiet}
		clientServer.SetKeepAlivesEnabled(false)
		pushServer = &http.Server{Handler: b.Push(http.NotFoundHandler(), http.NotFoundHandler()), ErrorLog: quiet}
		accepted = b.Clients(clientServer)
		servers.Go(func() { accepted.Serve(clients) })
		pushers = b.Pushers(pushServer)
		servers.Go(func() { pushers.Serve(pushes) })
		b.Serving()
	})
	t.Cleanup(func() {
		if lost := b.Drain(patience, false); lost != 0 {
			t.Errorf("%d disconnect events lost", lost)
		}
		client.Close()
		clients.Close()
		accepted.Close()
		pushes.Close()
		over, cancel := context.WithCancel(context.Background())
		cancel() // whoever is still there is closed
		pushers.Shutdown(over)
		pushers.Wait()
		backend.Close()
		servers.Wait()
		// Nothing tells when a goroutine has gone.
		for end := time.Now().Add(patience); running(label) != ""; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Errorf("still running after the drain:\n%s", running(label))
				break
			}
		}
	})
	return r
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// running returns the stacks of a rig's goroutines.
func running(label string) string {
	var profile bytes.Buffer
	pprof.Lookup("goroutine").WriteTo(&profile, 1)
	var stacks []string
	for stack := range strings.SplitSeq(profile.String(), "\n\n") {
		if strings.Contains(stack, fmt.Sprintf(`"rig":%q`, label)) {
			stacks = append(stacks, stack)
		}
	}
	return strings.Join(stacks, "\n\n")
}

func (r *rig) backend(answer func(http.ResponseWriter, event)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		body, err := io.ReadAll(request.Body)
		if err != nil {
			return // the bridge gave up while it sent
		}
		e := event{
			kind:   strings.TrimPrefix(request.Header.Get("ce-type"), "wsbridge."),
			target: request.RequestURI, header: request.Header, body: body, gone: request.Context().Done(),
		}
		r.mu.Lock()
		r.record = append(r.record, e)
		close(r.change)
		r.change = make(chan struct{})
		r.mu.Unlock()
		answer(w, e)
	})
}

// events returns what the backend was sent for requests to this target, in order; for all if it is empty.
func (r *rig) events(target string) []event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.of(target)
}

func (r *rig) of(target string) []event {
	var found []event
	for _, e := range r.record {
		if target == "" || e.target == target {
			found = append(found, e)
		}
	}
	return found
}

// await returns the events for a target once the last of them is of that kind.
func (r *rig) await(t testing.TB, target, kind string) []event {
	t.Helper()
	alarm := time.After(patience)
	for {
		r.mu.Lock()
		found, change := r.of(target), r.change
		r.mu.Unlock()
		if n := len(found); n > 0 && found[n-1].kind == kind {
			return found
		}
		select {
		case <-change:
		case <-alarm:
			t.Fatalf("no %s event for %s: got %d events", kind, target, len(found))
		}
	}
}

// forget drops the record for a target.
func (r *rig) forget(target string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.record = slices.DeleteFunc(r.record, func(e event) bool { return e.target == target })
}

// client is a client that may send anything and takes nothing but what RFC 6455 lets a server send.
type client struct {
	*net.TCPConn
	t        testing.TB
	buffer   *bufio.Reader
	response *http.Response // to the handshake
	deflate  bool           // permessage-deflate was agreed
}

// connect opens a connection on which nothing has been sent.
func (r *rig) connect(t testing.TB) *client {
	t.Helper()
	raw, err := net.Dial("tcp", r.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	return &client{TCPConn: raw.(*net.TCPConn), t: t, buffer: bufio.NewReader(raw)}
}

// dial opens a WebSocket connection. The lines are further headers of the handshake.
func (r *rig) dial(t testing.TB, target string, lines ...string) *client {
	t.Helper()
	c := r.connect(t)
	c.raw([]byte(handshake(target, lines...)))
	c.opened()
	return c
}

// handshake returns the request that RFC 6455 gives as its example, to this target and with these lines added.
func handshake(target string, lines ...string) string {
	lines = append([]string{
		"GET " + target + " HTTP/1.1", "Host: server.example.com", "Upgrade: websocket", "Connection: Upgrade",
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13",
	}, lines...)
	return strings.Join(lines, "\r\n") + "\r\n\r\n"
}

// answered reads the HTTP answer to the handshake.
func (c *client) answered() *http.Response {
	c.t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	response, err := http.ReadResponse(c.buffer, &http.Request{Method: http.MethodGet})
	if err != nil {
		c.t.Fatalf("reading the answer to the handshake: %v", err)
	}
	return response
}

// opened reads the 101.
func (c *client) opened() {
	c.t.Helper()
	c.response = c.answered()
	h := c.response.Header
	if got, want := c.response.StatusCode, http.StatusSwitchingProtocols; got != want {
		body, _ := io.ReadAll(c.response.Body)
		c.t.Fatalf("status = %d, want %d: %s", got, want, body)
	}
	if got, want := h.Get("Sec-WebSocket-Accept"), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="; got != want {
		c.t.Fatalf("Sec-WebSocket-Accept = %q, want %q", got, want)
	}
	if !strings.EqualFold(h.Get("Upgrade"), "websocket") || !strings.EqualFold(h.Get("Connection"), "upgrade") {
		c.t.Fatalf("Upgrade = %q, Connection = %q, want websocket and Upgrade", h.Get("Upgrade"), h.Get("Connection"))
	}
	c.deflate = strings.HasPrefix(h.Get("Sec-WebSocket-Extensions"), "permessage-deflate")
}

// Opcodes of RFC 6455, 5.2. The tests have their own, so that a wrong one of the product's does not go unseen.
const (
	opContinuation = 0x0
	opText         = 0x1
	opBinary       = 0x2
	opClose        = 0x8
	opPing         = 0x9
	opPong         = 0xA
)

// rsv1 is the first of the three reserved bits; with permessage-deflate it says that a message is compressed.
const rsv1 = 4

// frame is one frame, with every field free. The zero values are those of a whole, well-formed one.
type frame struct {
	op      byte
	payload []byte
	more    bool // FIN is not set
	rsv     byte // the reserved bits
	bare    bool // not masked
	bits    int  // of the length: 7, 16 or 64; 0: the fewest
}

func text(s string) frame { return frame{op: opText, payload: []byte(s)} }
func blob(s string) frame { return frame{op: opBinary, payload: []byte(s)} }
func ping(s string) frame { return frame{op: opPing, payload: []byte(s)} }
func pong(s string) frame { return frame{op: opPong, payload: []byte(s)} }

// rest continues a message and ends it; open makes a frame one that does not end its message.
func rest(s string) frame { return frame{op: opContinuation, payload: []byte(s)} }

func (f frame) open() frame {
	f.more = true
	return f
}

func (f frame) reserved(rsv byte) frame {
	f.rsv = rsv
	return f
}

// goodbye is a close frame.
func goodbye(code int, reason string) frame {
	return frame{op: opClose, payload: append(binary.BigEndian.AppendUint16(nil, uint16(code)), reason...)}
}

// String shows a frame in a failure, without flooding the screen.
func (f frame) String() string {
	payload := fmt.Sprintf("%q", f.payload)
	if len(f.payload) > 60 {
		payload = fmt.Sprintf("%q… (%d bytes)", f.payload[:40], len(f.payload))
	}
	if f.op == opClose && len(f.payload) >= 2 {
		payload = fmt.Sprintf("%d %q", binary.BigEndian.Uint16(f.payload), f.payload[2:])
	}
	return fmt.Sprintf("opcode %d %s", f.op, payload)
}

// masks is a masking key, over and over.
var masks = bytes.Repeat([]byte{0x37, 0xfa, 0x21, 0x3d}, 1024)

// wire returns frames as a client writes them.
func wire(frames ...frame) []byte {
	var out []byte
	for _, f := range frames {
		first := f.rsv<<4 | f.op
		if !f.more {
			first |= 0x80
		}
		var mask byte = 0x80
		if f.bare {
			mask = 0
		}
		n := len(f.payload)
		switch {
		case f.bits == 7 || f.bits == 0 && n <= 125:
			out = append(out, first, mask|byte(n))
		case f.bits == 16 || f.bits == 0 && n <= 0xffff:
			out = binary.BigEndian.AppendUint16(append(out, first, mask|126), uint16(n))
		default:
			out = binary.BigEndian.AppendUint64(append(out, first, mask|127), uint64(n))
		}
		if f.bare {
			out = append(out, f.payload...)
			continue
		}
		out = append(out, masks[:4]...)
		for piece := range slices.Chunk(f.payload, len(masks)) {
			out = append(out, piece...)
			fresh := out[len(out)-len(piece):]
			subtle.XORBytes(fresh, fresh, masks)
		}
	}
	return out
}

// write sends frames in one piece.
func (c *client) write(frames ...frame) {
	c.t.Helper()
	c.raw(wire(frames...))
}

// raw sends bytes as they are.
func (c *client) raw(p []byte) {
	c.t.Helper()
	c.SetWriteDeadline(time.Now().Add(patience))
	if _, err := c.Write(p); err != nil {
		c.t.Fatalf("write: %v", err)
	}
}

// chop sends bytes in pieces.
func (c *client) chop(p []byte, size int) {
	c.t.Helper()
	for piece := range slices.Chunk(p, size) {
		c.raw(piece)
	}
}

// read reads one frame of the server. Whatever a server must not send is an error; so is a fragment, since every message of ours is one
// frame. The payload of a compressed message is inflated.
func (c *client) read() (frame, error) {
	c.SetReadDeadline(time.Now().Add(patience))
	var head [2]byte
	if _, err := io.ReadFull(c.buffer, head[:1]); err != nil {
		return frame{}, err // io.EOF between two frames
	}
	if _, err := io.ReadFull(c.buffer, head[1:]); err != nil {
		return frame{}, io.ErrUnexpectedEOF
	}
	f := frame{op: head[0] & 0xf, rsv: head[0] >> 4 & 7}
	control := f.op >= opClose
	length, least := uint64(head[1]&0x7f), uint64(0)
	switch {
	case head[1]&0x80 != 0:
		return f, errors.New("a masked frame from the server")
	case head[0]&0x80 == 0:
		return f, errors.New("a fragment from the server")
	case f.op != opText && f.op != opBinary && f.op != opClose && f.op != opPing && f.op != opPong:
		return f, fmt.Errorf("opcode %d from the server", f.op)
	case f.rsv != 0 && (f.rsv != rsv1 || control || !c.deflate):
		return f, fmt.Errorf("reserved bits %03b with opcode %d from the server", f.rsv, f.op)
	case control && length > 125:
		return f, errors.New("a control frame over 125 bytes from the server")
	case length == 126:
		least = 126
		var n [2]byte
		if _, err := io.ReadFull(c.buffer, n[:]); err != nil {
			return f, io.ErrUnexpectedEOF
		}
		length = uint64(binary.BigEndian.Uint16(n[:]))
	case length == 127:
		least = 1 << 16
		var n [8]byte
		if _, err := io.ReadFull(c.buffer, n[:]); err != nil {
			return f, io.ErrUnexpectedEOF
		}
		length = binary.BigEndian.Uint64(n[:])
	}
	if length < least || length > 1<<30 {
		return f, fmt.Errorf("a length of %d that is written too long, or wrong, from the server", length)
	}
	f.payload = make([]byte, length)
	if _, err := io.ReadFull(c.buffer, f.payload); err != nil {
		return f, io.ErrUnexpectedEOF
	}
	if f.rsv == rsv1 {
		var err error
		if f.payload, err = inflate(f.payload); err != nil {
			return f, fmt.Errorf("inflating the server's message: %w", err)
		}
	}
	switch {
	case f.op == opText && !utf8.Valid(f.payload):
		return f, fmt.Errorf("text that is not UTF-8 from the server: %v", f)
	case f.op == opClose && (len(f.payload) == 1 || len(f.payload) > 2 && !utf8.Valid(f.payload[2:])):
		return f, fmt.Errorf("a malformed close frame from the server: %q", f.payload)
	case f.op == opClose && len(f.payload) >= 2 && !sendable(int(binary.BigEndian.Uint16(f.payload))):
		return f, fmt.Errorf("a close code from the server that must not be sent: %v", f)
	}
	return f, nil
}

// sendable reports whether a code may stand in a close frame (RFC 6455, 7.4, and IANA's registry).
func sendable(code int) bool {
	return code >= 1000 && code <= 1003 || code >= 1007 && code <= 1013 || code >= 3000 && code <= 4999
}

// want reads frames and fails the test unless they are these. A wanted frame that says so must have come compressed.
func (c *client) want(frames ...frame) {
	c.t.Helper()
	for _, want := range frames {
		got, err := c.read()
		if err != nil {
			c.t.Fatalf("read: %v, want %v", err, want)
		}
		if got.op != want.op || !bytes.Equal(got.payload, want.payload) {
			c.t.Fatalf("got = %v, want %v", got, want)
		}
		if want.rsv != 0 && got.rsv != want.rsv {
			c.t.Fatalf("reserved bits = %03b, want %03b", got.rsv, want.rsv)
		}
	}
}

// wantEnd reads the close frame and the end of the stream behind it, closes, and returns the reason. 1005 stands for a close frame
// without a code.
func (c *client) wantEnd(code int) (reason string) {
	c.t.Helper()
	f, err := c.read()
	if err != nil {
		c.t.Fatalf("read: %v, want a close frame with %d", err, code)
	}
	got := 1005
	if len(f.payload) >= 2 {
		got, reason = int(binary.BigEndian.Uint16(f.payload)), string(f.payload[2:])
	}
	if f.op != opClose || got != code {
		c.t.Fatalf("got = %v, want a close frame with %d", f, code)
	}
	if f, err := c.read(); err != io.EOF {
		c.t.Fatalf("behind the close frame came %v, %v, want EOF", f, err)
	}
	c.Close()
	return reason
}

// wantOpen checks that the connection still works, and closes it.
func (c *client) wantOpen() {
	c.t.Helper()
	c.write(text("still here?"))
	c.want(text("still here?"))
	c.write(goodbye(1000, "done"))
	c.wantEnd(1000)
}

// deflate compresses a message as RFC 7692, 7.2.1 says.
func deflate(p []byte, level int) []byte {
	var out bytes.Buffer
	w, err := flate.NewWriter(&out, level)
	if err != nil {
		panic(err)
	}
	w.Write(p)
	w.Flush()
	return bytes.TrimSuffix(out.Bytes(), []byte{0, 0, 0xff, 0xff})
}

// inflate is the reverse. What is no whole flushed stream is an error.
func inflate(p []byte) ([]byte, error) {
	whole := append(bytes.Clone(p), 0, 0, 0xff, 0xff, 1, 0, 0, 0xff, 0xff)
	return io.ReadAll(flate.NewReader(bytes.NewReader(whole)))
}
