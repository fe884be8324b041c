package bridge

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// maxForwarded is how many addresses X-Forwarded-For may have, ours included: the longest ones are then 1 KiB. Those on the
// left, which are the least to be believed, go first.
const maxForwarded = 25

// peer is who is at the other end of a request, and what it asked for in front of all proxies.
type peer struct {
	Address      netip.Addr // the client's; the zero Addr where a unix socket's peer doesn't name one
	ForwardedFor string     // the way it came, for the backend: X-Forwarded-For
	Proto        string     // http or https
	Host         string     // empty where the request has none that could be one
}

// peerOf returns who sent the request. What its headers say of that is believed from the trusted networks and from a unix
// socket only.
func peerOf(r *http.Request, trusted []netip.Prefix) peer {
	p := peer{Proto: "http"}
	if r.TLS != nil {
		p.Proto = "https"
	}
	if isHost(r.Host) {
		p.Host = r.Host
	}
	var chain []string // from the right
	if remote, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		p.Address = plain(remote.Addr())
		chain = append(chain, p.Address.String())
	}
	if !contains(trusted, p.Address) && !fromUnixSocket(r) {
		p.ForwardedFor = strings.Join(chain, ", ")
		return p
	}

	known := false // whether p.Address is the client's for good
	elements := strings.Split(strings.Join(r.Header["X-Forwarded-For"], ","), ",")
	for _, element := range slices.Backward(elements) {
		if element = strings.Trim(element, " \t"); element == "" {
			continue // as RFC 9110, 5.6.1 has it; nginx makes one out of an empty header
		}
		address, ok := parseForwarded(element)
		if !ok || len(chain) == maxForwarded {
			break // behind garbage nobody knows who wrote what
		}
		// An address is written as netip writes it: whatever else was in the element stays out.
		chain = append(chain, address.String())
		if !known {
			p.Address = address
			known = !contains(trusted, address)
		}
	}
	slices.Reverse(chain)
	p.ForwardedFor = strings.Join(chain, ", ")

	switch strings.ToLower(first(r.Header.Get("X-Forwarded-Proto"))) {
	case "https", "wss":
		p.Proto = "https"
	case "http", "ws":
		p.Proto = "http"
	}
	if host := first(r.Header.Get("X-Forwarded-Host")); isHost(host) {
		p.Host = host
	}
	return p
}

// realIP returns the client's address for X-Real-IP, or nothing where it isn't known.
func (p peer) realIP() string {
	if !p.Address.IsValid() {
		return ""
	}
	return p.Address.String()
}

// limitKey returns what an address is counted by: itself, or the /64 that an IPv6 host can pick from as it likes. An
// address that isn't known gives the zero Prefix, which is not to be counted: those behind it are many.
func limitKey(address netip.Addr) netip.Prefix {
	address = plain(address)
	bits := 64
	if address.Is4() {
		bits = 32
	}
	prefix, err := address.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return prefix
}

// fromUnixSocket reports whether the request came over a unix socket. No address alone doesn't say so: that of a TCP
// connection is gone, too, when its peer has reset it before it was handed to this process.
func fromUnixSocket(r *http.Request) bool {
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && local.Network() != "unix" {
		return false
	}
	return r.RemoteAddr == "" || r.RemoteAddr[0] == '@' || r.RemoteAddr[0] == '/'
}

// parseForwarded parses one element of X-Forwarded-For: an address, with the brackets and the port that some proxies add.
func parseForwarded(element string) (netip.Addr, bool) {
	if withPort, err := netip.ParseAddrPort(element); err == nil {
		return plain(withPort.Addr()), true
	}
	literal, bracketed := strings.CutPrefix(element, "[")
	if bracketed {
		if literal, bracketed = strings.CutSuffix(literal, "]"); !bracketed {
			return netip.Addr{}, false
		}
	}
	address, err := netip.ParseAddr(literal)
	if err != nil || bracketed && address.Is4() {
		return netip.Addr{}, false
	}
	return plain(address), true
}

// plain returns an address without its zone, and one of IPv4 as such.
func plain(address netip.Addr) netip.Addr {
	return address.Unmap().WithZone("")
}

func contains(networks []netip.Prefix, address netip.Addr) bool {
	return slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(address) })
}

// first returns the first value of a list: with several proxies in a row, what the one next to the client saw.
func first(list string) string {
	value, _, _ := strings.Cut(list, ",")
	return strings.Trim(value, " \t")
}

func isHost(s string) bool {
	_, _, err := parseHost(s)
	return err == nil
}
