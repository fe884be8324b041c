package bridge_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"wsbridge/bridge"
)

// replaced returns the example handshake with one of its lines replaced by others, or by none.
func replaced(line string, by ...string) string {
	request := handshake("/ws")
	var lines string
	for _, l := range by {
		lines += l + "\r\n"
	}
	out := strings.Replace(request, line+"\r\n", lines, 1)
	if out == request {
		panic("the handshake has no line " + line)
	}
	return out
}

const (
	hostLine       = "Host: server.example.com"
	upgradeLine    = "Upgrade: websocket"
	connectionLine = "Connection: Upgrade"
	keyLine        = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
	versionLine    = "Sec-WebSocket-Version: 13"
	requestLine    = "GET /ws HTTP/1.1"
)

func TestAMalformedHandshakeIsToldWhatIsMissing(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	for _, test := range []struct {
		name    string
		request string
		status  int
		header  string // a line that the answer has
		says    string // what the body names
	}{
		{"no upgrade at all", "GET /ws HTTP/1.1\r\nHost: x\r\n\r\n", 426, "Upgrade: websocket", "Upgrade: websocket"},
		{"no Upgrade", replaced(upgradeLine), 426, "Upgrade: websocket", "Upgrade: websocket"},
		{"an empty Upgrade", replaced(upgradeLine, "Upgrade: "), 426, "Upgrade: websocket", "Upgrade: websocket"},
		{"an upgrade to something else", replaced(upgradeLine, "Upgrade: h2c"), 426, "Upgrade: websocket", "Upgrade: websocket"},
		{"an upgrade to something alike", replaced(upgradeLine, "Upgrade: websockets"), 426, "Upgrade: websocket", "Upgrade: websocket"},
		{"HTTP/1.0", replaced(requestLine, "GET /ws HTTP/1.0"), 426, "Upgrade: websocket", "Upgrade: websocket"},
		{"a POST that upgrades", replaced(requestLine, "POST /ws HTTP/1.1"), 405, "Allow: GET", "GET"},
		{"a HEAD that upgrades", replaced(requestLine, "HEAD /ws HTTP/1.1"), 405, "Allow: GET", ""},
		{"a POST", "POST /ws HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi", 426, "Upgrade: websocket", "Upgrade: websocket"},

		{"no Connection", replaced(connectionLine), 400, "", "Connection"},
		{"another Connection", replaced(connectionLine, "Connection: keep-alive"), 400, "", "Connection"},

		{"no key", replaced(keyLine), 400, "", "Sec-WebSocket-Key"},
		{"an empty key", replaced(keyLine, "Sec-WebSocket-Key: "), 400, "", "Sec-WebSocket-Key"},
		{"a key of 15 bytes", replaced(keyLine, "Sec-WebSocket-Key: MTIzNDU2Nzg5MDEyMzQ1"), 400, "", "Sec-WebSocket-Key"},
		{"a key of 17 bytes", replaced(keyLine, "Sec-WebSocket-Key: MTIzNDU2Nzg5MDEyMzQ1Njc="), 400, "", "Sec-WebSocket-Key"},
		{"a key that is not base64", replaced(keyLine, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=!"), 400, "", "Sec-WebSocket-Key"},
		{"two keys", replaced(keyLine, keyLine, keyLine), 400, "", "Sec-WebSocket-Key"},

		{"no version", replaced(versionLine), 426, versionLine, "Sec-WebSocket-Version"},
		{"an old version", replaced(versionLine, "Sec-WebSocket-Version: 8"), 426, versionLine, "Sec-WebSocket-Version"},
		{"a version to come", replaced(versionLine, "Sec-WebSocket-Version: 25"), 426, versionLine, "Sec-WebSocket-Version"},
		{"a version that is no number", replaced(versionLine, "Sec-WebSocket-Version: 13.0"), 426, versionLine, "Sec-WebSocket-Version"},

		{"a subprotocol with a space", handshake("/ws", "Sec-WebSocket-Protocol: cha t"), 400, "", "Sec-WebSocket-Protocol"},
		{"a subprotocol with a separator", handshake("/ws", "Sec-WebSocket-Protocol: a/b"), 400, "", "Sec-WebSocket-Protocol"},
		{"a subprotocol in quotes", handshake("/ws", `Sec-WebSocket-Protocol: "a"`), 400, "", "Sec-WebSocket-Protocol"},
		{"a subprotocol that is not ASCII", handshake("/ws", "Sec-WebSocket-Protocol: ä"), 400, "", "Sec-WebSocket-Protocol"},
		{"a subprotocol twice", handshake("/ws", "Sec-WebSocket-Protocol: a, b, a"), 400, "", "Sec-WebSocket-Protocol"},
		{"a subprotocol twice on two lines", handshake("/ws", "Sec-WebSocket-Protocol: a", "Sec-WebSocket-Protocol: a"), 400, "", "Sec-WebSocket-Protocol"},
		{"a bad subprotocol on a second line", handshake("/ws", "Sec-WebSocket-Protocol: a", "Sec-WebSocket-Protocol: b c"), 400, "", "Sec-WebSocket-Protocol"},

		{"a body", handshake("/ws", "Content-Length: 3") + "abc", 400, "", "body"},
		{"a chunked body", handshake("/ws", "Transfer-Encoding: chunked") + "0\r\n\r\n", 400, "", "body"},

		{"another path", handshake("/other"), 404, "", ""},
		{"the root", handshake("/"), 404, "", ""},
		{"a path that only starts alike", handshake("/wsx"), 404, "", ""},
		{"a dot segment", handshake("/ws/../ws"), 400, "", ""},
		{"an encoded dot segment", handshake("/ws/%2E%2e/x"), 400, "", ""},
		{"an encoded slash", handshake("/ws/a%2fb"), 400, "", ""},
		{"an encoded backslash", handshake("/ws/a%5cb"), 400, "", ""},
		{"a backslash", handshake(`/ws\x`), 400, "", ""},
		{"two slashes", handshake("/ws//x"), 400, "", ""},

		{"no Host", replaced(hostLine), 400, "", "Host"},
		{"two Hosts", replaced(hostLine, hostLine, hostLine), 400, "", ""},
		{"a header without a colon", handshake("/ws", "nonsense"), 400, "", ""},
		{"no HTTP", "hello\r\n\r\n", 400, "", ""},
		{"a header too large", handshake("/ws", "Cookie: "+strings.Repeat("x", 64<<10)), 431, "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := r.connect(t)
			c.raw([]byte(test.request))
			response := c.answered()
			if got := response.StatusCode; got != test.status {
				t.Errorf("status = %d, want %d", got, test.status)
			}
			name, value, _ := strings.Cut(test.header, ": ")
			if got := response.Header.Get(name); got != value {
				t.Errorf("%s = %q, want %q", name, got, value)
			}
			// Of an upgrade that fails nothing may look like one.
			if got := response.Header.Get("Sec-WebSocket-Accept"); got != "" {
				t.Errorf("Sec-WebSocket-Accept = %q, want none", got)
			}
			if !response.Close {
				t.Error("the answer leaves the connection open")
			}
			body, _ := io.ReadAll(response.Body)
			if !strings.Contains(string(body), test.says) {
				t.Errorf("body = %q, want one that names %s", body, test.says)
			}
		})
	}
	// The backend is asked before a handshake is answered: what it has not heard of by now it won't.
	for _, e := range r.events("") {
		t.Errorf("the backend was sent %s for %s", e.kind, e.target)
	}
}

func TestAHandshakeMayBeWrittenInManyWays(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	for i, test := range []struct {
		name    string
		request string
	}{
		{"names in lower case", strings.NewReplacer("Sec-WebSocket-", "sec-websocket-", "Upgrade:", "upgrade:", "Connection:", "connection:").Replace(handshake("/ws"))},
		{"values in other cases", strings.NewReplacer("websocket\r", "WebSocket\r", ": Upgrade", ": uPGRADE").Replace(handshake("/ws"))},
		{"Connection with more tokens", replaced(connectionLine, "Connection: keep-alive, Upgrade")},
		{"Connection on two lines", replaced(connectionLine, "Connection: keep-alive", "Connection: Upgrade")},
		{"Upgrade with more protocols", replaced(upgradeLine, "Upgrade: h2c, websocket")},
		{"Upgrade with a version", replaced(upgradeLine, "Upgrade: HTTP/2.0, websocket")},
		{"Connection with an empty element", replaced(connectionLine, "Connection: , Upgrade")},
		{"subprotocols with an empty element", handshake("/ws", "Sec-WebSocket-Protocol: a,,b,")},
		{"an empty body", handshake("/ws", "Content-Length: 0")},
		{"spaces around values", replaced(versionLine, "Sec-WebSocket-Version:   13  ")},
		{"an absolute target", replaced(requestLine, "GET http://server.example.com/ws HTTP/1.1")},
		{"a path below the pattern", replaced(requestLine, "GET /ws/a/b;c=1/%C3%A9?x=/../ HTTP/1.1")},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := r.connect(t)
			c.raw([]byte(test.request))
			c.opened()
			c.wantOpen()
			if got, want := connects(r), i+1; got != want {
				t.Errorf("connect events = %d, want %d", got, want)
			}
		})
	}
}

