package bridge

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"wsbridge/ratelimit"
	"wsbridge/upstream"
)

// stirred is a client whose connection is parked, and what its backend was told of it.
type stirred struct {
	*relay
	*websocket.Conn
	release chan struct{} // closed, it lets messages that begin with "hold" be answered

	mu   sync.Mutex // guards the following
	told []string   // of each event the type, the attempt and the body, or the code of a disconnect event
}

// stir dials, and waits until the connection is parked.
func stir(t *testing.T, older bool, linger time.Duration, change ...func(*Config)) *stirred {
	s := &stirred{release: make(chan struct{})}
	s.relay = newRelay(t, older, func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		kind := strings.TrimPrefix(req.Header.Get("ce-type"), "wsbridge.")
		text := string(body)
		if kind == "disconnect" {
			var goodbye struct{ Code int }
			json.Unmarshal(body, &goodbye)
			text = fmt.Sprint(goodbye.Code)
		}
		s.mu.Lock()
		s.told = append(s.told, strings.TrimSpace(fmt.Sprint(kind, " ", req.Header.Get("ce-attempt"), " ", text)))
		s.mu.Unlock()
		if kind == "message" {
			if strings.HasPrefix(text, "hold") {
				<-s.release
			}
			if text == "join" { // and the record is written anew
				w.Header().Set("Ws-Join", "room")
			}
			w.Header().Set("Content-Type", req.Header.Get("Content-Type"))
			w.Header().Set("Ws-Messages", "one") // even an empty one
			w.Write(body)
		}
	}, func(c *Config, _ *upstream.Config) {
		for _, f := range change {
			f(c)
		}
	})
	if linger > 0 { // the worker that serves from here on
		s.relay.linger = linger
		s.next()
		s.finish()
	}
	s.Conn = s.dial("/")
	s.await(t, "the connection is parked", func() bool { return parkedOf(s.serving.Load()) == 1 })
	return s
}

// await waits until it is so.
func (s *stirred) await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain until %s; the backend was told %q", what, s.events())
		}
	}
}

// events returns what the backend was told.
func (s *stirred) events() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.told)
}

// sends sends a message.
func (s *stirred) sends(t *testing.T, kind int, text string) {
	t.Helper()
	if err := s.WriteMessage(kind, []byte(text)); err != nil {
		t.Fatal(err)
	}
}

// hears reads a message.
func (s *stirred) hears(t *testing.T, kind int, text string) {
	t.Helper()
	s.SetReadDeadline(time.Now().Add(patience))
	if got, p, err := s.ReadMessage(); err != nil || got != kind || string(p) != text {
		t.Fatalf("heard %d %.40q, %v, want %d %.40q", got, p, err, kind, text)
	}
}

// says sends a message, and hears it come back.
func (s *stirred) says(t *testing.T, text string) {
	t.Helper()
	s.sends(t, websocket.TextMessage, text)
	s.hears(t, websocket.TextMessage, text)
}

// holds sends a message that is not answered before the release, and waits until it is posted.
func (s *stirred) holds(t *testing.T) {
	t.Helper()
	s.sends(t, websocket.TextMessage, "hold")
	s.await(t, "the message is posted", func() bool { return slices.Contains(s.events(), "message 1 hold") })
}

// isPushed pushes a message to all, which is accepted.
func (s *stirred) isPushed(t *testing.T, text string) {
	t.Helper()
	answer, err := http.Post(s.pushes.URL+"/connections", "text/plain", strings.NewReader(text))
	if err != nil || answer.StatusCode != http.StatusAccepted {
		t.Fatalf("push = %v, %v", answer, err)
	}
	answer.Body.Close()
}

// pongs sends a pong behind a message that is under way, and waits until it is dealt with.
func (s *stirred) pongs(t *testing.T) {
	t.Helper()
	if err := s.WriteControl(websocket.PongMessage, nil, time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	c := s.conn()
	s.await(t, "the pong is dealt with", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.parked == 0 || c.behind > 0
	})
}

// conn returns the connection.
func (s *stirred) conn() *conn { return s.serving.Load().registry.members(target{kind: toAll})[0] }

