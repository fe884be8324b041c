//go:build !linux

package upstream

import (
	"net"
	"syscall"
)

// direct is there on Linux alone.
type direct struct {
	request []byte
	reused  bool
}

func newDirect(net.Conn) *direct { return nil }

func (d *direct) read([]byte) (n, written int, err error) { return 0, 0, errStale }

// quiet reports whether an idle socket is as it was left.
func quiet(fd uintptr) bool {
	var one [1]byte
	_, _, failure := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	return failure == syscall.EAGAIN
}
