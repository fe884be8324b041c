package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// talk is a manner of talking.
type talk struct {
	name       string
	verb       string
	ahead      int           // messages that it is ahead of the answers
	size       int           // of a message, in bytes
	fragment   int           // size of a fragment, in bytes; 0: messages are not fragmented
	receive    int           // size of the client's receive buffer, in bytes; 0: the kernel's
	pause      time.Duration // before it reads an answer
	pings      bool          // in between
	beats      bool          // pings and pongs behind a message
	compressed bool
	leaves     bool // behind each answer
	idle       bool // until all is over
	member     bool // is pushed to
}

var talks = []talk{
	{name: "idle", verb: "echo", ahead: 1, idle: true},
	{name: "one at a time", verb: "echo", ahead: 1, size: 100},
	{name: "one at a time, with pings and pongs behind", verb: "echo", ahead: 1, size: 100, beats: true},
	{name: "five ahead", verb: "echo", ahead: 5, size: 400},
	{name: "large messages in fragments, with pings", verb: "echo", ahead: 2, size: 60_000, fragment: 4096, pings: true},
	{name: "slow to read", verb: "large", ahead: 3, receive: 4096, pause: 3 * time.Millisecond},
	{name: "slow to read one at a time", verb: "large", ahead: 1, receive: 4096, pause: 3 * time.Millisecond},
	{name: "compressed", verb: "echo", ahead: 2, size: 3000, compressed: true},
	{name: "member", verb: "count", ahead: 2, member: true},
	{name: "comes and goes", verb: "echo", ahead: 1, leaves: true},
}

// everybody is the group of all members.
const everybody = "everybody"

// party is talkers, and one who pushes to them, while somebody does something to the program.
type party struct {
	t       *testing.T
	seed    uint64
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
	clients string
	pushes  string
	planned bool  // nothing is killed: nobody may notice anything
	closes  []int // codes that may end a connection; 1006 is a connection that breaks off

	over    chan struct{} // closed when nothing is done to the program any more
	closed  atomic.Int64  // connections, with one of the codes
	answers atomic.Int64

	// doubtful are pushes of which nobody has said that they were accepted. A worker that hands over passes pushes on; one that is killed meanwhile leaves its
	// pusher without an answer, and the push may still come, behind others.
	doubtful sync.Map
}

func (p *party) failf(format string, args ...any) {
	if p.t.Context().Err() != nil {
		return // the test has failed and ended meanwhile, and the program with it
	}
	p.t.Errorf(format+" (WSBRIDGE_SEED=%d)", append(args, p.seed)...)
}

// talker is a client that talks while the program is killed under it.
type talker struct {
	talk
	*party
	index   int
	counted int          // answers of this connection
	heard   map[int]bool // pushes
	last    int          // of them
	bye     bool         // has been heard: nothing more is pushed
	leave   chan struct{}
	gone    chan struct{}
}

// talk lets so many of each kind talk while f does its work, and until everything is answered.
func (p *party) talk(each int, f func()) {
	var talking sync.WaitGroup
	var members []*talker
	for i, kind := range talks {
		for j := range each {
			c := &talker{talk: kind, party: p, index: i*each + j, heard: map[int]bool{}, leave: make(chan struct{}), gone: make(chan struct{})}
			if c.member {
				members = append(members, c)
			}
			talking.Go(func() {
				defer close(c.gone)
				c.run()
			})
		}
	}
	pushed := make(chan map[*talker]map[int]bool, 1)
	go func() { pushed <- p.push(members) }()
	f()
	close(p.over)
	must := <-pushed
	for _, c := range members {
		p.sayBye(c)
	}
	talking.Wait()
	for c, numbers := range must {
		for n := range numbers {
			if !c.heard[n] {
				p.failf("%s %d has not heard push %d, which was accepted or confirmed", c.name, c.index, n)
			}
		}
	}
}

func (p *party) isOver() bool {
	select {
	case <-p.over:
		return true
	default:
		return false
	}
}

func (c *talker) user() string { return fmt.Sprint("u", c.index) }

