package upstream

import "golang.org/x/sys/unix"

func quickAck(fd int) { unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1) }
