package bridge

import (
	"container/heap"
	"encoding/json"
	"log/slog"
	"math"
	"sync"
	"time"

	"wsbridge/upstream"
)

const (
	// goodbyePosts is how many disconnect events are posted at once: they must not crowd messages out of their turns.
	goodbyePosts = 4
	// The pause before one is posted again: doubled from the first to the last, unless the backend asks for more.
	firstGoodbyeRetry = time.Second
	lastGoodbyeRetry  = time.Minute
)

// goodbyes are the disconnect events that the backend has not taken yet.
type goodbyes struct {
	mu      sync.Mutex // guards the following
	waiting farewells  // by the time of their next attempt
	bytes   int64      // of all, those under way included
	posting int
	timer   *time.Timer   // wakes a poster for what is due later
	stopped bool          // by the end of the drain: nothing is posted any more
	lost    int           // since the start
	idle    chan struct{} // closed when a drain waits and nothing is left, or nothing is posted any more
}

// farewell is one disconnect event on its way.
type farewell struct {
	event *upstream.Event
	bytes int64
	tries int
	due   time.Time // of the next attempt
	until time.Time // it is given up
	file  *journalFile
	kept  *kept // where the event survives this process; or nil
}

// farewells is a heap.
type farewells []*farewell

func (f farewells) Len() int           { return len(f) }
func (f farewells) Less(i, j int) bool { return f[i].due.Before(f[j].due) }
func (f farewells) Swap(i, j int)      { f[i], f[j] = f[j], f[i] }

// Push is for the heap's own use.
func (f *farewells) Push(x any) { *f = append(*f, x.(*farewell)) }

// Pop is for the heap's own use.
func (f *farewells) Pop() any {
	last := len(*f) - 1
	x := (*f)[last]
	(*f)[last] = nil
	*f = (*f)[:last]
	return x
}

// goodbye ends the connection's story: one log line, one disconnect event.
func (b *Bridge) goodbye(c *conn) {
	now := time.Now()
	c.mu.Lock()
	c.busy()
	r, why := &c.record, c.verdict()
	said := &upstream.Goodbye{
		Code: why.Code, Reason: why.Reason, By: why.By, Seconds: math.Round(now.Sub(r.Since).Seconds()*1000) / 1000,
		MessagesIn: r.MessagesIn, MessagesOut: r.MessagesOut, BytesIn: r.BytesIn, BytesOut: r.BytesOut,
	}
	event := r.event(upstream.Disconnect, r.Position+1, now)
	unposted := c.unposted
	c.mu.Unlock()
	event.Goodbye = said
	b.metrics.ended(why)

	line := []slog.Attr{
		slog.String("id", r.ID), slog.String("address", r.Handshake.Address), slog.String("path", r.Handshake.Path), slog.String("user", r.User),
		slog.Int("code", said.Code), slog.String("reason", said.Reason), slog.String("by", said.By), slog.Float64("seconds", said.Seconds),
		slog.Uint64("messages_in", said.MessagesIn), slog.Uint64("messages_out", said.MessagesOut),
		slog.Uint64("bytes_in", said.BytesIn), slog.Uint64("bytes_out", said.BytesOut), slog.Uint64("dropped", r.Dropped), slog.Int("unposted", int(unposted)),
	}
	if why.failure != nil {
		line = append(line, slog.String("error", why.failure.Error()))
	}
	b.log.LogAttrs(b.ctx, slog.LevelInfo, "connection ended", line...)
	c.mu.Lock()
	kept := c.kept
	if !b.upstream.Wants(upstream.Disconnect) {
		kept.free()
		c.mu.Unlock()
		return
	}
	kept = kept.owes(event, nil)
	c.mu.Unlock()
	b.post(event, nil, kept)
}

