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
	// lookAgain is how soon an event that waits for a busy backend looks whether it has gone down meanwhile.
	lookAgain = 5 * time.Second
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
	waiting []*turn
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

// turn is an event's turn, or its place among those that wait for one.
type turn struct {
	event *Event        // nil for a probe that is none
	ready chan struct{} // closed when the turn has come
	taken bool          // it has
	probe bool          // though the backend is down
	era   int
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
	if g.timer != nil {
		g.timer.Stop()
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
func (g *guard) enter(ctx context.Context, e *Event, until time.Time) (*turn, *Reply) {
	t := &turn{event: e}
	g.mu.Lock()
	leaving := g.leaving
	if e.Type == Connect {
		leaving = nil
	}
	if len(g.waiting) == 0 && g.free() && ctx.Err() == nil && !closed(leaving) {
		g.give(t)
		g.mu.Unlock()
		return t, nil
	}
	t.ready = make(chan struct{})
	g.waiting = append(g.waiting, t)
	g.mu.Unlock()

	var patience <-chan time.Time
	var timer *time.Timer
	asked := time.Now()
	if e.Type != Disconnect {
		timer = time.NewTimer(g.patience(asked, until))
		defer timer.Stop()
		patience = timer.C
	}
	for {
		select {
		case <-t.ready:
			return t, nil
		case <-ctx.Done():
			return g.withdraw(t, context.Cause(ctx))
		case <-leaving:
			return g.withdraw(t, errWithdrawn)
		case <-patience:
		}
		left := g.patience(asked, until)
		if left <= 0 {
			return g.withdraw(t, errDown)
		}
		timer.Reset(left)
	}
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
	if !closed(g.leaving) {
		close(g.leaving)
	}
}

// restore lets events wait again.
func (g *guard) restore() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if closed(g.leaving) {
		g.leaving = make(chan struct{})
	}
}

// left returns a channel that is closed once an event that waits to be sent again is to be given back.
func (g *guard) left(e *Event) <-chan struct{} {
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

// patience returns how long an event that has asked for its turn goes on waiting before it looks again. It is not positive when the backend
// has been down for too long; where it just has much to do there is no limit.
func (g *guard) patience(asked, until time.Time) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.down {
		return min(g.limit, lookAgain)
	}
	if until.IsZero() {
		if until = asked; g.since.After(until) {
			until = g.since
		}
		until = until.Add(g.limit)
	}
	return time.Until(until)
}

// withdraw gives up waiting. A turn that came at the same moment goes to the next.
func (g *guard) withdraw(t *turn, why error) (*turn, *Reply) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if t.taken {
		g.giveBack(t)
		g.probeAgain(t)
		g.dispatch()
	} else {
		g.waiting = slices.DeleteFunc(g.waiting, func(other *turn) bool { return other == t })
	}
	if errors.Is(why, errWithdrawn) {
		return nil, &Reply{Outcome: Withdrawn, Err: why}
	}
	if !g.down {
		return nil, &Reply{Outcome: Unreachable, TimedOut: true, Err: fmt.Errorf("waiting for one of %d turns at the backend: %w", g.most, why)}
	}
	r := &Reply{Outcome: Unreachable, TimedOut: g.last.TimedOut, Err: fmt.Errorf("%w (its last failure: %w)", why, g.last.Err)}
	if g.last.Outcome == Later {
		r.Outcome, r.Status, r.After = Later, g.last.Status, g.last.After
	}
	return nil, r
}

// leave gives the turn back, and learns from what became of the POST how the backend is. A nil reply says nothing of it.
func (g *guard) leave(t *turn, r *Reply) {
	g.mu.Lock()
	defer g.mu.Unlock()
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
	g.dispatch()
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
func (g *guard) fails(t *turn, r *Reply) {
	if g.down {
		g.last = r
		g.probeAgain(t)
		return
	}
	connection := ""
	if t.event != nil {
		connection = t.event.ConnectionID
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
	if t.event != nil {
		g.target = t.event.Handshake
	}
	g.fell()
	g.told(true, r.Err)
	g.schedule()
}

// probeAgain makes room for the next probe behind one that has failed. The lock is held.
func (g *guard) probeAgain(t *turn) {
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
		g.mu.Unlock()
		return
	}
	t := &turn{probe: true}
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
func (g *guard) harmless(t *turn) bool {
	return t.event.Type == Disconnect || g.retry == RetryAlways || g.last.Outcome != Uncertain || g.probes%boldProbe == 0
}

// free reports whether a turn can be had. The lock is held.
func (g *guard) free() bool {
	return !g.down && g.busy+g.lent < g.most && g.busy-g.stale < g.allowed
}

// give gives the turn. The lock is held.
func (g *guard) give(t *turn) {
	g.busy++
	t.taken, t.era = true, g.era
	if t.ready != nil {
		close(t.ready)
	}
}

// giveBack takes the turn back. The lock is held.
func (g *guard) giveBack(t *turn) {
	g.busy--
	if t.era != g.era {
		g.stale--
	}
}

// dispatch gives the turns that are free to those who wait. The lock is held.
func (g *guard) dispatch() {
	for len(g.waiting) > 0 && g.free() {
		t := g.waiting[0]
		g.waiting[0] = nil
		g.waiting = g.waiting[1:]
		g.give(t)
	}
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
