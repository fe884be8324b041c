package bridge

import (
	"net/http"
	"net/textproto"
	"net/url"
	"strings"
)

// plainHandshake is a request as nearly all handshakes are, and is used again for others: the head of a GET in HTTP/1.1 of printable ASCII, with one Host and without anything that could
// mean a body, and nothing behind it. What net/http's server asks of a request beside what http.ReadRequest does holds for it.
type plainHandshake struct {
	request http.Request
	values  []string // of its header
}

// read reads one and reports whether it is plain. Then the request is what http.ReadRequest makes of it, up to the next call.
func (h *plainHandshake) read(p []byte) bool {
	h.forget()
	head, found := strings.CutSuffix(string(p), "\r\n\r\n")
	line, rest, _ := strings.Cut(head, "\r\n")
	target, get := strings.CutPrefix(line, "GET ")
	target, version := strings.CutSuffix(target, " HTTP/1.1")
	if !found || !get || !version || !strings.HasPrefix(target, "/") || !printable(target) || strings.ContainsAny(target, " \t") {
		return false
	}
	r := &h.request
	var err error
	if r.URL, err = url.ParseRequestURI(target); err != nil {
		return false
	}
	for len(rest) > 0 {
		line, rest, _ = strings.Cut(rest, "\r\n")
		name, value, found := strings.Cut(line, ":")
		if !found || !token(name) || !printable(value) {
			return false
		}
		value = strings.Trim(value, " \t")
		switch key := fieldKey(name); key {
		case "Host":
			if r.Host != "" || !plainHost(value) {
				return false
			}
			r.Host = value
		case "Content-Length", "Transfer-Encoding", "Expect":
			return false
		default:
			h.add(key, value)
		}
	}
	if pragma := r.Header["Pragma"]; len(pragma) > 0 && pragma[0] == "no-cache" && r.Header["Cache-Control"] == nil {
		h.add("Cache-Control", "no-cache") // as http.ReadRequest does (RFC 9111, 5.4)
	}
	r.Method, r.RequestURI, r.Proto, r.ProtoMajor, r.ProtoMinor, r.Body = http.MethodGet, target, "HTTP/1.1", 1, 1, http.NoBody
	return r.Host != ""
}

func (h *plainHandshake) add(key, value string) {
	if before, ok := h.request.Header[key]; ok {
		h.request.Header[key] = append(before, value)
		return
	}
	h.values = append(h.values, value)
	last := len(h.values)
	h.request.Header[key] = h.values[last-1 : last : last]
}

// forget lets go of what has been read.
func (h *plainHandshake) forget() {
	header := h.request.Header
	if header == nil {
		header = http.Header{}
	}
	clear(header)
	clear(h.values)
	h.request, h.values = http.Request{Header: header}, h.values[:0]
}

// fieldKey returns the form of a field's name that a http.Header has.
func fieldKey(name string) string {
	switch name { // as RFC 6455 writes them, which is not that form: they would be made for each handshake
	case "Sec-WebSocket-Key":
		return "Sec-Websocket-Key"
	case "Sec-WebSocket-Version":
		return "Sec-Websocket-Version"
	case "Sec-WebSocket-Protocol":
		return "Sec-Websocket-Protocol"
	case "Sec-WebSocket-Extensions":
		return "Sec-Websocket-Extensions"
	}
	return textproto.CanonicalMIMEHeaderKey(name)
}
