package bridge

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Most sockets of clients never have anybody who waits for them: the handshake is there as soon as the socket is, the answers go out at once, and then it is parked. Go's poller need not
// know such a socket. To tell it of one, and back, is a dozen system calls, of which most wake the scheduler's watchdog, and was a seventh of what opening a connection costs.

// Unpolled returns a listener that accepts what l would, without Go's poller: a connection is made known to it when somebody waits for the client, or for room to write. Closing it closes l. Where it can't be, it is l.
// Of TCP, a connection is accepted once the client has said something, or after a second (TCP_DEFER_ACCEPT); the options that package net gives its connections are the
// listener's, from which the kernel copies them.
func Unpolled(l net.Listener) net.Listener {
	holder, ok := l.(interface{ File() (*os.File, error) })
	if !ok {
		return l
	}
	file, err := holder.File()
	if err != nil {
		return l
	}
	raw, err := file.SyscallConn()
	if err == nil {
		err = file.SetDeadline(time.Time{}) // an error says that it can't be waited for
	}
	if err != nil {
		file.Close()
		return l
	}
	raw.Control(func(fd uintptr) {
		// On another kind of socket they fail, and are not needed.
		setOption(int(fd), unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 1)
		setOption(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		setOption(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
		setOption(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15)
		setOption(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15)
		setOption(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 9)
	})
	return &unpolledListener{l, file, raw}
}

type unpolledListener struct {
	net.Listener
	file *os.File // a duplicate that can be waited for
	raw  syscall.RawConn
}

// Accept returns the next connection.
func (l *unpolledListener) Accept() (net.Conn, error) {
	u := &unpolled{local: l.Addr()}
	var failure syscall.Errno
	err := l.raw.Read(func(listener uintptr) bool {
		failure = u.accept(listener)
		return failure != unix.EAGAIN
	})
	switch {
	case err != nil: // there is no deadline
		return nil, net.ErrClosed
	case failure != 0:
		return nil, os.NewSyscallError("accept4", failure)
	}
	return u, nil
}

// Close ends accepting.
func (l *unpolledListener) Close() error { return errors.Join(l.file.Close(), l.Listener.Close()) }

// unpolled is a client's socket that Go's poller knows only if somebody has had to wait for it.
type unpolled struct {
	local, remote net.Addr

	mu     sync.Mutex // guards fd; polled changes once, under it
	fd     int        // -1: it is in polled, closed, or somebody else's
	polled atomic.Pointer[polled]
}

type polled struct {
	net.Conn
	raw syscall.RawConn
}

func (u *unpolled) accept(listener uintptr) syscall.Errno {
	for {
		var address unix.RawSockaddrAny
		size := uint32(unsafe.Sizeof(address))
		fd, _, failure := unix.RawSyscall6(unix.SYS_ACCEPT4, listener, uintptr(unsafe.Pointer(&address)), uintptr(unsafe.Pointer(&size)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
		if failure == 0 {
			u.fd, u.remote = int(fd), addressOf(&address)
		}
		if failure != unix.EINTR {
			return failure
		}
	}
}

// addressOf returns a client's address, as package net does. That of a unix socket has no name.
func addressOf(a *unix.RawSockaddrAny) net.Addr {
	port := func(raw *uint16) uint16 { return binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(raw))[:]) }
	switch a.Addr.Family {
	case unix.AF_INET:
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(a))
		return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4(in.Addr), port(&in.Port)))
	case unix.AF_INET6:
		in := (*unix.RawSockaddrInet6)(unsafe.Pointer(a))
		from := netip.AddrFrom16(in.Addr)
		if in.Scope_id != 0 {
			zone := strconv.FormatUint(uint64(in.Scope_id), 10)
			if known, err := net.InterfaceByIndex(int(in.Scope_id)); err == nil {
				zone = known.Name
			}
			from = from.WithZone(zone)
		}
		return net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, port(&in.Port)))
	}
	return &net.UnixAddr{Name: "@", Net: "unix"}
}

