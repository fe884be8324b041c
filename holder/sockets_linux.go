package holder

import "golang.org/x/sys/unix"

// socket is a duplicate of a client's socket; 0 stands for none.
type socket struct {
	fd  int32
	gen uint32
}

// keep holds a socket. The lock is held, here and in what follows.
func (h *holding) keep(slot, gen uint32, fd int) {
	if int(slot) >= h.table.Slots() {
		unix.Close(fd)
		return
	}
	for len(h.sockets) <= int(slot) {
		h.sockets = append(h.sockets, socket{})
	}
	h.drop(slot)
	h.sockets[slot] = socket{int32(fd), gen}
	h.count++
	// No event is asked for: that both sides have ended, or that it is broken, comes anyway, and what a client sends wakes nobody.
	unix.EpollCtl(h.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLET & 0xffffffff, Fd: int32(slot), Pad: int32(gen)})
	h.journal.note(slot)
}

// drop lets go of a socket.
func (h *holding) drop(slot uint32) {
	if int(slot) >= len(h.sockets) || h.sockets[slot].fd == 0 {
		return
	}
	fd := int(h.sockets[slot].fd)
	unix.EpollCtl(h.epoll, unix.EPOLL_CTL_DEL, fd, nil) // closing does not do that while others have it open
	unix.Close(fd)
	h.sockets[slot] = socket{}
	h.count--
}

// watchSockets lets go of sockets that are over.
func (h *holding) watchSockets() {
	events := make([]unix.EpollEvent, 256)
	for {
		n, err := unix.EpollWait(h.epoll, events, -1)
		if err != nil && err != unix.EINTR {
			return // it is closed
		}
		h.mu.Lock()
		for i := range max(n, 0) {
			slot, gen := uint32(events[i].Fd), uint32(events[i].Pad)
			if int(slot) < len(h.sockets) && h.sockets[slot].gen == gen {
				h.drop(slot)
			}
		}
		over := h.over
		h.mu.Unlock()
		if over {
			return
		}
	}
}

// conn returns what is held of a slot.
func (h *holding) conn(slot uint32) Conn {
	if int(slot) < len(h.sockets) && h.sockets[slot].fd != 0 {
		return Conn{slot, h.sockets[slot].gen, int(h.sockets[slot].fd)}
	}
	c := Conn{Slot: slot, Fd: -1}
	if int(slot) < h.table.Slots() {
		c.Gen = h.table.Slot(slot).Gen.Load()
	}
	return c
}
