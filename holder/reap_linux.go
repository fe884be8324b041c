package holder

import (
	"os"
	"slices"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reap takes leave of strangers' orphans, where this is the first process of a container. Workers are waited for by those who started them.
func (h *holding) reap() {
	if os.Getpid() != 1 {
		return
	}
	for range time.Tick(time.Second) {
		for {
			var info unix.Siginfo
			if unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil) != nil {
				break
			}
			pid := int(*(*int32)(unsafe.Add(unsafe.Pointer(&info), 16))) // si_pid (sigaction(2)), which the package has no name for
			if pid == 0 || h.isWorker(pid) {
				break
			}
			syscall.Wait4(pid, nil, 0, nil)
		}
	}
}

func (h *holding) isWorker(pid int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.ContainsFunc(append([]*worker{h.active, h.next, h.spare}, h.lingering...), func(w *worker) bool { return w != nil && w.pid == pid })
}
