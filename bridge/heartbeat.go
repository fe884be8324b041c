package bridge

import (
	"math/rand/v2"
	"time"
)

// pingPhase is when a connection's first ping is due: anywhere in the interval, so that pings don't come in waves.
func (b *Bridge) pingPhase() time.Duration {
	return rand.N(b.config.PingInterval) + 1
}

// startClock begins to look after the connection's age, its silence and its pings. The lock is held.
func (c *conn) startClock(now time.Time) {
	c.nextPing = now.Add(c.bridge.pingPhase()).UnixNano()
	c.schedule(now)
}

// stopClock ends that. No task of the connection runs any more but the caller.
func (c *conn) stopClock() {
	c.bridge.clock.remove(c)
}

// tick does what is due: a ping, or the end of a connection that is dead, idle or old.
func (c *conn) tick() {
	now := time.Now()
	c.mu.Lock()
	if c.hasEnded() || c.handed {
		c.mu.Unlock()
		return
	}
	var why *Close
	switch config := c.bridge.config; {
	case c.silent() && !now.Before(time.Unix(0, c.pinged).Add(config.PongTimeout)):
		why = closeHeartbeat()
	case config.MaxAge > 0 && !now.Before(c.bridge.expiry(&c.record)):
		why = closeOld()
	case config.IdleTimeout > 0 && !now.Before(c.lastUse().Add(config.IdleTimeout)):
		why = closeIdle()
	case now.UnixNano() >= c.nextPing:
		c.nextPing = now.Add(config.PingInterval).UnixNano()
		if !c.pingAsleep(now) {
			c.busy().out.ping = true
			c.startWriter()
		}
	}
	if why == nil {
		c.drowse(now)
		c.schedule(now)
	}
	c.mu.Unlock()
	if why != nil {
		c.end(why)
	}
}

// pong answers a ping of the client's.
func (c *conn) pong(payload []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy().out.pong(payload)
	if !c.out.empty() {
		c.startWriter()
	}
}

// schedule sets the clock to what is due next. The lock is held.
func (c *conn) schedule(now time.Time) {
	if c.hasEnded() {
		return
	}
	config := c.bridge.config
	next := time.Unix(0, c.nextPing)
	if c.silent() {
		next = earlier(next, time.Unix(0, c.pinged).Add(config.PongTimeout))
	}
	if config.MaxAge > 0 {
		next = earlier(next, c.bridge.expiry(&c.record))
	}
	if config.IdleTimeout > 0 {
		next = earlier(next, c.lastUse().Add(config.IdleTimeout))
	}
	if c.maySleep() || c.isAwake() {
		drowsy := c.lastNeed().Add(c.bridge.linger)
		if !drowsy.After(now) { // it has been built just now, or could not be parked
			drowsy = now.Add(c.bridge.linger)
		}
		next = earlier(next, drowsy)
	}
	c.bridge.clock.set(c, next.Sub(now))
}

// silent reports whether nothing has come since the last ping went out, while we were reading. The lock is held.
func (c *conn) silent() bool {
	return c.pinged != 0 && !c.standing.Load() && c.heard.Load() < c.pinged
}

// lastUse is when the last message came or went; a message that is being answered is use as well. The lock is held.
func (c *conn) lastUse() time.Time {
	if c.unsettled() > 0 {
		return time.Now()
	}
	return time.Unix(0, c.lastMessage.Load())
}

// lastNeed is when what the connection has in memory beyond its record and socket was last for something. The lock is held.
func (c *conn) lastNeed() time.Time {
	if c.parked != 0 {
		return c.lastUse()
	}
	return time.Unix(0, c.socket.needed)
}

// expiry is when the connection is too old: up to a tenth before its maximum age, the same moment whenever it is asked, so that
// connections that came together don't go together.
func (b *Bridge) expiry(r *record) time.Time {
	var hash uint64 = 14695981039346656037 // FNV-1a of the id, which is random
	for i := range len(r.ID) {
		hash = (hash ^ uint64(r.ID[i])) * 1099511628211
	}
	share := float64(hash>>11) / (1 << 53)
	return r.Since.Add(b.config.MaxAge - time.Duration(share*float64(b.config.MaxAge)/10))
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
