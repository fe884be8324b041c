package bridge

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"wsbridge/upstream"
)

// record is what a connection is apart from its socket: one plain value. Everything else (goroutines, buffers, gorilla's Conn) can be
// thrown away and built anew from the two wherever the connection stands between two messages.
type record struct {
	ID          string
	Since       time.Time
	Handshake   *upstream.Handshake // which events share, so that it never changes: another takes its place
	Subprotocol string
	Window      int // bits of the window our compressed messages may use; 0: no compression
	User, State string
	Groups      []string // sorted
	Sequence    uint64   // of the last event
	Position    int64    // in the client's stream: the end of what was read of it

	MessagesIn, MessagesOut uint64
	BytesIn, BytesOut       uint64
	Dropped                 uint64 // messages a slow client lost
}

// idAlphabet keeps the order of the bytes it encodes, is safe in a URL and has no letters that look alike in one case.
const idAlphabet = "0123456789abcdefghijklmnopqrstuv"

var idEncoding = base32.NewEncoding(idAlphabet).WithPadding(base32.NoPadding)

// newID returns an id of 36 characters: 56 bits of microseconds, no two the same, so that ids sort by time, and 120 random bits, so
// that nobody guesses one.
func (b *Bridge) newID(now time.Time) string {
	at := now.UnixMicro()
	for {
		last := b.lastID.Load()
		at = max(at, last+1)
		if b.lastID.CompareAndSwap(last, at) {
			break
		}
	}
	var raw [22]byte
	var stamp [8]byte
	binary.BigEndian.PutUint64(stamp[:], uint64(at))
	copy(raw[:7], stamp[1:])
	rand.Read(raw[7:]) // never fails, since Go 1.24
	return idEncoding.EncodeToString(raw[:])
}

// event returns the connection's next event. The position is where in the client's stream it happened: 0 for the handshake, then one more
// than the offset. With the connection's own id it makes an id that comes out the same whoever computes it.
func (r *record) event(kind upstream.Type, position int64, at time.Time) *upstream.Event {
	r.Sequence++
	var id [64]byte
	return &upstream.Event{
		Type: kind, ID: string(strconv.AppendInt(append(append(id[:0], r.ID...), '-'), position, 10)), Time: at, ConnectionID: r.ID, Sequence: r.Sequence, Attempt: 1,
		UserID: r.User, State: r.State, Subprotocol: r.Subprotocol, Handshake: r.Handshake,
	}
}

// key is what the connection counts under.
func (r *record) key() netip.Prefix {
	address, err := netip.ParseAddr(r.Handshake.Address)
	if err != nil {
		return netip.Prefix{} // not known
	}
	return limitKey(address)
}

// learn takes over what a reply says of the connection itself.
func (c *conn) learn(reply *upstream.Reply) {
	if reply.User == nil && reply.State == nil && len(reply.Join)+len(reply.Leave)+len(reply.SetCookie) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if reply.User != nil {
		c.setUser(*reply.User)
	}
	if reply.State != nil {
		c.record.State = *reply.State
	}
	for _, group := range reply.Join {
		c.join(group)
	}
	for _, group := range reply.Leave {
		c.leaveGroup(group)
	}
	if len(reply.SetCookie) > 0 {
		c.record.Handshake = c.record.Handshake.SetCookie(reply.SetCookie, time.Now())
	}
	c.resave()
}

// setUser names the connection's user; empty unnames. What a connection that has ended is told, its disconnect event says, but nobody finds it by
// that any more. The lock is held, here and in what follows.
func (c *conn) setUser(user string) {
	if !c.hasEnded() {
		c.bridge.registry.rename(c, c.record.User, user)
	}
	c.record.User = user
}

func (c *conn) join(group string) {
	i, found := slices.BinarySearch(c.record.Groups, group)
	if found {
		return
	}
	c.record.Groups = slices.Insert(c.record.Groups, i, group)
	if !c.hasEnded() {
		c.bridge.registry.join(c, group)
	}
}

func (c *conn) leaveGroup(group string) {
	i, found := slices.BinarySearch(c.record.Groups, group)
	if !found {
		return
	}
	if c.record.Groups = slices.Delete(c.record.Groups, i, i+1); len(c.record.Groups) == 0 {
		c.record.Groups = nil
	}
	if !c.hasEnded() {
		c.bridge.registry.quit(c, group)
	}
}
