package bridge

import (
	"iter"
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
	byID      map[audience][]*conn // of those that have been asked for since they changed
	parting   map[*conn]struct{}   // ended, with something left
	held      int
	addresses map[netip.Prefix]int
}

// members are the connections of a user or a group.
type members map[*conn]struct{}

// audience is whom a sending may name, apart from one connection.
type audience struct {
	kind targetKind
	name string // of a user or a group
}

// everybody are all connections.
var everybody = audience{kind: toAll}

func newRegistry() *registry {
	return &registry{
		open: map[string]*conn{}, users: map[string]members{}, groups: map[string]members{}, byID: map[audience][]*conn{}, parting: map[*conn]struct{}{}, addresses: map[netip.Prefix]int{},
	}
}

// index returns the index that has such an audience. The lock is held, here and in what follows.
func (g *registry) index(kind targetKind) map[string]members {
	if kind == toUser {
		return g.users
	}
	return g.groups
}

// enter makes a connection one of an audience.
func (g *registry) enter(kind targetKind, name string, c *conn) {
	index := g.index(kind)
	if index[name] == nil {
		index[name] = members{}
	}
	index[name][c] = struct{}{}
	delete(g.byID, audience{kind, name})
}

// exit ends that.
func (g *registry) exit(kind targetKind, name string, c *conn) {
	index := g.index(kind)
	if delete(index[name], c); len(index[name]) == 0 {
		delete(index, name)
	}
	delete(g.byID, audience{kind, name})
}

// few is how many connections are sorted anew each time: to keep the order of each user's would take more memory than it saves time.
const few = 32

// ordered returns the connections of an audience, oldest first, as their ids sort. What a sending touches of each, here and in the kernel, lies in memory roughly in
// that order: taken so, and not as a map gives them, a delivery to one of 5,000 costs a twelfth less. Nobody may change the list.
func (g *registry) ordered(a audience, n int, conns iter.Seq[*conn]) []*conn {
	if list, ok := g.byID[a]; ok {
		return list
	}
	list := slices.AppendSeq(make([]*conn, 0, n), conns)
	slices.SortFunc(list, func(a, b *conn) int { return strings.Compare(a.id, b.id) })
	if n > few {
		g.byID[a] = list
	}
	return list
}

// rename makes a connection known as another user's; empty is nobody's.
func (g *registry) rename(c *conn, from, to string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.exit(toUser, from, c)
	if to != "" {
		g.enter(toUser, to, c)
	}
}

// join makes a connection a member of a group.
func (g *registry) join(c *conn, group string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.enter(toGroup, group, c)
}

// quit ends a connection's membership.
func (g *registry) quit(c *conn, group string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.exit(toGroup, group, c)
}

// members returns the connections of a user or a group, or all, as they are at this moment, oldest first. The list is shared: nobody may change it.
func (g *registry) members(t target) []*conn {
	g.mu.Lock()
	defer g.mu.Unlock()
	if t.kind == toAll {
		return g.ordered(everybody, len(g.open), maps.Values(g.open))
	}
	members := g.index(t.kind)[t.name]
	return g.ordered(audience{t.kind, t.name}, len(members), maps.Keys(members))
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
	delete(g.byID, everybody)
}

// enroll makes a connection known that was accepted before, with its user and groups. Its lock is held.
func (g *registry) enroll(c *conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open[c.id] = c
	delete(g.byID, everybody)
	if c.record.User != "" {
		g.enter(toUser, c.record.User, c)
	}
	for _, group := range c.record.Groups {
		g.enter(toGroup, group, c)
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
	delete(g.byID, everybody)
	g.exit(toUser, c.record.User, c)
	for _, group := range c.record.Groups {
		g.exit(toGroup, group, c)
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
	conns := g.members(t)
	i, found := slices.BinarySearchFunc(conns, id, func(c *conn, id string) int { return strings.Compare(c.id, id) })
	if found {
		i++
	}
	return conns[i:]
}
