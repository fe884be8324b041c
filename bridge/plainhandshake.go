package bridge

import (
	"bytes"
)

// isPlainHandshake reports whether p is a request as nearly all handshakes are: the head of a GET in HTTP/1.1 of printable ASCII, with one Host and without anything that could
// mean a body, and nothing behind it. What net/http's server asks of a request beside what http.ReadRequest does holds for it.
func isPlainHandshake(p []byte) bool {
	head, found := bytes.CutSuffix(p, []byte("\r\n\r\n"))
	line, rest, _ := bytes.Cut(head, []byte("\r\n"))
	target, get := bytes.CutPrefix(line, []byte("GET /"))
	target, version := bytes.CutSuffix(target, []byte(" HTTP/1.1"))
	if !found || !get || !version || !printable(target) || bytes.ContainsAny(target, " \t") {
		return false
	}
	hosts := 0
	for len(rest) > 0 {
		line, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		name, value, found := bytes.Cut(line, []byte(":"))
		if !found || !token(string(name)) || !printable(value) {
			return false
		}
		switch {
		case bytes.EqualFold(name, []byte("Host")):
			if hosts++; !plainHost(bytes.Trim(value, " \t")) {
				return false
			}
		case bytes.EqualFold(name, []byte("Content-Length")), bytes.EqualFold(name, []byte("Transfer-Encoding")), bytes.EqualFold(name, []byte("Expect")):
			return false
		}
	}
	return hosts == 1
}
