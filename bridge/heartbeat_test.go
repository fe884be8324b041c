package bridge

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"wsbridge/upstream"
)

func TestAClientThatAnswersNoPingIsClosedWhenThePongIsDue(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		c := b.dial()
		var pinged time.Time
		c.SetPingHandler(func(string) error { pinged = time.Now(); return nil })
		start := time.Now()
		code, _ := closing(c)
		if code != 3008 {
			t.Errorf("close code = %d, want 3008", code)
		}
		if phase := pinged.Sub(start); phase < 0 || phase > 25*time.Second+grain(25*time.Second) {
			t.Errorf("first ping after %s, want within one interval", phase)
		}
		if got := time.Since(pinged); got < 20*time.Second || got > 20*time.Second+grain(20*time.Second) {
			t.Errorf("closed %s after the ping, want 20s", got)
		}
	})
}

func TestAClientThatAnswersPingsStays(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		c := b.dial()
		pings := 0
		pong := c.PingHandler()
		c.SetPingHandler(func(s string) error { pings++; return pong(s) })
		time.AfterFunc(time.Hour, func() { c.WriteMessage(1, []byte("still here")) })
		if got := receive(t, c); got != "still here" {
			t.Errorf("got = %q", got)
		}
		if pings < 143 || pings > 144 {
			t.Errorf("pings in an hour = %d, want 144, one every 25 s", pings)
		}
	})
}

func TestASlowBackendIsNotMistakenForADeadClient(t *testing.T) {
	release := make(chan struct{})
	inBubble(t, func(w *world) {
		w.backend.Timeout = time.Hour
		w.answer = on(func(w http.ResponseWriter, r *http.Request) { <-release; echo(w, r) })
		release = make(chan struct{})
	}, func(b *bubble) {
		c := b.dial()
		start := time.Now()
		time.AfterFunc(10*time.Minute, func() { close(release) })
		send(t, c, "patience")
		if got := receive(t, c); got != "patience" {
			t.Errorf("got = %q", got)
		}
		if got := time.Since(start); got != 10*time.Minute {
			t.Errorf("answered after %s, want 10m0s", got)
		}
	})
}

func TestWhileReadingStandsThePongClockStands(t *testing.T) {
	release := make(chan struct{})
	inBubble(t, func(w *world) {
		w.backend.Timeout = time.Hour
		w.config.MaxMessage = 1000
		w.answer = on(func(w http.ResponseWriter, r *http.Request) { <-release; echo(w, r) })
		release = make(chan struct{})
	}, func(b *bubble) {
		c := b.dial()
		message := strings.Repeat("x", 900)
		for range 3 { // one under way, one in the inbox, one that makes reading stand
			send(t, c, message)
		}
		time.AfterFunc(10*time.Minute, func() { close(release) })
		start := time.Now()
		for range 3 {
			if got := receive(t, c); got != message {
				t.Fatalf("got %d bytes, want %d", len(got), len(message))
			}
		}
		if got := time.Since(start); got != 10*time.Minute {
			t.Errorf("answered after %s, want 10m0s", got)
		}
	})
}

func TestAPingIsAnsweredAndALeavingClientNoticedWhileAPostIsUnderWay(t *testing.T) {
	release := make(chan struct{})
	inBubble(t, func(w *world) {
		w.answer = on(func(w http.ResponseWriter, r *http.Request) { <-release })
		release = make(chan struct{})
	}, func(b *bubble) {
		c := b.dial()
		id := b.id()
		send(t, c, "slow")
		if got := len(b.seen("message")); got != 1 {
			t.Fatalf("messages at the backend = %d, want 1", got)
		}
		start := time.Now()
		pong := time.Time{}
		c.SetPongHandler(func(s string) error {
			if pong = time.Now(); s != "hello" {
				t.Errorf("pong payload = %q, want hello", s)
			}
			c.WriteControl(8, []byte{0x0f, 0xa1, 'b', 'y', 'e'}, time.Time{}) // 4001
			return nil
		})
		c.WriteControl(9, []byte("hello"), time.Time{})
		if code, _ := closing(c); code != 4001 {
			t.Errorf("echoed close code = %d, want 4001", code)
		}
		if got := pong.Sub(start); got != 0 {
			t.Errorf("pong after %s, want at once", got)
		}
		if got := time.Since(start); got != partingAnswers {
			t.Errorf("close answered after %s, want %s", got, partingAnswers)
		}
		if got := b.call("GET", "/connections/"+id, "").Code; got != http.StatusGone {
			t.Errorf("status of the connection = %d, want 410 while the POST is still under way", got)
		}
		if got := len(b.seen("disconnect")); got != 0 {
			t.Errorf("disconnect events before the last answer = %d, want 0", got)
		}
		close(release)
		synctest.Wait()
		events := b.seen("disconnect")
		if len(events) != 1 || !strings.Contains(events[0].body, `"code":4001,"reason":"bye","by":"client"`) {
			t.Errorf("disconnect events = %v, want one with the client's code", events)
		}
	})
}

