package bridge

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// registry knows the connections that are open or opening, and counts those of which anything is left: one that has gone may still have
// messages at the backend.
type registry struct {
	mu        sync.Mutex // guards the following
	open      map[string]*conn
	parting   map[*conn]struct{} // ended, with something left
	held      int
	addresses map[netip.Prefix]int
}

// reserve counts a connection before it exists. It returns the gate that refuses it, or none.
func (g *registry) reserve(key netip.Prefix, total, perAddress int) gate {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.held >= total {
		return gateConnections
	}
	// An address that is not known is many clients: they share a proxy's unix socket.
	if perAddress > 0 && key.IsValid() && g.addresses[key] >= perAddress {
		return gateAddress
	}
	g.held++
	g.addresses[key]++
	return gateNone
}

// unreserve gives back what reserve took.
func (g *registry) unreserve(key netip.Prefix) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.giveBack(key)
}

// release forgets a connection of which nothing is left, and gives back what reserve took for it.
func (g *registry) release(c *conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.parting, c)
	g.giveBack(c.record.key())
}

func (g *registry) giveBack(key netip.Prefix) {
	g.held--
	if g.addresses[key]--; g.addresses[key] == 0 {
		delete(g.addresses, key)
	}
}

// add makes a connection known.
func (g *registry) add(c *conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open[c.record.ID] = c
}

// remove ends a connection for its pushers.
func (g *registry) remove(c *conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.open, c.record.ID)
	g.parting[c] = struct{}{}
}

// cut closes the sockets of connections that have ended, whatever they still wait for.
func (g *registry) cut() {
	g.mu.Lock()
	parting := slices.Collect(maps.Keys(g.parting))
	g.mu.Unlock()
	for _, c := range parting {
		c.mu.Lock()
		if c.socket != nil {
			c.socket.Conn.Close()
		}
		c.mu.Unlock()
	}
}

// find returns the connection with this id, or nil.
func (g *registry) find(id string) *conn {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.open[id]
}

// count returns how many connections are open or opening.
func (g *registry) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.open)
}

// all returns the connections that are open or opening, in no order.
func (g *registry) all() []*conn {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Collect(maps.Values(g.open))
}

// after returns the connections whose ids sort behind id, oldest first.
func (g *registry) after(id string) []*conn {
	conns := slices.DeleteFunc(g.all(), func(c *conn) bool { return c.record.ID <= id })
	slices.SortFunc(conns, func(a, b *conn) int { return strings.Compare(a.record.ID, b.record.ID) })
	return conns
}
