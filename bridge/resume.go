package bridge

import (
	"fmt"
	"sync"
	"time"

	"wsbridge/holder"
)

// take takes connections over. Two at a time, since most of it is system calls.
func (b *Bridge) take(conns []holder.Conn) {
	half := len(conns) / 2
	if half < 100 {
		for _, conn := range conns {
			b.takeOne(conn)
		}
		return
	}
	var both sync.WaitGroup
	both.Go(func() { b.take(conns[:half]) })
	both.Go(func() { b.take(conns[half:]) })
	both.Wait()
}

// takeRest takes over what has no socket: connections that have ended with their worker, and disconnect events. What is free is for new
// connections.
func (b *Bridge) takeRest(lost func(s *holder.Slot) bool) {
	k := b.keeping
	var free []uint32
	for i := range k.table.Used() {
		slot := k.table.Slot(i)
		owner := slot.Owner.Load()
		if owner == k.Serial() || !lost(slot) {
			continue
		}
		if holder.Block(slot.Record.Load()).Stage() != holder.StageFree {
			b.takeOne(holder.Conn{Slot: i, Gen: slot.Gen.Load(), Fd: -1})
		} else if slot.Take(owner, k.Serial()) {
			free = append(free, i)
		}
	}
	k.mu.Lock()
	k.free = append(free, k.free...)
	k.mu.Unlock()
}

// expectRest makes connections known that are still with another worker: pushes to them wait until they arrive.
func (b *Bridge) expectRest(lingers func(s *holder.Slot) bool) {
	k := b.keeping
	for i := range k.table.Used() {
		slot := k.table.Slot(i)
		block := holder.Block(slot.Record.Load())
		if !lingers(slot) || block.Stage() != holder.StageOpen || slot.Ended.Load() != 0 {
			continue
		}
		rec, err := decodeRecord(k.table.Bytes(block))
		if err != nil || holder.Block(slot.Record.Load()) != block || !b.accepting() {
			continue
		}
		c := b.newConn(rec)
		c.arriving, c.accepted = true, true
		b.enroll(c)
		k.mu.Lock()
		k.arriving[i] = c
		k.mu.Unlock()
	}
}

// expectNoMore forgets the connections that are still with another worker: that one ends them.
func (b *Bridge) expectNoMore() {
	k := b.keeping
	if k == nil {
		return
	}
	k.mu.Lock()
	arriving := k.arriving
	k.arriving = map[uint32]*conn{}
	k.mu.Unlock()
	for _, c := range arriving {
		b.vanished(c)
	}
}

// enroll makes a connection known that was accepted before.
func (b *Bridge) enroll(c *conn) {
	b.registry.reserve(c.record.key(), 1<<31-1, 0)
	c.mu.Lock()
	defer c.mu.Unlock()
	b.registry.enroll(c)
}

// takeOne takes over one connection, or what is left of one.
func (b *Bridge) takeOne(conn holder.Conn) {
	k := b.keeping
	if conn.Slot >= k.table.Used() {
		return
	}
	slot := k.table.Slot(conn.Slot)
	if slot.Gen.Load() != conn.Gen {
		if conn.Fd >= 0 {
			go finishKept(conn.Fd) // the slot has another connection by now: this one had said goodbye
		}
		return
	}
	if slot.Owner.Swap(k.Serial()) == k.Serial() { // it was released just as all that is free was handed out
		if conn.Fd >= 0 {
			closeDuplicate(conn.Fd)
		}
		return
	}
	kept := &kept{in: k, index: conn.Slot, slot: slot}
	k.mu.Lock()
	expected := k.arriving[conn.Slot]
	delete(k.arriving, conn.Slot)
	k.mu.Unlock()
	block := holder.Block(slot.Record.Load())
	stage := block.Stage()
	if stage == holder.StageOpening && conn.Fd >= 0 {
		stage = kept.opening(conn.Fd)
	}
	if stage == holder.StageOpen && conn.Fd >= 0 {
		b.takeOpen(kept, conn.Fd, expected)
		return
	}
	switch {
	case conn.Fd >= 0 && (stage == holder.StageOwed || stage == holder.StageFree):
		go finishKept(conn.Fd) // its client may not have read all yet
	case conn.Fd >= 0:
		closeKept(conn.Fd)
	}
	if expected != nil {
		b.vanished(expected)
	}
	switch stage {
	case holder.StageOwed:
		b.takeGoodbye(kept, k.table.Bytes(block))
	case holder.StageFree:
		kept.free()
	case holder.StageOpen:
		if slot.Wrote.Load() == 0 { // its socket could not be kept: TLS ended in that worker
			b.farewell(kept, closeRestarting(nil))
		} else {
			b.farewell(kept, closeVanished(nil))
		}
	case holder.StageOpening:
		if slot.Posted.Load() == 0 { // the backend has not heard of it
			kept.free()
			return
		}
		b.farewell(kept, closeRestarting(nil))
	}
}

