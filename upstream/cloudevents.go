package upstream

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The codec: CloudEvents 1.0 in HTTP binary mode, the answer in plain HTTP with Ws- headers. Nothing outside this file and
// answer.go knows a header's name.

// traceParent is the header of W3C Trace Context.
const traceParent = "traceparent"

// appendRequest appends the POST that carries the event, as it goes on the wire: time and signature are those of this attempt.
func (c *Client) appendRequest(dst []byte, e *Event, now time.Time) []byte {
	h := e.Handshake
	body, contentType := e.Body.Data, ""
	switch {
	case e.Type == Disconnect:
		contentType = "application/json"
		body, _ = json.Marshal(e.Goodbye) // a struct of numbers and strings: it can't fail
	case e.Type == Connect:
	case e.Body.Binary:
		contentType = "application/octet-stream"
	default:
		contentType = c.config.TextType
	}
	dst = slices.Grow(dst, 1024+len(h.Path)+len(h.Query)+len(h.Cookie)+len(body))
	dst = append(dst, "POST "...)
	dst = append(dst, c.config.URL.target(h.Path, h.Query)...)
	dst = append(dst, " HTTP/1.1\r\n"...)
	dst = appendField(dst, "Host", c.host(h))
	// With a length even where it is 0, and never chunked: old servers lose chunked bodies, or refuse a POST without a length.
	dst = append(strconv.AppendInt(append(dst, "Content-Length: "...), int64(len(body)), 10), "\r\n"...)
	dst = appendField(dst, "Content-Type", contentType)
	dst = appendField(dst, "Accept-Encoding", "identity")
	dst = append(dst, "Connection: keep-alive\r\n"...) // HTTP/1.1 needs no such word, but Tomcat and Apache then say how long they keep it
	dst = appendField(dst, "Cookie", h.Cookie)
	for _, field := range h.Header {
		value := field.Value
		if field.Name == traceParent {
			value = continued(value)
		}
		dst = appendField(dst, field.Name, value)
	}
	dst = appendField(dst, "X-Forwarded-For", h.ForwardedFor)
	dst = appendField(dst, "X-Forwarded-Proto", h.Proto)
	dst = appendField(dst, "X-Forwarded-Host", h.Host)
	dst = appendField(dst, "X-Real-IP", h.Address)
	// The ce- names go out as the specification and our documentation write them; header names are case-insensitive.
	dst = append(dst, "ce-specversion: 1.0\r\nce-type: wsbridge."...)
	dst = append(append(dst, e.Type...), "\r\n"...)
	dst = appendField(dst, "ce-source", c.source)
	dst = appendField(dst, "ce-id", e.ID)
	dst = append(e.Time.UTC().AppendFormat(append(dst, "ce-time: "...), time.RFC3339Nano), "\r\n"...)
	dst = appendField(dst, "ce-connectionid", e.ConnectionID)
	dst = append(strconv.AppendUint(append(dst, "ce-sequence: "...), e.Sequence, 10), "\r\n"...)
	dst = append(strconv.AppendInt(append(dst, "ce-attempt: "...), int64(e.Attempt), 10), "\r\n"...)
	dst = appendField(dst, "ce-userid", e.UserID)
	dst = appendField(dst, "ce-state", e.State)
	dst = appendField(dst, "ce-subprotocol", e.Subprotocol)
	dst = appendField(dst, "ce-subprotocols", strings.Join(e.Subprotocols, ","))
	if len(c.config.Secret) > 0 {
		timestamp, signatures := c.config.Secret.sign(e.ID, now, body)
		dst = appendField(dst, "webhook-id", e.ID)
		dst = appendField(dst, "webhook-timestamp", timestamp)
		dst = appendField(dst, "webhook-signature", signatures)
	}
	dst = append(dst, "\r\n"...)
	return append(dst, body...)
}

// appendField appends a header field, unless its value is empty. A value comes from a parsed header, or from what was checked when it was
// set; that no line break gets through is seen to here as well.
func appendField(dst []byte, name, value string) []byte {
	if value == "" {
		return dst
	}
	dst = append(append(dst, name...), ": "...)
	start := len(dst)
	dst = append(dst, value...)
	if added := dst[start:]; mayBreak(added) {
		for i, b := range added {
			if b == '\r' || b == '\n' || b == 0 {
				added[i] = ' '
			}
		}
	}
	return append(dst, "\r\n"...)
}

// mayBreak reports whether p may have control characters in it: eight bytes at once, since to look at each is half of what writing a request costs.
func mayBreak(p []byte) bool {
	const ones = 0x0101010101010101
	var found uint64 // the top bit of each byte: it is below a space
	for ; len(p) >= 8; p = p[8:] {
		x := binary.LittleEndian.Uint64(p)
		found |= (x - ' '*ones) &^ x
	}
	for _, b := range p {
		found |= (uint64(b) - ' ') &^ uint64(b)
	}
	return found&(0x80*ones) != 0
}

// host returns what the events of a connection have as their Host.
func (c *Client) host(h *Handshake) string {
	switch {
	case c.config.Host != "":
		return c.config.Host
	case h.RequestHost != "":
		return h.RequestHost
	}
	return c.config.URL.host
}

