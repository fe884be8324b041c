package bridge

import (
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"
)

func TestADrainSpreadsItsClosesAndTellsOfEach(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		var clients sync.WaitGroup
		var mu sync.Mutex
		ended := map[time.Duration]int{}
		start := time.Now()
		for range 100 {
			c := b.dial()
			clients.Go(func() {
				code, _ := closing(c)
				mu.Lock()
				defer mu.Unlock()
				if ended[time.Since(start)]++; code != 1001 {
					t.Errorf("close code = %d, want 1001", code)
				}
			})
		}
		if lost := b.Drain(3*time.Second, false); lost != 0 {
			t.Errorf("disconnect events lost = %d, want 0", lost)
		}
		if got := time.Since(start); got != 1980*time.Millisecond {
			t.Errorf("the drain took %s, want 1.98s: 100 closes over two thirds of 3s", got)
		}
		clients.Wait()
		if len(ended) != 100 {
			t.Errorf("closes at %d moments, want each of 100 at its own", len(ended))
		}
		if got := len(b.seen("disconnect")); got != 100 {
			t.Errorf("disconnect events = %d, want 100", got)
		}
		if got := b.call("GET", "/readyz", "").Code; got != http.StatusServiceUnavailable {
			t.Errorf("/readyz = %d, want 503", got)
		}
		if _, answer, err := b.tryDial(); err == nil || answer.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("handshake = %v, want 503", answer)
		}
	})
}

func TestADrainWithoutConnectionsIsOverAtOnce(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		start := time.Now()
		b.Drain(time.Minute, false)
		if got := time.Since(start); got != 0 {
			t.Errorf("the drain took %s, want no time", got)
		}
	})
}

func TestADrainDeliversTheAnswersUnderWay(t *testing.T) {
	inBubble(t, func(w *world) {
		w.answer = on(func(w http.ResponseWriter, r *http.Request) { time.Sleep(5 * time.Second); echo(w, r) })
	}, func(b *bubble) {
		c := b.dial()
		send(t, c, "one")
		send(t, c, "two")
		synctest.Wait()
		go b.Drain(time.Minute, false)
		code, messages := closing(c)
		if code != 1001 || len(messages) != 2 || messages[1] != "two" {
			t.Errorf("closed %d after %q, want 1001 after both answers", code, messages)
		}
		time.Sleep(time.Minute)
	})
}

func TestWhatADrainCannotFinishIsCutAndSaidSo(t *testing.T) {
	inBubble(t, func(w *world) {
		w.backend.Timeout = time.Hour
		w.answer = on(func(http.ResponseWriter, *http.Request) { time.Sleep(10 * time.Minute) })
	}, func(b *bubble) {
		c := b.dial()
		send(t, c, "stuck")
		synctest.Wait()
		start := time.Now()
		lost := make(chan int)
		go func() { lost <- b.Drain(30*time.Second, false) }()
		code, _ := closing(c)
		if code != 1011 {
			t.Errorf("close code = %d, want 1011: the outcome of its message is open", code)
		}
		if got := <-lost; got != 1 {
			t.Errorf("disconnect events lost = %d, want 1", got)
		}
		if got := time.Since(start); got != 30*time.Second {
			t.Errorf("the drain took %s, want 30s", got)
		}
	})
}

func TestAConnectionThatOpensDuringADrainEndsWithIt(t *testing.T) {
	inBubble(t, func(w *world) {
		w.answer = func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("ce-type") == "wsbridge.connect" {
				time.Sleep(3 * time.Second)
			}
		}
	}, func(b *bubble) {
		opened := make(chan *websocket.Conn)
		go func() { opened <- b.dial() }()
		synctest.Wait()
		go b.Drain(time.Minute, false)
		code, _ := closing(<-opened)
		if code != 1001 {
			t.Errorf("close code = %d, want 1001", code)
		}
		time.Sleep(time.Minute)
		if told := b.seen("disconnect"); len(told) != 1 || !strings.Contains(told[0].body, `"code":1001`) {
			t.Errorf("disconnect events = %v, want one with 1001", told)
		}
	})
}

func TestPushesAreTakenWhileTheDrainGoesOn(t *testing.T) {
	inBubble(t, func(w *world) {
		w.answer = on(func(w http.ResponseWriter, r *http.Request) { time.Sleep(5 * time.Second); echo(w, r) })
	}, func(b *bubble) {
		first := b.dial()
		time.Sleep(time.Millisecond) // ids sort by millisecond, and a drain goes by them
		last := b.dial()
		id := b.id()
		send(t, first, "keeps the drain busy")
		synctest.Wait()
		go b.Drain(time.Minute, false)
		synctest.Wait()
		if got := b.call("POST", "/connections/"+id, "one more").Code; got != http.StatusAccepted {
			t.Errorf("push = %d, want 202", got)
		}
		code, messages := closing(last)
		if code != 1001 || len(messages) != 1 {
			t.Errorf("closed %d after %q, want 1001 after the push", code, messages)
		}
		closing(first)
		time.Sleep(time.Minute)
	})
}

func TestADrainDoesNotWaitForClientsThatKeepTheirSideOpen(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		c := b.dial()
		start := time.Now()
		if lost := b.Drain(time.Second, false); lost != 0 {
			t.Errorf("disconnect events lost = %d, want 0", lost)
		}
		if got := time.Since(start); got != 2*time.Second {
			t.Errorf("the drain took %s, want its 1s and one more for close frames to go out", got)
		}
		if code, _ := closing(c); code != 1001 {
			t.Errorf("close code = %d, want 1001", code)
		}
		if told := b.seen("disconnect"); len(told) != 1 {
			t.Errorf("disconnect events = %d, want 1", len(told))
		}
	})
}

func TestADrainIsOverWhenAllHaveLeftByThemselves(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		var clients []*websocket.Conn
		for range 100 {
			clients = append(clients, b.dial())
		}
		start := time.Now()
		drained := make(chan struct{})
		go func() { b.Drain(time.Hour, false); close(drained) }()
		time.Sleep(time.Second)
		for _, c := range clients {
			c.Close()
		}
		<-drained
		if got := time.Since(start); got >= 2*time.Second {
			t.Errorf("the drain took %s, want it to end with the last client, after 1s", got)
		}
	})
}
