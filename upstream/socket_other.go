//go:build !linux

package upstream

import "net"

// unacknowledged is not known here.
func unacknowledged(net.Conn) (bytes int, ok bool) { return 0, false }
