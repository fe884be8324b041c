package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"
)

const (
	// downAfter is how many failures in a row, with no answer between them, make the backend count as down.
	downAfter = 3
	// The pause before a probe of a backend that is down: doubled from the one to the other, unless the backend asks for more. A backend that is
	// back is noticed within the longest.
	firstProbe = 100 * time.Millisecond
	lastProbe  = 2 * time.Second
	// rampStep is how many answers make room for one more POST at once, when the backend is back: half as many again in each round.
	rampStep = 2
	// boldProbe is how often a probe is an event even where that may cost its client the connection: an application may know no OPTIONS.
	boldProbe = 5
	// suspicion is how long the turn of a POST that broke off is kept back. Where the whole backend has died, the others break off meanwhile and it
	// counts as down; the next POST would else reach its listener in the last moments of that.
	suspicion = 20 * time.Millisecond
)

// guard hands out the turns at the backend. Who asks first has the next one: each connection waits with one event at a time, so a chatty one
// stands behind the others. When failures are shared the backend is down: nobody has a turn but one probe now and then, and once that is
// answered the turns come back a few at a time.
type guard struct {
	most  int
	limit time.Duration // how long an event waits for a backend that is down
	retry Retry
	alive func(context.Context, *Handshake) *Reply // a probe that is no event
	fell  func()                                   // the backend has gone down; called with the lock held, like told: neither may call back
	told  func(down bool, why error)
	ctx   context.Context // of the probes
	stop  context.CancelFunc

	mu      sync.Mutex // guards the following
	allowed int        // POSTs that may be under way, but for stale ones: most, unless the backend has just come back
	busy    int
	lent    int // POSTs that others have under way
	stale   int // of those under way, how many began before the backend last went down: they may hang
	era     int // how often it has gone down
	waiting []*Turn
	tired   *time.Timer     // those who have waited for too long give up
	due     time.Time       // of that; zero when it is not set
	watched context.Context // of who waits without a goroutine
	unwatch func() bool
	leaving chan struct{} // closed once what waits is to be given back

	failures int    // in a row
	failed   string // the connection of the first of them
	shared   bool   // they are not all of that connection
	answers  int    // since allowed was last raised

	down    bool
	since   time.Time // it is down since
	last    *Reply    // the last failure
	target  *Handshake
	probes  int  // since it went down
	probing bool // one is under way
	timer   *time.Timer
}

// Turn is an event's turn at the backend, or its place among those that wait for one.
type Turn struct {
	Event  *Event // nil for a probe that is none
	Waiter Waiter // nil: whose turn came at once

	ctx     context.Context
	watched bool // its waiter watches the context; else the guard does
	asked   time.Time
	until   time.Time // the event waits for a backend that is down up to then; zero: for Config.RetryFor
	probe   bool      // though the backend is down
	era     int
}

// Waiter waits for turns.
type Waiter interface {
	// Called says that the turn has come or, with a reply, that it won't. It must not block, nor call back.
	Called(*Turn, *Reply)
}

func newGuard(config Config, alive func(context.Context, *Handshake) *Reply, fell func()) *guard {
	g := &guard{
		most: config.MaxConcurrent, allowed: config.MaxConcurrent, limit: config.RetryFor, retry: config.Retry, alive: alive, fell: fell, told: func(bool, error) {},
		leaving: make(chan struct{}),
	}
	g.ctx, g.stop = context.WithCancel(context.Background())
	return g
}

// close ends the probes.
func (g *guard) close() {
	g.stop()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, timer := range []*time.Timer{g.timer, g.tired} {
		if timer != nil {
			timer.Stop()
		}
	}
	if g.unwatch != nil {
		g.unwatch()
	}
}

// state returns how many POSTs are under way and how many events wait for their turn, and whether the backend is down.
func (g *guard) state() (busy, waiting int, down bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.busy, len(g.waiting), g.down
}

