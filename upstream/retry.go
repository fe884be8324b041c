package upstream

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"
)

// The pause before an event is tried again: doubled from the one to the other, unless the backend asks for more.
const (
	firstRetry = 200 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// Retry says which events are sent again.
type Retry string

// The values of WSBRIDGE_BACKEND_RETRY.
const (
	RetrySafe   Retry = "safe"   // those that were certainly not taken
	RetryAlways Retry = "always" // those that may have been taken as well
	RetryNever  Retry = "never"  // none
)

// Post sends the event when it has its turn, again and again where the configuration says so, and returns what became of it in the end. ctx
// bounds it all, Config.Timeout each attempt, Config.RetryFor the time from the first failure to the last attempt. A disconnect event is
// tried once: how it goes on is for the caller to say.
//
// The outcome is Later for a message that was given up after its time, even where its last attempt may have been taken: that is only
// with RetryAlways.
func (c *Client) Post(ctx context.Context, e *Event) *Reply {
	turn, none := c.guard.enter(ctx, e, time.Time{})
	if none != nil {
		return none
	}
	r, next := c.PostIn(ctx, turn)
	if next != nil {
		next.Waiter.Called(next, nil)
	}
	return r
}

// Ask asks for an event's turn. If it is there at once it is given. Otherwise there is a reply if it won't come, or the waiter is called, once: by another event's
// PostIn, say. A waiter may wait for one turn at a time. ctx is that of nearly all events.
func (c *Client) Ask(ctx context.Context, e *Event, waiter Waiter) (turn *Turn, given bool, none *Reply) {
	turn = &Turn{Event: e, Waiter: waiter, ctx: ctx}
	given, none = c.guard.ask(turn)
	return turn, given, none
}

// PostIn sends the event whose turn has come, as Post does. It returns as well whose turn has come by that, or nil: the caller sees to that one, for its waiter is not
// called. So a goroutine that has posted one event can post the next, and none has to be woken.
func (c *Client) PostIn(ctx context.Context, turn *Turn) (*Reply, *Turn) {
	e := turn.Event
	var until time.Time // it is held up to then; zero while it is not held
	for tries := 0; ; tries++ {
		r := c.attempt(ctx, e)
		if ctx.Err() != nil && r.TimedOut {
			return r, c.guard.pass(turn, nil)
		}
		if e.Type == Disconnect || !c.config.Retry.again(r) {
			return r, c.guard.pass(turn, r)
		}
		c.guard.leave(turn, r)
		now := time.Now()
		if until.IsZero() {
			until = now.Add(c.config.RetryFor)
		}
		wait := max(min(Backoff(tries, firstRetry, lastRetry), until.Sub(now)), r.After)
		if wait <= 0 || now.Add(wait).After(until) {
			if r.Outcome == Uncertain && e.Type == Message {
				given := *r // the guard keeps the other
				given.Outcome, given.Err = Later, fmt.Errorf("given up: %w", r.Err)
				return &given, nil
			}
			return r, nil
		}
		if end, bounded := ctx.Deadline(); bounded && now.Add(wait).After(end) {
			return r, nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-c.guard.gone(e):
			timer.Stop()
			return &Reply{Outcome: Withdrawn, Err: errWithdrawn}, nil
		case <-ctx.Done():
			timer.Stop()
			return r, nil
		}
		e.Attempt++
		var none *Reply
		if turn, none = c.guard.enter(ctx, e, until); none != nil {
			return none, nil
		}
	}
}

// again reports whether an event that ended so is sent again.
func (p Retry) again(r *Reply) bool {
	switch r.Outcome {
	case Later, Unreachable:
		return p != RetryNever
	case Uncertain:
		return p == RetryAlways
	}
	return false
}

// Backoff returns how long to wait behind so many tries: between the half and the whole of a time that doubles with each from the first, which is
// at least 2ns, to the last, so that those who failed together don't come back together.
func Backoff(tries int, first, last time.Duration) time.Duration {
	wait := last
	if tries < 16 {
		wait = min(first<<tries, last)
	}
	return wait/2 + rand.N(wait/2)
}
