package holder

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// linkFd is the descriptor at which a worker finds its link.
const linkFd = 3

// A packet is what goes over a link, a socket that keeps the bounds of messages: an operation, two numbers, and what belongs to it.
type packet struct {
	op   byte
	a, b uint32
	body []byte
	fds  []int
}

// What the two say. What has a name among the orders is one.
const (
	opWelcome      = iota + 100 // holder: serial, what it keeps; the table, the listeners
	opPing                      // holder
	opGiveBack                  // a new holder to the worker that outlived the old one: say everything again
	opReady                     // worker, and so on
	opServing                   // the cause
	opSuspended                 // POSTs
	opBusy                      // POSTs
	opRelease                   // slot
	opKeep                      // slot, generation; the socket
	opKeepListener              // its name and address; the socket
	opFailed                    // why
	opGaveBack                  // what there is besides what was kept
	opPong
	opHello // serial, pid; the environment: the answer to opGiveBack
)

const (
	packetHeader = 12
	// maxPacketFds is how many descriptors one packet carries. The kernel takes 253.
	maxPacketFds = 250
	// maxPacket is the largest packet, in bytes: an environment of the size that exec takes.
	maxPacket = 256 << 10
	// linkBuffer is what may wait in a link, in bytes: a hand-over of tens of thousands without a pause.
	linkBuffer = 4 << 20
)

// welcome is what a worker is told first.
type welcome struct {
	Listeners []address
}

// address is a listener's.
type address struct {
	Name    string // of what it is for
	Address string // as it is configured
}

// handBack is what a worker tells a new holder, behind its sockets.
type handBack struct {
	Environ []string // of the worker; empty where it is too large
	Serving bool     // or it had been told to hand over
}

// line is one end of a link.
type line struct {
	*net.UnixConn
	raw     syscall.RawConn
	send    sync.Mutex // guards the following
	sending *letter
	out     []byte
}

// newLine returns the end that the descriptor stands for, which it owns.
func newLine(fd int) (*line, error) {
	file := os.NewFile(uintptr(fd), "link")
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	link, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, errors.New("it is no unix socket")
	}
	raw, err := link.SyscallConn()
	return &line{UnixConn: link, raw: raw, sending: newLetter(unix.SYS_SENDMSG, unix.MSG_NOSIGNAL)}, err
}

// linkPair returns the two ends of a link, as descriptors.
func linkPair() (mine, theirs int, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, 0, err
	}
	for _, fd := range pair {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, linkBuffer)
	}
	return pair[0], pair[1], nil
}

// write sends a packet. The descriptors stay the caller's.
func (l *line) write(p packet) error {
	l.send.Lock()
	defer l.send.Unlock()
	l.out = append(l.out[:0], p.op, 0, 0, 0)
	l.out = binary.LittleEndian.AppendUint32(l.out, p.a)
	l.out = binary.LittleEndian.AppendUint32(l.out, p.b)
	l.out = append(l.out, p.body...)
	var rights []byte
	if len(p.fds) > 0 {
		rights = unix.UnixRights(p.fds...)
	}
	l.sending.holds(l.out, rights)
	if err := l.raw.Write(l.sending.once); err != nil {
		return err
	}
	return l.sending.failure("sendmsg")
}

// letter is a system call with a message, made as soon as it need not wait. It is made once and used again: anew for each packet it would be garbage, which nobody comes to collect in a
// holder. Go's scheduler is not told of the call, or would look after the thread every 20 us for as long as clients come: a quarter of what the holder does for one.
type letter struct {
	header unix.Msghdr
	piece  unix.Iovec
	once   func(fd uintptr) (done bool)
	n      int // bytes
	errno  syscall.Errno
}

func newLetter(call, flags uintptr) *letter {
	m := &letter{}
	m.once = func(fd uintptr) bool {
		var n uintptr
		for m.errno = unix.EINTR; m.errno == unix.EINTR; {
			n, _, m.errno = unix.RawSyscall(call, fd, uintptr(unsafe.Pointer(&m.header)), flags|unix.MSG_DONTWAIT)
		}
		m.n = int(n)
		return m.errno != unix.EAGAIN
	}
	return m
}

