package bridge

import "errors"

// guard follows the frames in a client's stream and finds what gorilla lets pass: a compression bit where none may be (RFC 7692, 6),
// lengths that are not written in the shortest way, and a close frame of one byte (RFC 6455, 5.2 and 5.5.1).
type guard struct {
	header [14]byte
	have   int   // bytes of the header
	left   int64 // bytes of the payload that are still to come
}

// scan looks at the next bytes of the stream. On a broken rule it returns how many of them come before the frame that breaks it.
func (g *guard) scan(p []byte) (good int, err error) {
	for i := 0; i < len(p); {
		if g.left > 0 {
			step := min(g.left, int64(len(p)-i))
			g.left -= step
			i += int(step)
			good = i
			continue
		}
		g.header[g.have] = p[i]
		g.have++
		i++
		if g.have < 2 || g.have < g.size() {
			continue
		}
		length, err := g.check()
		if err != nil {
			return good, err
		}
		g.have, g.left, good = 0, length, i
	}
	return len(p), nil
}

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

// check returns the payload's length of a frame whose header is whole.
func (g *guard) check() (length int64, err error) {
	opcode, short := g.header[0]&0x0f, g.header[1]&0x7f
	if g.header[0]&rsv1Bit != 0 && (opcode == opContinuation || opcode >= opClose && opcode <= opPong) {
		return 0, errors.New("RSV1 set on a frame that does not begin a message")
	}
	extended := 0
	switch short {
	case 126:
		extended = 2
	case 127:
		extended = 8
	}
	for _, b := range g.header[2 : 2+extended] {
		length = length<<8 | int64(b)
	}
	switch {
	case extended == 0:
		length = int64(short)
	case length < 0:
		return 0, errors.New("length of 2⁶³ bytes or more")
	case extended == 2 && length < 126, extended == 8 && length < 1<<16:
		return 0, errors.New("length not written in the shortest way")
	}
	if opcode == opClose && length == 1 {
		return 0, errors.New("close frame of one byte")
	}
	return length, nil
}
