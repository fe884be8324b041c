package e2e

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// crowd are clients that chat: each sends a numbered message, waits for its answer and sends the next.
type crowd struct {
	chatters []*chatter
	leaving  chan struct{} // closed when they are to leave
	all      sync.WaitGroup

	mu      sync.Mutex // guards the following
	era     int        // counts the calls of answered
	lacking int        // chatters that lack answers in this era
	want    int        // answers of each
	reached chan struct{}
	gone    int // chatters that were closed
}

// chatter is one of them.
type chatter struct {
	*websocket.Conn
	name     string
	era, had int // the answers it had in this era. The lock of the crowd is held.

	// These are its own until it has left.
	sent, heard int
	end         error // why it left before it was told to
}

// gather opens n connections, to paths of their own.
func gather(t testing.TB, clients string, n int) *crowd {
	t.Helper()
	c := &crowd{leaving: make(chan struct{}), chatters: make([]*chatter, n)}
	dialer := websocket.Dialer{HandshakeTimeout: patience}
	next := make(chan int)
	failed := make(chan error, n) // as many as there may be
	var dialing sync.WaitGroup
	for range 32 { // fewer than a backlog holds
		dialing.Go(func() {
			for i := range next {
				name := strconv.Itoa(i)
				conn, resp, err := dialer.DialContext(t.Context(), "ws://"+clients+"/ws/"+name, nil)
				if err != nil {
					failed <- fmt.Errorf("client %d: %w: %s", i, err, describe(resp))
					continue
				}
				c.chatters[i] = &chatter{Conn: conn, name: name}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	dialing.Wait()
	t.Cleanup(c.close)
	select {
	case err := <-failed:
		t.Fatal(err)
	default:
	}
	return c
}

// close cuts their connections.
func (c *crowd) close() {
	for _, ch := range c.chatters {
		if ch != nil {
			ch.Close()
		}
	}
	c.all.Wait()
}

// chat begins the chat.
func (c *crowd) chat() {
	for _, ch := range c.chatters {
		c.all.Go(func() {
			ch.end = c.chatOf(ch)
			c.ended(ch)
		})
	}
}

func (c *crowd) chatOf(ch *chatter) error {
	defer ch.Close()
	for {
		select {
		case <-c.leaving:
			bye := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
			if err := ch.WriteControl(websocket.CloseMessage, bye, time.Now().Add(patience)); err != nil {
				return err
			}
			ch.SetReadDeadline(time.Now().Add(patience))
			if _, got, err := ch.ReadMessage(); err == nil {
				return fmt.Errorf("a message that nobody asked for: %q", got)
			} else if !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
				return err
			}
			return nil
		default:
		}
		ch.sent++
		message := fmt.Sprintf("%s:%d", ch.name, ch.sent)
		if err := ch.WriteMessage(websocket.TextMessage, []byte(message)); err != nil {
			return err
		}
		ch.SetReadDeadline(time.Now().Add(patience))
		_, got, err := ch.ReadMessage()
		if err != nil {
			return err
		}
		if string(got) != message {
			return fmt.Errorf("the answer to %q is %q", message, got)
		}
		ch.heard++
		c.hears(ch)
	}
}

// answered returns a channel that is closed when each of them has had so many more answers, or its end.
func (c *crowd) answered(n int) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.era++
	c.want, c.lacking = n, len(c.chatters)-c.gone
	c.reached = make(chan struct{})
	return c.reached
}

func (c *crowd) hears(ch *chatter) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ch.era < c.era {
		ch.era, ch.had = c.era, 0
	}
	if ch.had++; ch.had == c.want {
		c.settles()
	}
}

func (c *crowd) ended(ch *chatter) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone++
	if ch.era < c.era || ch.had < c.want {
		c.settles()
	}
}

// settles says that one of those who lacked answers does no more. The lock is held.
func (c *crowd) settles() {
	if c.lacking--; c.lacking == 0 && c.reached != nil {
		close(c.reached)
		c.reached = nil
	}
}

// leave ends the chat.
func (c *crowd) leave() {
	close(c.leaving)
	c.all.Wait()
}

