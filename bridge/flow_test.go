package bridge

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"wsbridge/upstream"
)

func TestTheEventsOfAConnectionComeOneAtATimeAndInOrder(t *testing.T) {
	var under, most atomic.Int32
	inBubble(t, func(w *world) {
		w.answer = func(w http.ResponseWriter, r *http.Request) {
			if now := under.Add(1); now > most.Load() {
				most.Store(now)
			}
			time.Sleep(time.Second)
			under.Add(-1)
			echo(w, r)
		}
	}, func(b *bubble) {
		c := b.dial()
		for i := range 20 {
			send(t, c, strconv.Itoa(i))
		}
		for i := range 20 {
			if got := receive(t, c); got != strconv.Itoa(i) {
				t.Errorf("answer = %s, want %d", got, i)
			}
		}
		c.WriteControl(8, []byte{3, 0xe8}, time.Time{})
		closing(c)
		time.Sleep(2 * time.Second)
		for i, e := range b.seen("connect message disconnect") {
			if want := strconv.Itoa(i + 1); e.header.Get("ce-sequence") != want {
				t.Errorf("ce-sequence = %s, want %s", e.header.Get("ce-sequence"), want)
			}
		}
		if got := len(b.seen("connect message disconnect")); got != 22 || most.Load() != 1 {
			t.Errorf("events = %d, at most %d at once; want 22, one at a time", got, most.Load())
		}
	})
}

func TestConnectionsGoSideBySideUpToTheLimitOfPosts(t *testing.T) {
	var under, most atomic.Int32
	inBubble(t, func(w *world) {
		w.backend.MaxConcurrent = 8
		w.answer = on(func(w http.ResponseWriter, r *http.Request) {
			if now := under.Add(1); now > most.Load() {
				most.Store(now)
			}
			time.Sleep(time.Second)
			under.Add(-1)
			echo(w, r)
		})
	}, func(b *bubble) {
		clients := make([]*websocket.Conn, 20)
		for i := range clients {
			clients[i] = b.dial()
		}
		start := time.Now()
		for _, c := range clients {
			send(t, c, "x")
		}
		for _, c := range clients {
			receive(t, c)
			c.Close()
		}
		if got := time.Since(start); got != 3*time.Second || most.Load() != 8 {
			t.Errorf("20 messages of 1 s took %s with at most %d at once, want 3s with 8", got, most.Load())
		}
	})
}

func TestAtMostOneLargestMessageIsReadAhead(t *testing.T) {
	inBubble(t, func(w *world) {
		w.config.MaxMessage, w.backend.Timeout = 1000, time.Hour
		w.answer = on(func(http.ResponseWriter, *http.Request) { time.Sleep(time.Minute) })
	}, func(b *bubble) {
		c := b.dial(b.buffered(1 << 20))
		id := b.id()
		for range 10 {
			send(t, c, strings.Repeat("x", 400))
		}
		synctest.Wait()
		conn := b.registry.find(id)
		conn.mu.Lock()
		waiting, bytes := len(conn.busy().inbox), conn.inboxBytes
		conn.mu.Unlock()
		if waiting != 2 || bytes > 1000 {
			t.Errorf("%d messages of %d bytes wait, want 2 and at most 1000", waiting, bytes)
		}
		time.Sleep(11 * time.Minute)
		if got := len(b.seen("message")); got != 10 {
			t.Errorf("messages at the backend = %d, want all 10", got)
		}
		c.Close()
	})
}

func TestEmptyMessagesFillTheInboxAsWell(t *testing.T) {
	inBubble(t, func(w *world) {
		w.config.MaxMessage, w.backend.Timeout = 1000, time.Hour
		w.answer = on(func(http.ResponseWriter, *http.Request) { time.Sleep(time.Hour) })
	}, func(b *bubble) {
		c := b.dial(b.buffered(1 << 20))
		id := b.id()
		for range 1000 {
			send(t, c, "")
		}
		synctest.Wait()
		conn := b.registry.find(id)
		conn.mu.Lock()
		waiting := len(conn.busy().inbox)
		conn.mu.Unlock()
		if waiting < 1 || waiting > 20 {
			t.Errorf("%d empty messages wait, want 1 to 20", waiting)
		}
		c.Close()
	})
}

