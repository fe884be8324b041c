package bridge

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"
)

// plainHandshakes are what may come, and whether it is a plain handshake.
var plainHandshakes = []struct {
	text  string
	plain bool
}{
	{"GET /ws HTTP/1.1\r\nHost: localhost\r\n\r\n", true},
	{"GET / HTTP/1.1\r\nhost:a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\nCookie: a=b; c=\"d\"\r\nCookie: e\r\nX-Empty:\r\n\r\n", true},
	{"GET /ws?token=%41&x HTTP/1.1\r\nHost: [::1]:80\r\nOrigin: https://a\r\nConnection: keep-alive, Upgrade\r\n\r\n", true},
	{"GET //a/../%2e HTTP/1.1\r\nHost: a\r\n\r\n", true},
	{"GET /ws HTTP/1.1\r\nHost: a\r\n\r\n\x81\x80", false},
	{"GET /ws HTTP/1.1\r\nHost: a\r\n", false},
	{"GET /ws HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", false},
	{"GET /ws HTTP/1.1\r\nHost:\r\n\r\n", false},
	{"GET /ws HTTP/1.1\r\nHost: a b\r\n\r\n", false},
	{"GET /ws HTTP/1.1\r\nUpgrade: websocket\r\n\r\n", false},
	{"GET /ws HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", false},
	{"GET /ws HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", false},
	{"GET /ws HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n", false},
	{"GET /ws HTTP/1.1\r\nHost: a\r\n folded: x\r\n\r\n", false},
	{"GET /ws HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n", false},
	{"GET /ws HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n", false},
	{"GET /ws HTTP/1.1\r\nHost: a\r\nX: \xc3\xa4\r\n\r\n", false},
	{"GET /ws HTTP/1.1\nHost: a\n\r\n\r\n", false},
	{"GET /ws HTTP/1.0\r\nHost: a\r\n\r\n", false},
	{"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", false},
	{"GET ws HTTP/1.1\r\nHost: a\r\n\r\n", false},
	{"GET http://a/ws HTTP/1.1\r\nHost: a\r\n\r\n", false},
	{"POST /ws HTTP/1.1\r\nHost: a\r\n\r\n", false},
	{"", false},
}

func TestAPlainHandshakeIsReadAsNetHTTPReadsIt(t *testing.T) {
	for _, row := range plainHandshakes {
		if got := compareHandshake(t, []byte(row.text)); got != row.plain {
			t.Errorf("%q: plain = %t, want %t", row.text, got, row.plain)
		}
	}
}

// FuzzPlainHandshake looks for bytes that are read in another way than net/http's server reads them.
func FuzzPlainHandshake(f *testing.F) {
	for _, row := range plainHandshakes {
		f.Add([]byte(row.text))
	}
	f.Fuzz(func(t *testing.T, data []byte) { compareHandshake(t, data) })
}

// compareHandshake returns whether it is plain. Then net/http's server has to come to the same request.
func compareHandshake(t *testing.T, data []byte) bool {
	t.Helper()
	var h plainHandshake
	h.read([]byte("GET /before HTTP/1.1\r\nHost: before\r\nX-Before: x\r\nPragma: no-cache\r\n\r\n"))
	if !h.read(data) {
		return false
	}
	got := &h.request
	var want *http.Request
	ours, theirs := net.Pipe()
	over := make(chan struct{})
	server := &http.Server{ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { want = r })}
	server.SetKeepAlivesEnabled(false)
	server.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateClosed {
			close(over)
		}
	}
	server.Serve(&single{conn: theirs})
	go ours.Write(data)
	answer, err := io.ReadAll(ours)
	ours.Close()
	<-over
	if want == nil {
		t.Fatalf("%q is read, and net/http answers %q, %v", data, answer, err)
	}
	if got.Method != want.Method || got.RequestURI != want.RequestURI || got.Host != want.Host || got.Proto != want.Proto || got.ContentLength != want.ContentLength || got.Body != http.NoBody {
		t.Errorf("%q is %s %s at %q, %d bytes, and net/http reads %s %s at %q, %d bytes", data, got.Method, got.RequestURI, got.Host, got.ContentLength, want.Method, want.RequestURI, want.Host, want.ContentLength)
	}
	if !reflect.DeepEqual(got.Header, want.Header) || !reflect.DeepEqual(got.URL, want.URL) {
		t.Errorf("%q is %v %v, and net/http reads %v %v", data, got.URL, got.Header, want.URL, want.Header)
	}
	return true
}

// door is a bridge whose clients come in over the given server, or net/http's alone.
func door(t *testing.T, plain bool) (address string) {
	t.Helper()
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/refused":
			w.WriteHeader(403)
			io.WriteString(w, "<p>not you")
		case "/typed":
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("WWW-Authenticate", "Basic")
			w.WriteHeader(401)
			io.WriteString(w, "{}")
		case "/empty":
			w.WriteHeader(404)
		default:
			io.WriteString(w, "welcome")
		}
	}))
	b, client := newModest(t, modest, backend.URL, "connect")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener = Unpolled(listener)
	server := &http.Server{Handler: b, MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)}
	server.SetKeepAlivesEnabled(false)
	clients := b.Clients(server)
	if plain {
		go clients.Serve(listener)
	} else {
		go server.Serve(listener)
	}
	t.Cleanup(func() {
		listener.Close()
		b.Drain(clientsPatience, false)
		clients.Close()
		client.Close()
		backend.Close()
	})
	return listener.Addr().String()
}

