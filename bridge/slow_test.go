package bridge

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"wsbridge/ratelimit"
)

func TestASlowClientIsClosedWhenItsQueueIsFull(t *testing.T) {
	inBubble(t, func(w *world) { w.config.SendBuffer = 10_000 }, func(b *bubble) {
		c := b.dial(b.buffered(2000))
		id := b.id()
		queued := 0
		for b.call("POST", "/connections/"+id, strings.Repeat("x", 1000)).Code == http.StatusAccepted {
			queued++
			synctest.Wait() // the writer takes what it can
			var shown view
			json.Unmarshal(b.call("GET", "/connections/"+id, "").Body.Bytes(), &shown)
			if shown.Queue.Bytes > 10_000 {
				t.Fatalf("%d bytes wait, want at most 10000", shown.Queue.Bytes)
			}
		}
		// Two are in the pipe, one is being written, nine of 1004 bytes wait.
		if queued < 10 || queued > 12 {
			t.Errorf("messages queued = %d, want 10 to 12", queued)
		}
		synctest.Wait() // the queue is given up
		if got := b.call("GET", "/connections/"+id, "").Code; got != http.StatusGone {
			t.Errorf("status of the connection = %d, want 410", got)
		}
		code, messages := closing(c)
		if code != 1008 || len(messages) > 3 {
			t.Errorf("closed %d after %d messages, want 1008 after those that were on their way", code, len(messages))
		}
		time.Sleep(time.Minute)
		if told := b.seen("disconnect"); len(told) != 1 || !strings.Contains(told[0].body, `"code":1008,"reason":"too slow to read"`) {
			t.Errorf("disconnect events = %v, want one", told)
		}
	})
}

func TestASlowClientMayLoseTheOldestInstead(t *testing.T) {
	inBubble(t, func(w *world) { w.config.SendBuffer, w.config.SlowClient = 10_000, SlowDropOldest }, func(b *bubble) {
		c := b.dial(b.buffered(2000))
		id := b.id()
		for i := range 100 {
			if got := b.call("POST", "/connections/"+id, fmt.Sprintf("%03d%s", i, strings.Repeat("x", 1000))).Code; got != http.StatusAccepted {
				t.Fatalf("push %d = %d, want 202", i, got)
			}
			synctest.Wait()
		}
		var shown view
		json.Unmarshal(b.call("GET", "/connections/"+id, "").Body.Bytes(), &shown)
		if shown.Queue.Bytes > 10_000 || shown.Dropped == 0 {
			t.Errorf("%d bytes wait, %d dropped; want at most 10000 and some", shown.Queue.Bytes, shown.Dropped)
		}
		b.call("DELETE", "/connections/"+id, "")
		code, messages := closing(c)
		if code != 1000 || uint64(len(messages))+shown.Dropped != 100 {
			t.Errorf("closed %d after %d messages with %d dropped, want 1000 and 100 in all", code, len(messages), shown.Dropped)
		}
		last := -1
		for _, m := range messages {
			var i int
			fmt.Sscanf(m, "%03d", &i)
			if i <= last {
				t.Errorf("message %d came behind %d", i, last)
			}
			last = i
		}
		if last != 99 {
			t.Errorf("last message = %d, want the newest, 99", last)
		}
	})
}

func TestAnEmptyQueueTakesAMessageOfAnySize(t *testing.T) {
	for _, policy := range []SlowPolicy{SlowClose, SlowDropOldest} {
		inBubble(t, func(w *world) { w.config.SendBuffer, w.config.SlowClient = 100, policy }, func(b *bubble) {
			c := b.dial()
			big := strings.Repeat("x", 500_000)
			if got := b.call("POST", "/connections/"+b.id(), big).Code; got != http.StatusAccepted {
				t.Errorf("push = %d, want 202", got)
			}
			if got := receive(t, c); got != big {
				t.Errorf("got %d bytes, want %d", len(got), len(big))
			}
			c.Close()
		})
	}
}

func TestASlowLineThatGetsOnIsNotCut(t *testing.T) {
	inBubble(t, func(w *world) { w.config.PingInterval = time.Hour }, func(b *bubble) {
		c := b.dial(b.buffered(10_000))
		big := strings.Repeat("x", 1_000_000)
		b.call("POST", "/connections/"+b.id(), big)
		// 10,000 bytes a second: the whole takes ten times the write timeout.
		raw := c.UnderlyingConn()
		read, buffer := 0, make([]byte, 10_000)
		for read < len(big) {
			time.Sleep(time.Second)
			n, err := raw.Read(buffer)
			if err != nil {
				t.Fatalf("cut after %d bytes: %v", read, err)
			}
			read += n
		}
		raw.Close()
	})
}