func TestMessagesTakenBeforeTheClientLeftAreStillPosted(t *testing.T) {
	for _, way := range []string{"close frame", "vanishes"} {
		inBubble(t, func(w *world) {
			w.answer = on(func(http.ResponseWriter, *http.Request) { time.Sleep(time.Second) })
		}, func(b *bubble) {
			c := b.dial()
			for i := range 5 {
				send(t, c, strconv.Itoa(i))
			}
			synctest.Wait()
			if way == "close frame" {
				c.WriteControl(8, nil, time.Time{})
			}
			c.Close()
			time.Sleep(10 * time.Second)
			var got []string
			for _, e := range b.seen("message disconnect") {
				got = append(got, e.kind+e.body)
			}
			code := 1005
			if way == "vanishes" {
				code = 1006
			}
			if len(got) != 6 || !strings.HasPrefix(got[5], fmt.Sprintf(`disconnect{"code":%d,`, code)) || got[4] != "message4" {
				t.Errorf("%s: events = %q, want five messages, then disconnect with %d", way, got, code)
			}
		})
	}
}

// TestEveryEndingIsToldOnce goes through all the ways a connection ends.
func TestEveryEndingIsToldOnce(t *testing.T) {
	reply := func(status int, header ...string) http.HandlerFunc {
		return on(func(w http.ResponseWriter, r *http.Request) {
			for i := 0; i < len(header); i += 2 {
				if header[i] != "" {
					w.Header().Set(header[i], header[i+1])
				}
			}
			w.WriteHeader(status)
			if len(header) > 0 && header[len(header)-2] == "" {
				io.WriteString(w, header[len(header)-1])
			}
		})
	}
	message := func(_ *bubble, c *websocket.Conn) { c.WriteMessage(1, []byte("hello")) }
	tests := []struct {
		name    string
		prepare func(*world)
		answer  http.HandlerFunc
		do      func(*bubble, *websocket.Conn)
		code    int // on the wire; -1: none
		told    string
	}{
		{"the client closes", nil, nil, func(_ *bubble, c *websocket.Conn) { c.WriteControl(8, []byte{3, 0xe9, 'g', 'o'}, time.Time{}) }, 1001, `"code":1001,"reason":"go","by":"client"`},
		{"the client gives no code", nil, nil, func(_ *bubble, c *websocket.Conn) { c.WriteControl(8, nil, time.Time{}) }, 1005, `"code":1005,"reason":"","by":"client"`},
		{"the client vanishes", nil, nil, func(_ *bubble, c *websocket.Conn) { c.UnderlyingConn().Close() }, -1, `"code":1006,"reason":"connection lost","by":"client"`},
		{"a protocol error", nil, nil, func(_ *bubble, c *websocket.Conn) { c.UnderlyingConn().Write([]byte{0xff, 0x80, 0, 0, 0, 0}) }, 1002, `"code":1002,"reason":"RSV1 set, RSV2 set, RSV3 set, bad opcode 15","by":"bridge"`},
		{"text that is no UTF-8", nil, nil, func(_ *bubble, c *websocket.Conn) { c.WriteMessage(1, []byte{0xff}) }, 1007, `"code":1007,"reason":"text that is not UTF-8","by":"bridge"`},
		{"a message that is too big", nil, nil, func(_ *bubble, c *websocket.Conn) { c.WriteMessage(1, make([]byte, 65537)) }, 1009, `"code":1009,"reason":"message larger than 65536 bytes","by":"bridge"`},
		{"a flood", func(w *world) { w.rates.Policy, w.rates.Messages, w.rates.MessagesBurst = "close", 1, 2 }, nil, func(_ *bubble, c *websocket.Conn) {
			for range 3 {
				c.WriteMessage(1, nil)
			}
		}, 1008, `"code":1008,"reason":"too many messages","by":"bridge"`},
		{"DELETE", nil, nil, func(b *bubble, _ *websocket.Conn) {
			b.call("DELETE", "/connections/"+b.id()+"?code=4001&reason=out", "")
		}, 4001, `"code":4001,"reason":"out","by":"backend"`},
		{"Ws-Close", nil, reply(200, "Ws-Close", `3456 "so \"long\""`, "", "bye"), message, 3456, `"code":3456,"reason":"so \"long\"","by":"backend"`},
		{"Ws-Close of a refusal", nil, reply(422, "Ws-Close", `4009`, "Content-Type", "text/plain", "", "no"), message, 4009, `"code":4009,"reason":"","by":"backend"`},
		{"400 with an error page", nil, reply(400, "Content-Type", "text/html", "", "<h1>"), message, 1008, `"code":1008,"reason":"message refused: 400 Bad Request","by":"backend"`},
		{"422 with nothing", nil, reply(422), message, 1008, `"code":1008,"reason":"message refused: 422 Unprocessable Entity","by":"backend"`},
		{"404", nil, reply(404, "Content-Type", "text/plain", "", "no such page"), message, 1008, `"code":1008,"reason":"message refused: 404 Not Found","by":"bridge"`},
		{"405", nil, reply(405), message, 1008, `"code":1008,"reason":"message refused: 405 Method Not Allowed","by":"bridge"`},
		{"415", nil, reply(415), message, 1008, `"code":1008,"reason":"message refused: 415 Unsupported Media Type","by":"bridge"`},
		{"419", nil, reply(419), message, 1008, `"code":1008,"reason":"message refused: 419","by":"bridge"`},
		{"431", nil, reply(431), message, 1008, `"code":1008,"reason":"message refused: 431 Request Header Fields Too Large","by":"bridge"`},
		{"401", nil, reply(401), message, 3000, `"code":3000,"reason":"not signed in","by":"backend"`},
		{"403", nil, reply(403), message, 3003, `"code":3003,"reason":"not allowed","by":"backend"`},
		{"410", nil, reply(410), message, 1000, `"code":1000,"reason":"done","by":"backend"`},
		{"500", nil, reply(500, "Content-Type", "text/plain", "", "stack trace"), message, 1011, `"code":1011,"reason":"the backend failed","by":"bridge"`},
		{"501", nil, reply(501), message, 1011, `"code":1011,"reason":"the backend failed","by":"bridge"`},
		{"502", nil, reply(502), message, 1011, `"code":1011,"reason":"the outcome of the last message is open","by":"bridge"`},
		{"504", nil, reply(504), message, 1011, `"code":1011,"reason":"the outcome of the last message is open","by":"bridge"`},
		{"408", nil, reply(408), message, 1011, `"code":1011,"reason":"the outcome of the last message is open","by":"bridge"`},
		{"503", nil, reply(503, "Retry-After", "1"), message, 1013, `"code":1013,"reason":"try again later","by":"bridge"`},
		{"429", nil, reply(429), message, 1013, `"code":1013,"reason":"try again later","by":"bridge"`},
		{"425", nil, reply(425), message, 1013, `"code":1013,"reason":"try again later","by":"bridge"`},
		{"301", nil, reply(301, "Location", "/elsewhere"), message, 1011, `"code":1011,"reason":"the backend failed","by":"bridge"`},
		{"an invalid answer", nil, reply(200, "Ws-User", "two words", "", "body"), message, 1011, `"code":1011,"reason":"the backend failed","by":"bridge"`},
		{"an oversized answer", func(w *world) { w.backend.MaxAnswer = 10 }, reply(200, "", "more than ten bytes"), message, 1011, `"code":1011,"reason":"the backend failed","by":"bridge"`},
		{"a send route that is none", nil, reply(200, "Ws-To", "/nobody", "", "body"), message, 1011, `"code":1011,"reason":"the backend failed","by":"bridge"`},
		{"no answer in time", func(w *world) { w.backend.Timeout = time.Second }, on(func(http.ResponseWriter, *http.Request) { time.Sleep(2 * time.Second) }), message, 1011, `"code":1011,"reason":"the outcome of the last message is open","by":"bridge"`},
		{"an answer that breaks off", nil, on(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, "half")
			panic(http.ErrAbortHandler)
		}), message, 1011, `"code":1011,"reason":"the outcome of the last message is open","by":"bridge"`},
		{"the drain", nil, nil, func(b *bubble, _ *websocket.Conn) { go b.Drain(time.Minute, false) }, 1001, `"code":1001,"reason":"shutting down","by":"bridge"`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(w *world) {
				if test.prepare != nil {
					test.prepare(w)
				}
				if test.answer != nil {
					w.answer = test.answer
				}
			}, func(b *bubble) {
				c := b.dial()
				synctest.Wait()
				test.do(b, c)
				code, messages := closing(c)
				if code != test.code {
					t.Errorf("close code = %d, want %d", code, test.code)
				}
				for _, m := range messages {
					if strings.Contains(m, "trace") || strings.Contains(m, "<h1>") || m == "body" {
						t.Errorf("the client was shown %q", m)
					}
				}
				time.Sleep(time.Minute)
				told := b.seen("disconnect")
				if len(told) != 1 || !strings.Contains(told[0].body, test.told) {
					t.Fatalf("disconnect events = %v, want one with %s", told, test.told)
				}
				if got := b.registry.count(); got != 0 {
					t.Errorf("connections left = %d, want 0", got)
				}
			})
		})
	}
}

