package upstream

import (
	"bytes"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// exchange posts the event to a raw socket and returns what came.
func exchange(t *testing.T, edit func(*Config), event func(*Client) *Event) *posted {
	t.Helper()
	url, came := recorder(t)
	config := standard(t, url)
	if edit != nil {
		edit(&config)
	}
	c := newClient(t, config)
	if r := c.Post(t.Context(), event(c)); r.Outcome != Accepted {
		t.Fatalf("outcome = %s, %v, want accepted", r.Outcome, r.Err)
	}
	return <-came
}

// wantHeader reports where the request's headers are not exactly these lines, in whatever order.
func wantHeader(t *testing.T, p *posted, lines ...string) {
	t.Helper()
	got := slices.Sorted(slices.Values(p.header))
	slices.Sort(lines)
	if !slices.Equal(got, lines) {
		t.Errorf("header = \n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(lines, "\n\t"))
	}
}

// visitor is the handshake of a browser behind a proxy, as the client side hands it over.
func visitor(t *testing.T, c *Client) *Handshake {
	h := c.Handshake(handshake(t,
		"GET /ws/7?x=%20y HTTP/1.1",
		"Host: chat.example.org:8443",
		"Connection: keep-alive, Upgrade",
		"Upgrade: websocket",
		"Sec-WebSocket-Version: 13",
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
		"Sec-WebSocket-Extensions: permessage-deflate",
		"Sec-WebSocket-Protocol: chat, chat.v2",
		"Accept-Encoding: gzip, deflate, br",
		"Accept-Language: de,en;q=0.7",
		"Cookie: session=abc; theme=\"dark\"",
		"Authorization: Bearer tok,en",
		"Origin: https://chat.example.org",
		"User-Agent: Browser/1.0",
		"X-Custom: stays here",
	))
	h.ForwardedFor, h.Proto, h.Host, h.Address = "192.0.2.1, 10.0.0.1", "https", "chat.example.org", "192.0.2.1"
	return h
}

func TestAConnectEventIsWhatTheTableSays(t *testing.T) {
	p := exchange(t, nil, func(c *Client) *Event {
		return &Event{
			Type: Connect, ID: "conn1-0", Time: noon, ConnectionID: "conn1", Sequence: 1, Attempt: 1,
			Subprotocols: []string{"chat", "chat.v2"}, Handshake: visitor(t, c),
		}
	})
	if p.line != "POST /ws/7?x=%20y HTTP/1.1" {
		t.Errorf("request line = %q", p.line)
	}
	wantHeader(t, p,
		"Host: chat.example.org:8443",
		"Content-Length: 0",
		"Accept-Encoding: identity", "Connection: keep-alive",
		"ce-specversion: 1.0",
		"ce-type: wsbridge.connect",
		"ce-source: /wsbridge/node-1",
		"ce-id: conn1-0",
		"ce-time: 2026-05-04T10:00:00.123456789Z",
		"ce-connectionid: conn1",
		"ce-sequence: 1",
		"ce-attempt: 1",
		"ce-subprotocols: chat,chat.v2",
		"X-Forwarded-For: 192.0.2.1, 10.0.0.1",
		"X-Forwarded-Proto: https",
		"X-Forwarded-Host: chat.example.org",
		"X-Real-IP: 192.0.2.1",
		"Accept-Language: de,en;q=0.7",
		"Cookie: session=abc; theme=\"dark\"",
		"Authorization: Bearer tok,en",
		"Origin: https://chat.example.org",
		"User-Agent: Browser/1.0",
	)
}

func TestAMessageEventIsWhatTheTableSays(t *testing.T) {
	p := exchange(t, nil, func(c *Client) *Event {
		e := text("\x00grüß\r\n")
		e.Attempt, e.Sequence = 3, 1<<63
		e.UserID, e.State, e.Subprotocol = "42", "step=2;x", "chat.v2"
		e.Handshake = visitor(t, c)
		return e
	})
	wantHeader(t, p,
		"Host: chat.example.org:8443",
		"Content-Length: 9",
		"Content-Type: text/plain; charset=utf-8",
		"Accept-Encoding: identity", "Connection: keep-alive",
		"ce-specversion: 1.0",
		"ce-type: wsbridge.message",
		"ce-source: /wsbridge/node-1",
		"ce-id: conn1-17",
		"ce-time: 2026-05-04T10:00:00.123456789Z",
		"ce-connectionid: conn1",
		"ce-sequence: 9223372036854775808",
		"ce-attempt: 3",
		"ce-userid: 42",
		"ce-state: step=2;x",
		"ce-subprotocol: chat.v2",
		"X-Forwarded-For: 192.0.2.1, 10.0.0.1",
		"X-Forwarded-Proto: https",
		"X-Forwarded-Host: chat.example.org",
		"X-Real-IP: 192.0.2.1",
		"Accept-Language: de,en;q=0.7",
		"Cookie: session=abc; theme=\"dark\"",
		"Authorization: Bearer tok,en",
		"Origin: https://chat.example.org",
		"User-Agent: Browser/1.0",
	)
	if string(p.body) != "\x00grüß\r\n" {
		t.Errorf("body = %q", p.body)
	}
}

func TestADisconnectEventIsWhatTheTableSays(t *testing.T) {
	p := exchange(t, nil, func(*Client) *Event {
		e := text("")
		e.Type, e.ID, e.Sequence = Disconnect, "conn1-18", 3
		e.Goodbye = &Goodbye{Code: 1001, Reason: "shutting down", By: "bridge", Seconds: 2.5, MessagesIn: 1}
		e.UserID = "42"
		return e
	})
	wantHeader(t, p,
		"Host: chat.example.org",
		"Content-Length: 126",
		"Content-Type: application/json",
		"Accept-Encoding: identity", "Connection: keep-alive",
		"ce-specversion: 1.0",
		"ce-type: wsbridge.disconnect",
		"ce-source: /wsbridge/node-1",
		"ce-id: conn1-18",
		"ce-time: 2026-05-04T10:00:00.123456789Z",
		"ce-connectionid: conn1",
		"ce-sequence: 3",
		"ce-attempt: 1",
		"ce-userid: 42",
	)
	want := `{"code":1001,"reason":"shutting down","by":"bridge","seconds":2.5,"messages_in":1,"messages_out":0,"bytes_in":0,"bytes_out":0}`
	if string(p.body) != want {
		t.Errorf("body = %s, want %s", p.body, want)
	}
}

// Several frameworks lose a chunked body without a word, and others refuse a POST without a length.
func TestEveryBodyHasItsLengthAndIsTheMessageByteForByte(t *testing.T) {
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	rows := []struct {
		name        string
		body        Payload
		contentType string
	}{
		{"an empty text", Payload{}, "text/plain; charset=utf-8"},
		{"an empty binary", Payload{Binary: true, Data: []byte{}}, "application/octet-stream"},
		{"one byte", Payload{Data: []byte("x")}, "text/plain; charset=utf-8"},
		{"every byte", Payload{Binary: true, Data: every}, "application/octet-stream"},
		{"a large one", Payload{Data: bytes.Repeat([]byte("0123456789abcdef"), 1<<16)}, "text/plain; charset=utf-8"},
	}
	for _, row := range rows {
		p := exchange(t, nil, func(*Client) *Event {
			e := text("")
			e.Body = row.body
			return e
		})
		if !bytes.Equal(p.body, row.body.Data) {
			t.Errorf("%s: body of %d bytes is not the message of %d", row.name, len(p.body), len(row.body.Data))
		}
		if got := p.values("Content-Length"); len(got) != 1 {
			t.Errorf("%s: Content-Length = %q, want one", row.name, got)
		}
		if got := p.values("Transfer-Encoding"); got != nil {
			t.Errorf("%s: Transfer-Encoding = %q", row.name, got)
		}
		if got := p.value("Content-Type"); got != row.contentType {
			t.Errorf("%s: Content-Type = %q, want %q", row.name, got, row.contentType)
		}
	}
}

func TestTheTypeOfTextIsASetting(t *testing.T) {
	for _, binary := range []bool{false, true} {
		p := exchange(t, func(c *Config) { c.TextType = "application/json" }, func(*Client) *Event {
			e := text("{}")
			e.Body.Binary = binary
			return e
		})
		want := "application/json"
		if binary {
			want = "application/octet-stream"
		}
		if got := p.value("Content-Type"); got != want {
			t.Errorf("binary = %v: Content-Type = %q, want %q", binary, got, want)
		}
	}
}

func TestTheHostIsTheClientsUnlessItIsSet(t *testing.T) {
	rows := []struct{ setting, client, want string }{
		{"", "chat.example.org", "chat.example.org"},
		{"", "chat.example.org:8443", "chat.example.org:8443"},
		{"", "[2001:db8::1]:80", "[2001:db8::1]:80"},
		{"app.internal", "chat.example.org", "app.internal"},
		{"app.internal:81", "", "app.internal:81"},
	}
	for _, row := range rows {
		p := exchange(t, func(c *Config) { c.Host = row.setting }, func(*Client) *Event {
			e := text("x")
			e.Handshake.RequestHost = row.client
			return e
		})
		if got := p.value("Host"); got != row.want {
			t.Errorf("setting %q, client %q: Host = %q, want %q", row.setting, row.client, got, row.want)
		}
		if !strings.HasPrefix(p.header[0], "Host: ") {
			t.Errorf("first header = %q", p.header[0])
		}
	}
	var backend string
	p := exchange(t, func(c *Config) { backend = c.URL.host }, func(*Client) *Event {
		e := text("x")
		e.Handshake.RequestHost = ""
		return e
	})
	if got := p.value("Host"); got != backend {
		t.Errorf("without a client's: Host = %q, want the URL's %q", got, backend)
	}
}

func TestWhatTheClientHasNotSentIsNotMadeUp(t *testing.T) {
	p := exchange(t, nil, func(c *Client) *Event {
		e := text("x")
		e.Handshake = c.Handshake(handshake(t, "GET /ws HTTP/1.1", "Host: chat.example.org"))
		return e
	})
	wantHeader(t, p,
		"Host: chat.example.org", "Content-Length: 1", "Content-Type: text/plain; charset=utf-8", "Accept-Encoding: identity", "Connection: keep-alive",
		"ce-specversion: 1.0", "ce-type: wsbridge.message", "ce-source: /wsbridge/node-1", "ce-id: conn1-17",
		"ce-time: 2026-05-04T10:00:00.123456789Z", "ce-connectionid: conn1", "ce-sequence: 2", "ce-attempt: 1",
	)
}

// ours are the headers of the contract's table, and those that belong to one hop or to the handshake.
var ours = []string{
	"ce-specversion", "ce-type", "ce-source", "ce-id", "ce-time", "ce-connectionid", "ce-sequence", "ce-attempt", "ce-userid", "ce-state",
	"ce-subprotocol", "ce-subprotocols", "ce-other", "webhook-id", "webhook-timestamp", "webhook-signature", "traceparent", "tracestate",
	"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Server", "X-Forwarded-User", "X-Real-IP", "Forwarded",
	"Content-Type", "Accept-Encoding", "Expect", "Keep-Alive", "Proxy-Connection", "Proxy-Authorization", "Proxy-Authenticate", "TE", "Trailer",
	"Upgrade", "Sec-WebSocket-Key", "Sec-WebSocket-Version", "Sec-WebSocket-Extensions", "Sec-WebSocket-Protocol", "Sec-WebSocket-Accept",
	"Idempotency-Key", "Ws-User", "Ws-Close",
}

func TestAClientForgesNothing(t *testing.T) {
	lines := []string{"GET /ws HTTP/1.1", "Host: chat.example.org", "Connection: Upgrade"}
	for _, name := range ours {
		lines = append(lines, name+": forged", strings.ToUpper(name)+": forged")
	}
	r := handshake(t, lines...)
	for _, kind := range []Type{Connect, Message, Disconnect} {
		p := exchange(t, nil, func(c *Client) *Event {
			e := text("")
			e.Type, e.Goodbye = kind, &Goodbye{}
			e.Handshake = c.Handshake(r)
			return e
		})
		for _, line := range p.header {
			if strings.Contains(line, "forged") {
				t.Errorf("%s: %s", kind, line)
			}
		}
		for _, name := range []string{"ce-id", "ce-type", "ce-source", "ce-connectionid", "ce-sequence", "ce-attempt", "ce-time", "ce-specversion"} {
			if got := p.values(name); len(got) != 1 {
				t.Errorf("%s: %s = %q, want one", kind, name, got)
			}
		}
		if got := p.value("Connection"); got != "keep-alive" {
			t.Errorf("%s: Connection = %q, want ours", kind, got)
		}
	}
}

func TestWhatConnectionNamesIsForOneHop(t *testing.T) {
	c := &Client{forward: []string{"Authorization", "Origin", "User-Agent", "Cookie"}}
	h := c.Handshake(handshake(t, "GET /ws HTTP/1.1", "Host: a", "Connection: Upgrade, authorization", "Connection: origin , cookie", "Authorization: x", "Origin: y", "User-Agent: z", "Cookie: a=b"))
	if !slices.Equal(h.Header, []Field{{"User-Agent", "z"}}) || h.Cookie != "" {
		t.Errorf("header = %v, cookie = %q, want the User-Agent alone", h.Header, h.Cookie)
	}
}

func TestTheForwardedHeadersAreASetting(t *testing.T) {
	lines := []string{"GET /ws HTTP/1.1", "Host: a", "X-Api-Key: k1", "X-Api-Key: k2", "Cookie: a=b", "Cookie: c=d", "Origin: https://a", "User-Agent: z", "X-Empty:"}
	p := exchange(t, func(c *Config) {
		c.ForwardHeaders = []string{" x-api-KEY ", "cookie", "X-Empty", "X-Missing", "X-Api-Key"}
	}, func(c *Client) *Event {
		e := text("x")
		e.Handshake = c.Handshake(handshake(t, lines...))
		return e
	})
	rows := []struct{ name, want string }{
		{"X-Api-Key", "k1 | k2"},
		{"Cookie", "a=b; c=d"}, // one header: RFC 6265, 5.4
		{"Origin", ""},
		{"User-Agent", ""},
		{"X-Missing", ""},
	}
	for _, row := range rows {
		if got := p.value(row.name); got != row.want {
			t.Errorf("%s = %q, want %q", row.name, got, row.want)
		}
	}
	p = exchange(t, func(c *Config) { c.ForwardHeaders = nil }, func(c *Client) *Event {
		e := text("x")
		e.Handshake = c.Handshake(handshake(t, lines...))
		return e
	})
	for _, row := range rows {
		if got := p.value(row.name); got != "" {
			t.Errorf("without a list: %s = %q", row.name, got)
		}
	}
}

func TestTheHandshakeKeepsThePathAsItCame(t *testing.T) {
	rows := []struct{ target, path, query string }{
		{"/ws/7?x=1", "/ws/7", "x=1"},
		{"/ws", "/ws", ""},
		{"/ws?", "/ws", ""},
		{"/a%20b/%c3%a9/%7E?q=%20", "/a%20b/%c3%a9/%7E", "q=%20"},
		{"/caf\xc3\xa9|\"<>?\"", "/caf\xc3\xa9|\"<>", "\""},
		{"/a?b?c=/d", "/a", "b?c=/d"},
		{"http://other.example.org/ws?x=1", "/ws", "x=1"},
	}
	for _, row := range rows {
		h := (&Client{}).Handshake(handshake(t, "GET "+row.target+" HTTP/1.1", "Host: a"))
		if h.Path != row.path || h.Query != row.query {
			t.Errorf("%q: got = %q, %q, want %q, %q", row.target, h.Path, h.Query, row.path, row.query)
		}
	}
}

func TestTheHandshakeSharesNothingWithTheRequest(t *testing.T) {
	r := handshake(t, "GET /ws HTTP/1.1", "Host: a", "Origin: https://a")
	h := (&Client{forward: []string{"Origin"}}).Handshake(r)
	r.Header["Origin"][0] = "changed"
	if want := []Field{{"Origin", "https://a"}}; !slices.Equal(h.Header, want) {
		t.Errorf("header = %v, want %v", h.Header, want)
	}
}

func TestAnEventLeavesTheHandshakeAsItIs(t *testing.T) {
	c := &Client{}
	e := text("x")
	e.Handshake.Cookie = "a=b"
	e.Handshake.Header = []Field{{"Origin", "https://a"}}
	first := request(t, c, e)
	e.Handshake.Cookie = ""
	second := request(t, c, e)
	if len(e.Handshake.Header) != 1 {
		t.Errorf("the handshake's header = %v", e.Handshake.Header)
	}
	if first.value("Cookie") != "a=b" || second.values("Cookie") != nil {
		t.Errorf("cookies = %q and %q, want a=b and none", first.values("Cookie"), second.values("Cookie"))
	}
}

// uWSGI takes 3.8 KB of headers in all, gunicorn and Tomcat about 95 of them. A kilobyte of that is the cookie, and room is left for a
// signature and a trace.
func TestTheHeadersStayLean(t *testing.T) {
	const signed = len("webhook-id: \r\nwebhook-timestamp: 1790000000\r\nwebhook-signature: v1,\r\ntraceparent: \r\n") + 64 + 2*48 + 55
	p := exchange(t, nil, func(c *Client) *Event {
		e := text("hello")
		e.ConnectionID = strings.Repeat("c", 36)
		e.ID = e.ConnectionID + "-123456789012"
		e.UserID, e.State, e.Subprotocol = "user-0123456789", strings.Repeat("s", 100), "graphql-transport-ws"
		e.Handshake = c.Handshake(handshake(t,
			"GET /ws/rooms/5f2b8c1e?token="+strings.Repeat("t", 64)+" HTTP/1.1",
			"Host: chat.example.org",
			"Connection: Upgrade",
			"Pragma: no-cache",
			"Cache-Control: no-cache",
			"User-Agent: Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36",
			"Upgrade: websocket",
			"Origin: https://chat.example.org",
			"Sec-WebSocket-Version: 13",
			"Accept-Encoding: gzip, deflate, br, zstd",
			"Accept-Language: de-DE,de;q=0.9,en-US;q=0.8,en;q=0.7",
			"Cookie: session="+strings.Repeat("x", 1024-len("session=")),
			"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
			"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
		))
		e.Handshake.ForwardedFor, e.Handshake.Proto, e.Handshake.Host, e.Handshake.Address = "2001:db8:85a3::8a2e:370:7334", "https", "chat.example.org", "2001:db8:85a3::8a2e:370:7334"
		return e
	})
	t.Logf("%d bytes in %d headers", p.size, len(p.header))
	if got := p.size + signed; got >= 3800 {
		t.Errorf("headers of %d bytes with a signature and a trace, want less than 3800", got)
	}
	if len(p.header) > 40 {
		t.Errorf("%d headers, want at most 40", len(p.header))
	}
}

func TestAnotherSubprotocolThanOfferedIsInvalid(t *testing.T) {
	rows := []struct {
		name    string
		offered []string
		lines   []string
		want    string // of the 101; "invalid": none
	}{
		{"none", []string{"chat"}, nil, ""},
		{"the first", []string{"chat", "chat.v2"}, []string{"Sec-WebSocket-Protocol: chat"}, "chat"},
		{"the second", []string{"chat", "chat.v2"}, []string{"sec-websocket-protocol: chat.v2"}, "chat.v2"},
		{"one in another case", []string{"chat"}, []string{"Sec-WebSocket-Protocol: Chat"}, "invalid"},
		{"one that is not there", []string{"chat"}, []string{"Sec-WebSocket-Protocol: mqtt"}, "invalid"},
		{"one where none is offered", nil, []string{"Sec-WebSocket-Protocol: chat"}, "invalid"},
		{"nothing", []string{"chat"}, []string{"Sec-WebSocket-Protocol:"}, "invalid"},
		{"a list", []string{"chat", "chat.v2"}, []string{"Sec-WebSocket-Protocol: chat, chat.v2"}, "invalid"},
		{"two", []string{"chat", "chat.v2"}, []string{"Sec-WebSocket-Protocol: chat", "Sec-WebSocket-Protocol: chat.v2"}, "invalid"},
	}
	for _, row := range rows {
		e := text("")
		e.Type, e.Subprotocols = Connect, row.offered
		r := (&Client{}).reply(e, response(t, 200, row.lines...), []byte("hello"), noon)
		if row.want == "invalid" {
			if r.Outcome != Invalid || r.Err == nil || r.Messages != nil {
				t.Errorf("%s: got = %s, %v, want invalid", row.name, r.Outcome, r.Err)
			}
		} else if r.Outcome != Accepted || r.Subprotocol != row.want {
			t.Errorf("%s: got = %s, %q, want accepted, %q", row.name, r.Outcome, r.Subprotocol, row.want)
		}
	}
	// On a message it means nothing.
	if r := (&Client{}).reply(text("x"), response(t, 200, "Sec-WebSocket-Protocol: mqtt"), nil, noon); r.Outcome != Accepted || r.Subprotocol != "" {
		t.Errorf("on a message: got = %s, %q, want accepted and none", r.Outcome, r.Subprotocol)
	}
}

func TestARefusedHandshakeShowsWhatIsForTheClient(t *testing.T) {
	lines := []string{
		"Content-Type: text/html", "Content-Language: de", "Content-Encoding: gzip", "Cache-Control: no-store", "Location: /login", "Retry-After: 7",
		"Set-Cookie: a=b", "Set-Cookie: c=d", "WWW-Authenticate: Basic realm=\"x\"",
		"Content-Length: 4", "Server: Apache", "X-Powered-By: PHP", "Connection: keep-alive", "Keep-Alive: timeout=5", "Ws-User: 42", "Ws-Close: nonsense",
		"Sec-WebSocket-Protocol: chat", "Upgrade: websocket", "Trailer: X", "Date: now",
	}
	safe := http.Header{
		"Content-Type": {"text/html"}, "Content-Language": {"de"}, "Content-Encoding": {"gzip"}, "Cache-Control": {"no-store"}, "Location": {"/login"},
		"Retry-After": {"7"}, "Set-Cookie": {"a=b", "c=d"}, "Www-Authenticate": {`Basic realm="x"`},
	}
	for _, status := range []int{300, 301, 302, 307, 400, 401, 403, 404, 408, 410, 419, 422, 425, 429, 451, 499, 500, 502, 503, 504, 599} {
		e := text("")
		e.Type = Connect
		r := (&Client{}).reply(e, response(t, status, lines...), []byte("body"), noon)
		header, body := safe, "body"
		if status >= 500 {
			header, body = http.Header{"Retry-After": {"7"}}, ""
		}
		if !equalHeader(r.Header, header) || string(r.Body) != body {
			t.Errorf("%d: got = %v, %q, want %v, %q", status, r.Header, r.Body, header, body)
		}
		if r.Status != status || r.Err == nil || r.User != nil || r.Close != nil || r.Messages != nil || r.SetCookie != nil || r.Subprotocol != "" {
			t.Errorf("%d: got = %+v", status, r)
		}
	}
}

func equalHeader(a, b http.Header) bool {
	if len(a) != len(b) {
		return false
	}
	for name := range a {
		if !slices.Equal(a[name], b[name]) {
			return false
		}
	}
	return true
}

// The disconnect event is taken by its status alone: nobody is left whom the rest could concern.
func TestOfTheAnswerToADisconnectOnlyTheStatusCounts(t *testing.T) {
	rows := []struct {
		name, answer string
		want         Outcome
		status       int
	}{
		{"nothing", noContent, Accepted, 204},
		{"a body", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", Accepted, 200},
		{"a bad header", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nWs-User: a b\r\n\r\n", Accepted, 200},
		{"a close", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nWs-Close: 7\r\n\r\n", Accepted, 200},
		{"an encoding", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Encoding: gzip\r\n\r\nxx", Accepted, 200},
		{"too much", "HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n01234567890123456789", Accepted, 200},
		{"too little", "HTTP/1.1 200 OK\r\nContent-Length: 20\r\nConnection: close\r\n\r\n0", Accepted, 200},
		{"a bad header on a refusal", "HTTP/1.1 410 Gone\r\nContent-Length: 0\r\nWs-Close: 7\r\n\r\n", Gone, 410},
		{"a refusal", "HTTP/1.1 422 No\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nno", Refused, 422},
		{"a failure", "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", Failed, 500},
		{"not now", "HTTP/1.1 503 No\r\nRetry-After: 9\r\nContent-Length: 0\r\n\r\n", Later, 503},
	}
	for _, row := range rows {
		config := standard(t, listen(t, func(conn net.Conn) {
			answering(row.answer)(oneShot{conn, strings.Contains(row.answer, "Connection: close")})
		}))
		config.MaxAnswer = 10
		e := text("")
		e.Type, e.Goodbye = Disconnect, &Goodbye{Code: 1000}
		r := newClient(t, config).Post(t.Context(), e)
		if r.Outcome != row.want || r.Status != row.status || (r.Err == nil) != (row.want == Accepted) {
			t.Errorf("%s: got = %s, %d, %v, want %s, %d", row.name, r.Outcome, r.Status, r.Err, row.want, row.status)
		}
		if r.Messages != nil || r.User != nil || r.Close != nil {
			t.Errorf("%s: got = %+v", row.name, r)
		}
		if want := 9 * time.Second; row.want == Later && r.After != want {
			t.Errorf("%s: after = %s, want %s", row.name, r.After, want)
		}
	}
}

// oneShot is a connection that may end with its first answer.
type oneShot struct {
	net.Conn
	ends bool
}

func (o oneShot) Write(p []byte) (int, error) {
	n, err := o.Conn.Write(p)
	if o.ends {
		o.Conn.Close()
	}
	return n, err
}

func TestNoLineBreakGetsIntoAField(t *testing.T) {
	for size := 1; size <= 20; size++ {
		for at := range size {
			for b := range 256 {
				value := []byte(strings.Repeat("é~ \t", 5)[:size])
				value[at] = byte(b)
				want := string(value)
				if strings.ContainsRune("\r\n\x00", rune(b)) {
					want = want[:at] + " " + want[at+1:]
				}
				if got := string(appendField(nil, "X", string(value))); got != "X: "+want+"\r\n" {
					t.Fatalf("%q becomes %q, want %q", value, got, "X: "+want+"\r\n")
				}
			}
		}
	}
}
