package holder

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// disposition is what the kernel does with a signal (rt_sigaction(2)), which the packages have no name for. What is behind the handler is looked at where there is one.
type disposition struct {
	handler uintptr
	rest    [3]uint64
}

const (
	signalEnds    uintptr = 0 // SIG_DFL
	signalIgnored uintptr = 1 // SIG_IGN
)

func setDisposition(s syscall.Signal, to *disposition) (before disposition) {
	unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s), uintptr(unsafe.Pointer(to)), uintptr(unsafe.Pointer(&before)), 8, 0, 0)
	return before
}

// forgetSignals sets what signals do from now on and in the program that this process executes, until that listens to them. One that asks for something would
// end it: Go unblocks them all before it runs a line of ours, and handles those that nobody listens to, but for a SIGHUP that it finds ignored. One that ends this process
// does so, rather than being lost.
func forgetSignals() (remember func()) {
	dispositions := map[syscall.Signal]disposition{}
	for s, handler := range map[syscall.Signal]uintptr{unix.SIGHUP: signalIgnored, unix.SIGUSR1: signalIgnored, unix.SIGTERM: signalEnds, unix.SIGINT: signalEnds} {
		dispositions[s] = setDisposition(s, &disposition{handler: handler})
	}
	return func() {
		for s, d := range dispositions {
			setDisposition(s, &d)
		}
	}
}
