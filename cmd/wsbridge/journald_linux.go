package main

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// toJournald reports whether what is written there goes to journald. $JOURNAL_STREAM would say so of the process that systemd has started, but not of one behind a
// reload, whose environment is the command's.
func toJournald(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok {
		return false
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return false
	}
	var peer unix.Sockaddr
	if err := raw.Control(func(fd uintptr) { peer, _ = unix.Getpeername(int(fd)) }); err != nil {
		return false
	}
	address, ok := peer.(*unix.SockaddrUnix)
	return ok && address.Name == "/run/systemd/journal/stdout"
}