// post hands a disconnect event to those that post them. It may come from a file of the journal.
func (b *Bridge) post(event *upstream.Event, file *journalFile, kept *kept) {
	suspended := b.keeping.isSuspended()
	if kept != nil && suspended && kept.release() {
		return
	}
	now := time.Now()
	f := &farewell{event: event, bytes: weight(event), due: now, until: now.Add(b.config.GoodbyeFor), file: file, kept: kept}
	g := &b.goodbyes
	g.mu.Lock()
	defer g.mu.Unlock()
	if count := len(g.waiting) + g.posting; count >= b.config.GoodbyeMax || count > 0 && g.bytes+f.bytes > b.config.GoodbyeBytes {
		b.lose(f, slog.String("error", "too many disconnect events wait (WSBRIDGE_BACKEND_GOODBYE_MAX, WSBRIDGE_BACKEND_GOODBYE_BYTES)"), slog.Int("waiting", count))
		return
	}
	if suspended { // and the table has no room for it
		b.keep(farewells{f})
		return
	}
	g.bytes += f.bytes
	heap.Push(&g.waiting, f)
	b.startPoster()
}

// startPoster starts one that posts what is due, unless there are enough. The lock of the goodbyes is held.
func (b *Bridge) startPoster() {
	if g := &b.goodbyes; g.posting < goodbyePosts && !g.stopped {
		g.posting++
		go b.postGoodbyes() // ends when nothing is due; Drain waits for it
	}
}

// postGoodbyes posts what is due.
func (b *Bridge) postGoodbyes() {
	g := &b.goodbyes
	for {
		g.mu.Lock()
		now := time.Now()
		if g.stopped || len(g.waiting) == 0 || g.waiting[0].due.After(now) {
			g.posting--
			if !g.stopped && len(g.waiting) > 0 {
				b.wakeAt(g.waiting[0].due, now)
			}
			g.rest()
			g.mu.Unlock()
			return
		}
		f := heap.Pop(&g.waiting).(*farewell)
		g.mu.Unlock()

		reply := b.ask(b.ctx, f.event)

		g.mu.Lock()
		switch now := time.Now(); {
		case taken(reply):
			g.bytes -= f.bytes
			b.done(f)
		case reply.Outcome == upstream.Withdrawn && f.kept != nil && f.kept.release():
			g.bytes -= f.bytes
		case b.ctx.Err() != nil: // the drain is over, and sees to what is left
			f.event.Attempt++
			heap.Push(&g.waiting, f)
			g.stopped = true
		default:
			f.event.Attempt++
			f.due = now.Add(max(upstream.Backoff(f.tries, firstGoodbyeRetry, lastGoodbyeRetry), reply.After))
			f.tries++
			if f.due.After(f.until) {
				g.bytes -= f.bytes
				b.lose(f, slog.String("outcome", reply.Outcome.String()), slog.Any("error", reply.Err))
			} else {
				heap.Push(&g.waiting, f)
			}
		}
		g.mu.Unlock()
	}
}

// wakeAt starts a poster at that time. The lock of the goodbyes is held.
func (b *Bridge) wakeAt(at, now time.Time) {
	g := &b.goodbyes
	if g.timer == nil {
		g.timer = time.AfterFunc(at.Sub(now), func() {
			g.mu.Lock()
			defer g.mu.Unlock()
			b.startPoster()
		})
		return
	}
	g.timer.Reset(at.Sub(now))
}

// taken reports whether the backend has had its disconnect event: a refusal counts, for it would be the same the next time.
func taken(r *upstream.Reply) bool {
	if r.Status >= 400 && r.Status < 500 {
		return r.Outcome != upstream.Later && r.Outcome != upstream.Uncertain
	}
	return r.Status >= 200 && r.Status < 300
}

// weight is what a disconnect event counts against the limit, in bytes: about what it takes in memory.
func weight(e *upstream.Event) int64 {
	h := e.Handshake
	n := 600 + len(e.ID) + len(e.ConnectionID) + len(e.UserID) + len(e.State) + len(e.Subprotocol) + len(e.Goodbye.Reason) +
		len(h.Path) + len(h.Query) + len(h.RequestHost) + len(h.Cookie) + len(h.ForwardedFor) + len(h.Host) + len(h.Address)
	for _, field := range h.Header {
		n += 32 + len(field.Name) + len(field.Value)
	}
	return int64(n)
}