// takeOpen goes on with a connection that is open, or ends it if nobody can read its record.
func (b *Bridge) takeOpen(k *kept, fd int, expected *conn) {
	rec, err := decodeRecord(k.in.table.Bytes(holder.Block(k.slot.Record.Load())))
	if err != nil {
		b.log.Error("a connection can't be taken over", "error", err)
		b.unreadable(k, fd)
		return
	}
	b.resume(k, rec, fd, expected)
}

// opening returns how far a connection is whose 101 was under way.
func (k *kept) opening(fd int) holder.Stage {
	log := holder.Block(k.slot.Log.Load())
	if log.Len() == 0 {
		return holder.StageOpening
	}
	entry, wire := k.in.table.Log(log)
	if _, written, tcp := positions(fd); !tcp || written != entry.Wrote+uint64(len(wire)) {
		return holder.StageOpening
	}
	k.opens()
	return holder.StageOpen
}

// unreadable ends a connection whose record another version has written.
func (b *Bridge) unreadable(k *kept, fd int) {
	if k.slot.Log.Load() == 0 && k.slot.Ended.Load() == 0 {
		conn, _ := resumed(fd)
		conn.SetWriteDeadline(time.Now().Add(time.Second))
		conn.Write(controlFrame(nil, opClose, closeRestarting(nil).body()))
		conn.Close()
		k.free()
		return
	}
	closeKept(fd)
	k.free()
}

// finishKept closes a connection of which all has been said.
func finishKept(fd int) {
	raw, control := resumed(fd)
	s := &socket{Conn: heldConn{raw, control}}
	s.finish(closeWait)
}

// vanished forgets a connection that was to arrive, and has ended where it was.
func (b *Bridge) vanished(c *conn) {
	c.mu.Lock()
	c.arriving = false
	c.ended.CompareAndSwap(nil, closeVanished(nil))
	c.busy().out.discard()
	c.forsake()
	b.registry.remove(c)
	c.mu.Unlock()
	b.registry.release(c)
	b.conns.Done()
}

// farewell says goodbye for a connection that has ended with its worker.
func (b *Bridge) farewell(k *kept, why *Close) {
	rec, err := decodeRecord(k.in.table.Bytes(holder.Block(k.slot.Record.Load())))
	if err != nil || !b.accepting() {
		b.log.Error("the disconnect event of a connection is lost", "error", err)
		k.free()
		return
	}
	defer b.conns.Done()
	if ending := k.ending(); ending != nil {
		why = ending
	}
	b.registry.reserve(rec.key(), 1<<31-1, 0)
	c := b.newConn(rec)
	c.outlives(k)
	c.recount()
	if c.record.Sequence == 0 {
		c.record.Sequence = 1 // the connect event's, which was under way
	}
	c.countSent()
	c.mu.Lock()
	c.ended.CompareAndSwap(nil, why)
	c.mu.Unlock()
	b.registry.release(c)
	b.metrics.resumed.WithLabelValues("ended").Inc()
	b.goodbye(c)
}

