package upstream

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
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

// request returns the POST that carries the event.
func (c *Client) request(e *Event) *http.Request {
	h := e.Handshake
	header := make(http.Header, len(h.Header)+21)
	for _, field := range h.Header {
		value := field.Value
		if field.Name == traceParent {
			value = continued(value)
		}
		header[field.Name] = append(header[field.Name], value)
	}
	if h.Cookie != "" {
		header["Cookie"] = []string{h.Cookie}
	}
	if header["User-Agent"] == nil {
		header["User-Agent"] = nil // or net/http would send its own
	}
	// The ce- names go out as the specification and our documentation write them; header names are case-insensitive. Their values share
	// one array: an allocation for each would be most of a POST's.
	values := make([]string, 0, 21)
	set := func(name, value string) {
		if value != "" {
			values = append(values, value)
			header[name] = values[len(values)-1 : len(values) : len(values)] // who adds to one must not write over the next
		}
	}
	set("ce-specversion", "1.0")
	set("ce-type", "wsbridge."+string(e.Type))
	set("ce-source", c.source)
	set("ce-id", e.ID)
	set("ce-time", e.Time.UTC().Format(time.RFC3339Nano))
	set("ce-connectionid", e.ConnectionID)
	set("ce-sequence", strconv.FormatUint(e.Sequence, 10))
	set("ce-attempt", strconv.Itoa(e.Attempt))
	set("ce-userid", e.UserID)
	set("ce-state", e.State)
	set("ce-subprotocol", e.Subprotocol)
	set("ce-subprotocols", strings.Join(e.Subprotocols, ","))
	set("X-Forwarded-For", h.ForwardedFor)
	set("X-Forwarded-Proto", h.Proto)
	set("X-Forwarded-Host", h.Host)
	set("X-Real-IP", h.Address)
	set("Accept-Encoding", "identity")

	body := e.Body.Data
	switch {
	case e.Type == Disconnect:
		set("Content-Type", "application/json")
		body, _ = json.Marshal(e.Goodbye) // a struct of numbers and strings: it can't fail
	case e.Type == Connect:
	case e.Body.Binary:
		set("Content-Type", "application/octet-stream")
	default:
		set("Content-Type", c.config.TextType)
	}
	if len(c.config.Secret) > 0 {
		timestamp, signatures := c.config.Secret.sign(e.ID, time.Now(), body)
		set("webhook-id", e.ID)
		set("webhook-timestamp", timestamp)
		set("webhook-signature", signatures)
	}
	host := c.config.Host
	if host == "" {
		host = h.RequestHost
	}
	request := &http.Request{
		Method: http.MethodPost, URL: c.config.URL.target(h.Path, h.Query), Host: host, Header: header,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Body: http.NoBody, ContentLength: int64(len(body)),
	}
	if len(body) > 0 {
		request.Body = io.NopCloser(bytes.NewReader(body))
	}
	return request
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
func shown(header http.Header) http.Header {
	safe := http.Header{}
	for _, name := range [...]string{"Content-Type", "Content-Language", "Content-Encoding", "Cache-Control", "Location", "Retry-After", "Set-Cookie", "Www-Authenticate"} {
		if values := header[name]; len(values) > 0 {
			safe[name] = values
		}
	}
	return safe
}

// reply says what an answer to the event means. The body is whole, and at most Config.MaxAnswer bytes.
func (c *Client) reply(e *Event, answer *http.Response, body []byte, now time.Time) *Reply {
	r := &Reply{Status: answer.StatusCode, After: retryAfter(answer.Header, now)}
	invalid := func(err error) *Reply {
		return &Reply{Outcome: Invalid, Status: answer.StatusCode, Err: err}
	}
	if r.Outcome = outcome(answer.StatusCode); r.Outcome != Accepted {
		r.Err = fmt.Errorf("the backend answered %s", answer.Status)
	}
	switch answer.StatusCode {
	case http.StatusForbidden, 419, http.StatusUnprocessableEntity:
		r.Err = fmt.Errorf("%w (if this is its CSRF protection, exempt the URL from it: the events carry no token)", r.Err)
	}
	if r.Outcome == Redirected {
		r.Err = fmt.Errorf("%w to %q: name the final URL", r.Err, answer.Header.Get("Location"))
	}
	encoding := answer.Header.Get("Content-Encoding")
	encoded := len(body) > 0 && encoding != "" && !strings.EqualFold(encoding, "identity")
	switch status := answer.StatusCode; {
	case e.Type == Disconnect: // nobody is left whom the rest could concern
	case r.Outcome == Accepted:
		if encoded {
			return invalid(fmt.Errorf("the answer has Content-Encoding %q, where Accept-Encoding asked for identity", encoding))
		}
		if err := r.control(answer.Header, e.Body.Binary, body); err != nil {
			return invalid(err)
		}
		r.SetCookie = answer.Header["Set-Cookie"]
		if e.Type != Connect {
			break
		}
		if chosen := answer.Header.Values("Sec-WebSocket-Protocol"); len(chosen) > 1 || len(chosen) == 1 && !slices.Contains(e.Subprotocols, chosen[0]) {
			return invalid(fmt.Errorf("Sec-WebSocket-Protocol %q: the client offers %q", strings.Join(chosen, ", "), e.Subprotocols))
		} else if len(chosen) == 1 {
			r.Subprotocol = chosen[0]
		}
	case e.Type == Connect && status < 500:
		r.Header, r.Body = shown(answer.Header), body
	case e.Type == Connect:
		// Of a server error only the status and when to come back: what its page says is for developers.
		if value := answer.Header.Get("Retry-After"); value != "" {
			r.Header = http.Header{"Retry-After": {value}}
		}
	case status >= 400 && status < 500:
		if err := r.control(answer.Header, e.Body.Binary, body); err != nil {
			return invalid(err)
		}
		if contentType := answer.Header.Get("Content-Type"); r.Outcome == Refused && len(body) > 0 && !encoded && forClients(contentType) {
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
