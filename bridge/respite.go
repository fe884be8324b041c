package bridge

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// respite is how long handshakes wait for the backend.
type respite struct {
	mu    sync.Mutex
	ctx   context.Context
	since time.Time
}

// begin returns what ends so long behind a handshake that begins now. Those that come within a sixty-fourth of that time share one, which is that much less patient with the
// last of them: to make one for each and to watch it was a twentieth of what opening a connection costs.
func (p *respite) begin(parent context.Context, timeout time.Duration) context.Context {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := time.Now(); p.ctx == nil || now.Sub(p.since) > timeout/64 {
		ctx, cancel := context.WithTimeoutCause(parent, timeout, fmt.Errorf("no answer within the handshake's %s", timeout))
		context.AfterFunc(ctx, cancel) // as late as that, for somebody may wait until then
		p.ctx, p.since = ctx, now
	}
	return p.ctx
}
