package bridge

import (
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// parking is where sockets of parked connections are watched, by one goroutine while there are any.
type parking struct {
	mu    sync.Mutex // guards the following
	epoll *os.File   // nil while nothing is parked
	raw   syscall.RawConn
	conns []*conn // by descriptor
	count int
}

// add watches the socket for the connection. The connection's lock is held.
func (p *parking) add(fd int, c *conn) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.epoll == nil {
		if err := p.open(); err != nil {
			return err
		}
	}
	// Told of is what has come already, and whatever comes: what is told of is dealt with whole, or the watch ends.
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET, Fd: int32(fd)}
	var err error
	failed := p.raw.Control(func(epoll uintptr) { err = unix.EpollCtl(int(epoll), unix.EPOLL_CTL_ADD, fd, &event) })
	if err != nil || failed != nil {
		p.leave()
		return fmt.Errorf("a parked connection can't be watched: %v, %v", err, failed)
	}
	for len(p.conns) <= fd {
		p.conns = append(p.conns, nil)
	}
	p.conns[fd] = c
	p.count++
	return nil
}

// remove ends the watch. The connection's lock is held.
func (p *parking) remove(fd int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.raw.Control(func(epoll uintptr) { unix.EpollCtl(int(epoll), unix.EPOLL_CTL_DEL, fd, nil) }) // closing does not do that while others have it open
	p.conns[fd] = nil
	p.count--
	p.leave()
}

// parked returns how many there are.
func (p *parking) parked() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count
}

func (p *parking) open() error {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err == nil {
		err = unix.SetNonblock(fd, true) // so that Go's own poller waits for it, and no thread
	}
	if err != nil {
		return fmt.Errorf("parked connections can't be watched: %w", err)
	}
	p.epoll = os.NewFile(uintptr(fd), "parking")
	if p.raw, err = p.epoll.SyscallConn(); err != nil {
		return fmt.Errorf("parked connections can't be watched: %w", err)
	}
	go p.watch(p.raw)
	return nil
}

// leave ends the watch when nothing is left to be watched. The lock is held.
func (p *parking) leave() {
	if p.count == 0 && p.epoll != nil {
		p.epoll.Close()
		p.epoll, p.conns = nil, nil
	}
}

const (
	// gather is how long what comes behind heartbeats may wait for more of them. To wake for each pong of ten thousand connections would be a tenth of a processor's time, most
	// of it the system's and the scheduler's for waking; what waits behind one is the first word that anybody has said for a while.
	gather = 2 * time.Millisecond
	// calm is that while.
	calm = time.Second
)

// watch lets the connections see to what happens to them.
func (p *parking) watch(raw syscall.RawConn) {
	events := make([]unix.EpollEvent, 64)
	var buffer [glanceBuffer]byte
	var busy time.Time // when something else than heartbeats came last
	for {
		n := 0
		err := raw.Read(func(fd uintptr) bool {
			n = happened(int(fd), events)
			return n > 0
		})
		if err != nil {
			return // it is closed
		}
		heartbeats := true
		for _, event := range events[:n] {
			if c := p.at(int(event.Fd)); c != nil && !c.stirs(buffer[:], event.Events&^unix.EPOLLIN != 0) {
				heartbeats = false
			}
		}
		if now := time.Now(); !heartbeats {
			busy = now
		} else if now.Sub(busy) > calm {
			time.Sleep(gather)
		}
	}
}

// at returns the connection that is parked at the descriptor, by now: at worst it is another one, which is built for nothing.
func (p *parking) at(fd int) *conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if fd >= len(p.conns) {
		return nil
	}
	return p.conns[fd]
}
