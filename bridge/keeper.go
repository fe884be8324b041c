package bridge

import (
	"encoding/json"
	"slices"
	"sync"

	"wsbridge/holder"
	"wsbridge/upstream"
)

// Keeper keeps what must outlive this process: a duplicate of each client's socket, and a table of their records. A holder.Link is one.
type Keeper interface {
	Serial() uint32
	Table() *holder.Table
	Keep(slot, gen uint32, fd int) error // a duplicate of the descriptor
	Release(slot uint32) error           // to whoever serves now
	Busy(posts int) error                // so many POSTs are still under way here, though another serves
}

// keeping is what a bridge has with its keeper.
type keeping struct {
	Keeper
	table *holder.Table
	arena *holder.Arena

	mu        sync.Mutex // guards the following
	free      []uint32   // slots, whose owner is this worker
	suspended bool       // another worker serves: what ends or comes to rest here is released to it
	reported  bool       // and our keeper knows: it asks for word of each
	arriving  map[uint32]*conn
	journal   map[string]*journalFile // files whose events are in the table, by path

	full sync.Once // says in the log that the table is
	old  bool      // the kernel is taken for one that does not remember where we look
}

func newKeeping(k Keeper) *keeping {
	if k == nil {
		return nil
	}
	return &keeping{Keeper: k, table: k.Table(), arena: holder.NewArena(k.Table(), k.Serial()), arriving: map[uint32]*conn{}, journal: map[string]*journalFile{}}
}

// slot takes a slot for a new connection, or nil where there is none left: then it does not outlive the process.
func (k *keeping) slot() *kept {
	k.mu.Lock()
	defer k.mu.Unlock()
	if n := len(k.free); n > 0 {
		index := k.free[n-1]
		k.free = k.free[:n-1]
		s := k.table.Slot(index)
		s.Clear()
		return &kept{in: k, index: index, slot: s}
	}
	for {
		index, ok := k.table.Grow()
		if !ok {
			return nil
		}
		// Another worker, which looks at all slots as it begins, may have been faster.
		if s := k.table.Slot(index); s.Take(0, k.Serial()) {
			s.Clear()
			return &kept{in: k, index: index, slot: s}
		}
	}
}

// kept is what outlives the process of one connection. Its connection's lock guards it.
type kept struct {
	in     *keeping
	slot   *holder.Slot
	index  uint32
	length int32 // of the write under way, in bytes

	stale bool // the record in the table is not the last one: there was no room
	live  bool // its socket is kept as well
	known bool // this process has looked at the socket: what follows is true, and where the kernel looks is where it stands
	tcp   bool // the kernel knows the positions
	large bool // the message being read is dropped from the socket's buffer as it comes
}

// owed is a message that was read and is not done with.
type owed struct {
	kept       *kept
	start, end int64 // in the client's stream
	messages   uint64
	bytes      uint64
	sequence   uint64 // of its event, 0: it has none
	carried    bool   // a frame answers it
	done       bool
}

// Leaves takes note that an attempt to post the message begins.
func (o *owed) Leaves(attempt int) {
	o.kept.slot.Attempt.Store(uint64(attempt))
	o.kept.slot.Sent.Store(o.sequence)
	o.kept.slot.Posted.Store(uint64(o.end))
}

// Spared takes note that the backend has not taken the message.
func (o *owed) Spared() { o.kept.slot.Posted.Store(uint64(o.start)) }

// outlives makes the slot the connection's: what is in it outlives the process. With nil nothing does. The lock is held, or nobody else knows the connection.
func (c *conn) outlives(k *kept) {
	if c.kept = k; k != nil {
		c.seat.Store(k.index + 1)
	}
}

// connecting is the trip of a connect event.
type connecting struct{ *kept }

// Leaves takes note that the backend may have heard of the connection.
func (c connecting) Leaves(int) { c.slot.Posted.Store(1) }

// Spared takes note that it has not.
func (c connecting) Spared() { c.slot.Posted.Store(0) }

// trip is what a connection's connect event is told by.
func (k *kept) trip() upstream.Trip {
	if k == nil {
		return nil
	}
	return connecting{k}
}

// accepted takes note that the backend has accepted the connection, and of what it has said of it. The connection's lock is held.
func (k *kept) accepted(r *record) {
	if k == nil {
		return
	}
	k.slot.Advance(0, r.Sequence, 0, 0)
	k.save(r, holder.StageOpening)
}

