package e2e

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// emptyBacklog lets no new connection begin, and returns when all that had begun have been accepted. Those who come later are not refused but
// try again, and are refused once the listener is closed.
func emptyBacklog(l *net.TCPListener) error {
	const (
		flags = 13 // the byte of the TCP header that has them
		syn   = 2
	)
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: flags},
		{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: syn, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1<<32 - 1},
	}
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	var failure error
	err = raw.Control(func(fd uintptr) {
		failure = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
	})
	for waiting := true; err == nil && failure == nil && waiting; {
		time.Sleep(20 * time.Millisecond) // a handshake over loopback takes microseconds
		err = raw.Control(func(fd uintptr) {
			var info *unix.TCPInfo
			if info, failure = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); failure == nil {
				waiting = info.Unacked > 0 // of a listener: connections that wait to be accepted
			}
		})
	}
	if err == nil {
		err = failure
	}
	return err
}
