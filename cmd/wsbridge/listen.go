package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// listen binds host:port or unix:/path. A unix socket has the mode, and is removed when the listener closes; what a dead process
// left in its place is replaced. An address in use is an error that is syscall.EADDRINUSE.
func listen(ctx context.Context, address string, mode fs.FileMode) (net.Listener, error) {
	network, place, err := splitAddress(address)
	if err != nil {
		return nil, fmt.Errorf("listen on %q: %w", address, err)
	}
	if network != "unix" {
		return (&net.ListenConfig{}).Listen(ctx, network, place)
	}
	if err := removeStale(ctx, place); err != nil {
		return nil, err
	}
	// Between bind and chmod the socket would have whatever mode the umask leaves. Linux creates the file with the mode of the
	// unbound socket less the umask, so that one set before the bind is never exceeded; the umask itself belongs to the whole
	// process, whose other files it would change. Elsewhere Fchmod fails on a socket, and for that moment the umask decides.
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { _ = syscall.Fchmod(int(fd), uint32(mode.Perm())) })
	}}
	listener, err := config.Listen(ctx, network, place)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(place, mode.Perm()); err != nil { // gives what the umask took
		listener.Close()
		return nil, err
	}
	return listener, nil
}

// removeStale removes a socket on which nobody listens, and nothing else.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is in the way: it is not a socket; remove it or choose another path", path)
	}
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err == nil {
		conn.Close()
		return fmt.Errorf("%s: another process listens there: %w", path, syscall.EADDRINUSE)
	}
	// Any other failure (no permission, a full backlog, another kind of socket) comes from a socket that somebody holds.
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%s may be in use by another process: %w", path, err)
	}
	return os.Remove(path)
}

// splitAddress returns the network and the address in it of host:port or unix:/path.
func splitAddress(address string) (network, place string, err error) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		switch {
		case !strings.HasPrefix(path, "/") || strings.HasSuffix(path, "/"):
			return "", "", errors.New("the path of a unix socket must be absolute and name a file: unix:/run/wsbridge/ws.sock")
		case len(path) > 107 || strings.ContainsRune(path, 0):
			return "", "", errors.New("the path of a unix socket may have at most 107 bytes")
		}
		return "unix", path, nil
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil || host != "" && !validHost(host) {
		return "", "", errors.New("not an address; allowed: host:port ([::1]:8080 for IPv6) or unix:/path")
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", "", errors.New("the port must be a number from 0 to 65535")
	}
	return "tcp", address, nil
}

// validHost reports whether s is an address or could be a name. A name doesn't end in a number: 127.0.0.256 is a slip.
func validHost(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	if s == "" || len(s) > 253 || strings.ContainsFunc(s, func(r rune) bool {
		letter := 'a' <= r|0x20 && r|0x20 <= 'z' && r < 0x80
		return !letter && (r < '0' || r > '9') && r != '.' && r != '-' && r != '_'
	}) {
		return false
	}
	last := s[strings.LastIndexByte(s, '.')+1:]
	_, err := strconv.Atoi(last)
	return err != nil
}

// loopback reports whether only this machine can reach a listener on address.
func loopback(address string) bool {
	network, place, err := splitAddress(address)
	if err != nil {
		return false
	}
	return network == "unix" || hostOf(place).IsLoopback()
}

// overlap reports whether two listeners could not both have their address.
func overlap(a, b string) bool {
	networkA, placeA, _ := splitAddress(a)
	networkB, placeB, _ := splitAddress(b)
	if networkA != networkB || networkA == "unix" {
		return a == b
	}
	_, portA, _ := net.SplitHostPort(placeA)
	_, portB, _ := net.SplitHostPort(placeB)
	numberA, _ := strconv.Atoi(portA)
	numberB, _ := strconv.Atoi(portB)
	if numberA != numberB || numberA == 0 {
		return false
	}
	hostA, hostB := hostOf(placeA), hostOf(placeB)
	if !hostA.IsValid() || !hostB.IsValid() { // a name: only the resolver knows
		return placeA == placeB
	}
	return hostA == hostB || hostA.IsUnspecified() || hostB.IsUnspecified()
}

// hostOf returns the address part of host:port: localhost is 127.0.0.1, no host is all of them, and any other name is invalid.
func hostOf(place string) netip.Addr {
	host, _, _ := net.SplitHostPort(place)
	switch host {
	case "":
		return netip.IPv6Unspecified()
	case "localhost":
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	address, _ := netip.ParseAddr(host)
	return address.Unmap()
}
