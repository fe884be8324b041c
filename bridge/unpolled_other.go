//go:build !linux

package bridge

import "net"

// Unpolled returns the listener: on this system there is no other.
func Unpolled(l net.Listener) net.Listener { return l }