// enter waits for the event's turn. It returns why there was none when ctx ends, or when the backend is down up to the given time; the zero time
// stands for Config.RetryFor from now, or from when it went down. A goodbye waits as long as ctx does.
func (g *guard) enter(ctx context.Context, e *Event, until time.Time) (*Turn, *Reply) {
	came := make(caller, 1)
	t := &Turn{Event: e, Waiter: came, ctx: ctx, watched: true, until: until}
	given, none := g.ask(t)
	if !given && none == nil {
		unwatch := context.AfterFunc(ctx, func() { g.withdraw(t, context.Cause(ctx)) })
		defer unwatch()
		none = <-came
	}
	return t, none
}

// caller is who waits for the one turn in a goroutine.
type caller chan *Reply

// Called wakes it.
func (c caller) Called(_ *Turn, none *Reply) { c <- none }

// ask asks for a turn. It comes at once, it won't come, or its waiter is called.
func (g *guard) ask(t *Turn) (given bool, none *Reply) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case t.ctx.Err() != nil:
		return false, g.refusal(context.Cause(t.ctx))
	case len(g.waiting) == 0 && g.free() && !g.leaves(t):
		g.give(t)
		return true, nil
	case g.leaves(t):
		return false, g.refusal(errWithdrawn)
	}
	t.asked = time.Now()
	if end := g.patience(t); !end.IsZero() {
		if !end.After(t.asked) {
			return false, g.refusal(errDown)
		}
		g.tires(end)
	}
	if !t.watched {
		g.watch(t.ctx)
	}
	g.waiting = append(g.waiting, t)
	return false, nil
}

// watch lets what waits with the context end with it. To watch it for each event would cost more than its turn. The lock is held.
func (g *guard) watch(ctx context.Context) {
	if g.watched == ctx {
		return
	}
	if g.unwatch != nil {
		g.unwatch()
	}
	g.watched = ctx
	g.unwatch = context.AfterFunc(ctx, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.refuse(func(t *Turn) error { return context.Cause(t.ctx) })
	})
}

var (
	errDown      = errors.New("the backend is down for too long")
	errWithdrawn = errors.New("another worker takes over")
)

// lend takes so many turns for POSTs that others make.
func (g *guard) lend(posts int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lent = posts
	g.dispatch()
}

// withdrawAll gives back what waits, and from now on what would have to.
func (g *guard) withdrawAll() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if closed(g.leaving) {
		return
	}
	close(g.leaving)
	g.refuse(func(t *Turn) error {
		if g.leaves(t) {
			return errWithdrawn
		}
		return nil
	})
}

// leaves reports whether the event is one that is given back rather than waiting. The lock is held.
func (g *guard) leaves(t *Turn) bool { return t.Event.Type != Connect && closed(g.leaving) }

// restore lets events wait again.
func (g *guard) restore() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if closed(g.leaving) {
		g.leaving = make(chan struct{})
	}
}