func TestAParkedConnectionsMessageIsReadAsItLies(t *testing.T) {
	onKernels(t, func(t *testing.T, older bool) {
		s := stir(t, older, 0)
		for i, size := range []int{0, 1, 125, 126, glanceBuffer - 9, 4, 300} {
			kind := websocket.TextMessage + i%2
			text := strings.Repeat(string(rune('a'+i)), size)
			s.sends(t, kind, text)
			s.hears(t, kind, text)
		}
		if b := s.serving.Load(); b.built.Load() > 0 || parkedOf(b) != 1 {
			t.Errorf("it was built %d times, and %d are parked", b.built.Load(), parkedOf(b))
		}
		c := s.conn()
		c.mu.Lock()
		if in, out := c.record.MessagesIn, c.record.MessagesOut; in != 7 || out != 7 {
			t.Errorf("%d messages in and %d out, want 7", in, out)
		}
		c.mu.Unlock()
		s.sends(t, websocket.TextMessage, strings.Repeat("x", glanceBuffer)) // more than lies in one look
		s.hears(t, websocket.TextMessage, strings.Repeat("x", glanceBuffer))
		if n := s.serving.Load().built.Load(); n != 1 {
			t.Errorf("a large message has built it %d times, want once", n)
		}
	})
}

func TestWhatAMessageNeedsIsPutAwayBehindIt(t *testing.T) {
	s := stir(t, false, 20*time.Millisecond)
	for _, text := range []string{"hello", "join", "hello"} {
		s.says(t, text)
		c := s.conn()
		s.await(t, "its handshake and its work are gone", func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.parked != 0 && c.record.Handshake == nil && c.work == nil
		})
	}
}

func TestABuiltConnectionIsParkedThoughItsClientGoesOn(t *testing.T) {
	for _, test := range []struct {
		name   string
		builds func(t *testing.T, s *stirred)
	}{
		{"behind a message under way", func(t *testing.T, s *stirred) {
			s.holds(t)
			s.sends(t, websocket.TextMessage, "second")
			s.await(t, "the second is read", func() bool { return s.serving.Load().built.Load() == 1 })
			close(s.release)
			s.hears(t, websocket.TextMessage, "hold")
			s.hears(t, websocket.TextMessage, "second")
		}},
		{"a large message", func(t *testing.T, s *stirred) {
			text := strings.Repeat("x", glanceBuffer)
			s.says(t, text)
		}},
		{"a message too soon for its rate", func(t *testing.T, s *stirred) {
			c := s.conn()
			c.mu.Lock()
			c.rate = ratelimit.Config{Messages: 50, MessagesBurst: 1}.Connection()
			c.mu.Unlock()
			s.says(t, "in time")
			if n := s.serving.Load().built.Load(); n > 0 {
				t.Errorf("a message in time has built it %d times", n)
			}
			s.says(t, "too soon")
			c.mu.Lock()
			c.rate = nil
			c.mu.Unlock()
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			onKernels(t, func(t *testing.T, older bool) {
				s := stir(t, older, 100*time.Millisecond)
				test.builds(t, s)
				b := s.serving.Load()
				if n := b.built.Load(); n != 1 || parkedOf(b) != 0 {
					t.Fatalf("it was built %d times, and %d are parked", n, parkedOf(b))
				}
				s.await(t, "it is parked", func() bool { // without a pause
					s.says(t, "on and on")
					return parkedOf(b) == 1
				})
				s.says(t, "and on")
				if n := b.built.Load(); n != 1 || parkedOf(b) != 1 {
					t.Errorf("it was built %d times, and %d are parked", n, parkedOf(b))
				}
			})
		})
	}
}

