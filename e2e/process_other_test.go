//go:build !linux

package e2e

import "syscall"

// apart puts a process into a group of its own, for it may have children.
func apart() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
