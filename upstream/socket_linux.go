package upstream

import (
	"net"

	"golang.org/x/sys/unix"
)

// unacknowledged returns how many of the bytes written to a TCP socket its peer has not acknowledged yet. It is not ok for other
// sockets: a unix socket's peer may have read what it counts.
func unacknowledged(socket net.Conn) (bytes int, ok bool) {
	tcp, isTCP := socket.(*net.TCPConn)
	if !isTCP {
		return 0, false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0, false
	}
	err = raw.Control(func(fd uintptr) {
		var failure error
		bytes, failure = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ)
		ok = failure == nil
	})
	return bytes, ok && err == nil
}