func connects(r *rig) (n int) {
	for _, e := range r.events("") {
		if e.kind == "connect" {
			n++
		}
	}
	return n
}

func TestASubprotocolIsWhatTheBackendChooses(t *testing.T) {
	t.Parallel()
	r := start(t, func(o *options) {
		o.answer = func(w http.ResponseWriter, e event) {
			if _, choice, ok := strings.Cut(e.target, "?choose="); ok && e.kind == "connect" {
				w.Header().Set("Sec-WebSocket-Protocol", choice)
			}
			echo(w, e)
		}
	})
	for _, test := range []struct {
		name   string
		choice string
		lines  []string
		offer  string // as the backend sees it
		status int
	}{
		{"none", "", []string{"Sec-WebSocket-Protocol: chat, superchat"}, "chat,superchat", 101},
		{"the first", "chat", []string{"Sec-WebSocket-Protocol: chat, superchat"}, "chat,superchat", 101},
		{"the last", "superchat", []string{"Sec-WebSocket-Protocol: chat,superchat"}, "chat,superchat", 101},
		{"one of a second line", "superchat", []string{"Sec-WebSocket-Protocol: chat", "Sec-WebSocket-Protocol: v2.0, superchat"}, "chat,v2.0,superchat", 101},
		{"one that was not offered", "other", []string{"Sec-WebSocket-Protocol: chat"}, "chat", 502},
		{"one in another case", "Chat", []string{"Sec-WebSocket-Protocol: chat"}, "chat", 502},
		{"one where none was offered", "chat", nil, "", 502},
	} {
		t.Run(test.name, func(t *testing.T) {
			target := "/ws/" + strings.ReplaceAll(test.name, " ", "-")
			if test.choice != "" {
				target += "?choose=" + test.choice
			}
			c := r.connect(t)
			c.raw([]byte(handshake(target, test.lines...)))
			response := c.answered()
			if got := response.StatusCode; got != test.status {
				t.Fatalf("status = %d, want %d", got, test.status)
			}
			events := r.events(target)
			if got := events[0].header.Get("ce-subprotocols"); got != test.offer {
				t.Errorf("ce-subprotocols = %q, want %q", got, test.offer)
			}
			if test.status != http.StatusSwitchingProtocols {
				return
			}
			if got := response.Header.Get("Sec-WebSocket-Protocol"); got != test.choice {
				t.Errorf("Sec-WebSocket-Protocol = %q, want %q", got, test.choice)
			}
			c.wantOpen()
		})
	}
}

