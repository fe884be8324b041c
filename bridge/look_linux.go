package bridge

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// heldConn is a socket of which the keeper has a duplicate.
type heldConn struct {
	net.Conn
	raw syscall.RawConn
}

// Close ends the TCP connection, which closing the descriptor would not while there is a duplicate.
func (c heldConn) Close() error {
	c.raw.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	return c.Conn.Close()
}

// CloseWrite ends our side of it.
func (c heldConn) CloseWrite() error {
	var err error
	if failed := c.raw.Control(func(fd uintptr) { err = unix.Shutdown(int(fd), unix.SHUT_WR) }); failed != nil {
		return failed
	}
	return err
}

// lookAt reads without taking, from where the kernel remembers that we have looked to.
func lookAt(fd int, p []byte) (n int, again bool, err error) {
	return recv(fd, p, unix.MSG_PEEK|unix.MSG_DONTWAIT)
}

// letter is what recvmsg(2) is called with, and gives: made anew it would be garbage for each message.
type letter struct {
	header unix.Msghdr
	piece  unix.Iovec
	note   struct {
		unix.Cmsghdr
		unread int32
		_      int32
	}
}

// receive reads or, where it is kept, looks without taking, from where the kernel remembers that we have looked to. It also tells how many bytes there are that nobody has taken, those before that
// place included, and one more where the stream has ended: negative where the kernel does not say so.
func (m *letter) receive(fd int, p []byte, kept bool) (n int, unread int64, again bool, err error) {
	flags := uintptr(unix.MSG_DONTWAIT)
	if kept {
		flags |= unix.MSG_PEEK
	}
	for {
		m.piece.Base = unsafe.SliceData(p)
		m.piece.SetLen(len(p))
		m.header = unix.Msghdr{Iov: &m.piece, Control: (*byte)(unsafe.Pointer(&m.note))}
		m.header.SetIovlen(1)
		m.header.SetControllen(int(unsafe.Sizeof(m.note)))
		n, _, failure := unix.RawSyscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&m.header)), flags)
		switch failure {
		case 0:
			unread = -1
			if m.header.Controllen >= unix.SizeofCmsghdr+4 && m.note.Level == unix.IPPROTO_TCP && m.note.Type == unix.TCP_CM_INQ {
				unread = int64(m.note.unread)
			}
			return int(n), unread, false, nil
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, 0, true, nil
		default:
			return 0, 0, false, os.NewSyscallError("recvmsg", failure)
		}
	}
}

// tellsUnread makes the kernel say with what is read how much is left, as it does for TCP (since Linux 4.18).
func tellsUnread(raw syscall.RawConn) bool {
	ok := false
	failed := raw.Control(func(fd uintptr) { ok = setOption(int(fd), unix.IPPROTO_TCP, unix.TCP_INQ, 1) })
	return ok && failed == nil
}

// skipped is where bytes go that have been looked at before. Nobody reads it.
var skipped = sync.Pool{New: func() any {
	p := make([]byte, mostAhead+headers)
	return &p
}}

// lookBehind reads without taking, behind so many bytes, where the kernel does not remember (before Linux 6.9): those are copied again each time. It does not
// tell the end of the stream behind them either.
func lookBehind(fd int, p []byte, skip int) (n int, again bool, err error) {
	over := skipped.Get().(*[]byte)
	defer skipped.Put(over)
	for ended := false; ; {
		buffers := [][]byte{p}
		if skip > 0 {
			buffers = [][]byte{(*over)[:skip], p}
		}
		n, _, _, _, err := unix.RecvmsgBuffers(fd, buffers, nil, unix.MSG_PEEK|unix.MSG_DONTWAIT)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return 0, true, nil
		case err != nil:
			return 0, false, os.NewSyscallError("recvmsg", err)
		case n > skip:
			return n - skip, false, nil
		case n == 0 && skip == 0 || ended:
			return 0, false, io.EOF
		}
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		unix.Poll(poll, 0)
		if poll[0].Revents == 0 {
			return 0, true, nil
		}
		ended = true // what came before the end is there by now: one more look
	}
}

// dropBytes takes bytes out of the socket's buffer. TCP does it without copying them.
func dropBytes(fd, n int, tcp bool) {
	if tcp {
		for n > 0 {
			r, _, failure := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), 0, uintptr(n), unix.MSG_TRUNC|unix.MSG_DONTWAIT, 0, 0)
			if failure != 0 && failure != unix.EINTR || failure == 0 && r == 0 {
				return // reset: there is nothing to drop
			}
			if failure == 0 {
				n -= int(r)
			}
		}
		return
	}
	over := skipped.Get().(*[]byte)
	defer skipped.Put(over)
	for n > 0 {
		r, _, err := unix.Recvfrom(fd, (*over)[:min(n, len(*over))], unix.MSG_DONTWAIT)
		if err != nil && err != unix.EINTR || err == nil && r == 0 {
			return
		}
		n -= max(r, 0)
	}
}

