package bridge

import (
	"time"
	"unicode/utf8"

	"wsbridge/upstream"
)

// What comes from the client of a parked connection is dealt with by the one goroutine that watches all of them, where it can be without waiting: heartbeats, and a message
// that is whole, small and alone, and in time for its rate, while none before it is under way. With hundreds of clients that speak, the goroutine, its stack and gorilla's reader of each are no more in the
// processor's caches when their turn comes, nor is Go's scheduler free: a message costs a tenth less without.

// mostHeartbeats is how much of them is dealt with at once, and behind one message, in bytes: of a client that floods us with pings its own reader takes care.
const mostHeartbeats = 64

// stirs takes note of what has come from the client of a parked connection: pongs, which say that it lives, pings, which are answered, a message, or something for which it is
// built, as it is if the client has ended its side. It reports whether it was heartbeats alone. What the buffer has is looked at no more when it returns.
func (c *conn) stirs(buffer []byte, ended bool) (heartbeats bool) {
	c.mu.Lock()
	if c.parked == 0 {
		c.mu.Unlock()
		return false
	}
	fd := int(c.parked)
	c.kept.know(fd)
	n, nothing, err := lookAt(fd, buffer)
	free := c.owesNothing() // no message is under way, behind which this has come
	if free && !ended && err == nil && c.takes(buffer[:n]) {
		c.mu.Unlock()
		return false
	}
	pongs, ping, others := heartbeatsIn(buffer[:n])
	beats := int64(n)
	if !free {
		beats += c.behind
	}
	if ended || !nothing && (n == 0 || beats >= mostHeartbeats || others || err != nil) {
		c.unpark()
		c.mu.Unlock()
		return false
	}
	if n > 0 {
		if free {
			c.dropParked(c.kept.dropped() + int64(n))
		} else {
			c.behind = beats // which go with the message
		}
		c.heard.Store(time.Now().UnixNano())
	}
	if ping != nil && !c.controlAsleep(opPong, ping) {
		c.busy().out.pong(ping)
		c.startWriter()
	}
	c.mu.Unlock()
	for _, pong := range pongs {
		c.ponged(pong)
	}
	return true
}

// takes takes a message, if p is one and nothing has to be waited for. The lock is held.
func (c *conn) takes(p []byte) bool {
	header := headerOf(p)
	if c.handing || header == 0 || int64(len(p)-header) > c.bridge.config.MaxMessage {
		return false
	}
	data := unmasked([4]byte(p[header-4:]), p[header:])
	binary := p[0] == finBit|opBinary
	if !binary && !utf8.Valid(data) {
		return false
	}
	now := time.Now()
	if !c.rate.Allow(now, len(data)) {
		return false
	}
	c.heard.Store(now.UnixNano())
	if !c.isAwake() {
		c.recall()
		c.schedule(now)
	}
	m := message{body: upstream.Payload{Binary: binary, Data: data}, position: c.kept.dropped(), at: now}
	m.end = m.position + int64(len(p))
	c.record.Position = m.end
	c.counts(&m)
	c.enters(m, nil)
	return true
}

// dropParked takes what is before the position out of the socket's buffer of a parked connection: it is done with. The lock is held.
func (c *conn) dropParked(to int64) {
	slot := c.kept.slot
	from, at := slot.DropTo.Load(), slot.Base.Load()+uint64(to)
	slot.DropTo.Store(at)
	dropBytes(int(c.parked), int(at-from), c.kept.tcp)
	slot.DropFrom.Store(at)
}

// heartbeatsIn returns the payloads of eight bytes among those of the pongs in p, that of the last ping, or nil, and whether there is anything else.
func heartbeatsIn(p []byte) (pongs [][8]byte, ping []byte, others bool) {
	for len(p) > 0 {
		if len(p) < 6 || p[0] != finBit|opPong && p[0] != finBit|opPing || p[1] < 0x80 || p[1] > 0x80|125 || len(p) < 6+int(p[1]&0x7f) {
			return nil, nil, true
		}
		payload := unmasked([4]byte(p[2:6]), p[6:6+int(p[1]&0x7f)])
		if p[0] == finBit|opPing {
			ping = payload
		} else if len(payload) == 8 {
			pongs = append(pongs, [8]byte(payload))
		}
		p = p[6+len(payload):]
	}
	return pongs, ping, false
}
