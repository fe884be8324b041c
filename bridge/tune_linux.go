package bridge

import (
	"crypto/tls"
	"net"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// tune lets the kernel give a TCP connection up when what was sent stays unacknowledged for that long: a peer that died is found even
// while we have stopped reading and no pong could tell.
func tune(c net.Conn, limit time.Duration) {
	if secure, ok := c.(*tls.Conn); ok {
		c = secure.NetConn()
	}
	if raw, ok := c.(syscall.Conn); ok {
		if control, err := raw.SyscallConn(); err == nil {
			control.Control(func(fd uintptr) {
				// On another kind of socket it fails, and there is nothing to tune.
				unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(limit.Milliseconds()))
			})
		}
	}
}

// sendNoWait writes what the socket takes at once, and returns how much that was: as send(2), which is a little less work for the kernel than
// write(2), and without telling Go's scheduler, since it does not wait.
func sendNoWait(fd int, p []byte) int {
	for {
		n, _, failure := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		if failure == 0 {
			return int(n)
		}
		if failure != unix.EINTR {
			return 0
		}
	}
}

// receiveNoWait reads what has come, the same way.
func receiveNoWait(fd int, p []byte) (n int, again bool, err error) {
	return recv(fd, p, unix.MSG_DONTWAIT)
}