// attempts returns how often an earlier worker has posted the message that ends there.
func (c *conn) attempts(end int64) int {
	if end > c.posted {
		return 0
	}
	return max(c.attempt, 1) // also one of several whose answers had not been written: it has left at least as often as the last of them
}

// The slot's note of how the connection ends: the code, and behind it who decided.
const (
	endedBy     = 16
	endedSilent = 1 << 61
	endedSaid   = 1 << 62 // the close frame is out
	endedIs     = 1 << 63
)

// ends takes note of how the connection ends.
func (k *kept) ends(why *Close) {
	if k == nil {
		return
	}
	note := uint64(endedIs) | uint64(why.Code)
	switch why.By {
	case byBackend:
		note |= 1 << endedBy
	case byBridge:
		note |= 2 << endedBy
	}
	if why.silent {
		note |= endedSilent
	}
	k.slot.Ended.Store(note)
}

// said takes note that the close frame is out.
func (k *kept) said() {
	if k != nil {
		k.slot.Ended.Or(endedSaid)
	}
}

// ending returns how an earlier worker has decided that the connection ends, or nil.
func (k *kept) ending() *Close {
	note := k.slot.Ended.Load()
	if note == 0 {
		return nil
	}
	return &Close{
		Code: int(note & 0xffff), By: [...]string{byClient, byBackend, byBridge, byBridge}[note>>endedBy&3], abandon: true,
		silent: note&endedSilent != 0, Reason: "ended while the program restarted",
	}
}

// owes takes note of a message that was read. The lock is held, here and in what follows.
func (c *conn) owes(m message) *owed {
	k := c.kept
	if k == nil || !k.live {
		return nil
	}
	o := &owed{kept: k, start: m.position, end: m.end, messages: c.record.MessagesIn, bytes: c.record.BytesIn}
	c.busy().owed = append(c.owed, o)
	k.large = false
	return o
}

// answered takes note that a message is done with, and drops from the socket's buffer what is: up to the first that is not.
func (c *conn) answered(o *owed) {
	if o == nil || o.done {
		return
	}
	o.done = true
	k := c.kept
	n := 0
	for n < len(c.owed) && c.owed[n].done {
		n++
	}
	if n == 0 {
		return
	}
	last := c.owed[n-1]
	c.owed = slices.Delete(c.owed, 0, n)
	if last.sequence == 0 {
		last.sequence = k.slot.Progressed().Sequence.Load()
	}
	k.slot.Advance(uint64(last.end), last.sequence, last.messages, last.bytes)
	if c.parked != 0 {
		c.dropParked(last.end + c.behind)
		c.behind = 0
	} else {
		c.socket.drop(last.end)
	}
	c.tell() // there is room in the socket's buffer
}

// resave writes the record anew where it survives.
func (c *conn) resave() {
	if c.kept == nil || c.handed || c.kept.stage() == holder.StageOwed || c.kept.stage() == holder.StageFree {
		return
	}
	resting := c.parked != 0 && !c.isAwake()
	c.recall()
	c.kept.save(&c.record, c.kept.stage())
	if resting {
		c.putAway()
	}
}

// keepSocket gives the socket to the keeper. Where that can't be, the connection does not outlive this process, and only its disconnect event does.
func (c *conn) keepSocket() {
	k := c.kept
	if k == nil || c.socket.raw == nil {
		return
	}
	if c.record.Window > 0 || k.stale { // else it is there already
		k.save(&c.record, holder.StageOpening)
	}
	if err := c.socket.keep(k); err != nil {
		k.in.full.Do(func() {
			c.bridge.log.Error("a connection's socket can't be kept: it ends when the program restarts", "error", err)
		})
	}
}

// save writes the record where it survives, at the given stage. The connection's lock is held.
func (k *kept) save(r *record, stage holder.Stage) {
	if k == nil {
		return
	}
	p := scraps.Get().(*[]byte)
	*p = r.encode((*p)[:0])
	k.stale = !k.put(*p, stage)
	scraps.Put(p)
}

