//go:build !linux

package bridge

import "syscall"

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
