// Package bridge is what a WebSocket client is to us: it accepts connections, keeps them, carries messages between client and
// backend, takes the backend's pushes, and ends each connection with one code and one goodbye. It is the only package that
// knows gorilla.
package bridge

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"wsbridge/ratelimit"
	"wsbridge/upstream"
)

// Bridge serves clients on one side and pushes on the other.
type Bridge struct {
	config     Config
	rates      ratelimit.Config
	handshakes *ratelimit.Handshakes
	upstream   *upstream.Client
	log        *slog.Logger
	metrics    *metrics
	registry   *registry
	upgrader   websocket.Upgrader
	frames     frames
	scratch    sync.Pool // of *[]byte, to read messages into

	ctx      context.Context // of the POSTs: it outlives the clients and ends with the drain
	stop     context.CancelCauseFunc
	pushing  sync.RWMutex   // held for writing while pushes are shut out
	conns    sync.WaitGroup // connections, until nothing is left of them
	goodbyes goodbyes
	journal  journal
	keeping  *keeping // nil: connections end with this process
	parking  parking
	crew     crew
	clock    *clock
	respite  respite
	linger   time.Duration // that an idle connection stays built
	built    atomic.Uint64 // parked connections, again

	refusals  rate.Sometimes // of the backend, that are logged
	strangers rate.Sometimes // refused for their origin

	serving  atomic.Bool
	upgraded atomic.Int64
	receipts atomic.Uint64 // of pushes, so far
	lastID   atomic.Int64  // Unix microseconds in the last id
	repeats  repeats
	starts   atomic.Pointer[map[string]uint64] // workers told to serve, by cause
	next     atomic.Pointer[successor]         // who serves instead; nil: we do
	mu       sync.Mutex                        // guards draining: no connection is accepted behind the drain's back
	draining bool
}

var errDrained = errors.New("the time to drain is over")

// New returns a bridge to the backend. It serves clients and pushes once its handlers are given listeners. The disconnect events that an
// earlier run has kept in Config.StateDir are posted from now on; an error says that this directory can't be used. With a keeper, which may be nil, the connections
// outlive this process: it serves from Resume on.
func New(config Config, rates ratelimit.Config, client *upstream.Client, log *slog.Logger, registry prometheus.Registerer, keeper Keeper) (*Bridge, error) {
	kept, err := openJournal(config.StateDir)
	if err != nil {
		return nil, err
	}
	b := &Bridge{
		config: config, rates: rates, handshakes: ratelimit.NewHandshakes(rates), upstream: client, log: log, journal: kept, keeping: newKeeping(keeper),
		scratch:   sync.Pool{New: func() any { return new([]byte) }},
		linger:    linger,
		clock:     newClock(),
		refusals:  rate.Sometimes{First: 3, Interval: time.Minute},
		strangers: rate.Sometimes{First: 3, Interval: time.Minute},
		upgrader: websocket.Upgrader{
			CheckOrigin:     func(*http.Request) bool { return true }, // a gate of ours
			WriteBufferPool: &sync.Pool{},                             // or each connection would keep a buffer that we never write through
		},
	}
	b.registry = newRegistry()
	b.ctx, b.stop = context.WithCancelCause(context.Background())
	b.metrics = newMetrics(registry, b)
	client.Watch(b.backend)
	if keeper == nil {
		b.readJournal()
	}
	return b, nil
}

// backend says in the log that the backend has gone down, or that it is back.
func (b *Bridge) backend(down bool, why error) {
	if down {
		b.log.Warn("the backend is down: messages wait, one probe at a time", "url", b.upstream.URL(), "error", why)
	} else {
		b.log.Info("the backend is back", "url", b.upstream.URL())
	}
}

// Serving says that the listeners are open: /readyz turns to 200.
func (b *Bridge) Serving() { b.serving.Store(true) }

// Upgraded returns how many connections have left the HTTP server and still have a socket.
func (b *Bridge) Upgraded() int { return int(b.upgraded.Load()) }

// drainStep is the longest pause between two closes of a drain: few connections need no spreading.
const drainStep = 100 * time.Millisecond

