// Package ratelimit says who may do how much: messages and bytes of a connection, handshakes of an address. It knows neither
// sockets nor HTTP.
package ratelimit

import (
	"math"
	"time"

	"golang.org/x/time/rate"
)

// Connection is the rates of one connection's messages. It's for the goroutine that reads them, and for no other at the
// same time. A nil Connection limits nothing.
type Connection struct {
	messages *rate.Limiter // nil: off
	bytes    *rate.Limiter // nil: off
}

// Connection returns the rates of a new connection, or nil when both are off.
func (c Config) Connection() *Connection {
	l := &Connection{
		messages: limiter(c.Messages, int64(c.MessagesBurst)),
		bytes:    limiter(float64(c.Bytes), c.BytesBurst),
	}
	if l.messages == nil && l.bytes == nil {
		return nil
	}
	return l
}

// Take takes one message of that many bytes, and returns how long the client must wait before it may pass: 0 when it may
// pass now. A message larger than the burst is taken in full and waits for the rest of its bytes.
func (l *Connection) Take(now time.Time, bytes int) (wait time.Duration) {
	if l == nil {
		return 0
	}
	return max(owe(l.messages, now, 1), owe(l.bytes, now, bytes))
}

// Allow takes one message of that many bytes and reports true if it may pass now; otherwise it takes nothing. A message
// larger than the burst never passes.
func (l *Connection) Allow(now time.Time, bytes int) bool {
	if l == nil {
		return true
	}
	var message *rate.Reservation
	if l.messages != nil {
		if message = l.messages.ReserveN(now, 1); message.DelayFrom(now) > 0 {
			message.CancelAt(now)
			return false
		}
	}
	if l.bytes != nil && !l.bytes.AllowN(now, bytes) {
		if message != nil {
			message.CancelAt(now)
		}
		return false
	}
	return true
}

// owe takes n tokens, leaving a debt where there are fewer, and returns how long it takes to pay.
func owe(l *rate.Limiter, now time.Time, n int) time.Duration {
	if l == nil {
		return 0
	}
	// The limiter refuses more than its burst in one piece, though a debt of any size is fine by it. Only the capacity is
	// raised here: the tokens in the bucket stay the same.
	if burst := l.Burst(); n > burst {
		l.SetBurstAt(now, n)
		defer l.SetBurstAt(now, burst)
	}
	return l.ReserveN(now, n).DelayFrom(now)
}

// limiter returns a full bucket, or nil when the rate is off. No burst means twice the rate, and at least 1.
func limiter(perSecond float64, burst int64) *rate.Limiter {
	if perSecond <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(perSecond), capacity(perSecond, burst))
}

func capacity(perSecond float64, burst int64) int {
	switch {
	case burst > 0:
		return int(min(burst, math.MaxInt))
	case perSecond >= math.MaxInt/2:
		return math.MaxInt
	}
	return int(max(1, math.Ceil(2*perSecond)))
}
