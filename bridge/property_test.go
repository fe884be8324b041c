package bridge_test

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wsbridge/upstream"
)

// round is a backend that fails at random, and clients that come, talk and leave at random. The seed decides who does what; what meets what
// is up to the scheduler.
type round struct {
	*hostile
	seed     uint64
	hurry    bool          // messages are held for so short a time that it may run out
	calm     atomic.Bool   // nothing fails any more
	accepted atomic.Uint64 // connections so far
}

// chance is the source of what happens at one point of a round.
func (r *round) chance(point ...any) *rand.Rand {
	h := fnv.New64a()
	fmt.Fprintln(h, point...)
	return rand.New(rand.NewPCG(r.seed, h.Sum64()))
}

// act does with an event what chance says.
func (r *round) act(x *exchange) {
	chance := r.chance(x.target, x.sequence, x.times)
	if r.calm.Load() || chance.Float64() > 0.2 {
		if x.take() {
			x.reply()
		}
		return
	}
	type mishap struct {
		weight int
		do     func()
	}
	whole := func(do func()) func() {
		return func() {
			if x.take() {
				do()
			}
		}
	}
	decline := func(answer string) func() {
		return whole(func() { x.decline(); x.say(answer + "\r\nContent-Length: 0\r\n\r\n") })
	}
	part := [...]string{
		"", "HTTP/1.1 2", "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhel",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "HTTP/1.1 100 Continue\r\n\r\n",
	}[chance.IntN(7)]
	mishaps := []mishap{
		{10, whole(func() { x.say(part); x.end() })},
		{10, whole(func() { x.say(part); x.reset() })},
		{3, x.end},
		{3, x.reset},
		{3, func() { x.takeHalf(); x.end() }},
		{3, func() { x.takeHalf(); x.reset() }},
		{3, whole(func() { x.say(part) })}, // and no more: it takes the timeout
		{2, x.hang},
		{5, whole(func() { x.say("HTTP/1.1 502 No\r\nContent-Length: 0\r\n\r\n") })},
		{2, whole(func() { x.say("HTTP/1.1 408 No\r\nContent-Length: 0\r\n\r\n") })},
		{5, decline("HTTP/1.1 503 No")},
		{5, decline("HTTP/1.1 503 No\r\nRetry-After: 0")},
		{1, decline("HTTP/1.1 503 No\r\nRetry-After: 1")},
		{2, decline("HTTP/1.1 429 No")},
		// What follows is no failure of the event, but maybe of the next one.
		{15, whole(func() { x.reply(); x.Close() })},
		{10, whole(func() { x.reply(); x.SetLinger(0); x.Close() })},
		{5, whole(func() { x.reply(); r.away(time.Duration(1+chance.IntN(30)) * time.Millisecond) })},
		{2, whole(func() { r.away(time.Duration(1+chance.IntN(30)) * time.Millisecond); x.reset() })},
	}
	sum := 0
	for _, m := range mishaps {
		sum += m.weight
	}
	for pick, i := chance.IntN(sum), 0; ; i++ {
		if pick -= mishaps[i].weight; pick < 0 {
			mishaps[i].do()
			return
		}
	}
}

// drop does away with connections that were just accepted, now and then.
func (r *round) drop(conn *net.TCPConn) bool {
	chance := r.chance("accept", r.accepted.Add(1))
	if r.calm.Load() || chance.Float64() > 0.02 {
		return false
	}
	if chance.IntN(2) == 0 {
		conn.SetLinger(0)
	}
	conn.Close()
	return true
}

// life is one connection of a client, as the client has seen it.
type life struct {
	target      string
	sent, heard []string
	ending      string // waits, leaves, vanishes or resets: what the client does at the end
	closed      bool   // the bridge has closed it before
	code        int    // of the bridge's close frame
	err         error  // what should not have been
}

func (l *life) String() string {
	return fmt.Sprintf("%s: %d sent, %d heard, %s, closed %v, code %d", l.target, len(l.sent), len(l.heard), l.ending, l.closed, l.code)
}

var endings = []string{"waits", "waits", "waits", "leaves", "leaves", "vanishes", "resets"}

// live lives one life, unless the handshake is refused.
func (r *round) live(t testing.TB, rig *rig, target string) *life {
	chance := r.chance(target)
	l := &life{target: target, ending: endings[chance.IntN(len(endings))]}
	c := rig.connect(t)
	defer c.Close()
	if _, err := c.Write([]byte(handshake(target))); err != nil {
		l.err = err
		return l
	}
	switch status := c.answered().StatusCode; status {
	case 101:
	case 408, 429, 502, 503, 504:
		return nil
	default:
		l.err = fmt.Errorf("status = %d", status)
		return l
	}
	r.open(target)

	for left := 1 + chance.IntN(12); left > 0; {
		var frames []frame
		for range min(left, 1+chance.IntN(6)) {
			message := fmt.Sprintf("message %d of %s", len(l.sent), target)
			if chance.IntN(20) == 0 {
				message += strings.Repeat(".", 20<<10) // it may be half read, and is written by a goroutine of its own
			}
			l.sent = append(l.sent, message)
			frames = append(frames, text(message))
		}
		left -= len(frames)
		if chance.IntN(2) == 0 {
			runtime.Gosched()
		}
		// An error says the same as what is read then.
		if c.send(frames...); chance.IntN(3) > 0 && !l.listen(c, len(l.sent)) {
			return l
		}
	}
	switch l.ending {
	case "waits":
		if l.listen(c, len(l.sent)) {
			l.code, l.err = 1000, c.bye()
		}
	case "leaves":
		c.send(goodbye(1000, ""))
		l.listen(c, len(l.sent)+1)
	case "resets":
		c.SetLinger(0)
	}
	return l
}

