package bridge

import (
	"time"

	"wsbridge/upstream"
)

// A message is forwarded in its turn: the first of the inbox asks for one, and while it waits there is no goroutine. A goroutine of the crew posts it then, brings the answer
// to the client, and goes on with whoever's turn came by that.

// ask asks for the turn of the message that is first in the inbox, or ends the forwarding if there is none. It is a task of the connection, which the caller has begun. It
// returns what is to be seen to: nothing while the turn has not come. The lock is held.
func (c *conn) ask() errand {
	if len(c.inbox) == 0 {
		c.forwarding = false
		c.hand()
		c.tasks.Done()
		return errand{}
	}
	m := c.inbox[0]
	c.inbox[0] = message{}
	c.inbox = c.inbox[1:]
	c.inboxBytes -= m.cost()
	if len(c.inbox) == 0 {
		c.inbox, c.first[0] = nil, message{} // which an inbox that has grown has left behind
	}
	event := c.record.event(upstream.Message, m.position+1, m.at)
	event.Body = m.body
	if m.owed != nil {
		m.owed.sequence, event.Trip = event.Sequence, m.owed
		event.Attempt = c.attempts(m.end) + 1
	}
	c.changed.Broadcast() // there is room
	turn, given, none := c.bridge.upstream.Ask(c.bridge.ctx, event, c)
	if !given && none == nil {
		return errand{}
	}
	return errand{c, turn, none}
}

// Called goes on with the message whose turn has come, or won't.
func (c *conn) Called(turn *upstream.Turn, none *upstream.Reply) {
	c.bridge.crew.run(errand{c, turn, none})
}

// forward posts a message, if it has its turn, and brings the answer to the client. It returns what is to be seen to next, if there is something.
func (c *conn) forward(e errand) errand {
	event, reply := e.turn.Event, e.none
	var next *upstream.Turn
	if reply == nil {
		reply, next = c.bridge.postIn(c.bridge.ctx, e.turn)
	}
	owed, _ := event.Trip.(*owed)
	now := time.Now()
	if reply.Outcome == upstream.Withdrawn {
		c.withdraw()
	} else {
		if next != nil && reply.To != "" { // it may be for thousands
			next.Waiter.Called(next, nil)
			next = nil
		}
		c.apply(reply, owed, now)
	}
	c.mu.Lock()
	if reply.Outcome != upstream.Withdrawn {
		if owed != nil && !owed.carried {
			c.answered(owed)
		}
		c.settle(now)
	}
	e = c.ask()
	c.drowse(now) // a client that never pauses leaves no other moment
	c.mu.Unlock()
	if next == nil {
		return e
	}
	if e.conn != nil {
		c.bridge.crew.run(e)
	}
	if other, ok := next.Waiter.(*conn); ok {
		return errand{conn: other, turn: next}
	}
	next.Waiter.Called(next, nil) // it is one of another kind
	return errand{}
}

// withdraw forgets the message that was to be posted: another worker reads it again, and those behind it. None of them may be posted here, even if this worker
// serves again before Suspend has come to the connection, or the forwarder to its next message.
func (c *conn) withdraw() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.record.Sequence--
	c.settle(time.Now())
	if !c.handing && !c.hasEnded() {
		c.leaveInbox()
	}
}

// apply does what the reply to a message says, which has come at that time.
func (c *conn) apply(reply *upstream.Reply, answered *owed, at time.Time) {
	to, options, reply := c.bridge.route(c, reply)
	why := closeFor(reply)
	c.bridge.complain(upstream.Message, reply)
	if reply.Outcome == upstream.Accepted {
		c.learn(reply)
	}
	c.bridge.deliver(to, options, reply.Messages, answered, at)
	if why == nil {
		return
	}
	if why.abandon {
		c.mu.Lock()
		if c.hasEnded() {
			c.abandon()
			if c.failed == nil {
				c.failed = why
			}
		}
		c.mu.Unlock()
	}
	c.end(why)
}

// abandon drops the messages that wait: the one before them ended the connection, and the client knows from the code. The lock is held.
func (c *conn) abandon() {
	c.unposted += int32(len(c.inbox))
	c.pending -= int32(len(c.inbox))
	c.inbox, c.inboxBytes = nil, 0
	c.changed.Broadcast()
}

// settle counts a message as done with. The lock is held.
func (c *conn) settle(now time.Time) {
	c.pending--
	c.lastMessage.Store(now.UnixNano())
	c.changed.Broadcast()
}