// gone returns a channel that is closed once an event that waits to be sent again is to be given back.
func (g *guard) gone(e *Event) <-chan struct{} {
	if e.Type == Connect {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.leaving
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// patience returns up to when an event waits; the zero time where there is no limit: the backend just has much to do, or it is a goodbye. The lock is held.
func (g *guard) patience(t *Turn) time.Time {
	switch {
	case !g.down || t.Event.Type == Disconnect:
		return time.Time{}
	case !t.until.IsZero():
		return t.until
	case g.since.After(t.asked):
		return g.since.Add(g.limit)
	}
	return t.asked.Add(g.limit)
}

// tires sees to it that who waits up to that time gives up then. The lock is held.
func (g *guard) tires(end time.Time) {
	if wait := time.Until(end); g.tired == nil {
		g.tired, g.due = time.AfterFunc(wait, g.giveUp), end
	} else if g.due.IsZero() || end.Before(g.due) {
		g.tired.Reset(wait)
		g.due = end
	}
}

// giveUp ends the waiting of those who have done so for too long.
func (g *guard) giveUp() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.due = time.Time{}
	now := time.Now()
	g.refuse(func(t *Turn) error {
		if end := g.patience(t); !end.IsZero() && !end.After(now) {
			return errDown
		}
		return nil
	})
	g.tireAll()
}

// tireAll sets the time at which the first of those who wait gives up. The lock is held.
func (g *guard) tireAll() {
	var first time.Time
	for _, t := range g.waiting {
		if end := g.patience(t); !end.IsZero() && (first.IsZero() || end.Before(first)) {
			first = end
		}
	}
	if !first.IsZero() {
		g.tires(first)
	}
}

// withdraw ends the waiting for a turn, unless that has come.
func (g *guard) withdraw(t *Turn, why error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refuse(func(other *Turn) error {
		if other == t {
			return why
		}
		return nil
	})
}

// refuse ends the waiting for those turns for which there is a reason. The lock is held.
func (g *guard) refuse(reason func(*Turn) error) {
	g.waiting = slices.DeleteFunc(g.waiting, func(t *Turn) bool {
		why := reason(t)
		if why != nil {
			t.Waiter.Called(t, g.refusal(why))
		}
		return why != nil
	})
}

// refusal returns what becomes of an event that has no turn. The lock is held.
func (g *guard) refusal(why error) *Reply {
	if errors.Is(why, errWithdrawn) {
		return &Reply{Outcome: Withdrawn, Err: why}
	}
	if !g.down {
		return &Reply{Outcome: Unreachable, TimedOut: true, Err: fmt.Errorf("waiting for one of %d turns at the backend: %w", g.most, why)}
	}
	r := &Reply{Outcome: Unreachable, TimedOut: g.last.TimedOut, Err: fmt.Errorf("%w (its last failure: %w)", why, g.last.Err)}
	if g.last.Outcome == Later {
		r.Outcome, r.Status, r.After = Later, g.last.Status, g.last.After
	}
	return r
}

// leave gives the turn back, and learns from what became of the POST how the backend is. A nil reply says nothing of it.
func (g *guard) leave(t *Turn, r *Reply) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.left(t, r)
	g.dispatch()
}

// pass does the same, and returns the turn that has become free by it: its waiter is not called.
func (g *guard) pass(t *Turn, r *Reply) *Turn {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.left(t, r)
	next := g.next()
	g.dispatch()
	return next
}

// left takes note of what became of a turn. The lock is held.
func (g *guard) left(t *Turn, r *Reply) {
	if r != nil && r.Outcome == Uncertain && r.Status == 0 && !r.TimedOut && !t.probe {
		time.AfterFunc(suspicion, func() {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.giveBack(t)
			g.dispatch()
		})
	} else {
		g.giveBack(t)
	}
	switch {
	case r == nil:
		g.probeAgain(t)
	case t.era != g.era: // it began before the backend last went down, and says nothing of how that is now
	case r.away():
		g.fails(t, r)
	default:
		g.answered()
	}
}

// answered takes note of an answer: the backend is there. The lock is held.
func (g *guard) answered() {
	g.failures, g.shared = 0, false
	if g.down {
		g.down, g.allowed, g.answers, g.probing = false, 1, 0, false
		g.told(false, nil)
		return
	}
	if g.allowed == g.most {
		return
	}
	if g.answers++; g.answers >= rampStep {
		g.answers = 0
		g.allowed++
	}
}

