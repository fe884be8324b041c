package bridge

import (
	"log/slog"
	"math"
	"sync"
	"time"

	"wsbridge/upstream"
)

const (
	// maxGoodbyes bounds the disconnect events that wait for the backend; what comes on top is lost, logged and counted.
	maxGoodbyes = 100_000
	// goodbyePosts is how many of them are posted at once: goodbyes must not crowd messages out of their turns.
	goodbyePosts = 4
)

// goodbyes are the disconnect events that the backend has not taken yet.
type goodbyes struct {
	mu      sync.Mutex // guards the following
	waiting []*upstream.Event
	posting int
	lost    int
	idle    chan struct{} // closed when a drain waits and nothing is left
}

// goodbye ends the connection's story: one log line, one disconnect event.
func (b *Bridge) goodbye(c *conn) {
	now := time.Now()
	c.mu.Lock()
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
	if b.upstream.Wants(upstream.Disconnect) {
		b.post(event)
	}
}

// post hands a disconnect event to those that post them.
func (b *Bridge) post(event *upstream.Event) {
	g := &b.goodbyes
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.waiting) >= maxGoodbyes {
		g.lost++
		b.loseGoodbye(event, slog.Int("waiting", len(g.waiting)))
		return
	}
	g.waiting = append(g.waiting, event)
	if g.posting < goodbyePosts {
		g.posting++
		go b.postGoodbyes() // ends with the queue; Drain waits for it
	}
}

func (b *Bridge) postGoodbyes() {
	g := &b.goodbyes
	for {
		g.mu.Lock()
		if len(g.waiting) == 0 {
			if g.posting--; g.posting == 0 {
				g.waiting = nil
				if g.idle != nil {
					close(g.idle)
					g.idle = nil
				}
			}
			g.mu.Unlock()
			return
		}
		event := g.waiting[0]
		g.waiting[0] = nil
		g.waiting = g.waiting[1:]
		g.mu.Unlock()
		if reply := b.upstream.Post(b.ctx, event); !taken(reply) {
			g.mu.Lock()
			g.lost++
			g.mu.Unlock()
			b.loseGoodbye(event, slog.String("outcome", reply.Outcome.String()), slog.Any("error", reply.Err))
		}
	}
}

// taken reports whether the backend has had its disconnect event: a refusal counts, for it would be the same the next time.
func taken(r *upstream.Reply) bool {
	if r.Status >= 400 && r.Status < 500 {
		return r.Outcome != upstream.Later && r.Outcome != upstream.Uncertain
	}
	return r.Status >= 200 && r.Status < 300
}

func (b *Bridge) loseGoodbye(event *upstream.Event, why ...slog.Attr) {
	b.metrics.dropped.WithLabelValues("goodbye").Inc()
	b.log.LogAttrs(b.ctx, slog.LevelError, "disconnect event lost", append(why, slog.String("id", event.ConnectionID), slog.String("event", event.ID))...)
}

// drain waits until no disconnect event is left, and returns how many were lost since the start.
func (g *goodbyes) drain() int {
	g.mu.Lock()
	if g.posting > 0 {
		idle := make(chan struct{})
		g.idle = idle
		g.mu.Unlock()
		<-idle // at the latest when the end of the drain ends the POSTs
		g.mu.Lock()
	}
	defer g.mu.Unlock()
	return g.lost
}