// text is a message of the client's.
func (c *talker) text(n int) string {
	text := fmt.Sprintf("%s %d %d ", c.verb, c.index, n)
	return text + strings.Repeat("x", max(c.size-n%(c.size+1)/2-len(text), 0))
}

// wants is the answer to it.
func (c *talker) wants(n int) string {
	switch text := c.text(n); c.verb {
	case "large":
		return largeAnswer(text)
	case "count":
		_, rest, _ := strings.Cut(text, " ")
		return fmt.Sprintf("count %d %s", c.counted, rest)
	default:
		return text
	}
}

// run talks over one connection after the other, for as long as there is need for another.
func (c *talker) run() {
	for n := 0; ; {
		next, done, err := c.converse(n)
		switch {
		case err != nil:
			c.failf("%s %d: %v", c.name, c.index, err)
			return
		case done:
			return
		}
		n = next
	}
}

// converse talks over one connection, from message n on. It returns the first message that was not sent, and whether nothing is left to be said.
func (c *talker) converse(n int) (next int, done bool, err error) {
	conn, err := c.connect()
	if err != nil {
		return n, false, err
	}
	defer conn.Close()
	c.counted, c.last = 0, 0
	if c.idle {
		<-c.over
	}
	ended := func(err error) (int, bool, error) {
		var closed *websocket.CloseError
		codes := c.closes
		if c.pause > 0 && len(codes) > 0 {
			// It may take longer to read what waits for it than anybody waits for it, and what it says then is answered with a reset.
			codes = append([]int{websocket.CloseAbnormalClosure}, codes...)
		}
		for _, code := range codes {
			if errors.As(err, &closed) && closed.Code == code || closed == nil && code == websocket.CloseAbnormalClosure {
				c.closed.Add(1)
				return next, false, nil
			}
		}
		return next, false, err
	}
	next = n
	for said := false; ; said = true {
		for next < n+c.ahead && (c.idle || c.leaves || !c.isOver()) && !(said && (c.idle || c.leaves)) {
			if err := c.say(conn, c.text(next)); err != nil {
				break // what it was is read below
			}
			next++
		}
		if n == next {
			break
		}
		time.Sleep(c.pause) // a client that is slow
		text, err := c.hear(conn)
		for err == nil && text == "bye" {
			text, err = c.hear(conn)
		}
		if err != nil {
			return ended(err)
		}
		c.counted++
		if want := c.wants(n); text != want {
			return next, false, fmt.Errorf("answer %d is %s, want %s", n, shorten(text), shorten(want))
		}
		c.answers.Add(1)
		n++
	}
	if c.member {
		for !c.bye {
			if text, err := c.hear(conn); err != nil {
				return ended(err)
			} else if text != "bye" {
				return next, false, fmt.Errorf("%s came unasked", shorten(text))
			}
		}
	}
	conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(1000, ""), time.Now().Add(patience))
	for {
		if text, err := c.hear(conn); websocket.IsCloseError(err, 1000) {
			break
		} else if err != nil {
			return ended(err)
		} else if text != "bye" { // which is said until it is heard
			return next, false, fmt.Errorf("%s came unasked", shorten(text))
		}
	}
	return next, !c.leaves || c.isOver(), nil
}

// connect opens a connection. One that was being opened at a kill may break off, but nobody is refused.
func (c *talker) connect() (*websocket.Conn, error) {
	dialer := websocket.Dialer{
		HandshakeTimeout: patience, EnableCompression: c.compressed, WriteBufferSize: c.fragment,
		NetDialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := c.dial(ctx, network, address)
			if small, ok := conn.(interface{ SetReadBuffer(int) error }); ok && c.receive > 0 {
				small.SetReadBuffer(c.receive)
			}
			return conn, err
		},
	}
	url := "ws://" + c.clients + "/ws"
	if c.member {
		url = "ws://" + c.clients + "/ws/member/" + c.user()
	}
	for end := time.Now().Add(patience); ; {
		conn, answer, err := dialer.DialContext(c.t.Context(), url, nil)
		if err == nil {
			conn.SetReadDeadline(time.Now().Add(patience))
			return conn, nil
		}
		if c.planned || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT) || answer != nil && answer.StatusCode < 500 || time.Now().After(end) {
			return nil, fmt.Errorf("connecting: %w (%v)", err, answer)
		}
	}
}

