package e2e

import "syscall"

// apart puts a process into a group of its own, for it may have children, and lets the kernel end it when this test does without
// cleaning up, as on a timeout.
func apart() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
