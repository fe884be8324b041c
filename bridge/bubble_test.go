package bridge

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"wsbridge/ratelimit"
	"wsbridge/upstream"
)

// bubble is a bridge with its backend and its clients inside one synctest bubble: real servers and gorilla's real client over
// in-memory connections, in fake time.
type bubble struct {
	*Bridge
	t       *testing.T
	push    http.Handler
	clients *memoryListener

	mu     sync.Mutex
	events []event
}

// event is what the backend was sent, with when it came.
type event struct {
	kind, id, body string
	header         http.Header
	at             time.Time
}

// world is what a test may set before its bubble starts.
type world struct {
	config  Config
	rates   ratelimit.Config
	backend upstream.Config
	answer  http.HandlerFunc // the backend; nil: it echoes
	log     *slog.Logger
}

func inBubble(t *testing.T, prepare func(*world), test func(b *bubble)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := world{
			config: Config{
				Paths: []Path{"/*"}, TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, MaxConnections: 1000,
				HandshakeTimeout: 10 * time.Second, MaxMessage: 64 << 10, Compression: "off", PingInterval: 25 * time.Second, PongTimeout: 20 * time.Second,
				SendBuffer: 256 << 10, SlowClient: SlowClose, WriteTimeout: 10 * time.Second, PushMaxBody: 1 << 20,
				GoodbyeFor: time.Hour, GoodbyeMax: 100_000, GoodbyeBytes: 64 << 20,
			},
			rates: ratelimit.Config{Policy: ratelimit.Wait},
			backend: upstream.Config{
				TextType: "text/plain; charset=utf-8", ForwardHeaders: []string{"Cookie", "Authorization"}, Events: upstream.Types{"connect", "message", "disconnect"},
				Timeout: 30 * time.Second, Retry: upstream.RetrySafe, RetryFor: 2 * time.Minute, MaxConcurrent: 16, MaxAnswer: 1 << 20,
			},
			answer: echo, log: slog.New(slog.DiscardHandler),
		}
		if err := w.backend.URL.UnmarshalText([]byte("http://backend/events")); err != nil {
			t.Fatal(err)
		}
		if prepare != nil {
			prepare(&w)
		}
		b := &bubble{t: t, clients: newMemoryListener()}
		backends := newMemoryListener()
		client, err := upstream.New(w.backend, "test", nil, func(context.Context) (net.Conn, error) { return backends.dial(1 << 20) })
		if err != nil {
			t.Fatal(err)
		}
		if b.Bridge, err = New(w.config, w.rates, client, w.log, nil, nil); err != nil {
			t.Fatal(err)
		}
		b.push = b.Bridge.Push(http.NotFoundHandler(), http.NotFoundHandler())
		b.Serving()
		backend := &http.Server{Handler: b.record(w.answer)}
		server := &http.Server{Handler: b.Bridge}
		server.SetKeepAlivesEnabled(false)
		var servers sync.WaitGroup
		servers.Go(func() { backend.Serve(backends) })
		servers.Go(func() { server.Serve(b.clients) })
		test(b)
		b.Drain(time.Minute, false)
		server.Close()
		client.Close()
		backend.Shutdown(context.Background()) // waits for handlers that still sleep
		servers.Wait()
	})
}

// echo answers a message with itself and everything else with nothing.
func echo(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("ce-type") == "wsbridge.message" {
		w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
		w.Header().Set("Ws-Messages", "one")
		io.Copy(w, r.Body)
	}
}

// on answers messages with the handler, accepts connects and takes disconnects.
func on(message http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("ce-type") == "wsbridge.message" {
			message(w, r)
		}
	}
}

func (b *bubble) record(next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		b.mu.Lock()
		b.events = append(b.events, event{strings.TrimPrefix(r.Header.Get("ce-type"), "wsbridge."), r.Header.Get("ce-id"), string(body), r.Header, time.Now()})
		b.mu.Unlock()
		r.Body = io.NopCloser(strings.NewReader(string(body)))
		next(w, r)
	})
}

// seen returns the events that the backend was sent of these kinds, once everything has come to rest.
func (b *bubble) seen(kinds string) []event {
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	var found []event
	for _, e := range b.events {
		if slices.Contains(strings.Fields(kinds), e.kind) {
			found = append(found, e)
		}
	}
	return found
}

// dial connects a client and fails the test when it is refused.
func (b *bubble) dial(options ...func(*websocket.Dialer, http.Header)) *websocket.Conn {
	b.t.Helper()
	c, answer, err := b.tryDial(options...)
	if err != nil {
		b.t.Fatalf("dial: %v (%v)", err, answer)
	}
	return c
}

func (b *bubble) tryDial(options ...func(*websocket.Dialer, http.Header)) (*websocket.Conn, *http.Response, error) {
	dialer := &websocket.Dialer{NetDialContext: func(context.Context, string, string) (net.Conn, error) { return b.clients.dial(64 << 10) }}
	header := http.Header{}
	for _, option := range options {
		option(dialer, header)
	}
	return dialer.Dial("ws://host/ws", header)
}

// buffered makes the client's connection hold so many bytes each way.
func (b *bubble) buffered(bytes int) func(*websocket.Dialer, http.Header) {
	return func(d *websocket.Dialer, _ http.Header) {
		d.NetDialContext = func(context.Context, string, string) (net.Conn, error) { return b.clients.dial(bytes) }
	}
}

// id is the id of the only connection.
func (b *bubble) id() string {
	b.t.Helper()
	connects := b.seen("connect")
	if len(connects) == 0 {
		b.t.Fatal("the backend has seen no connect event")
	}
	return connects[len(connects)-1].header.Get("ce-connectionid")
}

// call sends a request to the push side.
func (b *bubble) call(method, target, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r.Host = "localhost"
	w := httptest.NewRecorder()
	b.push.ServeHTTP(w, r)
	return w
}

// closing reads until the connection's end and returns the close code (-1 where there was none), and the messages before it.
func closing(c *websocket.Conn) (code int, messages []string) {
	for {
		_, data, err := c.ReadMessage()
		if err == nil {
			messages = append(messages, string(data))
			continue
		}
		if closed, ok := err.(*websocket.CloseError); ok && closed.Code != websocket.CloseAbnormalClosure {
			c.Close()
			return closed.Code, messages
		}
		c.Close()
		return -1, messages
	}
}

func send(t *testing.T, c *websocket.Conn, text string) {
	t.Helper()
	if err := c.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
		t.Fatalf("send %q: %v", text, err)
	}
}

func receive(t *testing.T, c *websocket.Conn) string {
	t.Helper()
	_, data, err := c.ReadMessage()
	if err != nil {
		t.Fatalf("receive: %v", err)
	}
	return string(data)
}