// put makes the bytes what survives of the connection.
func (k *kept) put(data []byte, stage holder.Stage) bool {
	block, ok := k.in.arena.Get(len(data))
	if !ok {
		return false // what was there before it stays
	}
	copy(k.in.table.Bytes(block), data)
	k.in.arena.Replace(&k.slot.Record, block.In(stage))
	return true
}

// stage returns how far the connection is, for whoever comes after a kill.
func (k *kept) stage() holder.Stage { return holder.Block(k.slot.Record.Load()).Stage() }

// opens takes note that the 101 is out.
func (k *kept) opens() {
	k.slot.Posted.Store(0) // the connect event's
	k.slot.Record.Store(uint64(holder.Block(k.slot.Record.Load()).In(holder.StageOpen)))
}

// begin takes note of a write before it is done, so that it can be finished by whoever comes after a kill. The lease is a block with the same bytes
// from a write before, or nil.
func (k *kept) begin(wire []byte, o *owed, lease *lease) {
	if k == nil || !k.live {
		return
	}
	k.length = int32(len(wire))
	size := holder.LogEntrySize + len(wire)
	var block holder.Block
	if lease != nil && lease.of(wire) {
		block, lease.block = lease.block, 0
	} else if got, ok := k.in.arena.Get(size); ok {
		block = got
		_, p := k.in.table.Log(block)
		copy(p, wire)
	}
	if block == 0 {
		k.slot.Log.Store(uint64(holder.Block(0).In(holder.StageOpening))) // whoever finds it knows that the socket may stand within a frame
		return
	}
	entry, _ := k.in.table.Log(block)
	*entry = holder.LogEntry{Wrote: k.slot.Wrote.Load()}
	if o != nil {
		entry.Done, entry.Sequence, entry.MessagesIn, entry.BytesIn = uint64(o.end), o.sequence, o.messages, o.bytes
	}
	k.slot.Log.Store(uint64(block))
}

// finish takes note that the write is done, or that none of it has happened. Its block is the lease's then, if there is one.
func (k *kept) finish(done bool, wire []byte, lease *lease) {
	if k == nil || !k.live {
		return
	}
	if done {
		k.slot.Wrote.Add(uint64(k.length))
	}
	if block := holder.Block(k.slot.Log.Load()); lease != nil && block.Len() > 0 {
		k.slot.Log.Store(0)
		lease.keep(block, wire)
	} else {
		k.in.arena.Replace(&k.slot.Log, 0)
	}
}

// lease is a block that holds the bytes of a frame which is being sent to one connection after the other.
type lease struct {
	in    *keeping
	block holder.Block
	wire  *byte
	size  int
}

func (l *lease) of(wire []byte) bool {
	return l.block != 0 && l.wire == &wire[0] && l.size == len(wire)
}

func (l *lease) keep(block holder.Block, wire []byte) {
	l.end()
	l.block, l.wire, l.size = block, &wire[0], len(wire)
}

// end gives the block back.
func (l *lease) end() {
	if l.block != 0 {
		l.in.arena.Free(l.block)
		l.block = 0
	}
}

// owes makes a disconnect event what survives of the connection. It returns nil where it does not.
func (k *kept) owes(event *upstream.Event, file *journalFile) *kept {
	if k == nil {
		return nil
	}
	e := entry{Version: journalVersion, Event: event}
	if file != nil {
		e.File = file.path
	}
	data, err := json.Marshal(e)
	if err != nil || !k.put(data, holder.StageOwed) {
		k.free()
		return nil
	}
	return k
}

// release gives the slot to the worker that serves now. It returns false if this is the one.
func (k *kept) release() bool {
	k.in.mu.Lock()
	if !k.in.suspended {
		k.in.mu.Unlock()
		return false
	}
	reported := k.in.reported
	k.slot.Release(k.in.Serial(), reported)
	k.in.mu.Unlock()
	if reported {
		k.in.Release(k.index)
	}
	return true
}

// free empties the slot: nothing of the connection is left.
func (k *kept) free() {
	if k == nil {
		return
	}
	s, in := k.slot, k.in
	in.arena.Replace(&s.Record, 0)
	in.arena.Replace(&s.Log, 0)
	in.mu.Lock()
	if in.suspended {
		in.mu.Unlock()
		if k.release() {
			return
		}
		in.mu.Lock() // it serves again just now
	}
	in.free = append(in.free, k.index)
	in.mu.Unlock()
}
