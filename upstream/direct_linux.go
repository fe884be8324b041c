package upstream

import (
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// direct is a socket to which a request is written and from which its answer is read in one go of Go's poller: a look whether it is as it was left, the
// request, and a read once there is something. net.Conn's Write and Read would first read in vain most of the time, and tell the scheduler of calls that
// do not wait: together a tenth of what a message costs.
type direct struct {
	conn net.Conn
	raw  syscall.RawConn
	run  func(fd uintptr) bool // made once: made anew it would be garbage for each read

	request []byte // to be written before anything is read
	reused  bool   // the socket was idle: it is looked at first
	into    []byte
	n       int
	err     error
}

// newDirect returns nil for what is no socket.
func newDirect(c net.Conn) *direct {
	holder, ok := c.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := holder.SyscallConn()
	if err != nil {
		return nil
	}
	d := &direct{conn: c, raw: raw}
	d.run = d.step
	return d
}

// read writes the request that waits, if one does, and reads. It returns how much of the request has been written as well, errStale where none of it
// was to be.
func (d *direct) read(p []byte) (n, written int, err error) {
	asked := len(d.request)
	d.into, d.n, d.err = p, 0, nil
	err = d.raw.Read(d.run)
	written = asked - len(d.request)
	if err == nil && d.err == nil && len(d.request) > 0 { // the socket did not take the whole
		more, _ := d.conn.Write(d.request) // its error is not needed: the answer may be there all the same, and if not, reading says so
		written += more
		d.request = nil
		err = d.raw.Read(d.run)
	}
	d.into, d.request = nil, nil
	if err == nil {
		err = d.err
	}
	return d.n, written, err
}

// step is what is done when the poller begins to watch, and whenever something has happened then. What comes behind the look is seen as a new event, so nothing
// needs to be read before the first.
func (d *direct) step(fd uintptr) bool {
	if len(d.request) > 0 {
		if d.reused && !quiet(fd) {
			d.err = errStale
			return true
		}
		n, failure := transfer(unix.SYS_SENDTO, fd, d.request, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		switch failure {
		case 0, unix.EAGAIN:
			d.request = d.request[n:]
			return len(d.request) > 0
		}
		d.err = os.NewSyscallError("send", failure)
		return true
	}
	n, failure := transfer(unix.SYS_RECVFROM, fd, d.into, unix.MSG_DONTWAIT)
	switch {
	case failure == unix.EAGAIN:
		return false
	case failure != 0:
		d.err = os.NewSyscallError("recv", failure)
	case n == 0:
		d.err = io.EOF
	}
	d.n = n
	return true
}

// transfer sends or receives what can be at once, without telling Go's scheduler, since that does not wait.
func transfer(call, fd uintptr, p []byte, flags uintptr) (n int, failure syscall.Errno) {
	for {
		n, _, failure := unix.RawSyscall6(call, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), flags, 0, 0)
		switch failure {
		case 0:
			return int(n), 0
		case unix.EINTR:
		default:
			return 0, failure
		}
	}
}

// quiet reports whether an idle socket is as it was left.
func quiet(fd uintptr) bool {
	var one [1]byte
	_, failure := transfer(unix.SYS_RECVFROM, fd, one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	return failure == unix.EAGAIN
}