func TestWhatWaitsBehindAFailedMessageIsNotPosted(t *testing.T) {
	inBubble(t, func(w *world) {
		w.answer = on(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Second)
			w.WriteHeader(500)
		})
	}, func(b *bubble) {
		c := b.dial()
		for range 3 {
			send(t, c, "x")
		}
		if code, _ := closing(c); code != 1011 {
			t.Errorf("close code = %d, want 1011", code)
		}
		time.Sleep(time.Minute)
		if got := len(b.seen("message")); got != 1 {
			t.Errorf("messages at the backend = %d, want 1", got)
		}
	})
}

func TestARefusalMeantForTheClientReachesItAndTheConnectionStays(t *testing.T) {
	inBubble(t, func(w *world) {
		w.answer = on(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/problem+json")
			w.Header().Set("Ws-User", "nobody")
			w.WriteHeader(422)
			io.WriteString(w, `{"error":"empty"}`)
		})
	}, func(b *bubble) {
		c := b.dial()
		for range 2 {
			send(t, c, "")
			if got := receive(t, c); got != `{"error":"empty"}` {
				t.Errorf("got = %q", got)
			}
		}
		if got := b.seen("message")[1].header.Get("ce-userid"); got != "" {
			t.Errorf("ce-userid = %q, want none: the headers of a refusal don't count", got)
		}
		c.Close()
	})
}

