package bridge

import (
	"errors"
	"slices"
)

// guard follows the frames in a client's stream, before gorilla reads them. It finds what gorilla lets pass: a compression bit where none may
// be (RFC 7692, 6), lengths that are not written in the shortest way, and a close frame of one byte (RFC 6455, 5.2 and 5.5.1). It knows where
// each message begins. And it takes pings and pongs out: gorilla would wait for the next frame behind one, with a deep stack that the goroutine would then keep, and
// where it can't be called away.
type guard struct {
	header [14]byte
	have   int      // bytes of the header
	left   int64    // bytes of the payload that are still to come
	pong   bool     // and are taken out
	ping   bool     // the same
	asks   []byte   // the payload of a ping, as far as it is here
	asked  [][]byte // the payloads of pings that are whole, and at which nobody has looked
	echo   [8]byte  // what was in the last pong of eight bytes
	echoes int      // how much of it is here
	echoed bool     // it is whole, and nobody has looked
	offset int64    // of the next byte in the client's stream
	begin  int64    // offset of the frame
	starts []int64  // of the messages that gorilla has not come to
	ends   []int64  // of those whose last frame has begun and that gorilla has not been through
	last   int64    // start of the message that gorilla came to last
	calm   bool     // gorilla is through all that has come before
	open   bool     // a message has begun, and its last frame has not
}

// scan looks at the next bytes of the stream, takes pings and pongs out and returns how many bytes are left. On a broken rule these are the ones
// before the frame that breaks it.
func (g *guard) scan(p []byte) (n int, err error) {
	head := 0 // of the frame, in p
	for i := 0; i < len(p); {
		if g.left > 0 {
			step := int(min(g.left, int64(len(p)-i)))
			switch {
			case g.pong:
				g.hear(p[i : i+step])
			case g.ping:
				g.asks = append(g.asks, p[i:i+step]...)
			default:
				if n != i {
					copy(p[n:], p[i:i+step])
				}
				n += step
			}
			if g.left -= int64(step); g.ping && g.left == 0 {
				g.isAsked()
			}
			i += step
			continue
		}
		if g.have == 0 {
			head, g.begin = n, g.offset+int64(i)
		}
		g.header[g.have], p[n] = p[i], p[i]
		g.have++
		n++
		i++
		if g.have < 2 || g.have < g.size() {
			continue
		}
		if err := g.check(); err != nil {
			g.offset += int64(i)
			return head, err
		}
		// Of one whose header came in two pieces gorilla has seen the first.
		whole := n-head == g.have
		if g.pong = whole && g.plain(opPong); g.pong {
			n, g.echoes = head, 0
		}
		// And a ping behind anything that gorilla has not dealt with is gorilla's to deal with.
		if g.ping = whole && g.calm && head == 0 && g.plain(opPing); g.ping {
			n, g.asks = head, g.asks[:0]
			if g.left == 0 {
				g.isAsked()
			}
		}
		g.have = 0
	}
	g.offset += int64(len(p))
	return n, nil
}

// hear takes note of what is in a pong that could be the answer to a ping of ours.
func (g *guard) hear(payload []byte) {
	if g.header[1]&0x7f != byte(len(g.echo)) {
		return
	}
	for _, b := range payload {
		g.echo[g.echoes] = b ^ g.header[2+g.echoes%4] // the mask
		g.echoes++
	}
	g.echoed = g.echoes == len(g.echo)
}

// isAsked takes note that a ping is whole.
func (g *guard) isAsked() {
	g.asked = append(g.asked, unmasked([4]byte(g.header[2:]), g.asks))
}

// start returns the offset of the message that gorilla has just come to.
func (g *guard) start() int64 {
	g.last = g.starts[0]
	g.starts = slices.Delete(g.starts, 0, 1) // they are few: those in one read buffer
	return g.last
}

// end returns the offset behind the message that gorilla has just been through.
func (g *guard) end() int64 {
	end := g.ends[0]
	g.ends = slices.Delete(g.ends, 0, 1)
	return end
}

// current returns the start of the message that is being read.
func (g *guard) current() int64 {
	if len(g.starts) > 0 {
		return g.starts[0]
	}
	return g.last
}

// within returns the offset up to which nothing belongs to a message behind the one that is being read.
func (g *guard) within() int64 {
	if len(g.ends) > 0 {
		return min(g.offset, g.ends[0])
	}
	return g.offset
}

// atRest reports whether the stream stands between two frames, and between two messages.
func (g *guard) atRest() bool { return g.have == 0 && g.left == 0 && !g.open }

// size is that of the whole header, once its first two bytes are here.
func (g *guard) size() int {
	size := 2
	switch g.header[1] & 0x7f {
	case 126:
		size += 2
	case 127:
		size += 8
	}
	if g.header[1]&0x80 != 0 {
		size += 4
	}
	return size
}

// plain reports whether the header is that of a ping or pong that breaks no rule; gorilla complains of the others.
func (g *guard) plain(opcode byte) bool {
	return g.header[0] == finBit|opcode && g.header[1]&0x80 != 0 && g.left <= 125
}

// check takes note of a frame whose header is whole.
func (g *guard) check() error {
	opcode, short := g.header[0]&0x0f, g.header[1]&0x7f
	if g.header[0]&rsv1Bit != 0 && (opcode == opContinuation || opcode >= opClose && opcode <= opPong) {
		return errors.New("RSV1 set on a frame that does not begin a message")
	}
	extended := 0
	switch short {
	case 126:
		extended = 2
	case 127:
		extended = 8
	}
	length := int64(0)
	for _, b := range g.header[2 : 2+extended] {
		length = length<<8 | int64(b)
	}
	switch {
	case extended == 0:
		length = int64(short)
	case length < 0:
		return errors.New("length of 2⁶³ bytes or more")
	case extended == 2 && length < 126, extended == 8 && length < 1<<16:
		return errors.New("length not written in the shortest way")
	}
	if opcode == opClose && length == 1 {
		return errors.New("close frame of one byte")
	}
	if g.left = length; opcode == opText || opcode == opBinary {
		g.starts = append(g.starts, g.begin)
	}
	if opcode < opClose {
		if g.open = g.header[0]&finBit == 0; !g.open {
			g.ends = append(g.ends, g.begin+int64(g.have)+length)
		}
	}
	return nil
}