// holds makes the message one of these bytes, and of these about descriptors, or one that takes so many.
func (m *letter) holds(bytes, rights []byte) {
	m.piece.Base = &bytes[0]
	m.piece.SetLen(len(bytes))
	m.header = unix.Msghdr{Iov: &m.piece, Control: unsafe.SliceData(rights)}
	m.header.SetIovlen(1)
	m.header.SetControllen(len(rights))
}

// failure returns how the call has failed, or nil.
func (m *letter) failure(name string) error {
	if m.errno != 0 {
		return os.NewSyscallError(name, m.errno)
	}
	return nil
}

// reader reads packets from a line.
type reader struct {
	line      *line
	receiving *letter
	buffer    []byte
	rights    []byte
	fds       []int
}

func newReader(l *line) *reader {
	return &reader{l, newLetter(unix.SYS_RECVMSG, unix.MSG_CMSG_CLOEXEC), make([]byte, maxPacket), make([]byte, unix.CmsgSpace(4*maxPacketFds)), nil}
}

// read returns the next packet, whose parts are valid until the next one is read. The descriptors are the caller's. io.EOF says that there is nobody at the other end.
func (r *reader) read() (packet, error) {
	m := r.receiving
	m.holds(r.buffer, r.rights)
	err := r.line.raw.Read(m.once)
	if err == nil {
		err = m.failure("recvmsg")
	}
	if errors.Is(err, syscall.ECONNRESET) {
		err = io.EOF
	}
	if err != nil {
		return packet{}, err
	}
	r.fds = r.fds[:0]
	for rights := r.rights[:m.header.Controllen]; len(rights) > 0; {
		header, fds, rest, err := unix.ParseOneSocketControlMessage(rights)
		if err != nil {
			return packet{fds: r.fds}, err
		}
		for rights = rest; header.Level == unix.SOL_SOCKET && header.Type == unix.SCM_RIGHTS && len(fds) >= 4; fds = fds[4:] {
			r.fds = append(r.fds, int(int32(binary.NativeEndian.Uint32(fds))))
		}
	}
	p := packet{fds: r.fds}
	if m.n < packetHeader {
		return p, io.EOF
	}
	if m.header.Flags&(unix.MSG_CTRUNC|unix.MSG_TRUNC) != 0 {
		p.close()
		return p, errors.New("descriptors were lost: is the limit of open files too low?")
	}
	p.op, p.a, p.b, p.body = r.buffer[0], binary.LittleEndian.Uint32(r.buffer[4:]), binary.LittleEndian.Uint32(r.buffer[8:]), r.buffer[packetHeader:m.n]
	return p, nil
}

// close closes the descriptors.
func (p packet) close() {
	for _, fd := range p.fds {
		unix.Close(fd)
	}
}

// takePackets returns the packets that hand the connections over. Those without a socket have packets of their own.
func takePackets(conns []Conn) (packets []packet) {
	for i := 0; i < len(conns); {
		p := packet{op: byte(Take)}
		for ; i < len(conns) && len(p.body) < 8*maxPacketFds; i++ {
			c := conns[i]
			if held := c.Fd >= 0; len(p.body) > 0 && held != (len(p.fds) > 0) {
				break
			} else if held {
				p.fds = append(p.fds, c.Fd)
			}
			p.body = binary.LittleEndian.AppendUint32(p.body, c.Slot)
			p.body = binary.LittleEndian.AppendUint32(p.body, c.Gen)
		}
		packets = append(packets, p)
	}
	return packets
}

