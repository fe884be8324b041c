package bridge

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What follows is done without telling Go's scheduler: none of it waits. Told of it, the scheduler takes the thread for one that may, looks after it every 20 us, and gives its
// work to another where the system let it wait for a processor: with a dozen such calls for each connection that opens that was a twentieth of what opening one costs.

// happened returns how many events there are already, which it puts into the list: epoll_wait(2) that does not wait.
func happened(epoll int, events []unix.EpollEvent) int {
	n, _, failure := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epoll), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), 0, 0, 0)
	if failure != 0 {
		return 0
	}
	return int(n)
}

// setOption is setsockopt(2) with a number. It returns false where the socket has no such option.
func setOption(fd, level, name, value int) bool {
	number := int32(value)
	_, _, failure := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name), uintptr(unsafe.Pointer(&number)), unsafe.Sizeof(number), 0)
	return failure == 0
}

// option is getsockopt(2) of a number.
func option(fd, level, name int) (value int, ok bool) {
	var number int32
	ok = optionInto(fd, level, name, unsafe.Pointer(&number), unsafe.Sizeof(number))
	return int(number), ok
}

// optionInto is getsockopt(2) of what has that size.
func optionInto(fd, level, name int, value unsafe.Pointer, size uintptr) bool {
	length := uint32(size)
	_, _, failure := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name), uintptr(value), uintptr(unsafe.Pointer(&length)), 0)
	return failure == 0
}

// waiting is ioctl(2) that asks how many bytes wait in a socket, on one of its sides.
func waiting(fd int, side uintptr) int {
	var number int32
	unix.RawSyscall(unix.SYS_IOCTL, uintptr(fd), side, uintptr(unsafe.Pointer(&number)))
	return int(number)
}

// sendNoWait writes what the socket takes at once, and returns how much that was: as send(2), which is a little less work for the kernel than
// write(2), and without telling Go's scheduler, since it does not wait.
func sendNoWait(fd int, p []byte) int {
	for {
		n, _, failure := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		if failure == 0 {
			return int(n)
		}
		if failure != unix.EINTR {
			return 0
		}
	}
}

// recv is recv(2), without telling Go's scheduler, since it does not wait.
func recv(fd int, p []byte, flags uintptr) (n int, again bool, err error) {
	for {
		n, _, failure := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), flags, 0, 0)
		switch failure {
		case 0:
			return int(n), false, nil
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, true, nil
		default:
			return 0, false, os.NewSyscallError("recv", failure)
		}
	}
}

// receiveNoWait reads what has come, the same way.
func receiveNoWait(fd int, p []byte) (n int, again bool, err error) {
	return recv(fd, p, unix.MSG_DONTWAIT)
}
