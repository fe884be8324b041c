package upstream

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// certain says that this system tells what was acknowledged.
const certain = true

func quickAck(fd int) { unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1) }

// awaitBytes waits until so many bytes can be read, or the other side has ended, and leaves them where they are: a look at them would have them
// acknowledged.
func awaitBytes(t *testing.T, conn net.Conn, n int) {
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Error(err)
		return
	}
	err = raw.Read(func(fd uintptr) bool {
		const established = 1
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil || info.State != established {
			return true
		}
		waiting, err := unix.IoctlGetInt(int(fd), unix.SIOCINQ)
		return err != nil || waiting >= n
	})
	if err != nil {
		t.Error(err)
	}
}
