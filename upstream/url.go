package upstream

import (
	"cmp"
	"errors"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// URL is where events are POSTed to: http or https, over TCP or, as http://unix:/run/app.sock:/path, over a unix socket.
type URL struct {
	text   string
	scheme string
	host   string // host and port, as written; a placeholder for a unix socket
	socket string // path of the unix socket, or empty
	path   string // as written, percent-encoding included; empty: events keep the client's path
	query  string
}

// UnmarshalText parses a backend URL. User names, fragments and other schemes are errors.
func (u *URL) UnmarshalText(text []byte) error {
	s := string(text)
	scheme, rest, _ := strings.Cut(s, "://")
	if scheme != "http" && scheme != "https" {
		return errors.New("must start with http:// or https://")
	}
	parsed := URL{text: s, scheme: scheme, host: "unix"}
	if socket, ok := strings.CutPrefix(rest, "unix:"); ok {
		socket, target, _ := strings.Cut(socket, ":")
		if strings.Contains(socket, "?") {
			return errors.New("a query behind a unix socket needs a path: http://unix:/run/app.sock:/path?query")
		}
		if !strings.HasPrefix(socket, "/") {
			return errors.New("the path of a unix socket must be absolute: http://unix:/run/app.sock:/path")
		}
		parsed.socket = socket
		rest = "unix" + target
		if target != "" && !strings.HasPrefix(target, "/") {
			return errors.New("the path behind a unix socket must start with a slash: http://unix:/run/app.sock:/path")
		}
	}
	standard, err := url.Parse(scheme + "://" + rest)
	if err != nil {
		return errors.Unwrap(err) // what is wrong, without the URL, which the caller names
	}
	port, err := strconv.ParseUint(cmp.Or(standard.Port(), "80"), 10, 16)
	switch {
	case err != nil || port == 0:
		return errors.New("must have a port from 1 to 65535, or none")
	case standard.Host == "" || standard.Hostname() == "":
		return errors.New("has no host")
	case standard.User != nil:
		return errors.New("must not carry a user name or password")
	case strings.Contains(s, "#"):
		return errors.New("must not have a fragment (#)")
	case strings.ContainsFunc(standard.RawQuery, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		return errors.New("must have a query of printable ASCII: percent-encode spaces and other characters")
	case strings.HasPrefix(standard.EscapedPath(), "//"):
		return errors.New("must not have a path that starts with //")
	}
	if parsed.socket == "" {
		parsed.host = standard.Host
	}
	parsed.path, parsed.query = standard.EscapedPath(), standard.RawQuery
	*u = parsed
	return nil
}

// String returns the URL as it was written.
func (u URL) String() string { return u.text }

// HasPath reports whether the URL has a path of its own, which then stands in place of the client's.
func (u URL) HasPath() bool { return u.path != "" }

// address returns where the backend listens, for a dial.
func (u URL) address() (network, address string) {
	if u.socket != "" {
		return "unix", u.socket
	}
	port := "80"
	if u.scheme == "https" {
		port = "443"
	}
	authority := url.URL{Host: u.host}
	return "tcp", net.JoinHostPort(authority.Hostname(), cmp.Or(authority.Port(), port))
}

// target returns the request target (RFC 9112, 3.2.1) of one POST for a client that asked for path and query, both as they came: the path is
// kept byte for byte where the URL has none, and the query always.
func (u URL) target(path, query string) string {
	if u.path != "" {
		path = u.path
	}
	if path == "" {
		path = "/"
	}
	if u.query != "" && query != "" {
		query = u.query + "&" + query
	} else if u.query != "" {
		query = u.query
	}
	if query == "" {
		return path
	}
	return path + "?" + query
}