func TestAHandshakeThatDoesNotComeIsCut(t *testing.T) {
	t.Parallel()
	r := start(t, func(o *options) { o.bridge.HandshakeTimeout = 50 * time.Millisecond })
	for name, part := range map[string]string{
		"nothing":     "",
		"half a line": requestLine[:7],
		"no end":      strings.TrimSuffix(handshake("/ws"), "\r\n"),
	} {
		t.Run(name, func(t *testing.T) {
			c := r.connect(t)
			c.raw([]byte(part))
			c.SetReadDeadline(time.Now().Add(patience))
			if answer, err := io.ReadAll(c.buffer); err != nil || strings.Contains(string(answer), "101") {
				t.Errorf("answer = %q, %v, want the end of the stream", answer, err)
			}
		})
	}
	if got := len(r.events("")); got != 0 {
		t.Errorf("events = %d, want 0", got)
	}
}

func TestWhatComesBehindTheHandshakeIsReadAsFrames(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	small := []frame{text("early"), text("bird").open(), rest("song"), {op: opBinary, payload: random(300)}}
	answers := []frame{text("early"), text("birdsong"), {op: opBinary, payload: random(300)}}
	// More than fits net/http's buffer, and gorilla's.
	large := append(small, frame{op: opBinary, payload: random(5000)}, frame{op: opBinary, payload: random(64 << 10)})
	for _, test := range []struct {
		name    string
		behind  []frame
		answers []frame
	}{
		{"a few frames", small, answers},
		{"many bytes", large, append(answers, large[len(large)-2:]...)},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := r.connect(t)
			c.raw(append([]byte(handshake("/ws")), wire(test.behind...)...))
			c.opened()
			c.want(test.answers...)
			c.wantOpen()
		})
	}
	t.Run("in small pieces", func(t *testing.T) {
		c := r.connect(t)
		c.chop(append([]byte(handshake("/ws")), wire(small...)...), 3)
		c.opened()
		c.want(answers...)
		c.wantOpen()
	})
	t.Run("a close", func(t *testing.T) {
		c := r.connect(t)
		c.raw(append([]byte(handshake("/ws/close")), wire(text("last"), goodbye(4000, "words"))...))
		c.opened()
		c.want(text("last"))
		c.wantEnd(4000)
		if got := said(t, r.await(t, "/ws/close", "disconnect")); got.Code != 4000 || got.MessagesIn != 1 {
			t.Errorf("disconnect event = %+v, want 4000 after 1 message", got)
		}
	})
	t.Run("a broken rule", func(t *testing.T) {
		c := r.connect(t)
		c.raw(append([]byte(handshake("/ws")), wire(text("before"), frame{op: opText, bare: true})...))
		c.opened()
		c.want(text("before"))
		c.wantEnd(1002)
	})
}

