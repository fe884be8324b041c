//go:build !linux

package bridge

import (
	"net"
	"time"
)

// tune does nothing where there is no TCP_USER_TIMEOUT: a dead peer is found by its missing pongs.
func tune(net.Conn, time.Duration) {}