func TestPingsOfAFloodAreAnsweredWithinABound(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		c := b.dial(b.buffered(1000))
		id := b.id()
		go func() {
			for i := range 2000 {
				if c.WriteControl(9, fmt.Appendf(nil, "%0120d", i), time.Time{}) != nil {
					return
				}
			}
		}()
		synctest.Wait()
		conn := b.registry.find(id)
		conn.mu.Lock()
		waiting := len(conn.busy().out.pongs)
		conn.mu.Unlock()
		if waiting > maxPongs {
			t.Errorf("%d bytes of pongs wait, want at most %d", waiting, maxPongs)
		}
		last := ""
		c.SetPongHandler(func(s string) error {
			if s <= last {
				t.Errorf("pong %s behind %s", s, last)
			}
			if last = s; s == fmt.Sprintf("%0120d", 1999) {
				c.Close()
			}
			return nil
		})
		closing(c)
		if last != fmt.Sprintf("%0120d", 1999) {
			t.Errorf("last pong = %q, want that of the most recent ping", last)
		}
	})
}

func TestAClientOverItsRateWaitsAndLosesNothing(t *testing.T) {
	inBubble(t, func(w *world) {
		w.rates = ratelimit.Config{Policy: ratelimit.Wait, Messages: 2, MessagesBurst: 4}
	}, func(b *bubble) {
		c := b.dial()
		start := time.Now()
		for i := range 20 {
			send(t, c, fmt.Sprint(i))
		}
		for i := range 20 {
			if got := receive(t, c); got != fmt.Sprint(i) {
				t.Errorf("got = %s, want %d", got, i)
			}
		}
		if got := time.Since(start); got != 8*time.Second {
			t.Errorf("20 messages at 2 a second with a burst of 4 took %s, want 8s", got)
		}
		c.Close()
	})
}

func TestBytesHaveARateAsWell(t *testing.T) {
	inBubble(t, func(w *world) {
		w.rates = ratelimit.Config{Policy: ratelimit.Wait, Bytes: 1000, BytesBurst: 1000}
	}, func(b *bubble) {
		c := b.dial()
		start := time.Now()
		for range 5 {
			send(t, c, strings.Repeat("x", 2000))
		}
		for range 5 {
			receive(t, c)
		}
		if got := time.Since(start); got != 9*time.Second {
			t.Errorf("10000 bytes at 1000 a second with a burst of 1000 took %s, want 9s", got)
		}
		c.Close()
	})
}

func TestAClientThatLeavesWhileItsRateHoldsItLosesNothing(t *testing.T) {
	inBubble(t, func(w *world) {
		w.rates = ratelimit.Config{Policy: ratelimit.Wait, Messages: 1, MessagesBurst: 1}
		// An answer would meet a closed socket, and so would a ping: that ends all reading.
		w.answer = on(func(http.ResponseWriter, *http.Request) {})
		w.config.PingInterval = time.Hour
	}, func(b *bubble) {
		c := b.dial()
		for i := range 3 {
			send(t, c, fmt.Sprint(i))
		}
		c.Close()
		time.Sleep(time.Minute)
		if got := len(b.seen("message")); got != 3 {
			t.Errorf("messages at the backend = %d, want all 3", got)
		}
	})
}

func TestHandshakesHaveARateForEachAddress(t *testing.T) {
	inBubble(t, func(w *world) {
		w.rates = ratelimit.Config{Policy: ratelimit.Wait, Handshakes: 0.5, HandshakesBurst: 2}
	}, func(b *bubble) {
		for range 2 {
			b.dial().Close()
		}
		_, answer, err := b.tryDial()
		if err == nil || answer.StatusCode != http.StatusTooManyRequests || answer.Header.Get("Retry-After") != "2" {
			t.Fatalf("answer = %v (%v), want 429 with Retry-After: 2", answer, err)
		}
		time.Sleep(2 * time.Second)
		b.dial().Close()
		if got := len(b.seen("connect")); got != 3 {
			t.Errorf("connect events = %d, want 3: the backend does not hear of the refused one", got)
		}
	})
}