func await(t testing.TB, what string, event <-chan struct{}) {
	t.Helper()
	select {
	case <-event:
	case <-time.After(patience):
		t.Fatalf("not %s within %s", what, patience)
	}
}

func TestABackendThatIsAwayForFiveSecondsUnderAThousandChattingClients(t *testing.T) {
	t.Parallel()
	const turns = 16
	tests := []struct {
		name    string
		signal  syscall.Signal // what the backend is stopped by
		retry   string
		clients int
		verify  func(t *testing.T, o *outage)
	}{
		{"killed, with RETRY=always nothing is lost", syscall.SIGKILL, "always", 1000, func(t *testing.T, o *outage) {
			o.allStayed(t)
		}},
		{"killed, with RETRY=safe only those whose message was there are closed", syscall.SIGKILL, "safe", 1000, func(t *testing.T, o *outage) {
			o.onlyOpenOutcomesClosed(t, turns)
			o.nothingTwice(t)
		}},
		{"stopped, with RETRY=safe nothing is lost or doubled", syscall.SIGTERM, "safe", 1000, func(t *testing.T, o *outage) {
			o.allStayed(t)
			o.nothingTwice(t)
		}},
		{"stopped, with RETRY=always nothing is lost or doubled", syscall.SIGTERM, "always", 250, func(t *testing.T, o *outage) {
			o.allStayed(t)
			o.nothingTwice(t)
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			address, record := "127.0.0.1:"+freePort(t), filepath.Join(t.TempDir(), "record")
			app := applicationProcess(t, address, record)
			s := serve(t, "WSBRIDGE_BACKEND_URL=http://"+address, "WSBRIDGE_BACKEND_RETRY="+test.retry, fmt.Sprintf("WSBRIDGE_BACKEND_MAX_CONCURRENT=%d", turns),
				"WSBRIDGE_DRAIN_TIMEOUT=10s")
			c := gather(t, s.clients, test.clients)
			c.chat()
			await(t, "chatting", c.answered(1))
			s.shows(t, "wsbridge_backend_up 1")

			app.signal(t, test.signal)
			<-app.end
			back := time.After(5 * time.Second)
			s.awaitLine(t, "the backend is down")
			s.shows(t, "wsbridge_backend_up 0")
			<-back
			app = applicationProcess(t, address, record)
			await(t, "answered after the outage", c.answered(2))
			s.awaitLine(t, "the backend is back")
			s.shows(t, "wsbridge_backend_up 1")
			_, highest := request(t, "GET", "http://"+address+"/highest", nil, "")
			if most, err := strconv.Atoi(highest); err != nil || most > turns {
				t.Errorf("POSTs at once: %d %v, want at most %d", most, err, turns)
			}
			c.leave()
			s.signal(t, syscall.SIGTERM)
			s.exits(t, 0)
			app.signal(t, syscall.SIGTERM)
			app.exits(t, 0)

			s.hasOneOutage(t)
			o := newOutage(t, c, readRecord(t, record))
			test.verify(t, o)
			o.log(t)
		})
	}
}

// say sends each of them its name, and hear waits for it to come back.
func say(t *testing.T, who []*chatter) {
	t.Helper()
	for _, ch := range who {
		if err := ch.WriteMessage(websocket.TextMessage, []byte(ch.name)); err != nil {
			t.Fatal(err)
		}
	}
}

func hear(t *testing.T, who []*chatter) {
	t.Helper()
	for _, ch := range who {
		(&client{Conn: ch.Conn}).hears(t, websocket.TextMessage, ch.name)
	}
}

