package bridge

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// plainPush is a push as nearly all are: a POST to a send route without options, in HTTP/1.1, with nothing in its head that could mean anything but what is here. It lies in
// the buffer that it was read into.
type plainPush struct {
	target                           target
	host, contentType, authorization []byte
	body                             []byte
}

// plainState is what is known of what has come.
type plainState int

const (
	plainNot   plainState = iota // it is something else: net/http reads it
	plainMore                    // it is the beginning of a plain push
	plainWhole                   // it is one, and nothing more
)

// readPlain reads a plain push. Whatever has the least that is unusual is none: what it reads here net/http would read alike.
func readPlain(p []byte) (r plainPush, state plainState) {
	head, body, found := bytes.Cut(p, []byte("\r\n\r\n"))
	if !found {
		return r, plainNot
	}
	line, rest, _ := bytes.Cut(head, []byte("\r\n"))
	path, ok := bytes.CutPrefix(line, []byte("POST "))
	if path, found = bytes.CutSuffix(path, []byte(" HTTP/1.1")); !ok || !found || !plainPath(path) {
		return r, plainNot
	}
	var err error
	if r.target, err = parseTarget(string(path)); err != nil {
		return r, plainNot
	}
	length := -1
	for len(rest) > 0 {
		line, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		name, value, found := bytes.Cut(line, []byte(":"))
		if value = bytes.Trim(value, " \t"); !found || !printable(value) {
			return r, plainNot
		}
		switch field := plainFieldOf(name); {
		case field == fieldHost && r.host == nil && plainHost(value):
			r.host = value
		case field == fieldType && r.contentType == nil && !(len(value) >= len(multipart) && strings.EqualFold(string(value[:len(multipart)]), multipart)):
			r.contentType = value
		case field == fieldAuthorization && r.authorization == nil:
			r.authorization = value
		case field == fieldLength && length < 0 && len(value) > 0 && value[0] >= '0' && value[0] <= '9':
			n, err := strconv.ParseUint(string(value), 10, 31)
			if err != nil {
				return r, plainNot
			}
			length = int(n)
		case field == fieldConnection && strings.EqualFold(string(value), "keep-alive"), field == fieldIgnored:
		default:
			return r, plainNot
		}
	}
	switch {
	case r.host == nil || length < 0 || len(body) > length:
		return r, plainNot
	case len(body) < length:
		return r, plainMore
	}
	r.body = body
	return r, plainWhole
}

// The fields that a plain push may have.
type plainField int

const (
	fieldHost plainField = iota + 1
	fieldType
	fieldAuthorization
	fieldLength
	fieldConnection
	fieldIgnored // they ask for nothing
)

var plainFields = map[string]plainField{
	"host": fieldHost, "content-type": fieldType, "authorization": fieldAuthorization, "content-length": fieldLength, "connection": fieldConnection,
	"user-agent": fieldIgnored, "accept": fieldIgnored, "accept-encoding": fieldIgnored, "accept-language": fieldIgnored,
}

// plainFieldOf returns which of them has the name, or 0.
func plainFieldOf(name []byte) plainField {
	var lower [16]byte // is longer than each
	if len(name) >= len(lower) {
		return 0
	}
	for i, b := range name {
		if b >= 'A' && b <= 'Z' {
			b |= 0x20
		}
		lower[i] = b
	}
	return plainFields[string(lower[:len(name)])]
}

// plainHost reports whether a host is a name or an address, with or without a port.
func plainHost[T string | []byte](host T) bool {
	for i := range len(host) {
		b := host[i]
		if b != '.' && b != '-' && b != ':' && b != '[' && b != ']' && (b < '0' || b > '9') && (b|0x20 < 'a' || b|0x20 > 'z') {
			return false
		}
	}
	return len(host) > 0
}

// plainPath reports whether a path has nothing that would have to be decoded, and no dots that could be segments.
func plainPath(path []byte) bool {
	for _, b := range path {
		if b != '/' && b != '-' && b != '_' && (b < '0' || b > '9') && (b|0x20 < 'a' || b|0x20 > 'z') {
			return false
		}
	}
	return true
}

// printable reports whether s is of printable ASCII, spaces and tabs.
func printable[T string | []byte](s T) bool {
	for i := range len(s) {
		b := s[i]
		if (b < ' ' || b > '~') && b != '\t' {
			return false
		}
	}
	return true
}

// append appends the verdict as a response of HTTP/1.1 on a connection that goes on.
func (v verdict) append(dst []byte, now time.Time) []byte {
	dst = append(strconv.AppendInt(append(dst, "HTTP/1.1 "...), int64(v.status), 10), ' ')
	dst = append(append(dst, http.StatusText(v.status)...), "\r\nDate: "...)
	dst = append(now.UTC().AppendFormat(dst, http.TimeFormat), "\r\n"...)
	var body []byte
	if v.status >= 400 || v.result != nil {
		kind := "application/json"
		var value any = v.result
		if v.status >= 400 {
			kind, value = "application/problem+json", newProblem(v.status, v.field, v.detail)
		}
		body, _ = json.Marshal(value) // of numbers and strings: it can't fail
		body = append(body, '\n')
		dst = append(append(append(dst, "Content-Type: "...), kind...), "\r\nCache-Control: no-store\r\n"...)
	}
	dst = append(strconv.AppendInt(append(dst, "Content-Length: "...), int64(len(body)), 10), "\r\n\r\n"...)
	return append(dst, body...)
}