// Handshake returns what the events of a connection repeat of the request that opened it: the headers that are configured to
// be forwarded, and no others. The caller adds where the request came from.
func (c *Client) Handshake(r *http.Request) *Handshake {
	h := &Handshake{Path: r.URL.EscapedPath(), Query: r.URL.RawQuery, RequestHost: r.Host}
	// RequestURI has the path as the client wrote it; URL.EscapedPath may write it anew.
	if path, _, _ := strings.Cut(r.RequestURI, "?"); strings.HasPrefix(path, "/") {
		h.Path = path
	}
	hop := strings.Join(r.Header["Connection"], ",") // RFC 9110, 7.6.1: what it names is meant for us alone
	if parent := r.Header.Values(traceParent); len(parent) == 1 && validTrace(parent[0]) {
		h.Header = append(h.Header, Field{traceParent, parent[0]})
		if state := strings.Join(r.Header.Values("tracestate"), ","); state != "" && len(state) <= maxTraceState {
			h.Header = append(h.Header, Field{"tracestate", state})
		}
	}
	for _, name := range c.forward {
		if listed(hop, name) {
			continue
		}
		if name == "Cookie" {
			h.Cookie = strings.Join(r.Header[name], "; ")
			continue
		}
		for _, value := range r.Header[name] {
			h.Header = append(h.Header, Field{name, value})
		}
	}
	return h
}

// listed reports whether a comma-separated list names the header.
func listed(list, name string) bool {
	for item := range strings.SplitSeq(list, ",") {
		if strings.EqualFold(strings.TrimSpace(item), name) {
			return true
		}
	}
	return false
}

// shown are the headers of a refused handshake that its client sees: those that mean something to it.
func shown(header fields) http.Header {
	safe := http.Header{}
	for _, name := range [...]string{"Content-Type", "Content-Language", "Content-Encoding", "Cache-Control", "Location", "Retry-After", "Set-Cookie", "Www-Authenticate"} {
		if values := header.values(name); len(values) > 0 {
			safe[name] = values
		}
	}
	return safe
}

// reply says what an answer to the event means. The body is whole, and at most Config.MaxAnswer bytes.
func (c *Client) reply(e *Event, answer *head, body []byte, now time.Time) *Reply {
	r := &Reply{Status: answer.code, After: retryAfter(answer.fields, now)}
	invalid := func(err error) *Reply {
		return &Reply{Outcome: Invalid, Status: answer.code, Err: err}
	}
	if r.Outcome = outcome(answer.code); r.Outcome != Accepted {
		r.Err = fmt.Errorf("the backend answered %s", answer.status)
	}
	switch answer.code {
	case http.StatusForbidden, 419, http.StatusUnprocessableEntity:
		r.Err = fmt.Errorf("%w (if this is its CSRF protection, exempt the URL from it: the events carry no token)", r.Err)
	}
	if r.Outcome == Redirected {
		r.Err = fmt.Errorf("%w to %q: name the final URL", r.Err, answer.fields.get("Location"))
	}
	encoding := answer.fields.get("Content-Encoding")
	encoded := len(body) > 0 && encoding != "" && !strings.EqualFold(encoding, "identity")
	switch status := answer.code; {
	case e.Type == Disconnect: // nobody is left whom the rest could concern
	case r.Outcome == Accepted:
		if encoded {
			return invalid(fmt.Errorf("the answer has Content-Encoding %q, where Accept-Encoding asked for identity", encoding))
		}
		if err := r.control(answer.fields, e.Body.Binary, body); err != nil {
			return invalid(err)
		}
		r.SetCookie = answer.fields.values("Set-Cookie")
		if e.Type != Connect {
			break
		}
		if chosen := answer.fields.values("Sec-Websocket-Protocol"); len(chosen) > 1 || len(chosen) == 1 && !slices.Contains(e.Subprotocols, chosen[0]) {
			return invalid(fmt.Errorf("Sec-WebSocket-Protocol %q: the client offers %q", strings.Join(chosen, ", "), e.Subprotocols))
		} else if len(chosen) == 1 {
			r.Subprotocol = chosen[0]
		}
	case e.Type == Connect && status < 500:
		r.Header, r.Body = shown(answer.fields), body
	case e.Type == Connect:
		// Of a server error only the status and when to come back: what its page says is for developers.
		if value := answer.fields.get("Retry-After"); value != "" {
			r.Header = http.Header{"Retry-After": {value}}
		}
	case status >= 400 && status < 500:
		if err := r.control(answer.fields, e.Body.Binary, body); err != nil {
			return invalid(err)
		}
		if contentType := answer.fields.get("Content-Type"); r.Outcome == Refused && len(body) > 0 && !encoded && forClients(contentType) {
			r.Messages = []Payload{NewPayload(contentType, e.Body.Binary, body)}
		}
	}
	return r
}

// outcome says what a final status means for the event.
func outcome(status int) Outcome {
	switch status {
	case http.StatusUnauthorized:
		return Unauthenticated
	case http.StatusForbidden:
		return Forbidden
	case http.StatusGone:
		return Gone
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusUnsupportedMediaType, 419, http.StatusRequestHeaderFieldsTooLarge:
		return Misconfigured
	case http.StatusTooEarly, http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return Later
	case http.StatusRequestTimeout, http.StatusBadGateway, http.StatusGatewayTimeout:
		return Uncertain
	}
	switch status / 100 {
	case 2:
		return Accepted
	case 3:
		return Redirected
	case 4:
		return Refused
	case 5:
		return Failed
	}
	return Invalid
}