func TestWhatTheBackendSetsComesBackWithLaterEvents(t *testing.T) {
	inBubble(t, func(w *world) {
		w.answer = func(w http.ResponseWriter, r *http.Request) {
			switch r.Header.Get("ce-sequence") {
			case "1":
				w.Header().Set("Ws-User", "42")
				w.Header().Set("Ws-Join", "lobby, news")
				w.Header().Add("Set-Cookie", "session=new; Path=/; HttpOnly")
				w.Header().Set("Sec-WebSocket-Protocol", "chat.v2")
			case "2":
				w.Header().Set("Ws-State", "step-2")
				w.Header().Set("Ws-Leave", "lobby")
				w.Header().Set("Ws-Join", "sport")
				w.Header().Add("Set-Cookie", "old=; Max-Age=0")
			}
			echo(w, r)
		}
	}, func(b *bubble) {
		c := b.dial(func(d *websocket.Dialer, h http.Header) {
			d.Subprotocols = []string{"chat.v1", "chat.v2"}
			h.Set("Cookie", "session=old; old=1; theme=dark")
			h.Set("Authorization", "Bearer of-the-client")
		})
		if c.Subprotocol() != "chat.v2" {
			t.Errorf("subprotocol = %q, want chat.v2", c.Subprotocol())
		}
		send(t, c, "one")
		receive(t, c)
		send(t, c, "two")
		receive(t, c)
		shown := b.call("GET", "/connections/"+b.id(), "").Body.String()
		if !strings.Contains(shown, `"user":"42","groups":["news","sport"]`) {
			t.Errorf("connection = %s", shown)
		}
		c.Close()
		time.Sleep(time.Minute)
		events := b.seen("connect message disconnect")
		for i, want := range []map[string]string{
			{"Ce-Subprotocols": "chat.v1,chat.v2", "Ce-Subprotocol": "", "Cookie": "session=old; old=1; theme=dark", "Ce-Userid": ""},
			{"Ce-Subprotocols": "", "Ce-Subprotocol": "chat.v2", "Cookie": "session=new; old=1; theme=dark", "Ce-Userid": "42", "Ce-State": ""},
			{"Cookie": "session=new; theme=dark", "Ce-Userid": "42", "Ce-State": "step-2", "Authorization": "Bearer of-the-client"},
			{"Cookie": "session=new; theme=dark", "Ce-Userid": "42", "Ce-State": "step-2", "Authorization": "Bearer of-the-client"},
		} {
			for name, value := range want {
				if got := events[i].header.Get(name); got != value {
					t.Errorf("event %d: %s = %q, want %q", i+1, name, got, value)
				}
			}
		}
	})
}