func TestWhatABuiltConnectionIsNeededFor(t *testing.T) {
	s := stir(t, false, 0)
	large := strings.Repeat("x", glanceBuffer)
	s.says(t, large)
	c := s.conn()
	needed := func() int64 {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.socket.needed
	}
	received := func() uint64 {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.record.MessagesIn
	}
	limited := func(rate *ratelimit.Connection) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.rate = rate
	}
	for _, test := range []struct {
		name  string
		does  func()
		needs bool
	}{
		{"a small message", func() { s.says(t, "small") }, false},
		{"a large message", func() { s.says(t, large) }, true},
		{"a small message again", func() { s.says(t, "small") }, false},
		{"a message behind another", func() {
			s.holds(t)
			before := received()
			s.sends(t, websocket.TextMessage, "second")
			s.await(t, "the second is read", func() bool { return received() > before })
			close(s.release)
			s.hears(t, websocket.TextMessage, "hold")
			s.hears(t, websocket.TextMessage, "second")
		}, true},
		{"a message too soon for its rate", func() {
			limited(ratelimit.Config{Messages: 50, MessagesBurst: 1}.Connection())
			s.says(t, "in time")
			s.says(t, "too soon")
			limited(nil)
		}, true},
		{"a push that its client does not take at once", func() {
			text, pushes, waits := strings.Repeat("x", 256<<10), 0, false
			for ; !waits; pushes++ {
				s.isPushed(t, text)
				c.mu.Lock()
				waits = c.waits()
				c.mu.Unlock()
			}
			for range pushes {
				s.hears(t, websocket.TextMessage, text)
			}
		}, true},
		{"a push that it takes", func() {
			s.isPushed(t, "pushed")
			s.hears(t, websocket.TextMessage, "pushed")
		}, false},
		{"a message in time for its rate", func() {
			limited(ratelimit.Config{Messages: 1, MessagesBurst: 1}.Connection())
			s.says(t, "in time")
			limited(nil)
		}, false},
	} {
		before := needed()
		test.does()
		if now := needed(); now > before != test.needs {
			t.Errorf("%s: needed last at %d, then at %d, want a change: %v", test.name, before, now, test.needs)
		}
	}
}

