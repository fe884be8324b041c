package bridge

import (
	"slices"
	"time"
)

// maxPongs bounds the pongs that wait for a client, in bytes. It may be sent fewer than it sent pings: answering the most recent
// one is enough (RFC 6455, 5.5.3).
const maxPongs = 4 << 10

// queue is what waits to be written to a client, in the order of its going out: the rest of a frame, control frames, messages, the close
// frame. Its connection's lock guards it.
type queue struct {
	torn     frame  // its wire is the rest of a frame whose beginning has gone out
	pongs    []byte // whole frames
	ping     bool
	shut     bool    // takes nothing more
	messages []frame // the last of a queue that is shut is the close frame, which has no messages in it
	bytes    int64   // cost of the messages
	terms    int     // how many of them have a ttl or a key: without any, nobody looks through a long queue
}

// loss is why a message is dropped from a queue; its name is the label of a metric.
type loss string

const (
	lossSlow      loss = "slow_client" // the oldest gives way
	lossExpired   loss = "ttl"
	lossCollapsed loss = "collapsed" // a later one has taken its place
	lossGone      loss = "gone"
)

// add queues a frame. Where it does not fit within limit (bytes) it returns false, or makes room by dropping the oldest, as the policy says. What is dropped
// is told to drop. An empty queue takes a frame of any size.
func (q *queue) add(f frame, limit int64, policy SlowPolicy, drop func(frame, loss)) bool {
	if key := f.key(); key != "" && q.terms > 0 {
		q.remove(func(old *frame) bool { return old.key() == key }, lossCollapsed, drop)
	}
	if q.terms > 0 && q.bytes+f.cost() > limit {
		now := time.Now()
		q.remove(func(old *frame) bool { return old.expired(now) }, lossExpired, drop)
	}
	for len(q.messages) > 0 && q.bytes+f.cost() > limit {
		if policy != SlowDropOldest {
			return false
		}
		drop(q.take(), lossSlow)
	}
	q.messages = append(q.messages, f)
	q.count(f, 1)
	return true
}

// count takes note of a frame that comes (1) or goes (-1).
func (q *queue) count(f frame, sign int) {
	q.bytes += int64(sign) * f.cost()
	if f.terms != nil {
		q.terms += sign
	}
}

// remove drops the frames that match.
func (q *queue) remove(match func(*frame) bool, why loss, drop func(frame, loss)) {
	if !slices.ContainsFunc(q.messages, func(f frame) bool { return match(&f) }) {
		return
	}
	kept := make([]frame, 0, len(q.messages)) // not in place: the array's beginning is gone
	for i := range q.messages {
		if f := q.messages[i]; match(&f) {
			q.count(f, -1)
			drop(f, why)
		} else {
			kept = append(kept, f)
		}
	}
	q.messages = kept
}

func (q *queue) take() frame {
	f := q.messages[0]
	q.messages[0] = frame{} // its bytes are not kept alive by the array
	q.messages = q.messages[1:]
	if len(q.messages) == 0 {
		q.messages = nil
	}
	q.count(f, -1)
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
		q.messages, q.bytes, q.terms = nil, 0, 0
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
	return q.torn.wire == nil && len(q.pongs) == 0 && !q.ping && len(q.messages) == 0
}