func TestAnIdleConnectionIsClosedAndABusyOneNot(t *testing.T) {
	inBubble(t, func(w *world) { w.config.IdleTimeout = time.Minute }, func(b *bubble) {
		c := b.dial()
		id := b.id()
		start := time.Now()
		time.AfterFunc(50*time.Second, func() { send(t, c, "in") })
		time.AfterFunc(100*time.Second, func() {
			if got := b.call("POST", "/connections/"+id, "out").Code; got != http.StatusAccepted {
				t.Errorf("push = %d, want 202", got)
			}
		})
		code, messages := closing(c)
		if code != 1000 || len(messages) != 2 {
			t.Errorf("closed %d after %q, want 1000 after two messages", code, messages)
		}
		if got := time.Since(start); got < 160*time.Second || got > 160*time.Second+grain(time.Minute) {
			t.Errorf("closed after %s, want 1 minute after the last message", got)
		}
	})
}

func TestAConnectionIsNotIdleWhileItsMessageIsAnswered(t *testing.T) {
	inBubble(t, func(w *world) {
		w.config.IdleTimeout, w.backend.Timeout = time.Minute, time.Hour
		w.answer = on(func(w http.ResponseWriter, r *http.Request) { time.Sleep(5 * time.Minute); echo(w, r) })
	}, func(b *bubble) {
		c := b.dial()
		start := time.Now()
		send(t, c, "think")
		code, messages := closing(c)
		if code != 1000 || len(messages) != 1 {
			t.Errorf("closed %d after %q, want 1000 after the answer", code, messages)
		}
		if got := time.Since(start); got < 6*time.Minute || got > 6*time.Minute+grain(time.Minute) {
			t.Errorf("closed after %s, want 6m0s", got)
		}
	})
}

func TestAnOldConnectionIsClosedWithinTheLastTenthOfItsAge(t *testing.T) {
	inBubble(t, func(w *world) { w.config.MaxAge = time.Hour }, func(b *bubble) {
		ages := map[time.Duration]bool{}
		for range 5 {
			c := b.dial()
			start := time.Now()
			if code, _ := closing(c); code != 1001 {
				t.Errorf("close code = %d, want 1001", code)
			}
			age := time.Since(start)
			if age < 54*time.Minute || age > time.Hour+grain(time.Hour) {
				t.Errorf("closed after %s, want 54m to 1h", age)
			}
			ages[age] = true
		}
		if len(ages) < 2 {
			t.Errorf("all connections lived exactly as long: %v", ages)
		}
	})
}

func TestTheAgeSparesAMessageUnderWay(t *testing.T) {
	inBubble(t, func(w *world) {
		w.config.MaxAge, w.backend.Timeout = time.Minute, time.Hour
		w.answer = on(func(w http.ResponseWriter, r *http.Request) { time.Sleep(5 * time.Minute); echo(w, r) })
	}, func(b *bubble) {
		c := b.dial()
		send(t, c, "late")
		code, messages := closing(c)
		if code != 1001 || len(messages) != 1 {
			t.Errorf("closed %d after %q, want 1001 after the answer", code, messages)
		}
	})
}