// conns returns what a packet hands over.
func (p packet) conns() ([]Conn, error) {
	n := len(p.body) / 8
	if len(p.fds) != 0 && len(p.fds) != n {
		return nil, fmt.Errorf("%d connections came with %d sockets", n, len(p.fds))
	}
	conns := make([]Conn, n)
	for i := range conns {
		conns[i] = Conn{binary.LittleEndian.Uint32(p.body[8*i:]), binary.LittleEndian.Uint32(p.body[8*i+4:]), -1}
		if len(p.fds) > 0 {
			conns[i].Fd = p.fds[i]
		}
	}
	return conns, nil
}

// Link is a worker's end of the link to its holder. Its methods may be called at the same time, but for Receive.
type Link struct {
	line      *line
	reader    *reader
	serial    uint32
	table     *Table
	listeners []address
	fds       []int    // of the listeners
	claimed   []string // addresses of some of them
}

// Attach returns the link of a process that a holder has started, or false for another.
func Attach() (*Link, bool, error) {
	if kind, err := unix.GetsockoptInt(linkFd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_SEQPACKET {
		return nil, false, nil
	}
	unix.CloseOnExec(linkFd)
	line, err := newLine(linkFd)
	if err != nil {
		return nil, true, fmt.Errorf("the link to the holder: %w", err)
	}
	l := &Link{line: line, reader: newReader(line)}
	p, err := l.reader.read()
	if err == nil && (p.op != opWelcome || len(p.fds) == 0) {
		err = errors.New("it does not begin with a welcome")
	}
	if err != nil {
		return nil, true, fmt.Errorf("the link to the holder: %w", err)
	}
	l.serial = p.a
	var w welcome
	if err := json.Unmarshal(p.body, &w); err != nil || len(w.Listeners) != len(p.fds)-1 {
		return nil, true, fmt.Errorf("the link to the holder: %d listeners, %d descriptors, %v", len(w.Listeners), len(p.fds), err)
	}
	l.listeners, l.fds = w.Listeners, slices.Clone(p.fds[1:])
	l.table, err = OpenTable(p.fds[0])
	return l, true, err
}

// Serial returns the worker's number, which no other worker of this holder has had.
func (l *Link) Serial() uint32 { return l.serial }

// Table returns the table of the connections.
func (l *Link) Table() *Table { return l.table }

// Claim reports whether there is a listener under that name for that address: the holder keeps it, or KeepListener has given it. What systemd has passed on goes by its address alone.
func (l *Link) Claim(name, address string) bool {
	i := l.find(name, address)
	if i >= 0 {
		l.claimed = append(l.claimed, l.listeners[i].Address)
	}
	return i >= 0
}

// find returns which of the listeners is meant, or -1.
func (l *Link) find(name, addr string) int {
	return slices.IndexFunc(l.listeners, func(kept address) bool {
		return kept.Name == name && kept.Address == addr || kept.Name == "" && (kept.Address == addr || kept.Address == bound(addr))
	})
}

// Listener returns a listener of which Claim has said that it is there, or an error. From then on whoever connects wakes this process, whether it accepts or not.
func (l *Link) Listener(name, address string) (net.Listener, error) {
	i := l.find(name, address)
	if i < 0 {
		return nil, fmt.Errorf("listen on %q: the holder keeps no such listener for %s", address, name)
	}
	fd, err := unix.FcntlInt(uintptr(l.fds[i]), unix.F_DUPFD_CLOEXEC, linkFd+1)
	if err != nil {
		return nil, fmt.Errorf("listen on %q: %w", address, err)
	}
	file := os.NewFile(uintptr(fd), address)
	defer file.Close()
	return net.FileListener(file)
}

// Unclaimed returns the addresses at which systemd listens for this program, and which nobody has claimed.
func (l *Link) Unclaimed() []string {
	var addresses []string
	for _, kept := range l.listeners {
		if kept.Name == "" && !slices.Contains(l.claimed, kept.Address) {
			addresses = append(addresses, kept.Address)
		}
	}
	return addresses
}

// bound returns a configured address as the kernel tells that of a socket which is bound to it.
func bound(address string) string {
	host, port, err := net.SplitHostPort(address)
	switch {
	case err != nil:
		return address
	case host == "":
		return net.JoinHostPort("::", port)
	case host == "localhost":
		return net.JoinHostPort("127.0.0.1", port)
	}
	return address
}

// CloseListeners gives up all listeners. What Listener has returned stays the caller's.
func (l *Link) CloseListeners() {
	for _, fd := range l.fds {
		unix.Close(fd)
	}
	l.listeners, l.fds = nil, nil
}

// KeepListener gives the holder a duplicate of a listener, to keep under that name. One of another address that it keeps so is let go once this worker
// serves.
func (l *Link) KeepListener(name, addr string, listener net.Listener) error {
	raw, err := listener.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	body, err := json.Marshal(address{name, addr})
	if err != nil {
		return err
	}
	failed := raw.Control(func(fd uintptr) {
		var duplicate int
		if duplicate, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, linkFd+1); err == nil {
			l.listeners, l.fds = append(l.listeners, address{name, addr}), append(l.fds, duplicate)
			err = l.line.write(packet{op: opKeepListener, body: body, fds: []int{int(fd)}})
		}
	})
	return errors.Join(err, failed)
}

