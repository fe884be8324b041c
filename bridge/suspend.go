package bridge

import (
	"net/http"
	"slices"

	"wsbridge/holder"
)

// Suspend hands the connections to another worker: those that are at rest at once, the others as soon as they are: once the POST under way is answered and
// what waits for the client is written. Those that can't be handed over are closed (1012). Pushes
// that come from now on are passed on to it by the transport, and handshakes under way end in a connection that is handed over. It returns how many POSTs are under way; the keeper is told when that changes. Nothing may be accepted
// any more when it is called.
func (b *Bridge) Suspend(next http.RoundTripper) (posts int) {
	k := b.keeping
	b.pushing.Lock() // pushes under way have reached everyone they are for
	b.next.Store(newSuccessor(next, b.config.PushToken))
	k.mu.Lock()
	k.suspended = true
	for _, index := range k.free {
		k.table.Slot(index).Release(k.Serial(), false)
	}
	k.free = nil
	k.mu.Unlock()
	b.pushing.Unlock()
	b.serving.Store(false)
	b.upstream.Withdraw()
	b.releaseGoodbyes()
	for _, c := range b.registry.all() { // in no order, which clients would wait for
		c.suspend()
	}
	k.mu.Lock()
	k.reported = true
	k.mu.Unlock()
	return b.upstream.Busy()
}

// Unfinished waits until nothing is left of the connections and disconnect events that this worker still had after Suspend.
func (b *Bridge) Unfinished() <-chan struct{} {
	done := make(chan struct{})
	go func() {
		b.conns.Wait()
		<-b.goodbyes.settled()
		close(done)
	}()
	return done
}

func (k *keeping) isSuspended() bool {
	if k == nil {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.suspended
}

// suspend hands the connection over as soon as it is at rest. Messages that wait to be posted are read again by whoever has it then.
func (c *conn) suspend() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.handing || c.arriving || c.hasEnded() {
		return
	}
	c.leaveInbox()
	c.hand()
}

// leaveInbox leaves the messages that wait to another worker, and whatever comes behind them. The lock is held.
func (c *conn) leaveInbox() {
	c.handing = true
	if c.work != nil {
		c.pending -= int32(len(c.inbox))
		c.inbox, c.inboxBytes = nil, 0
		c.changed.Broadcast()
	}
}

// hand hands the connection over if it is to be and is at rest. The lock is held.
func (c *conn) hand() {
	if !c.handing && !c.opening && c.bridge.keeping.isSuspended() {
		c.handing = true // its handshake was under way
	}
	if !c.handing || c.handed || c.opening || c.hasEnded() {
		return
	}
	if c.kept == nil || !c.kept.live {
		go c.end(closeRestarting(nil))
		return
	}
	if !c.isQuiet() || len(c.awaited()) > 0 {
		return
	}
	slot := c.kept.slot
	if slot.Large.Load() > slot.Progressed().Done.Load() { // part of a message is here alone
		go c.end(closeRestarting(nil))
		return
	}
	var again int // in case that this worker serves
	if c.parked != 0 {
		c.recall()
		again = c.leaveParked()
	} else {
		again = duplicate(c.socket.raw)
		c.socket.held.stop()
	}
	c.handed = true
	c.bridge.registry.forget(c)
	c.tell()
	if c.kept.release() {
		if again >= 0 {
			closeDuplicate(again)
		}
	} else {
		go c.bridge.takeBack(c.kept, again)
	}
	go c.handedOver()
}

// takeBack goes on with a connection that came to rest when this worker served again: the one that was to have it has died.
func (b *Bridge) takeBack(k *kept, fd int) {
	back := &kept{in: k.in, index: k.index, slot: k.slot}
	take := func() { b.takeOpen(back, fd, nil) }
	if fd < 0 {
		b.log.Error("a connection can't be taken back: there is no descriptor left")
		take = func() { b.farewell(back, closeRestarting(nil)) }
	}
	for b.here(take) != nil {
		if back.release() { // suspended once more
			if fd >= 0 {
				closeDuplicate(fd)
			}
			return
		}
	}
}

// handedOver lets go of what this worker had of the connection.
func (c *conn) handedOver() {
	c.stopClock()
	if c.socket != nil {
		c.socket.Conn.(heldConn).Conn.Close() // the descriptor alone: its reader ends
	}
	c.bridge.upgraded.Add(-1)
	c.mu.Lock()
	c.over = true
	left := c.busy()
	c.mu.Unlock()
	left.tasks.Wait()
	c.bridge.registry.release(c)
	c.bridge.conns.Done()
}

// GiveBack gives a new keeper, in the place of one that has died, a duplicate of each client's socket.
func (b *Bridge) GiveBack() {
	for _, c := range b.registry.all() {
		c.giveBack()
	}
}

func (c *conn) giveBack() {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.kept
	if k == nil || !k.live || c.handed {
		return
	}
	keep := func(fd uintptr) { k.in.Keep(k.index, k.slot.Gen.Load(), int(fd)) } // a link that is broken is found by who reads it
	if c.parked != 0 {
		keep(uintptr(c.parked))
	} else {
		c.socket.raw.Control(keep) // one that is closed needs no keeper
	}
}

func (c *conn) isHanded() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.handed
}

// Resume serves with the connections that an earlier worker has left, and those that are still with another come to it by Take. It returns
// when all are back.
func (b *Bridge) Resume(conns []holder.Conn, start holder.Start) {
	k := b.keeping
	lingers := func(s *holder.Slot) bool { return slices.ContainsFunc(start.Lingering, s.Had) }
	b.upstream.Restore()
	b.next.Store(nil)
	k.mu.Lock()
	k.suspended, k.reported = false, false
	k.mu.Unlock()
	b.starts.Store(&start.Starts)
	b.registry.expect(len(conns))
	k.arena.Adopt(func(serial uint32) bool { return !slices.Contains(start.Lingering, serial) })
	b.take(conns)
	b.takeRest(func(s *holder.Slot) bool { return !lingers(s) })
	b.expectRest(lingers)
	if start.Cause == causeStart {
		b.readJournal()
	}
}

// causeStart is the cause of a worker that is the first of its holder.
const causeStart = "start"

// Take takes over connections that another worker had.
func (b *Bridge) Take(conns []holder.Conn) { b.take(conns) }

// Gone takes over what a worker that has died had.
func (b *Bridge) Gone(serial uint32) {
	b.keeping.arena.Adopt(func(other uint32) bool { return other == serial })
	b.takeRest(func(s *holder.Slot) bool { return s.Had(serial) })
}
