package bridge

import (
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Origin is a pattern of origins that may connect: scheme://host[:port], where the host may begin with *. for any
// subdomain, or null, or * for all. It's kept as a browser writes an origin: in lower case, without a default port.
type Origin string

// UnmarshalText parses a pattern. It's an error where no browser would send an origin that matches it.
func (o *Origin) UnmarshalText(text []byte) error {
	s := lower(string(text))
	if s == "*" || s == "null" {
		*o = Origin(s)
		return nil
	}
	scheme, host, ok := strings.Cut(s, "://")
	switch {
	case !ok:
		return errors.New("must be scheme://host[:port], like https://example.org, or * for all, or null")
	case scheme == "ws" || scheme == "wss":
		return errors.New("must be the origin of the page, which is http:// or https:// where the WebSocket is ws:// or wss://")
	}
	host, subdomains := strings.CutPrefix(host, "*.")
	canonical, err := canonicalOrigin(scheme + "://" + host)
	if err != nil {
		return err
	}
	if subdomains {
		scheme, host, _ := strings.Cut(canonical, "://")
		if host == "" || strings.HasPrefix(host, "[") {
			return errors.New("must have a host name behind *.")
		}
		canonical = scheme + "://*." + host
	}
	*o = Origin(canonical)
	return nil
}

// match reports whether the pattern covers an origin, as canonicalOrigin returns it: a host never begins with a dot there.
func (o Origin) match(origin string) bool {
	before, after, subdomains := strings.Cut(string(o), "*")
	if !subdomains {
		return origin == before
	}
	return strings.HasPrefix(origin, before) && strings.HasSuffix(origin, after)
}

// originAllowed reports whether a request may connect that has these Origin header lines. Without patterns the origin must
// have one of the hosts that the request was for: the Host header, and what a trusted proxy says of it. A request
// without an Origin is not a browser's and passes. One with two of them is nobody's honest work.
func originAllowed(origins []string, patterns []Origin, hosts ...string) bool {
	if len(origins) == 0 || len(origins) == 1 && origins[0] == "" {
		return true
	}
	if slices.Contains(patterns, "*") {
		return true
	}
	if len(origins) > 1 {
		return false
	}
	origin := origins[0]
	if origin != "null" {
		var err error
		if origin, err = canonicalOrigin(origin); err != nil {
			return false
		}
	}
	if len(patterns) > 0 {
		return slices.ContainsFunc(patterns, func(o Origin) bool { return o.match(origin) })
	}
	return slices.ContainsFunc(hosts, func(host string) bool { return sameHost(origin, host) })
}

// sameHost reports whether a canonical origin is of the host, which may have a port. The port counts only where the host
// has one: nginx's $host is without. The scheme doesn't count: TLS has ended in front of us, and who serves a page on this
// host by http may as well connect.
func sameHost(origin, host string) bool {
	name, port, err := parseHost(host)
	if err != nil {
		return false
	}
	scheme, rest, _ := strings.Cut(origin, "://")
	originName, originPort, err := parseHost(rest)
	if err != nil || originName != name {
		return false
	}
	if originPort == 0 {
		originPort = defaultPort(scheme)
	}
	return port == 0 || port == originPort
}

// canonicalOrigin returns an origin as a browser writes it. It's an error where anything else than scheme, host
// and port is in it. A scheme that isn't http or https may be without a host: some web views send file://.
func canonicalOrigin(s string) (string, error) {
	scheme, rest, ok := strings.Cut(lower(s), "://")
	if !ok || !isScheme(scheme) {
		return "", errors.New("must start with a scheme and ://")
	}
	if rest == "" && defaultPort(scheme) == 0 {
		return scheme + "://", nil
	}
	host, port, err := parseHost(rest)
	if err != nil {
		return "", err
	}
	if port != 0 && port != defaultPort(scheme) {
		host += ":" + strconv.Itoa(port)
	}
	return scheme + "://" + host, nil
}

// parseHost splits host[:port]. The host comes back in lower case and without a final dot, an IPv6 address in brackets and
// in its shortest form; the port is 0 where there is none.
func parseHost(s string) (host string, port int, err error) {
	const wrong = "must have a host of letters, digits, dots and hyphens (xn-- for others) or [IPv6], a port from 1 to 65535 at most, and nothing behind it"
	host, digits, hasPort := strings.Cut(s, ":")
	if literal, ok := strings.CutPrefix(s, "["); ok {
		literal, behind, closed := strings.Cut(literal, "]")
		host, digits, hasPort = strings.Cut(behind, ":")
		address, err := netip.ParseAddr(literal)
		if !closed || host != "" || err != nil || !address.Is6() || address.Zone() != "" {
			return "", 0, errors.New(wrong)
		}
		host = "[" + address.String() + "]"
	} else {
		host = strings.TrimSuffix(lower(host), ".")
		if len(host) > 253 || strings.Contains("."+host+".", "..") {
			return "", 0, errors.New(wrong)
		}
		for _, c := range host {
			if !('a' <= c && c <= 'z' || isDigit(c) || c == '.' || c == '-' || c == '_') {
				return "", 0, errors.New(wrong)
			}
		}
	}
	if hasPort {
		number, err := strconv.ParseUint(digits, 10, 16)
		if err != nil || number == 0 {
			return "", 0, errors.New(wrong)
		}
		port = int(number)
	}
	return host, port, nil
}

// lower returns s in lower case, in ASCII only: strings.ToLower makes a plain k of the Kelvin sign.
func lower(s string) string {
	return strings.Map(func(c rune) rune {
		if 'A' <= c && c <= 'Z' {
			return c + 'a' - 'A'
		}
		return c
	}, s)
}

func isScheme(s string) bool {
	for i, c := range s {
		if !('a' <= c && c <= 'z' || i > 0 && (isDigit(c) || c == '+' || c == '-' || c == '.')) {
			return false
		}
	}
	return s != ""
}

// defaultPort returns the port that an origin of the scheme leaves out, or 0 where none is known.
func defaultPort(scheme string) int {
	switch scheme {
	case "http":
		return 80
	case "https":
		return 443
	}
	return 0
}
