package bridge_test

import (
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"wsbridge/upstream"
)

// control does something to a socket.
func control(socket syscall.Conn, do func(fd int)) {
	if raw, err := socket.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { do(int(fd)) })
	}
}

// acknowledge has the kernel acknowledge at once what has come. Else it does so within 40 ms, or when something is sent.
func acknowledge(conn *net.TCPConn) {
	control(conn, func(fd int) { unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1) })
}

// arrived reports whether all that was written has come to the other side, or never will.
func arrived(conn *net.TCPConn) bool {
	waiting := 0
	control(conn, func(fd int) {
		if !ended(fd) {
			waiting, _ = unix.IoctlGetInt(fd, unix.SIOCOUTQ)
		}
	})
	return waiting == 0
}

// abandoned reports whether the other side has done with a connection, whatever of it may not have been read.
func abandoned(conn *net.TCPConn) (done bool) {
	const established = 1
	control(conn, func(fd int) {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		done = err == nil && info.State != established
	})
	return done
}

// ended reports whether the other side has closed the connection.
func ended(fd int) bool {
	var one [1]byte
	n, _, err := unix.Recvfrom(fd, one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	return n == 0 && err == nil || err != nil && err != unix.EAGAIN
}

// deafen has the kernel drop every segment with data that comes, unacknowledged, as if it had crossed with what is said now. Of a listener it
// does so for the connections that it accepts.
func deafen(t *testing.T, socket syscall.Conn) {
	const longestHeader = 60 // of TCP, in bytes
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_LEN},
		{Code: unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K, K: longestHeader, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1 << 30},
	}
	err := net.ErrClosed
	control(socket, func(fd int) {
		err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
	})
	if err != nil {
		t.Errorf("no filter: %v", err)
	}
}

// hear undoes it.
func hear(t *testing.T, socket syscall.Conn) {
	err := net.ErrClosed
	control(socket, func(fd int) { err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0) })
	if err != nil {
		t.Errorf("the filter stays: %v", err)
	}
}

// missed waits until the kernel has dropped something, or the other side has closed the connection, and reports which.
func missed(conn *net.TCPConn) bool {
	for {
		dropped, closed := uint32(0), true
		control(conn, func(fd int) {
			closed = ended(fd)
			var info [9]uint32 // SK_MEMINFO_VARS; the last is SK_MEMINFO_DROPS
			size := uint32(unsafe.Sizeof(info))
			unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO, uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
			dropped = info[8]
		})
		if dropped > 0 || closed {
			return dropped > 0
		}
		time.Sleep(time.Millisecond) // nothing tells of a drop
	}
}

// A server may close an idle connection while the next request is on its way to it. That is no failure of anybody's, and the event is sent again
// at once, whatever may be sent again; unless the server has said so, for then it may be the answer to the request.
func TestFaultAtTheMomentOfReuseIsNotSeen(t *testing.T) {
	t.Parallel()
	const tooLate = "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
	end := func(x *exchange) { x.Close() }
	reset := func(x *exchange) { x.SetLinger(0); x.Close() }
	for _, fault := range []struct {
		name string
		do   func(*exchange)
		hits int
		lost bool
	}{
		{"the end", end, 8, false},
		{"a reset", reset, 8, false},
		{"408 and the end", func(x *exchange) { x.say(tooLate); end(x) }, 2, true},
	} {
		for _, retry := range []upstream.Retry{upstream.RetrySafe, upstream.RetryAlways, upstream.RetryNever} {
			t.Run(fmt.Sprintf("%s, %s", fault.name, retry), func(t *testing.T) {
				t.Parallel()
				var left atomic.Int32
				left.Store(int32(fault.hits))
				h := newHostile(t, retry, func(x *exchange) {
					x.SetReadBuffer(1 << 20) // room for all of a message: what is sent again late would be taken for the next one
					if !x.take() {
						return
					}
					if x.kind != "message" || x.sequence < 3 || left.Load() <= 0 {
						x.reply()
						return
					}
					deafen(t, x.TCPConn) // first: the next request may come right behind the answer
					if x.reply(); missed(x.TCPConn) && left.Add(-1) >= 0 {
						fault.do(x)
					}
					x.Close()
				})
				h.unseen = true
				failures := 0
				for _, talk := range h.talkAll(start(t, h.config()), talks(talkers, 12, func(_, n int) bool { return n%3 == 2 })) {
					if talk.code == 1011 && fault.lost && retry != upstream.RetryAlways {
						failures++
						talk.want(t, fault.name, talk.messages[:len(talk.answers)], 1011)
					} else {
						talk.want(t, fault.name, talk.messages, 0)
					}
				}
				attempts := map[string]int{}
				for _, d := range h.events() {
					failures += max(0, d.attempt-max(1, attempts[d.id]))
					attempts[d.id] = d.attempt
				}
				if failures > fault.hits || (failures > 0) != fault.lost || left.Load() > 0 {
					t.Errorf("%d failures of %d closes, want them: %v", failures, fault.hits-int(left.Load()), fault.lost)
				}
			})
		}
	}
}

// A connection that is fresh has nobody's leave to end. What was sent on it may have been taken, acknowledged or not.
func TestFaultOfAFreshConnectionIsNoMomentOfReuse(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*net.TCPConn){
		"the end": func(conn *net.TCPConn) { conn.Close() },
		"a reset": func(conn *net.TCPConn) { conn.SetLinger(0); conn.Close() },
	} {
		for _, retry := range []upstream.Retry{upstream.RetrySafe, upstream.RetryAlways, upstream.RetryNever} {
			t.Run(fmt.Sprintf("%s, %s", name, retry), func(t *testing.T) {
				t.Parallel()
				var h *hostile
				var deaf atomic.Bool
				h = newHostile(t, retry, func(x *exchange) {
					switch {
					case !x.take():
					case x.kind == "message" && x.sequence == struck+1:
						deaf.Store(true)
						deafen(t, h.port.(*net.TCPListener)) // first: the next connection may come right behind the answer
						x.reply("Connection: close")
					default:
						x.reply()
					}
				})
				h.refusing(func(conn *net.TCPConn) bool {
					if !deaf.CompareAndSwap(true, false) {
						return false
					}
					hear(t, h.port.(*net.TCPListener))
					if !missed(conn) {
						t.Error("nothing was sent")
					}
					end(conn)
					return true
				})
				talk := h.talkAll(start(t, h.config()), talks(1, talked, nil))[0]
				want, code, attempts := talk.messages[:struck], 1011, []int(nil)
				if retry == upstream.RetryAlways {
					want, code, attempts = talk.messages, 0, []int{2}
				}
				talk.want(t, name, want, code)
				if got := h.attempts("/ws/0", struck+2); !slices.Equal(got, attempts) {
					t.Errorf("the message came at attempts %d, want %d", got, attempts)
				}
			})
		}
	}
}