// clientsPatience is how long a test waits for what has to come.
const clientsPatience = 20 * time.Second

func TestAClientIsAnsweredTheSameOnBothWays(t *testing.T) {
	const upgrade = "Host: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
	ours, theirs := door(t, true), door(t, false)
	for _, request := range []string{
		"GET /ws HTTP/1.1\r\n" + upgrade + "\r\n",
		"GET /ws HTTP/1.1\r\n" + upgrade + "\r\n\x88\x80\x00\x00\x00\x00", // a close frame behind it
		"GET /ws HTTP/1.1\r\n" + upgrade + "X-Long: " + strings.Repeat("x", 6000) + "\r\n\r\n",
		"GET /ws HTTP/1.1\r\n" + upgrade + "X-Too-Long: " + strings.Repeat("x", 60000) + "\r\n\r\n",
		"GET /refused HTTP/1.1\r\n" + upgrade + "\r\n",
		"GET /typed HTTP/1.1\r\n" + upgrade + "\r\n",
		"GET /empty HTTP/1.1\r\n" + upgrade + "\r\n",
		"GET /ws HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET /ws HTTP/1.1\r\nHost: a\r\nOrigin: https://b\r\n" + strings.TrimPrefix(upgrade, "Host: a\r\n") + "\r\n",
		"GET /ws HTTP/1.1\r\n\r\n",
		"GET /ws HTTP/1.0\r\n" + upgrade + "\r\n",
		"GET /%zz HTTP/1.1\r\n" + upgrade + "\r\n",
		"GET /ws\r\n\r\n",
		"POST /ws HTTP/1.1\r\n" + upgrade + "Content-Length: 2\r\n\r\nhi",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03", // TLS where none is spoken
	} {
		for _, cut := range []int{0, 3, len(request) / 2} {
			got, want := asked(t, ours, request, cut), asked(t, theirs, request, cut)
			if got != want {
				t.Errorf("%.60q, in two pieces at %d: answered\n%s\nwant\n%s", request, cut, got, want)
			}
		}
	}
}

// asked returns the answer to a request that comes in two pieces, and what follows an upgrade, without the date.
func asked(t *testing.T, address, request string, cut int) string {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(clientsPatience))
	if cut > 0 {
		io.WriteString(c, request[:cut])
		time.Sleep(5 * time.Millisecond) // whether it is read in two pieces or not, the answer is the same
	}
	io.WriteString(c, request[cut:])
	if !strings.Contains(request, "\r\n\r\n") {
		c.(*net.TCPConn).CloseWrite() // or more would be waited for
	}
	in := bufio.NewReader(c)
	response, err := http.ReadResponse(in, nil)
	if err != nil {
		return fmt.Sprintf("no answer: %t", err == io.EOF || err == io.ErrUnexpectedEOF)
	}
	response.Header.Del("Date")
	if response.StatusCode == http.StatusSwitchingProtocols {
		frame := make([]byte, 9)
		_, err := io.ReadFull(in, frame)
		return fmt.Sprintf("%s %s %q %v", response.Status, text(response.Header), frame, err)
	}
	body, err := io.ReadAll(response.Body)
	left, gone := in.ReadByte()
	return fmt.Sprintf("%s %s close = %t, length = %d %q %v; then %q, %v", response.Status, text(response.Header), response.Close, response.ContentLength, body, err, left, gone)
}

// A handshake has its time once, also where net/http goes on with it and would grant it its own.
func TestAClientHasTheHandshakesTimeOnce(t *testing.T) {
	b := &Bridge{config: Config{HandshakeTimeout: 100 * time.Millisecond}}
	clients := b.Clients(&http.Server{Handler: b, ReadTimeout: time.Hour, MaxHeaderBytes: 64 << 10})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener = Unpolled(listener)
	go clients.Serve(listener)
	defer clients.Close()
	defer listener.Close()
	for what, said := range map[string]string{"nothing": "", "half a line": "GET /ws HT", "more than is read here": "GET /ws HTTP/1.1\r\nX: " + strings.Repeat("x", 5000), "another method": "POST /ws HT"} {
		c, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, said)
		c.SetReadDeadline(time.Now().Add(clientsPatience))
		if answer, err := io.ReadAll(c); err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a client that says %s: %q, %v, want the end", what, answer, err)
		}
	}
}

func TestAClientThatSaysNothingIsClosedAtTheEnd(t *testing.T) {
	b := &Bridge{config: Config{HandshakeTimeout: time.Hour}}
	states := make(chan http.ConnState, 10)
	clients := b.Clients(&http.Server{Handler: b, ConnState: func(_ net.Conn, state http.ConnState) { states <- state }})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener = Unpolled(listener)
	served := make(chan error, 1)
	go func() { served <- clients.Serve(listener) }()
	for _, said := range []string{"", "GET /ws HT"} {
		c, err := new(net.Dialer).DialContext(context.Background(), "tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, said)
		if state := <-states; state != http.StateNew {
			t.Fatalf("state = %v, want new", state)
		}
	}
	listener.Close()
	if err := <-served; err == nil {
		t.Error("Serve returns no error")
	}
	clients.Close()
	closed := 0
	for end := time.After(clientsPatience); closed < 2; {
		select {
		case state := <-states:
			if state == http.StateClosed {
				closed++
			}
		case <-end:
			t.Fatalf("%d of 2 connections are closed", closed)
		}
	}
}