func TestEventIDsAreUniqueAndBelongToTheirConnection(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		var clients sync.WaitGroup
		for range 5 {
			clients.Go(func() {
				c := b.dial()
				for range 5 {
					send(t, c, "")
					receive(t, c)
				}
				c.WriteControl(8, []byte{3, 0xe8}, time.Time{})
				closing(c)
			})
		}
		clients.Wait()
		time.Sleep(time.Minute)
		seen := map[string]bool{}
		for _, e := range b.seen("connect message disconnect") {
			connection, _, _ := strings.Cut(e.id, "-")
			if seen[e.id] || connection != e.header.Get("ce-connectionid") || len(connection) > 64 {
				t.Errorf("ce-id %s of connection %s is there twice or not its own", e.id, e.header.Get("ce-connectionid"))
			}
			seen[e.id] = true
		}
		if len(seen) != 5*7 {
			t.Errorf("events = %d, want 35", len(seen))
		}
	})
}

func TestAnAnswerIsCutIntoMessagesAsItAsks(t *testing.T) {
	inBubble(t, func(w *world) {
		w.answer = on(func(w http.ResponseWriter, r *http.Request) {
			shape, _ := io.ReadAll(r.Body)
			w.Header().Set("Ws-Messages", string(shape))
			io.WriteString(w, "a\r\n\nb\n")
		})
	}, func(b *bubble) {
		c := b.dial()
		for _, shape := range []string{"one", "none", "lines"} {
			send(t, c, shape)
		}
		for _, want := range []string{"a\r\n\nb\n", "a", "", "b"} {
			if got := receive(t, c); got != want {
				t.Errorf("got = %q, want %q", got, want)
			}
		}
		c.Close()
	})
}

func TestAnAnswerMayGoToAnotherConnection(t *testing.T) {
	inBubble(t, func(w *world) {
		w.answer = on(func(w http.ResponseWriter, r *http.Request) {
			to, _ := io.ReadAll(r.Body)
			w.Header().Set("Ws-To", "/connections/"+string(to))
			io.WriteString(w, "for you")
		})
	}, func(b *bubble) {
		one, other := b.dial(), b.dial()
		ids := b.seen("connect")
		send(t, one, ids[1].header.Get("ce-connectionid"))
		if got := receive(t, other); got != "for you" {
			t.Errorf("the other got %q", got)
		}
		send(t, one, ids[0].header.Get("ce-connectionid"))
		if got := receive(t, one); got != "for you" {
			t.Errorf("the sender got %q first, want only what was sent to it", got)
		}
		send(t, one, "long-gone")
		send(t, one, ids[0].header.Get("ce-connectionid"))
		if got := receive(t, one); got != "for you" {
			t.Errorf("after a route to nobody the sender got %q", got)
		}
		one.Close()
		other.Close()
	})
}