// positions returns how many bytes have been taken from a TCP socket and given to it since it was connected; those of another kind are not known.
func positions(fd int) (received, written uint64, tcp bool) {
	for {
		var before, after unix.TCPInfo
		if !optionInto(fd, unix.IPPROTO_TCP, unix.TCP_INFO, unsafe.Pointer(&before), unsafe.Sizeof(before)) {
			return 0, 0, false
		}
		unread, unsent := waiting(fd, unix.SIOCINQ), waiting(fd, unix.SIOCOUTQ)
		if !optionInto(fd, unix.IPPROTO_TCP, unix.TCP_INFO, unsafe.Pointer(&after), unsafe.Sizeof(after)) {
			return 0, 0, false
		}
		// What arrives between the calls would be counted on one side alone.
		if before.Bytes_received == after.Bytes_received && before.Bytes_acked == after.Bytes_acked && before.State == after.State {
			received := after.Bytes_received - uint64(unread)
			switch after.State {
			case unix.BPF_TCP_CLOSE_WAIT, unix.BPF_TCP_LAST_ACK, unix.BPF_TCP_CLOSING:
				received-- // the client's FIN counts as a byte
			}
			return received, after.Bytes_acked + uint64(unsent), true
		}
	}
}

// bufferFull reports whether so much of a TCP socket's receive buffer is in use that the kernel may have stopped the other side: half of it, below which it
// always leaves a window. One that can't be asked (before Linux 4.12) is taken for full.
func bufferFull(fd int) bool {
	var memory [9]uint32 // SK_MEMINFO_RMEM_ALLOC, SK_MEMINFO_RCVBUF, …
	ok := optionInto(fd, unix.SOL_SOCKET, unix.SO_MEMINFO, unsafe.Pointer(&memory), unsafe.Sizeof(memory))
	return !ok || memory[0] > memory[1]/2
}

// growBuffer doubles the socket's receive buffer, up to that size. It reports whether it has grown.
func growBuffer(fd, most int) bool {
	size, ok := option(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	return ok && size < most && receiveBuffer(fd, min(2*size, most)/2) > size
}

// countsBytes reports whether the kernel counts a socket's bytes: it is one of TCP.
func countsBytes(fd int) bool {
	domain, ok := option(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	return ok && domain != unix.AF_UNIX
}

// lookFrom makes the kernel remember where we look, beginning behind so many bytes. It returns false where it can't.
func lookFrom(fd, ahead int) bool {
	return setOption(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, ahead)
}

// receiveBuffer sets the size of the socket's receive buffer, and returns what it is now, which is twice that and may be less.
func receiveBuffer(fd, size int) int {
	setOption(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, size)
	size, _ = option(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	return size
}

// connected is a socket that came as a descriptor. It is a file to Go, which makes fewer calls of that than of a connection.
type connected struct{ *os.File }

// LocalAddr returns nil: nobody asks.
func (connected) LocalAddr() net.Addr { return nil }

// RemoteAddr returns nil: the client's address is in its record.
func (connected) RemoteAddr() net.Addr { return nil }

// resumed returns the socket that the descriptor stands for, which it owns. It does not block: that is a property of the socket, not of the descriptor. One that
// can't be waited for is ended.
func resumed(fd int) (net.Conn, syscall.RawConn) {
	file := os.NewFile(uintptr(fd), "client")
	raw, err := file.SyscallConn()
	if err == nil {
		err = file.SetDeadline(time.Time{})
	}
	if err != nil {
		unix.Shutdown(fd, unix.SHUT_RDWR)
	}
	return connected{file}, raw
}

// closeKept ends a connection of which nothing is to go on.
func closeKept(fd int) {
	unix.Shutdown(fd, unix.SHUT_RDWR)
	unix.Close(fd)
}

// duplicate returns another descriptor of the socket, or one below 0.
func duplicate(raw syscall.RawConn) (fd int) {
	fd = -1
	raw.Control(func(of uintptr) {
		if copied, _, failure := unix.RawSyscall(unix.SYS_FCNTL, of, unix.F_DUPFD_CLOEXEC, 0); failure == 0 {
			fd = int(copied)
		}
	})
	return fd
}

// closeDuplicate closes a descriptor of a socket that goes on.
func closeDuplicate(fd int) { unix.Close(fd) }
