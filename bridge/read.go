package bridge

import (
	"bytes"
	"compress/flate"
	"errors"
	"io"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/gorilla/websocket"

	"wsbridge/ratelimit"
	"wsbridge/upstream"
)

// maxScratch is the largest buffer that is kept to read messages into, in bytes: one large message must not hold its memory for good.
const maxScratch = 64 << 10

// serve reads from the client until it has left, broke a rule, or the connection's end has been sealed with close frames, and then
// until nothing is left of the connection. It spends its life waiting, and that must fit into the 2 KiB of stack that a goroutine begins
// with: it waits before it calls gorilla, and whatever else it does is done in functions of its own.
func (c *conn) serve() {
	if s := c.socket; s.raw != nil && (s.held == nil || s.held.kernel) && tellsUnread(s.raw) {
		s.glance = &glance{run: c.glanceOnce}
	}
	for c.glance() {
		c.socket.await()
		if c.drowsy.Load() {
			if c.fallsAsleep() {
				return
			}
			continue
		}
		kind, r, err := c.socket.ws.NextReader()
		if !c.next(kind, r, err) {
			return
		}
	}
}

// next takes a message, or ends the connection where there is none. After the end messages are let go: what is still read is the client's
// close frame.
func (c *conn) next(kind int, r io.Reader, err error) (more bool) {
	m, why := c.message(kind, r, err)
	if why == nil {
		why = c.take(m)
	}
	return c.goesOn(why)
}

// goesOn ends the connection if there is a reason to, unless another worker has it.
func (c *conn) goesOn(why *Close) bool {
	if why != nil && !c.isHanded() {
		c.leave(why)
	}
	return why == nil
}

// message reads what gorilla has come to.
func (c *conn) message(kind int, r io.Reader, err error) (m message, why *Close) {
	if err != nil {
		return m, c.readFailed(err)
	}
	m.position, m.at = c.socket.guard.start(), time.Unix(0, c.heard.Load())
	if m.body.Data, why = c.body(r, kind == websocket.TextMessage); why != nil {
		return m, why
	}
	m.end = c.socket.guard.end()
	m.body.Binary = kind == websocket.BinaryMessage
	return m, nil
}

// take brings a message into the inbox, as soon as the rate allows.
func (c *conn) take(m message) *Close {
	if !c.received(&m) {
		return nil
	}
	wait, why := c.charge(len(m.body.Data))
	if wait > 0 {
		c.standFor(wait)
	}
	return c.accept(m, why)
}

// received takes note of a message. It returns false if that is let go: the client knows from the close code, or another worker reads it again.
func (c *conn) received(m *message) bool {
	c.mu.Lock()
	c.record.Position = c.socket.position()
	if c.hasEnded() || c.handing {
		c.mu.Unlock()
		return false
	}
	if !c.owesNothing() || m.end-m.position >= glanceBuffer || c.record.Window > 0 {
		c.socket.needed = m.at.UnixNano()
	}
	c.counts(m)
	c.mu.Unlock()
	return true
}

// counts counts a message in: from here on it is posted, or the connection ends with a code that says so. The lock is held.
func (c *conn) counts(m *message) {
	c.record.MessagesIn++
	c.record.BytesIn += uint64(len(m.body.Data))
	c.busy().pending++
	m.owed = c.owes(*m)
	c.lastMessage.Store(m.at.UnixNano())
	c.bridge.metrics.received(len(m.body.Data))
}

// charge returns how long a message of that many bytes has to wait for its client's rate, or that the client is flooding.
func (c *conn) charge(size int) (wait time.Duration, why *Close) {
	if c.rate == nil {
		return 0, nil
	}
	if c.bridge.rates.Policy != ratelimit.End {
		return c.rate.Take(time.Now(), size), nil
	}
	if !c.rate.Allow(time.Now(), size) {
		return 0, closeFlooding()
	}
	return 0, nil
}

// standFor reads nothing for a while.
func (c *conn) standFor(wait time.Duration) {
	c.stand()
	defer c.goOn()
	over := false
	alarm := time.AfterFunc(wait, func() {
		c.mu.Lock()
		over = true
		c.tell()
		c.mu.Unlock()
	})
	defer alarm.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for !over && !c.hasEnded() {
		c.busy().changed.Wait()
	}
	c.socket.needed = time.Now().UnixNano()
}

// accept brings a message into the inbox, unless the connection ends by it or has ended meanwhile.
func (c *conn) accept(m message, why *Close) *Close {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.enters(m, why)
}

