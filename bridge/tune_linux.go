package bridge

import (
	"crypto/tls"
	"math"
	"net"
	"syscall"
	"time"

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
				setOption(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(min(limit.Milliseconds(), math.MaxInt32)))
			})
		}
	}
}
