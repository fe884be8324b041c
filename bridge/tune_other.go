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

// receiveNoWait reads what has come.
func receiveNoWait(fd int, p []byte) (n int, again bool, err error) {
	n, err = syscall.Read(fd, p)
	if err == syscall.EAGAIN || err == syscall.EINTR {
		return 0, true, nil
	}
	return max(n, 0), false, err
}