// enters is accept with the lock held.
func (c *conn) enters(m message, why *Close) *Close {
	ending := c.ending()
	if c.handing {
		c.pending--
		c.hand()
		return why
	}
	if why != nil || ending != nil && (ending.abandon || c.failed != nil) || !c.bridge.upstream.Wants(upstream.Message) {
		if ending != nil {
			c.unposted++
		}
		c.answered(m.owed)
		c.settle(time.Now())
		return why
	}
	if c.inbox == nil {
		c.inbox = c.first[:0]
	}
	c.inbox = append(c.inbox, m)
	c.inboxBytes += m.cost()
	if !c.forwarding {
		c.forwarding = true
		c.tasks.Add(1)
		if e := c.ask(); e.conn != nil {
			c.bridge.crew.run(e)
		}
	}
	return nil
}

// body reads one message, as far as the inbox has room for it, and at most Config.MaxMessage bytes. Text is checked as it comes.
func (c *conn) body(r io.Reader, text bool) ([]byte, *Close) {
	limit := c.bridge.config.MaxMessage
	scratch := c.bridge.scratch.Get().(*[]byte)
	defer c.bridge.scratch.Put(scratch)
	buffer := (*scratch)[:0]
	valid := 0 // bytes of text known to be UTF-8
	for {
		if len(buffer) == cap(buffer) {
			buffer = slices.Grow(buffer, max(len(buffer), readBuffer)) // twice the size
		}
		// One byte more than allowed tells a message that is too big.
		next := min(c.room(int64(len(buffer))), limit+1-int64(len(buffer)), int64(cap(buffer)-len(buffer)))
		n, err := r.Read(buffer[len(buffer) : len(buffer)+int(next)])
		buffer = buffer[:len(buffer)+n]
		if int64(len(buffer)) > limit {
			return nil, closeTooBig(limit)
		}
		if text {
			var ok bool
			if valid, ok = validUpTo(buffer, valid, err == io.EOF); !ok {
				return nil, closeInvalidText("text that is not UTF-8")
			}
		}
		if err == io.EOF {
			break
		} else if err != nil {
			return nil, c.readFailed(err)
		}
	}
	if cap(buffer) <= maxScratch {
		*scratch = buffer
	}
	return bytes.Clone(buffer), nil
}

// validUpTo goes on checking text from the byte up to which it is known to be UTF-8. Unless it is whole its last character may be
// cut short.
func validUpTo(text []byte, from int, whole bool) (valid int, ok bool) {
	rest := text[from:]
	if utf8.Valid(rest) {
		return len(text), true
	}
	for len(rest) > 0 {
		r, size := utf8.DecodeRune(rest)
		if r == utf8.RuneError && size == 1 {
			return len(text) - len(rest), !whole && !utf8.FullRune(rest)
		}
		rest = rest[size:]
	}
	return len(text), true
}

// room waits until more of a message may be read of which held bytes are here, and returns how many: what waits in the inbox and the
// message being read make at most one Config.MaxMessage, but an empty inbox takes any message.
func (c *conn) room(held int64) int64 {
	limit := c.bridge.config.MaxMessage
	c.mu.Lock()
	defer c.mu.Unlock()
	free := func() int64 {
		if c.work == nil || len(c.inbox) == 0 || c.hasEnded() {
			return limit + 1
		}
		return limit - c.inboxBytes - held
	}
	if n := free(); n > 0 {
		return n
	}
	c.stand()
	for free() <= 0 {
		c.changed.Wait()
	}
	c.goOn()
	return free()
}

// stand stops the clock that waits for a pong, while we don't read; goOn starts it anew.
func (c *conn) stand() { c.standing.Store(true) }

func (c *conn) goOn() {
	c.heard.Store(time.Now().UnixNano())
	c.standing.Store(false)
}

// readFailed returns how the connection ends on an error of gorilla's: the client's own close, a broken line, or a broken rule.
func (c *conn) readFailed(err error) *Close {
	c.mu.Lock()
	c.record.Position = c.socket.position()
	c.mu.Unlock()
	if c.socket.err != nil {
		return closeVanished(c.socket.err)
	}
	if closed, ok := errors.AsType[*websocket.CloseError](err); ok {
		return closeByClient(closed.Code, closed.Text)
	}
	if _, ok := errors.AsType[flate.CorruptInputError](err); ok {
		return closeInvalidText("compressed data that does not inflate")
	}
	return closeProtocol(err)
}
