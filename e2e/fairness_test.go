package e2e

import (
	"fmt"
	"net/http/httptest"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// wait is a part of a record through which somebody waited for a turn: from its last event, or from where it was asked for, to the next.
type wait struct{ from, to int }

// overtaking returns the most turns that one connection had within one of the waits of others. turns are the places of each connection's in a
// record of that length.
func overtaking(length int, waits []wait, turns map[string][]int) int {
	until := make([]int, length) // the end of the longest of the waits at each place
	for _, w := range waits {
		for i := w.from + 1; i < w.to; i++ {
			until[i] = max(until[i], w.to)
		}
	}
	most := 0
	for _, places := range turns {
		for i, first := range places {
			n := 0
			for i+n < len(places) && places[i+n] < until[first] {
				n++
			}
			most = max(most, n)
		}
	}
	return most
}

// Every other client has ten messages on their way as long as there are any, the rest have one. In the middle of it more clients connect.
func TestFiveHundredClientsShareEightTurnsFairly(t *testing.T) {
	t.Parallel()
	const (
		clients, turns = 500, 8
		messages       = 10_000 // of all together
		ahead          = 10     // on their way from a chatty client
		late           = 10     // clients that connect meanwhile
		// mostTurns is what one connection may have while another waits: the turn that it had waited for before, one more where the POST of the other took
		// longer than its own, and one where two overtake each other on the way from the door to the record.
		mostTurns = 3
	)
	app := &application{delay: time.Millisecond}
	server := httptest.NewServer(app)
	t.Cleanup(server.Close)
	s := serve(t, "WSBRIDGE_BACKEND_URL="+server.URL, fmt.Sprintf("WSBRIDGE_BACKEND_MAX_CONCURRENT=%d", turns))
	c := gather(t, s.clients, clients)

	var asked atomic.Int64
	half := make(chan struct{})         // closed when half of the messages have been sent
	failed := make(chan error, clients) // one for each
	for i, ch := range c.chatters {
		window := 1
		if i%2 == 0 {
			window = ahead
		}
		c.all.Go(func() { failed <- ch.pipeline(&asked, messages, window, half) })
	}
	await(t, "half done", half)
	record, _ := app.kept()
	connecting := len(record)
	gather(t, s.clients, late)
	for range clients {
		if err := <-failed; err != nil {
			t.Fatal(err)
		}
	}
	c.close()
	s.signal(t, syscall.SIGTERM)
	s.exits(t, 0)

	record, highest := app.kept()
	if highest > turns {
		t.Errorf("POSTs at once: %d, want at most %d", highest, turns)
	}
	had := map[string][]int{} // where in the record the messages of each connection are
	chatty := map[string]bool{}
	var handshakes []wait
	for i, e := range record {
		var number int
		switch fmt.Sscanf(e.body, "/ws/%d", &number); {
		case e.kind == "message":
			had[e.connection] = append(had[e.connection], i)
		case e.kind == "connect" && i >= connecting:
			handshakes = append(handshakes, wait{connecting, i})
		case e.kind == "connect":
			chatty[e.connection] = number%2 == 0
		}
	}
	var waits []wait // of those whose next message was there all the time
	slowest := messages
	for connection, places := range had {
		slowest = min(slowest, len(places))
		for i := 1; chatty[connection] && i < len(places); i++ {
			waits = append(waits, wait{places[i-1], places[i]})
		}
	}
	if len(had) != clients || len(handshakes) != late {
		t.Errorf("%d connections had turns, want %d; %d more were accepted meanwhile, want %d", len(had), clients, len(handshakes), late)
	}
	byMessages, byHandshakes := overtaking(len(record), waits, had), overtaking(len(record), handshakes, had)
	if byMessages > mostTurns || byHandshakes > mostTurns {
		t.Errorf("one connection had %d turns while another's message waited and %d while a handshake did, want at most %d", byMessages, byHandshakes, mostTurns)
	}
	longest := slices.MaxFunc(handshakes, func(a, b wait) int { return a.to - b.to })
	t.Logf("the slowest connection had %d of %d messages, the mean is %d; at most %d POSTs at once", slowest, messages, messages/clients, highest)
	t.Logf("while a message waited, another connection had up to %d turns; while a handshake did, %d, and all together %d", byMessages, byHandshakes, longest.to-longest.from-1)
}

// pipeline keeps so many messages on their way as long as there are any that nobody has sent, and returns when all are answered, in order.
func (ch *chatter) pipeline(asked *atomic.Int64, messages int64, window int, half chan<- struct{}) error {
	send := func() error {
		number := asked.Add(1)
		if number > messages {
			return nil
		}
		if number == messages/2 {
			close(half)
		}
		ch.sent++
		return ch.WriteMessage(websocket.TextMessage, fmt.Appendf(nil, "%s:%d", ch.name, ch.sent))
	}
	for range window {
		if err := send(); err != nil {
			return err
		}
	}
	for ch.heard < ch.sent {
		ch.SetReadDeadline(time.Now().Add(patience))
		_, got, err := ch.ReadMessage()
		if want := fmt.Sprintf("%s:%d", ch.name, ch.heard+1); err != nil || string(got) != want {
			return fmt.Errorf("the answer is %q %v, want %q", got, err, want)
		}
		ch.heard++
		if err := send(); err != nil {
			return err
		}
	}
	return nil
}
