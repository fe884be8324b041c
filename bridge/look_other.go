//go:build !linux

package bridge

import (
	"errors"
	"net"
	"syscall"
)

// Connections outlive the process on Linux alone: nowhere else is there a keeper, so none of these is called.

type heldConn struct {
	net.Conn
	raw syscall.RawConn
}

func lookAt(int, []byte) (n int, again bool, err error) { return 0, false, errors.ErrUnsupported }

func lookBehind(int, []byte, int) (n int, again bool, err error) {
	return 0, false, errors.ErrUnsupported
}

func dropBytes(int, int, bool) {}

func positions(int) (received, written uint64, tcp bool) { return 0, 0, false }

func countsBytes(int) bool { return false }

func lookFrom(int, int) bool { return false }

func receiveBuffer(int, int) int { return 0 }

func resumed(int) (net.Conn, syscall.RawConn) { return nil, nil }

func closeKept(int) {}

func closeDuplicate(int) {}

func bufferFull(int) bool { return true }

func growBuffer(int, int) bool { return false }

func duplicate(syscall.RawConn) int { return -1 }

type letter struct{}

func (*letter) receive(int, []byte, bool) (n int, unread int64, again bool, err error) {
	return 0, 0, false, errors.ErrUnsupported
}

func tellsUnread(syscall.RawConn) bool { return false }
