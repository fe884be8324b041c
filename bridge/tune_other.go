//go:build !linux

package bridge

import (
	"net"
	"syscall"
	"time"
)

// tune does nothing where there is no TCP_USER_TIMEOUT: a dead peer is found by its missing pongs.
func tune(net.Conn, time.Duration) {}

// sendNoWait writes what the socket takes at once, and returns how much that was.
func sendNoWait(fd int, p []byte) int {
	n, _ := syscall.Write(fd, p)
	return max(n, 0)
}