func (c *talker) say(conn *websocket.Conn, text string) error {
	if c.fragment == 0 {
		err := conn.WriteMessage(websocket.TextMessage, []byte(text))
		for range rand.IntN(4) {
			if c.beats && err == nil {
				err = conn.WriteControl(websocket.PingMessage+rand.IntN(2), []byte("behind"), time.Now().Add(patience))
			}
		}
		return err
	}
	w, err := conn.NextWriter(websocket.TextMessage)
	for len(text) > 0 && err == nil {
		if c.pings && rand.IntN(4) == 0 {
			conn.WriteControl(websocket.PingMessage, []byte("between"), time.Now().Add(patience))
		}
		piece := text[:min(len(text), c.fragment)]
		_, err = io.WriteString(w, piece)
		text = text[len(piece):]
	}
	if err != nil {
		return err
	}
	return w.Close()
}

// hear returns the next message that is no push, or the last push.
func (c *talker) hear(conn *websocket.Conn) (string, error) {
	for {
		_, data, err := conn.ReadMessage()
		if err != nil {
			return "", err
		}
		text := string(data)
		c.bye = c.bye || text == "bye"
		number, isPush := strings.CutPrefix(text, "push ")
		if !isPush {
			return text, nil
		}
		var n int
		fmt.Sscan(number, &n)
		if _, late := c.doubtful.Load(n); late && n < c.last && !c.heard[n] {
			c.heard[n] = true
			continue
		}
		if n <= c.last || !c.member || number != fmt.Sprintf("%d to %s", n, c.user()) && number != fmt.Sprintf("%d to %s", n, everybody) {
			return "", fmt.Errorf("%q came behind push %d (it had been heard: %t)", text, c.last, c.heard[n])
		}
		c.last, c.heard[n] = n, true
	}
}

// push pushes to members until all is over. It returns what each must have heard.
func (p *party) push(members []*talker) map[*talker]map[int]bool {
	must := map[*talker]map[int]bool{}
	for n := 1; !p.isOver() && len(members) > 0; n++ {
		to, route, whom := members[n%len(members):][:1], "/users/", members[n%len(members)].user()
		if n%5 == 0 {
			to, route, whom = members, "/groups/", everybody
		}
		route += whom
		if n%3 == 0 {
			route += "?confirm=1s"
		}
		said, err := p.post(route, fmt.Sprintf("push %d to %s", n, whom))
		if errors.Is(err, syscall.ECONNREFUSED) || err != nil && p.planned {
			p.failf("push %d: %v", n, err)
		}
		if err != nil {
			p.doubtful.Store(n, true)
		}
		if err != nil || said.Confirmed < len(to) && !(p.planned && said.Queued == len(to)) {
			continue
		}
		for _, c := range to {
			if must[c] == nil {
				must[c] = map[int]bool{}
			}
			must[c][n] = true
		}
	}
	return must
}

// sayBye tells a member that nothing more is pushed.
func (p *party) sayBye(c *talker) {
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if _, err := p.post("/users/"+c.user()+"?confirm=1s", "bye"); err != nil && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, io.EOF) { // by the last worker that was killed
			p.failf("bye: %v", err)
		}
		select {
		case <-c.gone:
			return
		default:
		}
	}
}

// pushSaid is what is said of a push to many.
type pushSaid struct{ Matched, Queued, Confirmed int }

func (p *party) post(route, text string) (said pushSaid, err error) {
	answer, err := http.Post("http://"+p.pushes+route, "text/plain", strings.NewReader(text))
	if err != nil {
		return said, err
	}
	defer answer.Body.Close()
	if answer.StatusCode >= 300 {
		return said, fmt.Errorf("a push is answered %s", answer.Status)
	}
	return said, json.NewDecoder(answer.Body).Decode(&said)
}