func TestAWriteThatMakesNoProgressEndsTheConnection(t *testing.T) {
	inBubble(t, func(w *world) { w.config.SendBuffer = 1 << 20 }, func(b *bubble) {
		c := b.dial(b.buffered(4 << 10))
		start := time.Now()
		if got := b.call("POST", "/connections/"+b.id(), strings.Repeat("x", 100<<10)).Code; got != http.StatusAccepted {
			t.Errorf("push = %d, want 202", got)
		}
		events := []event{}
		for len(events) == 0 {
			time.Sleep(time.Second)
			events = b.seen("disconnect")
		}
		if got := events[0].at.Sub(start); got != 10*time.Second {
			t.Errorf("ended after %s, want 10s", got)
		}
		if !strings.Contains(events[0].body, `"code":1008,"reason":"too slow to read","by":"bridge"`) {
			t.Errorf("disconnect = %s", events[0].body)
		}
		c.Close()
	})
}

func TestTheHandshakeWaitsForTheBackendOnlySoLong(t *testing.T) {
	inBubble(t, func(w *world) {
		w.answer = func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("ce-type") == "wsbridge.connect" {
				<-r.Context().Done()
			}
		}
	}, func(b *bubble) {
		start := time.Now()
		_, answer, err := b.tryDial()
		if err == nil || answer.StatusCode != http.StatusGatewayTimeout || answer.Header.Get("Retry-After") == "" {
			t.Errorf("answer = %v (%v), want 504 with Retry-After", answer, err)
		}
		if got := time.Since(start); got != 10*time.Second {
			t.Errorf("answered after %s, want 10s", got)
		}
		if got := b.seen("disconnect"); len(got) != 0 {
			t.Errorf("disconnect events = %v, want none: the connection was not accepted", got)
		}
	})
}

func TestAHandshakeWaitsForItsTurnAtTheBackend(t *testing.T) {
	inBubble(t, func(w *world) {
		w.backend.MaxConcurrent = 1
		w.answer = func(w http.ResponseWriter, r *http.Request) { time.Sleep(4 * time.Second) }
	}, func(b *bubble) {
		results := make(chan int, 3)
		start := time.Now()
		for range 3 {
			go func() {
				c, answer, err := b.tryDial()
				if err == nil {
					c.Close()
				}
				results <- answer.StatusCode
			}()
		}
		got := map[int]int{<-results: 1}
		got[<-results]++
		got[<-results]++
		if got[101] != 2 || got[504] != 1 {
			t.Errorf("statuses = %v, want two 101 and one 504", got)
		}
		if elapsed := time.Since(start); elapsed != 10*time.Second {
			t.Errorf("settled after %s, want 10s", elapsed)
		}
	})
}

func TestEventsThatTheBackendDoesNotWantAreLeftOut(t *testing.T) {
	inBubble(t, func(w *world) { w.backend.Events = upstream.Types{"message"} }, func(b *bubble) {
		c := b.dial()
		send(t, c, "hi")
		if got := receive(t, c); got != "hi" {
			t.Errorf("got = %q", got)
		}
		c.Close()
		events := b.seen("connect message disconnect")
		if len(events) != 1 || events[0].kind != "message" || events[0].header.Get("ce-sequence") != "1" {
			t.Errorf("events = %v, want one message, the first in sequence", events)
		}
	})
}

func TestASilentClientIsFoundThoughPingsComeFasterThanPongsAreDue(t *testing.T) {
	inBubble(t, func(w *world) { w.config.PongTimeout = time.Minute }, func(b *bubble) {
		c := b.dial()
		var pinged time.Time
		c.SetPingHandler(func(string) error {
			if pinged.IsZero() {
				pinged = time.Now()
			}
			return nil
		})
		if code, _ := closing(c); code != 3008 {
			t.Errorf("close code = %d, want 3008", code)
		}
		if got := time.Since(pinged); got < time.Minute || got > time.Minute+grain(time.Minute) {
			t.Errorf("closed %s after the first ping without an answer, want 1m0s", got)
		}
	})
}