// Drain ends every connection within the given time: new ones are refused, answers under way are delivered, the closes (1001) are spread
// over the first two thirds, and disconnect events are posted. Where another program is about to serve, the code is 1012. What is not done by then is cut, and disconnect events that are left are kept in
// Config.StateDir. It returns how many of them were lost since the start.
func (b *Bridge) Drain(limit time.Duration, restarting bool) (lost int) {
	closing := closeShutdown
	if restarting {
		closing = func() *Close { return closeRestarting(nil) }
	}
	b.mu.Lock()
	b.draining = true
	b.mu.Unlock()
	end := time.AfterFunc(limit, func() { b.stop(errDrained) })
	defer end.Stop()

	done := make(chan struct{})
	go func() {
		b.conns.Wait()
		close(done)
	}()
	conns := b.registry.after(target{kind: toAll}, "")
	if len(conns) > 0 {
		step := min(limit*2/3/time.Duration(len(conns)), drainStep)
		start := time.Now()
	spread:
		for i, c := range conns {
			select {
			case <-time.After(time.Until(start.Add(time.Duration(i) * step))):
				c.end(closing())
			case <-done: // all have gone by themselves
				break spread
			case <-b.ctx.Done():
				break spread
			}
		}
	}
	select {
	case <-done:
	case <-b.ctx.Done():
		// A POST under way ends now, its connection says 1011 if it still can, and that is all there is time for.
		for _, c := range b.registry.after(target{kind: toAll}, "") {
			c.end(closing())
		}
		b.expectNoMore()
		select {
		case <-done:
		case <-time.After(time.Second):
			b.registry.cut()
			<-done // nothing is left that could wait
		}
	}
	b.crew.dismiss()
	b.clock.stop()
	return b.lastGoodbyes()
}

// accepting counts a connection in, unless the drain has begun.
func (b *Bridge) accepting() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.draining {
		return false
	}
	b.conns.Add(1)
	return true
}

func (b *Bridge) isDraining() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.draining
}

// ask posts an event.
func (b *Bridge) ask(ctx context.Context, event *upstream.Event) *upstream.Reply {
	began := time.Now()
	reply := b.upstream.Post(ctx, event)
	b.note(ctx, event, reply, began)
	return reply
}

// postIn posts an event in its turn. It returns as well whose turn has come by that.
func (b *Bridge) postIn(ctx context.Context, turn *upstream.Turn) (*upstream.Reply, *upstream.Turn) {
	if !b.log.Enabled(ctx, slog.LevelDebug) {
		return b.upstream.PostIn(ctx, turn)
	}
	began := time.Now()
	reply, next := b.upstream.PostIn(ctx, turn)
	b.note(ctx, turn.Event, reply, began)
	return reply, next
}

// note writes a line for each event where everything is logged, without what the event or the reply says.
func (b *Bridge) note(ctx context.Context, event *upstream.Event, reply *upstream.Reply, began time.Time) {
	if !b.log.Enabled(ctx, slog.LevelDebug) {
		return
	}
	b.log.LogAttrs(ctx, slog.LevelDebug, "event", slog.String("type", string(event.Type)), slog.String("id", event.ConnectionID), slog.String("event", event.ID),
		slog.Uint64("sequence", event.Sequence), slog.Int("attempt", event.Attempt), slog.Int("bytes", len(event.Body.Data)),
		slog.String("outcome", reply.Outcome.String()), slog.Int("status", reply.Status), slog.Int("messages", len(reply.Messages)), slog.Float64("seconds", time.Since(began).Seconds()))
}

// complain writes the one line about a reply that an operator may have to do something about. What comes in floods is only said now and
// then: a backend that is away, and an application that turns clients away, which is its business, unless its CSRF protection does.
func (b *Bridge) complain(kind upstream.Type, r *upstream.Reply) {
	warn := func(message string) {
		b.log.Warn(message, "event", string(kind), "url", b.upstream.URL(), "status", r.Status, "outcome", r.Outcome.String(), "error", r.Err)
	}
	switch r.Outcome {
	case upstream.Invalid, upstream.Failed, upstream.Misconfigured:
		warn("the backend's answer is of no use")
	case upstream.Redirected:
		if kind == upstream.Message { // on connect it may send the client to a login
			warn("the backend's answer is of no use")
		}
	case upstream.Refused, upstream.Forbidden:
		if len(r.Messages) == 0 {
			b.refusals.Do(func() { warn("the backend refuses") })
		}
	}
}