// listen reads answers until there are so many. It returns false when the connection ends before.
func (l *life) listen(c *client, most int) bool {
	for len(l.heard) < most {
		f, err := c.read()
		switch {
		case err != nil:
			l.err = err
			return false
		case f.op == opClose:
			l.code, l.err = c.closed(f)
			l.closed = l.code != 1000
			return false
		case f.op != opText:
			l.err = fmt.Errorf("got = %v", f)
			return false
		}
		l.heard = append(l.heard, string(f.payload))
	}
	return true
}

// judge checks a life against what the backend has had of it, when its disconnect event was taken.
func (r *round) judge(t testing.TB, l *life, events []delivery) {
	fail := func(format string, args ...any) {
		t.Helper()
		t.Errorf("%v: %s", l, fmt.Sprintf(format, args...))
	}
	if l.err != nil {
		fail("%v", l.err)
	}
	for i, answer := range l.heard {
		if i >= len(l.sent) || answer != l.sent[i] {
			fail("answer %d = %.60q", i, answer)
		}
	}
	taken, last := map[int]bool{}, 0 // by sequence
	var told upstream.Goodbye
	for _, d := range events {
		switch {
		case d.kind == "message" && d.late:
		case d.kind == "message":
			last = max(last, d.sequence)
			if d.whole && (d.sequence-2 >= len(l.sent) || d.body != l.sent[d.sequence-2]) {
				fail("event %d = %.60q", d.sequence, d.body)
			}
			taken[d.sequence] = taken[d.sequence] || d.whole && !d.declined
		case d.kind == "disconnect" && d.whole:
			if err := json.Unmarshal([]byte(d.body), &told); err != nil {
				fail("disconnect event: %v", err)
			}
		}
	}
	for i := range l.heard {
		if !taken[i+2] {
			fail("message %d was answered, and the backend has not had it", i)
		}
	}
	if l.closed {
		// Nothing was lost without a word: what is not answered is the one message that the code is about, and what is behind it, which is not posted.
		permitted := l.code == 1011 && r.retry == upstream.RetrySafe || l.code == 1013 && r.hurry
		if !permitted {
			fail("this code is not due")
		}
		if last > len(l.heard)+2 {
			fail("event %d was posted, behind the one that failed", last)
		}
		if told.Code != l.code || told.By != "bridge" || int(told.MessagesOut) != len(l.heard) {
			fail("the disconnect event says %+v", told)
		}
		return
	}
	switch l.ending {
	case "waits":
		if len(l.heard) != len(l.sent) || told.Code != 1000 || int(told.MessagesIn) != len(l.sent) || int(told.MessagesOut) != len(l.sent) {
			fail("the disconnect event says %+v", told)
		}
	case "leaves":
		if l.code != 1000 || told.Code != 1000 || int(told.MessagesIn) != len(l.sent) {
			fail("the disconnect event says %+v", told)
		}
		// It has left, so a message that failed ends what is posted, without a word.
		if r.retry == upstream.RetryAlways && !r.hurry {
			for i := range l.sent {
				if !taken[i+2] {
					fail("message %d did not come to the backend", i)
				}
			}
		}
	}
}

// play plays a round.
func play(t *testing.T, seed uint64, retry upstream.Retry, hurry bool) {
	const clients, lives = 8, 3
	r := &round{seed: seed, hurry: hurry}
	r.hostile = newHostile(t, retry, r.act)
	r.refusing(r.drop)
	rig := start(t, r.config(func(o *options) {
		o.backend.Timeout, o.backend.RetryFor = 400*time.Millisecond, time.Hour
		if r.hurry {
			o.backend.RetryFor = 300 * time.Millisecond
		}
		o.backend.MaxConcurrent = 1 + r.chance("concurrent").IntN(clients)
	}))
	var all sync.WaitGroup
	told := make([][]*life, clients)
	for i := range clients {
		all.Go(func() {
			for n := range lives {
				if l := r.live(t, rig, fmt.Sprintf("/ws/%d-%d", i, n)); l != nil {
					told[i] = append(told[i], l)
				}
			}
		})
	}
	all.Wait()
	r.calm.Store(true)
	r.awaitGoodbyes()
	events := map[string][]delivery{}
	for _, d := range r.events() {
		events[d.target] = append(events[d.target], d)
	}
	for _, lives := range told {
		for _, l := range lives {
			r.judge(t, l, events[l.target])
		}
	}
}

// Whatever a backend does and whenever clients leave: with safe nothing is done twice, with always nothing is lost, and with either everything
// comes in order, is answered or closed with a code that says so, and ends with one goodbye.
//
// WSBRIDGE_ROUNDS sets how many rounds there are, WSBRIDGE_SEED the seed of the first.
func TestPropertyNothingIsLostAndNothingIsDoneTwice(t *testing.T) {
	t.Parallel()
	number := func(name string, value uint64) uint64 {
		if text := os.Getenv(name); text != "" {
			var err error
			if value, err = strconv.ParseUint(text, 10, 64); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		return value
	}
	rounds, seed := number("WSBRIDGE_ROUNDS", 20), number("WSBRIDGE_SEED", uint64(rand.Uint32()))
	sideBySide(t, func(run func(string, func(*testing.T))) {
		for seed, end := seed, seed+rounds; seed < end; seed++ {
			retry, hurry := upstream.RetrySafe, seed/2%3 == 0
			if seed%2 == 1 {
				retry = upstream.RetryAlways
			}
			run(fmt.Sprintf("WSBRIDGE_SEED=%d, %s, hurry %v", seed, retry, hurry), func(t *testing.T) { play(t, seed, retry, hurry) })
		}
	})
}