// Ready says that this worker could serve.
func (l *Link) Ready() error { return l.line.write(packet{op: opReady}) }

// Failed says why this worker can't serve.
func (l *Link) Failed(why error) error {
	return l.line.write(packet{op: opFailed, body: []byte(why.Error()[:min(len(why.Error()), maxPacket/2)])})
}

// Serving says that this worker accepts and reads, and on which order.
func (l *Link) Serving(cause string) error {
	return l.line.write(packet{op: opServing, body: []byte(cause)})
}

// Suspended says that this worker accepts and reads nothing any more, and how many POSTs it still has under way.
func (l *Link) Suspended(posts int) error {
	return l.line.write(packet{op: opSuspended, a: uint32(posts)})
}

// Busy says how many POSTs this worker still has under way, behind Suspended.
func (l *Link) Busy(posts int) error { return l.line.write(packet{op: opBusy, a: uint32(posts)}) }

// Release hands over a connection, or the free slot of one, that this worker still had behind Suspended.
func (l *Link) Release(slot uint32) error { return l.line.write(packet{op: opRelease, a: slot}) }

// Keep gives the holder a duplicate of a client's socket.
func (l *Link) Keep(slot, gen uint32, fd int) error {
	return l.line.write(packet{op: opKeep, a: slot, b: gen, fds: []int{fd}})
}

// GaveBack says that all sockets have been given to a new holder by Keep, whether this worker serves, and in which environment.
func (l *Link) GaveBack(serving bool, environ []string) error {
	body, err := json.Marshal(handBack{environ, serving})
	if err == nil && len(body) > maxPacket-packetHeader {
		body, err = json.Marshal(handBack{nil, serving})
	}
	if err != nil {
		return err
	}
	return l.line.write(packet{op: opGaveBack, body: body})
}

// Receive returns the next order. io.EOF says that the holder is gone, and that no other comes.
func (l *Link) Receive() (Order, error) {
	for {
		p, err := l.reader.read()
		if err != nil {
			return Order{}, err
		}
		switch p.op {
		case opPing:
			err = l.line.write(packet{op: opPong})
		case byte(Take):
			conns, err := p.conns()
			return Order{Kind: Take, Conns: conns}, err
		case byte(Go):
			var start Start
			err := json.Unmarshal(p.body, &start)
			return Order{Kind: Go, Start: start}, err
		case byte(Suspend):
			return Order{Kind: Suspend}, nil
		case byte(Drain):
			return Order{Kind: Drain, Why: string(p.body)}, nil
		case byte(Gone):
			return Order{Kind: Gone, Lost: p.a}, nil
		case byte(Lent):
			return Order{Kind: Lent, Posts: int(p.a)}, nil
		case byte(Verbose):
			return Order{Kind: Verbose}, nil
		case opGiveBack:
			return Order{Kind: GiveBack}, nil
		default:
			p.close()
		}
		if err != nil {
			return Order{}, err
		}
	}
}