// countSent counts the messages that an earlier worker had sent to the backend and that nobody answers any more.
func (c *conn) countSent() {
	slot, r := c.kept.slot, &c.record
	done := slot.Progressed().Done.Load() // and not the position, which may be behind what was let go
	if posted, sent := slot.Posted.Load(), slot.Sent.Load(); c.kept.stage() == holder.StageOpen && posted > done && sent > r.Sequence {
		r.Position = max(r.Position, int64(posted))
		r.MessagesIn += sent - r.Sequence
		r.Sequence = sent
	}
}

// recount reads the numbers that are in the slot.
func (c *conn) recount() {
	slot, r := c.kept.slot, &c.record
	p := slot.Progressed()
	r.Sequence, r.MessagesIn, r.BytesIn = p.Sequence.Load(), p.MessagesIn.Load(), p.BytesIn.Load()
	r.Position = int64(p.Done.Load())
	r.MessagesOut, r.BytesOut, r.Dropped = slot.MessagesOut.Load(), slot.BytesOut.Load(), slot.Dropped.Load()
}

// resume goes on with a connection where its worker has left it. It may have been killed anywhere.
func (b *Bridge) resume(k *kept, rec record, fd int, c *conn) {
	arrived := c != nil
	if !arrived && !b.accepting() {
		closeKept(fd)
		b.farewell(k, closeVanished(nil))
		return
	}
	b.upgraded.Add(1)
	if !arrived {
		b.registry.reserve(rec.key(), 1<<31-1, 0)
		c = b.newConn(rec)
	}
	c.mu.Lock()
	if arrived {
		b.registry.forget(c)
		c.record = rec
	}
	c.outlives(k)
	c.accepted = true
	c.recount()
	c.lastMessage.Store(time.Now().UnixNano()) // it is not known; a client is not to be idle for our sake
	if !arrived && c.park(fd) {
		b.registry.enroll(c)
		c.mu.Unlock()
		b.metrics.goOn.Inc()
		return
	}
	at := c.adopt(fd)
	if at.rest != nil {
		c.goOnWriting(at)
	}
	why := c.fate(at)
	if arrived {
		c.arriving = false
		if c.why != nil && why == nil { // closed meanwhile
			why = c.why
		}
		c.why = nil
	}
	b.registry.enroll(c)
	changes := c.changes
	c.changes = nil
	c.mu.Unlock()

	for _, change := range changes {
		change()
	}
	c.opened()
	switch {
	case why != nil:
		b.metrics.resumed.WithLabelValues("closed").Inc()
		c.mu.Lock()
		c.countSent()
		c.mu.Unlock()
		c.end(why)
	case int64(k.slot.Posted.Load()) > max(at.done, at.answering):
		b.metrics.resumed.WithLabelValues("repeated").Inc()
		fallthrough
	default:
		b.metrics.goOn.Inc()
	}
	go c.serve()
}

// adopt makes the socket that the descriptor stands for the connection's, and finds out where it stands. The lock is held.
func (c *conn) adopt(fd int) place {
	at := c.kept.examine(fd)
	c.recount()
	c.adoptAt(fd, at)
	return at
}

// adoptAt makes the socket that the descriptor stands for the connection's, where it is known where it stands. The lock is held.
func (c *conn) adoptAt(fd int, at place) {
	c.heard.Store(time.Now().UnixNano())
	raw, control := resumed(fd)
	s := &socket{Conn: heldConn{raw, control}, raw: control, owner: c, needed: time.Now().UnixNano()}
	s.guard.offset = max(at.done, at.answering, at.dropped, at.read)
	c.socket = s
	k := c.kept
	k.live, k.known, k.tcp = true, true, at.tcp
	c.build(at.dropped)
	if at.done > at.dropped { // answered, and not dropped yet
		s.drop(at.done)
	}
	c.record.Position = s.guard.offset
	c.posted, c.attempt = int64(k.slot.Posted.Load()), int(k.slot.Attempt.Load())
}

// place is where a connection stands that a worker has left.
type place struct {
	tcp       bool
	dropped   int64 // all in the client's stream: what is no more in the socket's buffer
	done      int64 // what is answered
	read      int64 // what this worker has read itself
	answering int64 // the end of the message that the rest answers, or 0
	entry     *holder.LogEntry
	wire      []byte
	rest      []byte // of a frame of which the beginning may be out
	torn      bool   // the socket stands within a frame that can't be finished
	unclear   bool   // it can't be told what has been dropped
	said      bool   // our close frame is out
}