func TestWhatComesBehindAParkedConnectionsMessage(t *testing.T) {
	hold := func(t *testing.T, older bool) *stirred {
		s := stir(t, older, 0)
		s.holds(t)
		return s
	}
	for _, test := range []struct {
		name string
		run  func(t *testing.T, s *stirred)
	}{
		{"another message", func(t *testing.T, s *stirred) {
			s.sends(t, websocket.TextMessage, "second")
			s.sends(t, websocket.TextMessage, "third")
			s.await(t, "it is read", func() bool { return s.serving.Load().built.Load() == 1 })
			close(s.release)
			for _, text := range []string{"hold", "second", "third"} {
				s.hears(t, websocket.TextMessage, text)
			}
			if got, want := s.events()[1:], []string{"message 1 hold", "message 1 second", "message 1 third"}; !slices.Equal(got, want) {
				t.Errorf("the backend was told %q, want %q", got, want)
			}
		}},
		{"a ping", func(t *testing.T, s *stirred) {
			ponged := make(chan string, 1)
			s.SetPongHandler(func(payload string) error { ponged <- payload; return nil })
			go s.ReadMessage()
			if err := s.WriteControl(websocket.PingMessage, []byte("there?"), time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			if got := <-ponged; got != "there?" {
				t.Errorf("the pong says %q", got)
			}
			if n := s.serving.Load().built.Load(); n > 0 && !s.older {
				t.Errorf("it was built %d times", n)
			}
			close(s.release)
			s.await(t, "the message is dealt with", func() bool { return s.conn().kept.atRest() })
			s.sends(t, websocket.TextMessage, "behind both")
			s.await(t, "the next is posted", func() bool { return slices.Contains(s.events(), "message 1 behind both") })
		}},
		{"a pong, and a message behind it", func(t *testing.T, s *stirred) {
			s.pongs(t)
			s.sends(t, websocket.TextMessage, "second")
			s.await(t, "it is read", func() bool { return s.serving.Load().built.Load() == 1 })
			close(s.release)
			s.hears(t, websocket.TextMessage, "hold")
			s.hears(t, websocket.TextMessage, "second")
		}},
		{"many pings", func(t *testing.T, s *stirred) {
			ponged := make(chan string, 100)
			s.SetPongHandler(func(payload string) error { ponged <- payload; return nil })
			go s.ReadMessage()
			for i := range 20 {
				if err := s.WriteControl(websocket.PingMessage, []byte{'a' + byte(i)}, time.Now().Add(patience)); err != nil {
					t.Fatal(err)
				}
				if got := <-ponged; got != string(rune('a'+i)) {
					t.Errorf("ping %d was answered %q", i, got)
				}
			}
			if n := s.serving.Load().built.Load(); n != 1 {
				t.Errorf("it was built %d times, want once", n)
			}
			close(s.release)
			s.await(t, "the message is dealt with", func() bool { return s.conn().kept.atRest() })
		}},
		{"a pong, and another worker", func(t *testing.T, s *stirred) {
			s.pongs(t)
			s.next()
			s.sends(t, websocket.TextMessage, "second")
			close(s.release)
			s.hears(t, websocket.TextMessage, "hold")
			s.finish()
			s.hears(t, websocket.TextMessage, "second")
			if got, want := s.events()[1:], []string{"message 1 hold", "message 1 second"}; !slices.Equal(got, want) {
				t.Errorf("the backend was told %q, want %q", got, want)
			}
		}},
		{"a close frame", func(t *testing.T, s *stirred) {
			if err := s.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(4003, ""), time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			s.await(t, "it is gone", func() bool { return s.serving.Load().registry.count() == 0 })
			close(s.release)
			s.await(t, "its goodbye is said", func() bool { return slices.Contains(s.events(), "disconnect 1 4003") })
		}},
		{"the end", func(t *testing.T, s *stirred) {
			s.UnderlyingConn().Close()
			s.await(t, "it is gone", func() bool { return s.serving.Load().registry.count() == 0 })
			close(s.release)
			s.await(t, "its goodbye is said", func() bool { return slices.Contains(s.events(), "disconnect 1 1006") })
		}},
		{"a push", func(t *testing.T, s *stirred) {
			s.isPushed(t, "pushed")
			s.hears(t, websocket.TextMessage, "pushed")
			close(s.release)
			s.hears(t, websocket.TextMessage, "hold")
			if n := s.serving.Load().built.Load(); n > 0 {
				t.Errorf("it was built %d times", n)
			}
		}},
		{"nothing, of which it was told all the same", func(t *testing.T, s *stirred) {
			var buffer [glanceBuffer]byte
			c := s.conn()
			c.stirs(buffer[:], false)
			close(s.release)
			s.hears(t, websocket.TextMessage, "hold")
			if got, want := s.events()[1:], []string{"message 1 hold"}; !slices.Equal(got, want) {
				t.Errorf("the backend was told %q, want %q", got, want)
			}
		}},
		{"another worker", func(t *testing.T, s *stirred) {
			s.next()
			s.sends(t, websocket.TextMessage, "second") // while the first worker still has it
			close(s.release)
			s.hears(t, websocket.TextMessage, "hold")
			s.finish()
			s.hears(t, websocket.TextMessage, "second")
			if got, want := s.events()[1:], []string{"message 1 hold", "message 1 second"}; !slices.Equal(got, want) {
				t.Errorf("the backend was told %q, want %q", got, want)
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			onKernels(t, func(t *testing.T, older bool) { test.run(t, hold(t, older)) })
		})
	}
}

func TestAParkedConnectionsMessageKeepsTheRules(t *testing.T) {
	for _, test := range []struct {
		name  string
		frame []byte
		code  int
	}{
		{"text that is not UTF-8", []byte{finBit | opText, 0x80 | 2, 0, 0, 0, 0, 0xc3, 0x28}, websocket.CloseInvalidFramePayloadData},
		{"a length that is not written in the shortest way", []byte{finBit | opText, 0x80 | 126, 0, 3, 0, 0, 0, 0, 'a', 'b', 'c'}, websocket.CloseProtocolError},
		{"no mask", []byte{finBit | opText, 6, 'n', 'o', 'm', 'a', 's', 'k'}, websocket.CloseProtocolError},
		{"a reserved bit", []byte{finBit | 0x20 | opText, 0x80 | 1, 0, 0, 0, 0, 'a'}, websocket.CloseProtocolError},
		{"a reserved opcode", []byte{finBit | 3, 0x80 | 1, 0, 0, 0, 0, 'a'}, websocket.CloseProtocolError},
		{"too many bytes", append([]byte{finBit | opBinary, 0x80 | 101, 0, 0, 0, 0}, make([]byte, 101)...), websocket.CloseMessageTooBig},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := stir(t, false, 0, func(c *Config) { c.MaxMessage = 100 })
			s.sends(t, websocket.TextMessage, strings.Repeat("a", 100)) // what is allowed
			s.hears(t, websocket.TextMessage, strings.Repeat("a", 100))
			if _, err := s.UnderlyingConn().Write(test.frame); err != nil {
				t.Fatal(err)
			}
			s.SetReadDeadline(time.Now().Add(patience))
			if _, _, err := s.ReadMessage(); !websocket.IsCloseError(err, test.code) {
				t.Errorf("the connection ends with %v, want %d", err, test.code)
			}
		})
	}
}

