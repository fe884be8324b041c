package upstream

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// posted is one request as it came over the wire.
type posted struct {
	line   string
	header []string // the lines, in order
	body   []byte
	size   int // of all in front of the body, in bytes
}

// values returns what the header is set to, once for each line.
func (p *posted) values(name string) []string {
	var values []string
	for _, line := range p.header {
		if key, value, _ := strings.Cut(line, ": "); strings.EqualFold(key, name) {
			values = append(values, value)
		}
	}
	return values
}

// value returns what the header is set to, or the empty string.
func (p *posted) value(name string) string { return strings.Join(p.values(name), " | ") }

// receive reads one request byte by byte as the wire has it, and understands no body but one with a Content-Length.
func receive(r *bufio.Reader) (*posted, error) {
	p := &posted{}
	length := 0
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return nil, err
		}
		p.size += len(line)
		trimmed, ok := strings.CutSuffix(line, "\r\n")
		switch {
		case !ok:
			return nil, fmt.Errorf("a line that doesn't end in CRLF: %q", line)
		case p.line == "":
			p.line = trimmed
			continue
		case trimmed != "":
			p.header = append(p.header, trimmed)
			continue
		}
		if text := p.value("Content-Length"); text != "" {
			if length, err = strconv.Atoi(text); err != nil {
				return nil, err
			}
		}
		p.body = make([]byte, length)
		_, err = io.ReadFull(r, p.body)
		return p, err
	}
}

// listen returns the URL of a backend that hands each of its connections to serve, until the test ends.
func listen(t testing.TB, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, l, serve)
	return "http://" + l.Addr().String()
}

func serveOn(t testing.TB, l net.Listener, serve func(net.Conn)) {
	var (
		all   sync.WaitGroup
		mu    sync.Mutex
		conns []net.Conn
	)
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, conn)
			mu.Unlock()
			all.Go(func() {
				defer conn.Close()
				serve(conn)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, conn := range conns {
			conn.Close()
		}
		mu.Unlock()
		all.Wait()
	})
}

// answering serves a connection with the same answer to every request.
func answering(answer string) func(net.Conn) {
	return func(conn net.Conn) {
		for r := bufio.NewReader(conn); ; {
			if _, err := receive(r); err != nil {
				return
			}
			if _, err := io.WriteString(conn, answer); err != nil {
				return
			}
		}
	}
}

const noContent = "HTTP/1.1 204 No Content\r\n\r\n"

// recorder returns the URL of a backend that takes every event, and the channel on which they come.
func recorder(t testing.TB) (string, <-chan *posted) {
	came := make(chan *posted, 16)
	return listen(t, func(conn net.Conn) {
		for r := bufio.NewReader(conn); ; {
			p, err := receive(r)
			if err != nil {
				return
			}
			came <- p
			if _, err := io.WriteString(conn, noContent); err != nil {
				return
			}
		}
	}), came
}

func parseURL(t testing.TB, text string) URL {
	t.Helper()
	var u URL
	if err := u.UnmarshalText([]byte(text)); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return u
}

// standard is the configuration that the defaults give.
func standard(t testing.TB, url string) Config {
	t.Helper()
	return Config{
		URL: parseURL(t, url), TextType: "text/plain; charset=utf-8",
		ForwardHeaders: []string{"Cookie", "Authorization", "Origin", "User-Agent", "Accept-Language"},
		Events:         Types{Connect, Message, Disconnect}, Timeout: 20 * time.Second, Retry: RetrySafe, RetryFor: 2 * time.Minute, MaxConcurrent: 16, MaxAnswer: 1 << 20,
	}
}

func newClient(t testing.TB, config Config) *Client {
	t.Helper()
	c, err := New(config, "node-1", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// clientFor returns a client of the backend at the URL, with the default settings.
func clientFor(t testing.TB, url string) *Client {
	t.Helper()
	return newClient(t, standard(t, url))
}

var noon = time.Date(2026, 5, 4, 12, 0, 0, 123456789, time.FixedZone("", 2*60*60))

// text returns a message event.
func text(body string) *Event {
	return &Event{
		Type: Message, ID: "conn1-17", Time: noon, ConnectionID: "conn1", Sequence: 2, Attempt: 1,
		Body:      Payload{Data: []byte(body)},
		Handshake: &Handshake{Path: "/ws", RequestHost: "chat.example.org"},
	}
}

// handshake parses the request as a server does.
func handshake(t testing.TB, lines ...string) *http.Request {
	t.Helper()
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(strings.Join(lines, "\r\n") + "\r\n\r\n")))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// response parses an answer as the client gets it.
func response(t testing.TB, status int, lines ...string) *head {
	t.Helper()
	head := fmt.Sprintf("HTTP/1.1 %d %s\r\n", status, http.StatusText(status))
	for _, line := range lines {
		head += line + "\r\n"
	}
	answer, err := http.ReadResponse(bufio.NewReader(strings.NewReader(head+"\r\n")), nil)
	if err != nil {
		t.Fatalf("%q: %v", head, err)
	}
	return newHead(answer)
}

func equalPayloads(a, b []Payload) bool {
	return slices.EqualFunc(a, b, func(a, b Payload) bool { return a.Binary == b.Binary && bytes.Equal(a.Data, b.Data) })
}

// show writes messages as a failure prints them.
func show(messages []Payload) string {
	var all []string
	for _, m := range messages {
		kind := "text"
		if m.Binary {
			kind = "binary"
		}
		all = append(all, fmt.Sprintf("%s %q", kind, m.Data))
	}
	return "[" + strings.Join(all, ", ") + "]"
}

// request returns the event as it would go on the wire, parsed.
func request(t testing.TB, c *Client, e *Event) *posted {
	t.Helper()
	wire := c.appendRequest(nil, e, time.Now())
	p, err := receive(bufio.NewReader(bytes.NewReader(wire)))
	if err != nil {
		t.Fatalf("%q: %v", wire, err)
	}
	return p
}