func TestWhatComesWhileTheBackendIsAskedIsReadAsFrames(t *testing.T) {
	t.Parallel()
	ask, accept := make(chan struct{}), make(chan struct{})
	r := start(t, func(o *options) {
		o.answer = func(w http.ResponseWriter, e event) {
			if e.kind == "connect" {
				close(ask)
				<-accept
			}
			echo(w, e)
		}
	})
	c := r.connect(t)
	c.raw([]byte(handshake("/ws")))
	<-ask
	c.write(text("one"))
	c.write(text("two").open())
	c.write(rest("three"), ping("p"))
	close(accept)
	c.opened()
	for want := []frame{text("one"), text("twothree"), pong("p")}; len(want) > 0; {
		f, err := c.read()
		if err != nil {
			t.Fatalf("read: %v, want %v", err, want)
		}
		i := 0
		if f.op == opPong {
			i = len(want) - 1 // it may overtake the answers
		}
		if f.String() != want[i].String() {
			t.Fatalf("got = %v, want %v", f, want[i])
		}
		want = append(want[:i:i], want[i+1:]...)
	}
	c.wantOpen()
}

func TestAClientThatLeavesWhileTheBackendIsAskedIsSaidGoodbyeFor(t *testing.T) {
	t.Parallel()
	ask, accept := make(chan struct{}), make(chan struct{})
	r := start(t, func(o *options) {
		o.answer = func(w http.ResponseWriter, e event) {
			if e.kind == "connect" {
				close(ask)
				<-accept
			}
		}
	})
	c := r.connect(t)
	c.raw([]byte(handshake("/ws")))
	<-ask
	c.SetLinger(0)
	c.Close()
	close(accept)
	events := r.await(t, "/ws", "disconnect")
	if got := said(t, events); len(events) != 2 || got.Code != 1006 || got.By != "client" {
		t.Errorf("%d events, disconnect = %+v, want connect and 1006 by client", len(events), got)
	}
}

func TestABackendThatRefusesAnswersTheHandshake(t *testing.T) {
	t.Parallel()
	r := start(t, func(o *options) {
		o.bridge.Paths = []bridge.Path{"/*"}
		o.answer = func(w http.ResponseWriter, e event) {
			var status int
			fmt.Sscanf(e.target, "/%d", &status)
			w.Header().Set("Content-Type", "text/plain")
			w.Header().Set("WWW-Authenticate", "Basic")
			w.Header().Set("Location", "/login")
			w.Header().Set("X-Secret", "internal")
			w.WriteHeader(status)
			io.WriteString(w, "no entry")
		}
	})
	for _, test := range []struct {
		status, want int
		body         string
	}{
		{302, 302, "no entry"}, {401, 401, "no entry"}, {403, 403, "no entry"}, {404, 404, "no entry"}, {426, 426, "no entry"}, {500, 500, "Internal Server Error\n"},
	} {
		t.Run(fmt.Sprint(test.status), func(t *testing.T) {
			c := r.connect(t)
			// What comes behind a handshake that fails is nobody's.
			c.raw(append([]byte(handshake(fmt.Sprintf("/%d", test.status))), wire(text("early"))...))
			response := c.answered()
			body, _ := io.ReadAll(response.Body)
			if response.StatusCode != test.want || string(body) != test.body {
				t.Errorf("answer = %d %q, want %d %q", response.StatusCode, body, test.want, test.body)
			}
			if got := response.Header.Get("X-Secret"); got != "" {
				t.Errorf("X-Secret = %q, want none", got)
			}
		})
	}
	for _, e := range r.events("") {
		if e.kind != "connect" {
			t.Errorf("a %s event for %s, which was refused", e.kind, e.target)
		}
	}
}