// TestAParkedConnectionIsHandedOverBehindTheAwaitedWord lets another worker serve while a client has not confirmed a push yet.
func TestAParkedConnectionIsHandedOverBehindTheAwaitedWord(t *testing.T) {
	s := stir(t, false, 0)
	asked := make(chan string, 1)
	s.SetPingHandler(func(payload string) error { asked <- payload; return nil })
	confirmed := make(chan string, 1)
	go func() {
		answer, err := http.Post(s.pushes.URL+"/connections?confirm=1m", "text/plain", strings.NewReader("pushed"))
		if err != nil {
			confirmed <- err.Error()
			return
		}
		defer answer.Body.Close()
		body, _ := io.ReadAll(answer.Body)
		confirmed <- strings.TrimSpace(string(body))
	}()
	s.hears(t, websocket.TextMessage, "pushed")
	heard := make(chan string, 1)
	go func() {
		_, p, _ := s.ReadMessage()
		heard <- string(p)
	}()
	payload := <-asked
	s.next()
	if err := s.WriteControl(websocket.PongMessage, []byte(payload), time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if got, want := <-confirmed, `{"matched":1,"queued":1,"dropped":0,"confirmed":1}`; got != want {
		t.Errorf("the push was answered %s, want %s", got, want)
	}
	s.sends(t, websocket.TextMessage, "behind")
	s.finish()
	if got := <-heard; got != "behind" {
		t.Errorf("heard %q, want behind", got)
	}
	if got, want := s.events()[1:], []string{"message 1 behind"}; !slices.Equal(got, want) {
		t.Errorf("the backend was told %q, want %q", got, want)
	}
}

// TestWhatCameWithTheHandshakeIsDroppedFromNoBuffer sends a message in one piece with the handshake, and others behind it.
func TestWhatCameWithTheHandshakeIsDroppedFromNoBuffer(t *testing.T) {
	onKernels(t, func(t *testing.T, older bool) {
		s := stir(t, older, 0)
		client, err := net.Dial("tcp", s.clients.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		client.SetDeadline(time.Now().Add(patience))
		frame := func(text string) string {
			return string([]byte{finBit | opText, 0x80 | byte(len(text)), 0, 0, 0, 0}) + text
		}
		send := func(p string) {
			if _, err := io.WriteString(client, p); err != nil {
				t.Fatal(err)
			}
		}
		send("GET / HTTP/1.1\r\nHost: example.org\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n" + frame("hold"))
		heard := bufio.NewReader(client)
		if answer, err := http.ReadResponse(heard, nil); err != nil || answer.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("the handshake was answered %v, %v", answer, err)
		}
		s.await(t, "the message is posted", func() bool { return slices.Contains(s.events(), "message 1 hold") })
		send(frame("second"))
		c := s.serving.Load().registry.members(target{kind: toAll})[1]
		s.await(t, "the second is read", func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.record.MessagesIn == 2
		})
		close(s.release)
		for _, text := range []string{"hold", "second", "third"} {
			if text == "third" {
				send(frame(text))
			}
			want := string([]byte{finBit | opText, byte(len(text))}) + text
			got := make([]byte, len(want))
			if _, err := io.ReadFull(heard, got); err != nil || string(got) != want {
				t.Fatalf("heard %q, %v, want %q", got, err, want)
			}
		}
	})
}
