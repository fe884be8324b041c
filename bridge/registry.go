package bridge

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// registry knows the connections that are open or opening, by id, user and group, and counts those of which anything is left: one that has gone
// may still have messages at the backend. Its lock may be taken while a connection's is held, and not the other way round.
type registry struct {
	mu        sync.Mutex // guards the following
	open      map[string]*conn
	users     map[string]members
	groups    map[string]members
	parting   map[*conn]struct{} // ended, with something left
	held      int
	addresses map[netip.Prefix]int
}

// members are the connections of a user or a group.
type members map[*conn]struct{}

func newRegistry() *registry {
	return &registry{
		open: map[string]*conn{}, users: map[string]members{}, groups: map[string]members{}, parting: map[*conn]struct{}{}, addresses: map[netip.Prefix]int{},
	}
}

func add(index map[string]members, name string, c *conn) {
	if index[name] == nil {
		index[name] = members{}
	}
	index[name][c] = struct{}{}
}

func remove(index map[string]members, name string, c *conn) {
	if delete(index[name], c); len(index[name]) == 0 {
		delete(index, name)
	}
}

// rename makes a connection known as another user's; empty is nobody's.
func (g *registry) rename(c *conn, from, to string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	remove(g.users, from, c)
	if to != "" {
		add(g.users, to, c)
	}
}

// join makes a connection a member of a group.
func (g *registry) join(c *conn, group string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	add(g.groups, group, c)
}

// quit ends a connection's membership.
func (g *registry) quit(c *conn, group string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	remove(g.groups, group, c)
}

// members returns the connections of a user or a group, or all, as they are at this moment, in no order.
func (g *registry) members(t target) []*conn {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch t.kind {
	case toUser:
		return slices.AppendSeq(make([]*conn, 0, len(g.users[t.name])), maps.Keys(g.users[t.name]))
	case toGroup:
		return slices.AppendSeq(make([]*conn, 0, len(g.groups[t.name])), maps.Keys(g.groups[t.name]))
	}
	return slices.AppendSeq(make([]*conn, 0, len(g.open)), maps.Values(g.open))
}

// all returns the connections that are open, opening or parting.
func (g *registry) all() []*conn {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.AppendSeq(slices.Collect(maps.Values(g.open)), maps.Keys(g.parting))
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

// expect makes room for so many connections, which come at once.
func (g *registry) expect(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.open) == 0 {
		g.open = make(map[string]*conn, n)
	}
}

// add makes a connection known.
func (g *registry) add(c *conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open[c.id] = c
}

// enroll makes a connection known that was accepted before, with its user and groups. Its lock is held.
func (g *registry) enroll(c *conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open[c.id] = c
	if c.record.User != "" {
		add(g.users, c.record.User, c)
	}
	for _, group := range c.record.Groups {
		add(g.groups, group, c)
	}
}

// forget makes a connection unknown: another worker has it, or it is to be enrolled anew. Its lock is held.
func (g *registry) forget(c *conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.leave(c)
}

// leave removes a connection from the indexes. The lock is held.
func (g *registry) leave(c *conn) {
	delete(g.open, c.id)
	remove(g.users, c.record.User, c)
	for _, group := range c.record.Groups {
		remove(g.groups, group, c)
	}
}

// remove ends a connection for its pushers. Its lock is held.
func (g *registry) remove(c *conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.leave(c)
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

// after returns those of a user's, a group's or all connections whose ids sort behind id, oldest first.
func (g *registry) after(t target, id string) []*conn {
	conns := slices.DeleteFunc(g.members(t), func(c *conn) bool { return c.id <= id })
	slices.SortFunc(conns, func(a, b *conn) int { return strings.Compare(a.id, b.id) })
	return conns
}