// wait makes the socket known to Go's poller.
func (u *unpolled) wait() (*polled, error) {
	if p := u.polled.Load(); p != nil {
		return p, nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if p := u.polled.Load(); p != nil {
		return p, nil
	}
	if u.fd < 0 {
		return nil, net.ErrClosed
	}
	p := &polled{}
	p.Conn, p.raw = resumed(u.fd)
	u.fd = -1
	u.polled.Store(p)
	return p, nil
}

// surrender returns the descriptor, which is the caller's then, or -1 where Go's poller knows the socket.
func (u *unpolled) surrender() (fd int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	fd, u.fd = u.fd, -1
	return fd
}

// takeBack takes back what it has surrendered.
func (u *unpolled) takeBack(fd int) {
	u.mu.Lock()
	u.fd = fd
	u.mu.Unlock()
}

// Read reads.
func (u *unpolled) Read(b []byte) (n int, err error) {
	p, err := u.wait()
	if err == nil {
		n, err = p.Read(b)
	}
	return n, u.failure("read", err)
}

// Write writes.
func (u *unpolled) Write(b []byte) (n int, err error) {
	p, err := u.wait()
	if err == nil {
		n, err = p.Write(b)
	}
	return n, u.failure("write", err)
}

// failure makes a file's error a connection's, which is what net/http knows.
func (u *unpolled) failure(operation string, err error) error {
	if failure, ok := errors.AsType[*fs.PathError](err); ok {
		return &net.OpError{Op: operation, Net: u.local.Network(), Source: u.local, Addr: u.remote, Err: failure.Err}
	}
	return err
}

// Close closes it.
func (u *unpolled) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if p := u.polled.Load(); p != nil { // by now: somebody may just have begun to wait
		return p.Close()
	}
	if u.fd < 0 {
		return net.ErrClosed
	}
	unix.RawSyscall(unix.SYS_CLOSE, uintptr(u.fd), 0, 0)
	u.fd = -1
	return nil
}

// CloseWrite ends our side.
func (u *unpolled) CloseWrite() (err error) {
	failed := unpolledRaw{u}.Control(func(fd uintptr) { err = unix.Shutdown(int(fd), unix.SHUT_WR) })
	return errors.Join(err, failed)
}

// LocalAddr returns the listener's address.
func (u *unpolled) LocalAddr() net.Addr { return u.local }

// RemoteAddr returns the client's address.
func (u *unpolled) RemoteAddr() net.Addr { return u.remote }

// SetDeadline sets until when reads and writes may wait.
func (u *unpolled) SetDeadline(t time.Time) error {
	return errors.Join(u.SetReadDeadline(t), u.SetWriteDeadline(t))
}

// SetReadDeadline sets until when a read may wait.
func (u *unpolled) SetReadDeadline(t time.Time) error {
	p, err := u.wait()
	if err != nil {
		return err
	}
	return p.SetReadDeadline(t)
}

// SetWriteDeadline sets until when a write may wait.
func (u *unpolled) SetWriteDeadline(t time.Time) error {
	p, err := u.wait()
	if err != nil {
		return err
	}
	return p.SetWriteDeadline(t)
}

// SyscallConn returns a way to the descriptor.
func (u *unpolled) SyscallConn() (syscall.RawConn, error) { return unpolledRaw{u}, nil }

type unpolledRaw struct{ *unpolled }

// Control calls f with the descriptor. It must not use the connection otherwise.
func (r unpolledRaw) Control(f func(fd uintptr)) error {
	done, err := r.do(func(fd uintptr) bool {
		f(fd)
		return true
	})
	if done {
		return nil
	}
	if err == nil {
		err = r.polled.Load().raw.Control(f)
	}
	return err
}

// Read calls f until it returns true, waiting in between.
func (r unpolledRaw) Read(f func(fd uintptr) bool) error {
	p, err := r.wait()
	if err != nil {
		return err
	}
	return p.raw.Read(f)
}

// Write calls f until it returns true, waiting in between. It must not use the connection otherwise.
func (r unpolledRaw) Write(f func(fd uintptr) bool) error {
	if done, err := r.do(f); done || err != nil {
		return err
	}
	p, err := r.wait()
	if err != nil {
		return err
	}
	return p.raw.Write(f)
}

// do calls f with the descriptor if Go's poller does not know it, and returns what f does.
func (r unpolledRaw) do(f func(fd uintptr) bool) (done bool, err error) {
	if r.polled.Load() != nil {
		return false, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.polled.Load() != nil:
		return false, nil
	case r.fd < 0:
		return false, net.ErrClosed
	}
	return f(uintptr(r.fd)), nil
}