// A backend that stops closes its door first, and then answers what it has begun.
func TestTheLastAnswersOfABackendThatStopsDontMakeItBack(t *testing.T) {
	t.Parallel()
	app := &application{held: make(chan struct{})}
	app.last.Store(true) // no idle connection is left, over which it would still answer new ones
	address, stop := app.open(t, "127.0.0.1:"+freePort(t))
	s := serve(t, "WSBRIDGE_BACKEND_URL=http://"+address, "WSBRIDGE_DRAIN_TIMEOUT=1s")
	c := gather(t, s.clients, 8)
	there, late := c.chatters[:4], c.chatters[4:]
	say(t, there)
	app.await(t, "holding the first messages", func() bool { return app.busy == len(there) })
	stop()
	say(t, late)
	s.awaitLine(t, "the backend is down")
	for range there {
		app.held <- struct{}{}
	}
	hear(t, there)
	s.shows(t, "wsbridge_backend_up 0")
	close(app.held)
	app.open(t, address)
	hear(t, late)
	s.hasOneOutage(t)
	c.close()
	s.signal(t, syscall.SIGTERM)
	s.exits(t, 0)
}

// A new backend has the address while the old one still works on what it had begun, until somebody loses patience and kills it.
func TestTheEndOfAnOldBackendDoesNotTakeTheNewOneDown(t *testing.T) {
	t.Parallel()
	old, fresh := &application{held: make(chan struct{})}, &application{}
	old.last.Store(true)
	address, stop := old.open(t, "127.0.0.1:"+freePort(t))
	s := serve(t, "WSBRIDGE_BACKEND_URL=http://"+address, "WSBRIDGE_DRAIN_TIMEOUT=1s")
	c := gather(t, s.clients, 8)
	there, late := c.chatters[:4], c.chatters[4:]
	say(t, there)
	old.await(t, "holding the first messages", func() bool { return old.busy == len(there) })
	stop()
	say(t, late)
	s.awaitLine(t, "the backend is down")
	fresh.open(t, address)
	hear(t, late)
	old.kill()
	for _, ch := range there {
		(&client{Conn: ch.Conn}).ends(t, websocket.CloseInternalServerErr)
	}
	say(t, late)
	hear(t, late)
	s.hasOneOutage(t)
	c.close()
	s.signal(t, syscall.SIGTERM)
	s.exits(t, 0)
	close(old.held)
}

// hasOneOutage checks that the log tells of one, from its beginning to its end.
func (s *sidecar) hasOneOutage(t *testing.T) {
	t.Helper()
	for _, line := range []string{`"msg":"the backend is down`, `"msg":"the backend is back"`} {
		if got := strings.Count(s.out.String(), line); got != 1 {
			t.Errorf("lines with %s: %d, want 1", line, got)
		}
	}
}

// shows checks that /metrics has a line.
func (s *sidecar) shows(t *testing.T, line string) {
	t.Helper()
	if _, body := request(t, "GET", "http://"+s.pushes+"/metrics", nil, ""); !strings.Contains("\n"+body, "\n"+line+"\n") {
		t.Errorf("/metrics lacks %q", line)
	}
}

// outage is how a chat went through one, as the clients and the backend's record have it.
type outage struct {
	crowd    *crowd
	restart  int              // where in the record the backend was started again
	messages map[string][]int // where in the record they are, by their bodies
	record   []entry
}

// newOutage checks what holds whatever the backend did: each connection's events are in order, an event that came again had the same id and a
// higher attempt, no answered message is missing, and there is one goodbye.
func newOutage(t *testing.T, c *crowd, record []entry) *outage {
	t.Helper()
	o := &outage{crowd: c, messages: map[string][]int{}, record: record}
	stories := map[string][]entry{} // by connection
	paths := map[string]string{}    // connections, by the client's path
	for i, e := range record {
		switch e.kind {
		case "start":
			o.restart = i
		case "message":
			o.messages[e.body] = append(o.messages[e.body], i)
		case "connect":
			if other, ok := paths[e.body]; ok && other != e.connection {
				t.Errorf("%s has two connections: %s and %s", e.body, other, e.connection)
			}
			paths[e.body] = e.connection
		}
		if e.connection != "" {
			stories[e.connection] = append(stories[e.connection], e)
		}
	}
	if len(stories) != len(c.chatters) {
		t.Errorf("connections in the record: %d, want %d", len(stories), len(c.chatters))
	}
	for _, ch := range c.chatters {
		story := stories[paths["/ws/"+ch.name]]
		if err := ch.tells(story); err != nil {
			t.Errorf("client %s (%d sent, %d heard, end: %v): %v", ch.name, ch.sent, ch.heard, ch.end, err)
			for _, e := range story {
				t.Logf("%s %s %d %s", e.kind, e.id, e.attempt, e.body)
			}
		}
	}
	return o
}