func TestAHandshakeThatTheBackendRefusesGetsTheBackendsAnswer(t *testing.T) {
	tests := []struct {
		name   string
		answer http.HandlerFunc
		status int
		header map[string]string
		body   string
	}{
		{"401", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", `Basic realm="shop"`)
			w.Header().Set("X-Powered-By", "PHP/5.3")
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(401)
			io.WriteString(w, "sign in")
		}, 401, map[string]string{"Www-Authenticate": `Basic realm="shop"`, "X-Powered-By": "", "Content-Type": "text/html"}, "sign in"},
		{"302", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "/login")
			w.WriteHeader(302)
		}, 302, map[string]string{"Location": "/login"}, ""},
		{"404", http.NotFound, 404, nil, "404 page not found\n"},
		{"500", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "stack trace", 500) }, 500, nil, "Internal Server Error\n"},
		{"503", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(503)
		}, 503, map[string]string{"Retry-After": "7"}, "Service Unavailable\n"},
		{"an invalid answer", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Ws-Join", "a b") }, 502, nil, "the backend gave an invalid answer\n"},
		{"a subprotocol that was not offered", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Sec-WebSocket-Protocol", "other") }, 502, nil, "the backend gave an invalid answer\n"},
		{"a connection that breaks off", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 502, map[string]string{"Retry-After": "5"}, "the backend can't be reached\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(w *world) { w.answer = test.answer }, func(b *bubble) {
				_, answer, err := b.tryDial()
				if err == nil {
					t.Fatal("the handshake was accepted")
				}
				body, _ := io.ReadAll(answer.Body)
				if answer.StatusCode != test.status || string(body) != test.body {
					t.Errorf("answer = %d %q, want %d %q", answer.StatusCode, body, test.status, test.body)
				}
				for name, want := range test.header {
					if got := answer.Header.Get(name); got != want {
						t.Errorf("%s = %q, want %q", name, got, want)
					}
				}
				if got := b.registry.count(); got != 0 || b.registry.held != 0 {
					t.Errorf("connections left = %d, sockets %d, want none", got, b.registry.held)
				}
			})
		})
	}
}

func TestMessagesAreDoneWithWhereTheBackendWantsNone(t *testing.T) {
	inBubble(t, func(w *world) { w.backend.Events = upstream.Types{"connect", "disconnect"} }, func(b *bubble) {
		c := b.dial()
		id := b.id()
		send(t, c, "nobody listens")
		synctest.Wait()
		b.call("POST", "/connections/"+id, "but pushes come")
		if got := receive(t, c); got != "but pushes come" {
			t.Errorf("got = %q", got)
		}
		c.Close()
		time.Sleep(time.Minute)
		if got := b.seen("message disconnect"); len(got) != 1 || got[0].header.Get("ce-sequence") != "2" {
			t.Errorf("events = %v, want the disconnect, second in sequence", got)
		}
	})
}

func TestTheGoodbyeOfABrokenRuleHasAnIDOfItsOwn(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		c := b.dial()
		// A message and a close frame of one byte, in one write.
		c.UnderlyingConn().Write([]byte{0x81, 0x82, 0, 0, 0, 0, 'h', 'i', 0x88, 0x81, 0, 0, 0, 0, 0})
		if code, _ := closing(c); code != 1002 {
			t.Errorf("close code = %d, want 1002", code)
		}
		time.Sleep(time.Minute)
		ids := map[string]string{}
		for _, e := range b.seen("connect message disconnect") {
			if other, found := ids[e.id]; found {
				t.Errorf("%s and %s have one id, %s", other, e.kind, e.id)
			}
			ids[e.id] = e.kind
		}
		if len(ids) != 3 {
			t.Errorf("events = %v, want three", ids)
		}
	})
}

func TestClientsThatLeaveTheirMessagesBehindStillCount(t *testing.T) {
	inBubble(t, func(w *world) {
		w.config.MaxConnections = 2
		w.answer = on(func(http.ResponseWriter, *http.Request) { time.Sleep(20 * time.Second) })
	}, func(b *bubble) {
		for range 2 {
			c := b.dial()
			send(t, c, "takes long")
			c.Close()
		}
		time.Sleep(10 * time.Second)
		if _, answer, err := b.tryDial(); err == nil || answer.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("handshake = %v, want 503 while two messages are under way", answer)
		}
		time.Sleep(20 * time.Second)
		b.dial().Close()
	})
}
