package bridge

import (
	"time"

	"wsbridge/upstream"
)

// forward is the forwarder: it posts what waits in the inbox, one message at a time, and brings the answers to the client.
func (c *conn) forward() {
	for {
		c.mu.Lock()
		if len(c.inbox) == 0 {
			c.forwarding = false
			c.hand()
			c.mu.Unlock()
			return
		}
		m := c.inbox[0]
		c.inbox[0] = message{}
		c.inbox = c.inbox[1:]
		c.inboxBytes -= m.cost()
		if len(c.inbox) == 0 {
			c.inbox = nil
		}
		event := c.record.event(upstream.Message, m.position+1, m.at)
		event.Body = m.body
		if m.owed != nil {
			m.owed.sequence, event.Trip = event.Sequence, m.owed
			event.Attempt = c.kept.attempts(m.end) + 1
		}
		c.changed.Broadcast() // there is room
		c.mu.Unlock()

		reply := c.bridge.ask(c.bridge.ctx, event)
		if reply.Outcome == upstream.Withdrawn {
			c.withdraw()
			continue
		}
		c.apply(reply, m.owed)

		c.mu.Lock()
		if m.owed != nil && !m.owed.carried {
			c.answered(m.owed)
		}
		c.settle()
		c.mu.Unlock()
	}
}

// withdraw forgets the message that was to be posted: another worker reads it again, and those behind it. None of them may be posted here, even if this worker
// serves again before Suspend has come to the connection, or the forwarder to its next message.
func (c *conn) withdraw() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.record.Sequence--
	c.settle()
	if !c.handing && c.ctx.Err() == nil {
		c.leaveInbox()
	}
}

// apply does what the reply to a message says.
func (c *conn) apply(reply *upstream.Reply, answered *owed) {
	to, options, reply := c.bridge.route(c, reply)
	why := closeFor(reply)
	c.bridge.complain(upstream.Message, reply)
	if reply.Outcome == upstream.Accepted {
		c.learn(reply, time.Now())
	}
	c.bridge.deliver(to, options, reply.Messages, answered)
	if why == nil {
		return
	}
	if why.abandon {
		c.mu.Lock()
		if c.ctx.Err() != nil {
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
func (c *conn) settle() {
	c.pending--
	c.lastMessage.Store(time.Now().UnixNano())
	c.changed.Broadcast()
}