// tells returns what is wrong with the events of a connection.
func (ch *chatter) tells(story []entry) error {
	told := 0 // messages
	ids := map[string]bool{}
	var last entry
	for i, e := range story {
		switch {
		case i > 0 && e.kind == last.kind && e.id == last.id && e.body == last.body && e.attempt > last.attempt:
		case ids[e.id] || e.id == "":
			return fmt.Errorf("%s with the id %s, attempt %d, which was there before", e.kind, e.id, e.attempt)
		case i == 0 && e.kind == "connect":
		case i > 0 && last.kind != "disconnect" && e.kind == "message":
			// The outcome of the last one is open where the connection was closed.
			if told++; e.body != fmt.Sprintf("%s:%d", ch.name, told) {
				return fmt.Errorf("message %q, want number %d", e.body, told)
			}
		case i > 0 && last.kind != "disconnect" && e.kind == "disconnect":
			code := websocket.CloseNormalClosure
			if closed, ok := errors.AsType[*websocket.CloseError](ch.end); ok {
				code = closed.Code
			}
			if !strings.Contains(e.body, fmt.Sprintf(`"code":%d,`, code)) {
				return fmt.Errorf("disconnect event %s, want code %d", e.body, code)
			}
		default:
			return fmt.Errorf("event %d is %s, behind %q", i+1, e.kind, last.kind)
		}
		ids[e.id] = true
		last = e
	}
	if last.kind != "disconnect" {
		return fmt.Errorf("the last event is %q, want disconnect", last.kind)
	}
	if told != ch.heard && told != ch.sent {
		return fmt.Errorf("%d messages were delivered", told)
	}
	return nil
}

func (o *outage) allStayed(t *testing.T) {
	t.Helper()
	for _, ch := range o.crowd.chatters {
		if ch.end != nil || ch.heard != ch.sent {
			t.Errorf("client %s was closed or has lost a message: %d sent, %d answered, end: %v", ch.name, ch.sent, ch.heard, ch.end)
		}
	}
}

func (o *outage) nothingTwice(t *testing.T) {
	t.Helper()
	for body, times := range o.messages {
		if len(times) > 1 {
			t.Errorf("message %s was delivered %d times", body, len(times))
		}
	}
}

// onlyOpenOutcomesClosed checks that at most so many were closed, with the code for it, and each for a message whose POST had begun before the kill.
func (o *outage) onlyOpenOutcomesClosed(t *testing.T, most int) {
	t.Helper()
	closed := 0
	for _, ch := range o.crowd.chatters {
		switch {
		case ch.end == nil && ch.heard == ch.sent:
			continue
		case !websocket.IsCloseError(ch.end, websocket.CloseInternalServerErr) || ch.heard != ch.sent-1:
			t.Errorf("client %s: %d sent, %d answered, end: %v; want close 1011 and one message open", ch.name, ch.sent, ch.heard, ch.end)
		}
		closed++
		for _, i := range o.messages[fmt.Sprintf("%s:%d", ch.name, ch.sent)] {
			if i > o.restart {
				t.Errorf("client %s was closed, and its last message delivered behind the outage", ch.name)
			}
		}
	}
	if closed > most {
		t.Errorf("%d were closed, want at most %d", closed, most)
	}
}

func (o *outage) log(t *testing.T) {
	messages, closed, again, probes, goodbyes := 0, 0, 0, 0, 0
	for _, ch := range o.crowd.chatters {
		messages += ch.heard
		if ch.end != nil {
			closed++
		}
	}
	for _, times := range o.messages {
		again += len(times) - 1
	}
	for _, e := range o.record {
		switch e.kind {
		case "OPTIONS":
			probes++
		case "disconnect":
			goodbyes++
		}
	}
	t.Logf("%d clients, %d messages answered, %d connections closed, %d messages delivered again, %d goodbyes, %d probes answered",
		len(o.crowd.chatters), messages, closed, again, goodbyes, probes)
}
