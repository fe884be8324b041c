package bridge

// maxPongs bounds the pongs that wait for a client, in bytes. It may be sent fewer than it sent pings: answering the most recent
// one is enough (RFC 6455, 5.5.3).
const maxPongs = 4 << 10

// queue is what waits to be written to a client, in the order of its going out: control frames, messages, the close frame. Its
// connection's lock guards it.
type queue struct {
	pongs    []byte // whole frames
	ping     bool
	shut     bool    // takes nothing more
	messages []frame // the last of a queue that is shut is the close frame, which has no messages in it
	bytes    int64   // cost of the messages
}

// add queues a frame. Where it does not fit within limit (bytes) it returns false, or makes room by dropping the oldest and returns how
// many messages that cost. An empty queue takes a frame of any size.
func (q *queue) add(f frame, limit int64, policy SlowPolicy) (dropped int, ok bool) {
	for len(q.messages) > 0 && q.bytes+f.cost() > limit {
		if policy != SlowDropOldest {
			return dropped, false
		}
		dropped += q.take().messages
	}
	q.messages = append(q.messages, f)
	q.bytes += f.cost()
	return dropped, true
}

func (q *queue) take() frame {
	f := q.messages[0]
	q.messages[0] = frame{} // its bytes are not kept alive by the array
	q.messages = q.messages[1:]
	if len(q.messages) == 0 {
		q.messages = nil
	}
	q.bytes -= f.cost()
	return f
}

// pong queues the answer to a ping.
func (q *queue) pong(payload []byte) {
	if q.shut {
		return
	}
	if len(q.pongs)+len(payload)+2 > maxPongs {
		q.pongs = q.pongs[:0]
	}
	q.pongs = controlFrame(q.pongs, opPong, payload)
}

// end queues the close frame as the last thing, at once or behind the messages that wait.
func (q *queue) end(closing []byte, urgent bool) {
	if urgent {
		q.messages, q.bytes = nil, 0
	}
	f := frame{wire: closing}
	q.messages, q.bytes = append(q.messages, f), q.bytes+f.cost()
	q.shut, q.ping = true, false
}

// discard empties the queue for good.
func (q *queue) discard() {
	*q = queue{shut: true}
}

// empty reports whether nothing waits.
func (q *queue) empty() bool {
	return len(q.pongs) == 0 && !q.ping && len(q.messages) == 0
}