// lose gives a disconnect event up. The lock of the goodbyes is held.
func (b *Bridge) lose(f *farewell, why ...slog.Attr) {
	b.goodbyes.lost++
	b.metrics.dropped.WithLabelValues("goodbye").Inc()
	b.log.LogAttrs(b.ctx, slog.LevelError, "disconnect event lost", append(why, slog.String("id", f.event.ConnectionID), slog.String("event", f.event.ID))...)
	b.done(f)
}

// done forgets a disconnect event on disk, too.
func (b *Bridge) done(f *farewell) {
	f.kept.free()
	if err := f.file.done(); err != nil {
		b.log.Error("the journal of disconnect events can't be cleared: they will be posted again at the next start", "error", err)
	}
}

// releaseGoodbyes gives those that wait to the worker that serves next.
func (b *Bridge) releaseGoodbyes() {
	g := &b.goodbyes
	g.mu.Lock()
	defer g.mu.Unlock()
	var left farewells
	for _, f := range g.waiting {
		g.bytes -= f.bytes
		if f.kept == nil {
			left = append(left, f)
		} else {
			f.kept.release()
		}
	}
	b.keep(left) // those that the table had no room for
	g.waiting = nil
	g.rest()
}

// takeGoodbye posts a disconnect event that an earlier worker has left.
func (b *Bridge) takeGoodbye(k *kept, data []byte) {
	var e entry
	if err := json.Unmarshal(data, &e); err != nil || e.Event == nil || e.Event.Handshake == nil || e.Event.Goodbye == nil {
		b.log.Error("a disconnect event of an earlier worker can't be read: it is lost")
		b.metrics.dropped.WithLabelValues("goodbye").Inc()
		k.free()
		return
	}
	var file *journalFile
	if e.File != "" {
		g := &b.goodbyes
		g.mu.Lock()
		if file = k.in.journal[e.File]; file == nil {
			file = &journalFile{path: e.File}
			k.in.journal[e.File] = file
		}
		file.left++
		g.mu.Unlock()
	}
	e.Event.Attempt++
	b.post(e.Event, file, k)
}

// readJournal posts what an earlier run has left in the journal.
func (b *Bridge) readJournal() {
	err := b.journal.read(func(event *upstream.Event, file *journalFile) {
		var kept *kept
		if b.keeping != nil {
			kept = b.keeping.slot().owes(event, file)
		}
		b.post(event, file, kept)
	})
	if err != nil {
		b.log.Error("disconnect events of an earlier run can't be read: the file is set aside", "error", err)
	}
}

// rest says that nothing is on its way where a drain waits for that. The lock is held.
func (g *goodbyes) rest() {
	if g.idle != nil && g.posting == 0 && (g.stopped || len(g.waiting) == 0) {
		close(g.idle)
		g.idle = nil
	}
}

// settled returns a channel that is closed once nothing is left, or nothing is posted any more.
func (g *goodbyes) settled() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	idle := make(chan struct{})
	g.idle = idle
	g.rest()
	return idle
}

// lastGoodbyes waits until no disconnect event is left or the drain is over; what is left then goes to the journal. It returns how many
// were lost since the start.
func (b *Bridge) lastGoodbyes() int {
	g := &b.goodbyes
	idle := g.settled()
	select {
	case <-idle:
	case <-b.ctx.Done(): // which ends the POSTs
		g.mu.Lock()
		g.stopped = true
		g.rest()
		g.mu.Unlock()
		<-idle
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stopped = true
	if g.timer != nil {
		g.timer.Stop()
	}
	b.keep(g.waiting)
	g.waiting, g.bytes = nil, 0
	return g.lost
}

// keep writes disconnect events to the journal. The lock of the goodbyes is held.
func (b *Bridge) keep(left farewells) {
	if len(left) == 0 {
		return
	}
	events := make([]*upstream.Event, len(left))
	for i, f := range left {
		events[i] = f.event
	}
	if err := b.journal.write(events); err != nil {
		for _, f := range left {
			if f.file == nil { // the others are still on disk
				b.lose(f, slog.Any("error", err))
			}
		}
		return
	}
	for _, f := range left {
		b.done(f)
	}
	b.log.Warn("disconnect events that the backend has not taken are kept for the next start", "events", len(left), "directory", b.config.StateDir)
}