// fails takes note of a failure of the backend as a whole, or what may be one. The lock is held.
func (g *guard) fails(t *Turn, r *Reply) {
	if g.down {
		g.last = r
		g.probeAgain(t)
		return
	}
	connection := ""
	if t.Event != nil {
		connection = t.Event.ConnectionID
	}
	if g.failures++; g.failures == 1 {
		g.failed = connection
	}
	g.shared = g.shared || connection != g.failed
	// A message that kills whoever takes it is no sign for the others; nobody listening is.
	enough := downAfter
	if g.allowed < g.most {
		enough = 2
		if r.Outcome == Unreachable {
			enough = 1
		}
	}
	if g.failures < enough || !g.shared && r.Outcome != Unreachable {
		return
	}
	g.down, g.since, g.last, g.probes, g.probing = true, time.Now(), r, 0, false
	g.era++
	g.stale = g.busy
	if t.Event != nil {
		g.target = t.Event.Handshake
	}
	g.fell()
	g.told(true, r.Err)
	g.tireAll()
	g.schedule()
}

// probeAgain makes room for the next probe behind one that has failed. The lock is held.
func (g *guard) probeAgain(t *Turn) {
	if g.down && t.probe && t.era == g.era {
		g.probing = false
		g.schedule()
	}
}

// schedule sets the time of the next probe. The lock is held.
func (g *guard) schedule() {
	wait := Backoff(g.probes, firstProbe, lastProbe)
	if g.last.Outcome == Later {
		wait = max(wait, min(g.last.After, g.limit))
	}
	if g.timer == nil {
		g.timer = time.AfterFunc(wait, g.probe)
	} else {
		g.timer.Reset(wait)
	}
}

// probe lets one event through to a backend that is down, or asks it by something else where the event could come to harm.
func (g *guard) probe() {
	g.mu.Lock()
	if !g.down || g.probing || g.ctx.Err() != nil {
		g.mu.Unlock()
		return
	}
	if g.busy+g.lent >= g.most {
		g.schedule() // all turns are with POSTs that hang
		g.mu.Unlock()
		return
	}
	g.probes++
	g.probing = true
	if i := slices.IndexFunc(g.waiting, g.harmless); i >= 0 {
		t := g.waiting[i]
		g.waiting = slices.Delete(g.waiting, i, i+1)
		t.probe = true
		g.give(t)
		t.Waiter.Called(t, nil)
		g.mu.Unlock()
		return
	}
	t := &Turn{probe: true}
	g.give(t)
	target := g.target
	g.mu.Unlock()
	r := g.alive(g.ctx, target)
	if g.ctx.Err() != nil {
		r = nil
	}
	g.leave(t, r)
}

// harmless reports whether an event may be the probe: it will be sent again if the backend fails it, or failing it is worth it. The lock is
// held.
func (g *guard) harmless(t *Turn) bool {
	return t.Event.Type == Disconnect || g.retry == RetryAlways || g.last.Outcome != Uncertain || g.probes%boldProbe == 0
}

// free reports whether a turn can be had. The lock is held.
func (g *guard) free() bool {
	return !g.down && g.busy+g.lent < g.most && g.busy-g.stale < g.allowed
}

// give gives the turn. The lock is held.
func (g *guard) give(t *Turn) {
	g.busy++
	t.era = g.era
}

// giveBack takes the turn back. The lock is held.
func (g *guard) giveBack(t *Turn) {
	g.busy--
	if t.era != g.era {
		g.stale--
	}
}

// dispatch gives the turns that are free to those who wait. The lock is held.
func (g *guard) dispatch() {
	for t := g.next(); t != nil; t = g.next() {
		t.Waiter.Called(t, nil)
	}
}

// next gives a turn that is free to who has waited longest, and returns it, or nil. The lock is held.
func (g *guard) next() *Turn {
	if len(g.waiting) == 0 || !g.free() {
		return nil
	}
	t := g.waiting[0]
	g.waiting[0] = nil
	g.waiting = g.waiting[1:]
	g.give(t)
	return t
}

// away reports whether the reply says that the backend as a whole is not there, or may say so.
func (r *Reply) away() bool {
	switch r.Outcome {
	case Unreachable:
		return true
	case Later:
		return r.Status == http.StatusServiceUnavailable
	case Uncertain:
		return r.Status != http.StatusRequestTimeout
	}
	return false
}