// examine finds out by the slot and by what the kernel counts where the connection stands. It changes nothing but the slot, so that it may be killed
// and done again. Most connections were at rest, and the kernel need not be asked.
func (k *kept) examine(fd int) place {
	slot := k.slot
	at := place{tcp: countsBytes(fd), said: slot.Ended.Load()&endedSaid != 0}
	from, to, log := slot.DropFrom.Load(), slot.DropTo.Load(), holder.Block(slot.Log.Load())
	received, written := to, slot.Wrote.Load()
	if from != to || log != 0 {
		received, written, _ = positions(fd)
	}
	dropped := to
	switch {
	case from == to:
	case at.tcp && (received == from || received == from+1): // a FIN may count as a byte
		dropped = from
	case !at.tcp || received != to && received != to+1:
		at.unclear = true
	}
	slot.DropTo.Store(dropped)
	slot.DropFrom.Store(dropped)
	at.dropped = int64(dropped - slot.Base.Load())
	at.done = int64(slot.Progressed().Done.Load())
	if log == 0 {
		return at
	}
	if log.Len() == 0 { // a write that was not noted whole
		if at.torn = !at.tcp || written != slot.Wrote.Load(); !at.torn {
			slot.Log.Store(0)
		}
		return at
	}
	entry, wire := k.in.table.Log(log)
	sent := written - entry.Wrote
	switch {
	case !at.tcp || sent > uint64(len(wire))+1: // our FIN counts as well
		at.torn = true
	case sent >= uint64(len(wire)):
		if wire[0] == finBit|opClose { // and not the H of a 101
			at.said = true
			k.said()
		}
		if int64(entry.Done) > at.done {
			slot.Advance(entry.Done, entry.Sequence, entry.MessagesIn, entry.BytesIn)
			at.done = int64(entry.Done)
		}
		slot.Wrote.Store(entry.Wrote + uint64(len(wire)))
		k.in.arena.Replace(&slot.Log, 0)
	default:
		at.entry, at.wire, at.rest = entry, wire, wire[sent:]
		k.length = int32(len(wire))
		if int64(entry.Done) > at.done {
			at.answering = int64(entry.Done)
		}
	}
	return at
}

// goOnWriting puts the rest of a frame before everything else. The lock is held.
func (c *conn) goOnWriting(at place) {
	f := frame{wire: at.rest}
	switch opcode := at.wire[0] & 0x0f; {
	case opcode == opClose:
		c.out.shut = true
	case opcode >= opClose:
		f.control = true
	default:
		f.messages, f.payload = 1, len(at.wire)
	}
	if at.answering > 0 {
		f.owed = &owed{
			kept: c.kept, end: at.answering, sequence: at.entry.Sequence, messages: at.entry.MessagesIn, bytes: at.entry.BytesIn, carried: true,
		}
		c.owed = []*owed{f.owed}
		c.record.Sequence, c.record.MessagesIn, c.record.BytesIn = at.entry.Sequence, at.entry.MessagesIn, at.entry.BytesIn
	}
	c.out.torn = f
}

// fate returns how a connection ends that can't go on, or nil. The lock is held.
func (c *conn) fate(at place) *Close {
	slot := c.kept.slot
	done := uint64(max(at.done, at.answering))
	open := slot.Posted.Load() > done
	switch why := c.kept.ending(); {
	case at.torn:
		end := closeRestarting(nil)
		end.silent = true
		return end
	case why != nil:
		if at.said {
			c.out.shut, c.sealed = true, true
		} else if open && !c.out.shut {
			return closeOpen(nil)
		}
		return why
	case open && !c.bridge.upstream.Repeats():
		return closeOpen(errRestarted)
	case at.unclear || slot.Large.Load() > done:
		if open {
			return closeOpen(errRestarted)
		}
		return closeRestarting(nil)
	}
	return nil
}

var errRestarted = fmt.Errorf("the program was restarted while the message was at the backend")
