package bridge

import (
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"wsbridge/holder"
	"wsbridge/upstream"
)

// gate is what a handshake may be refused by before the backend is asked; its name is the label of a metric.
type gate string

const (
	gateNone        gate = ""
	gatePath        gate = "path"
	gateUpgrade     gate = "upgrade"
	gateDraining    gate = "draining"
	gateConnections gate = "connections"
	gateAddress     gate = "connections_per_address"
	gateRate        gate = "rate"
	gateOrigin      gate = "origin"
	gateBackend     gate = "backend"
)

// retryAfter is what a refused client is told to wait before it comes back, in seconds, where nothing says it better.
const retryAfter = 5

// ServeHTTP is the client side: it accepts WebSocket handshakes and refuses everything else.
func (b *Bridge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	refuse := func(by gate, status int, format string, args ...any) {
		b.metrics.refused.WithLabelValues(string(by)).Inc()
		http.Error(w, fmt.Sprintf(format, args...), status)
	}
	path, err := requestPath(r.RequestURI)
	if err != nil {
		refuse(gatePath, http.StatusBadRequest, "the path %s", err)
		return
	}
	if !slices.ContainsFunc(b.config.Paths, func(p Path) bool { return p.match(path) }) {
		refuse(gatePath, http.StatusNotFound, "no WebSocket at %q (WSBRIDGE_PATHS)", path)
		return
	}
	if status, reason := malformed(w.Header(), r); status != 0 {
		refuse(gateUpgrade, status, "%s", reason)
		return
	}
	if !b.accepting() {
		w.Header().Set("Retry-After", strconv.Itoa(retryAfter))
		refuse(gateDraining, http.StatusServiceUnavailable, "shutting down")
		return
	}
	from := peerOf(r, b.config.TrustedProxies)
	c, by := b.admit(w, r, from)
	if by != gateNone {
		b.conns.Done()
		switch by {
		case gateConnections:
			refuse(by, http.StatusServiceUnavailable, "too many connections")
		case gateAddress:
			refuse(by, http.StatusTooManyRequests, "too many connections from your address")
		case gateRate:
			refuse(by, http.StatusTooManyRequests, "too many handshakes from your address")
		case gateOrigin:
			b.strangers.Do(func() {
				b.log.Warn("origin refused: set WSBRIDGE_ALLOWED_ORIGINS, or let the proxy pass the Host", "origin", r.Header.Get("Origin"), "host", from.Host)
			})
			refuse(by, http.StatusForbidden, "origin %q is not allowed", r.Header.Get("Origin"))
		}
		return
	}
	header, refused := b.connect(r, c)
	if refused != nil {
		b.discard(c)
		b.metrics.refused.WithLabelValues(string(gateBackend)).Inc()
		refused(w)
		return
	}
	b.metrics.accepted.Inc()
	parked, err := b.upgrade(w, r, c, header)
	if err != nil {
		// The backend has accepted the connection, so it is told of the end. The client left while it was opening.
		c.end(closeVanished(err))
		c.mu.Lock()
		c.busy().out.discard()
		c.mu.Unlock()
		b.registry.release(c)
		b.goodbye(c)
		b.conns.Done()
		return
	}
	if !parked {
		go c.serve() // the handler returns, and net/http lets go of the request and its buffers
	}
}

// admit passes a handshake through the gates that cost nothing to the backend, and registers the connection. By the time the backend
// hears of it, pushes to it are queued.
func (b *Bridge) admit(w http.ResponseWriter, r *http.Request, from peer) (*conn, gate) {
	key := limitKey(from.Address)
	if by := b.registry.reserve(key, b.config.MaxConnections, b.config.MaxConnectionsPerAddress); by != gateNone {
		w.Header().Set("Retry-After", strconv.Itoa(retryAfter))
		return nil, by
	}
	now := time.Now()
	if ok, wait := b.handshakes.Allow(now, key); !ok {
		b.registry.unreserve(key)
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
		return nil, gateRate
	}
	if !originAllowed(r.Header["Origin"], b.config.AllowedOrigins, r.Host, from.Host) {
		b.registry.unreserve(key)
		return nil, gateOrigin
	}
	handshake := b.upstream.Handshake(r)
	handshake.ForwardedFor, handshake.Proto, handshake.Host, handshake.Address = from.ForwardedFor, from.Proto, from.Host, from.realIP()
	c := b.newConn(record{ID: b.newID(now), Since: now, Handshake: handshake})
	if b.keeping != nil {
		c.outlives(b.keeping.slot())
		c.kept.save(&c.record, holder.StageOpening)
	}
	b.registry.add(c)
	if b.isDraining() { // the drain may have looked just before
		c.end(closeShutdown())
	}
	return c, gateNone
}

// connect asks the backend whether it accepts the connection. It returns the headers for the 101, or who writes the refusal.
func (b *Bridge) connect(r *http.Request, c *conn) (header http.Header, refused func(http.ResponseWriter)) {
	if !b.upstream.Wants(upstream.Connect) {
		return nil, nil
	}
	c.mu.Lock()
	event := c.record.event(upstream.Connect, 0, c.record.Since)
	c.mu.Unlock()
	event.Subprotocols, event.Trip = subprotocols(r), c.kept.trip()
	// The client's leaving does not end the POST: its outcome would be unknown, and an accepted connection is owed a disconnect event.
	to, options, reply := b.route(c, b.ask(b.respite.begin(b.ctx, b.config.HandshakeTimeout), event))
	b.complain(upstream.Connect, reply)
	if reply.Outcome != upstream.Accepted {
		return nil, func(w http.ResponseWriter) { refusal(w, reply) }
	}
	c.mu.Lock()
	c.accepted = true
	c.record.Subprotocol = reply.Subprotocol
	c.mu.Unlock()
	c.learn(reply)
	c.mu.Lock()
	c.kept.accepted(&c.record)
	c.mu.Unlock()
	b.deliver(to, options, reply.Messages, nil, time.Now())
	if why := closeFor(reply); why != nil {
		c.end(why)
	}
	header = http.Header{}
	if reply.Subprotocol != "" {
		header["Sec-WebSocket-Protocol"] = []string{reply.Subprotocol}
	}
	if len(reply.SetCookie) > 0 {
		header["Set-Cookie"] = reply.SetCookie
	}
	return header, nil
}

// refusal answers a handshake that the backend did not accept.
func refusal(w http.ResponseWriter, r *upstream.Reply) {
	for name, values := range r.Header {
		w.Header()[name] = values
	}
	switch r.Outcome {
	case upstream.Later, upstream.Unreachable, upstream.Uncertain:
		if w.Header().Get("Retry-After") == "" {
			w.Header().Set("Retry-After", strconv.Itoa(retryAfter))
		}
	}
	switch r.Outcome {
	case upstream.Invalid:
		http.Error(w, "the backend gave an invalid answer", http.StatusBadGateway)
		return
	case upstream.Unreachable, upstream.Uncertain:
		if r.Status != 0 {
			break
		}
		if r.TimedOut {
			http.Error(w, "the backend is too slow", http.StatusGatewayTimeout)
		} else {
			http.Error(w, "the backend can't be reached", http.StatusBadGateway)
		}
		return
	}
	if r.Status >= 500 {
		http.Error(w, http.StatusText(r.Status), r.Status)
		return
	}
	w.WriteHeader(r.Status)
	w.Write(r.Body)
}

// discard forgets a connection that was never accepted, with what was queued for it.
func (b *Bridge) discard(c *conn) {
	c.mu.Lock()
	c.busy().out.discard()
	c.ended.CompareAndSwap(nil, closeVanished(errors.New("the handshake was refused")))
	b.registry.remove(c)
	c.kept.free()
	c.mu.Unlock()
	b.registry.release(c)
	b.conns.Done()
}

// upgrade sends the 101 and opens the connection. It reports whether that is parked; else it is to be read.
func (b *Bridge) upgrade(w http.ResponseWriter, r *http.Request, c *conn, header http.Header) (parked bool, err error) {
	compressed, window, confirm := false, 0, 0
	if b.config.Compression == "on" {
		compressed, window, confirm = negotiate(r.Header.Values("Sec-WebSocket-Extensions"))
	}
	sock, err := takeOver(w)
	if err != nil {
		return false, err
	}
	b.upgraded.Add(1)
	tune(sock.Conn, b.config.PingInterval+b.config.PongTimeout)
	c.mu.Lock()
	c.socket, c.record.Window = sock, window
	c.heard.Store(time.Now().UnixNano())
	sock.owner = c
	c.keepSocket()
	c.mu.Unlock()
	p := scraps.Get().(*[]byte)
	*p = switching((*p)[:0], r.Header["Sec-Websocket-Key"][0], header, compressed, confirm)
	err = sock.open(*p, b.config.WriteTimeout)
	scraps.Put(p)
	if err != nil {
		sock.Conn.Close()
		b.upgraded.Add(-1)
		return false, err
	}
	return c.opened(), nil
}

// malformed says what is wrong with a handshake (RFC 6455, 4.2.1), or 0.
func malformed(header http.Header, r *http.Request) (status int, reason string) {
	if !tokens(r.Header["Upgrade"], "websocket") || !r.ProtoAtLeast(1, 1) {
		header.Set("Upgrade", "websocket")
		header.Set("Connection", "Upgrade")
		return http.StatusUpgradeRequired, "this address speaks WebSocket: send Upgrade: websocket (RFC 6455)"
	}
	if r.Method != http.MethodGet {
		header.Set("Allow", http.MethodGet)
		return http.StatusMethodNotAllowed, "a WebSocket handshake is a GET"
	}
	if !tokens(r.Header["Connection"], "upgrade") {
		return http.StatusBadRequest, "the Connection header lacks the token upgrade"
	}
	if versions := r.Header["Sec-Websocket-Version"]; !tokens(versions, "13") {
		header.Set("Sec-WebSocket-Version", "13")
		return http.StatusUpgradeRequired, fmt.Sprintf("Sec-WebSocket-Version is %q: only 13 is spoken here", strings.Join(versions, ", "))
	}
	keys := r.Header["Sec-Websocket-Key"]
	if len(keys) != 1 {
		return http.StatusBadRequest, fmt.Sprintf("Sec-WebSocket-Key is there %d times: once is required", len(keys))
	}
	if raw, err := base64.StdEncoding.DecodeString(keys[0]); err != nil || len(raw) != 16 {
		return http.StatusBadRequest, "Sec-WebSocket-Key is not 16 bytes in base64"
	}
	if r.ContentLength != 0 {
		return http.StatusBadRequest, "a WebSocket handshake has no body"
	}
	seen := map[string]bool{}
	for _, name := range subprotocols(r) {
		if !token(name) || seen[name] {
			return http.StatusBadRequest, fmt.Sprintf("Sec-WebSocket-Protocol: %q is no token, or is there twice", name)
		}
		seen[name] = true
	}
	return 0, ""
}

// subprotocols are what the client offers, in its order.
func subprotocols(r *http.Request) []string {
	var names []string
	for _, line := range r.Header["Sec-Websocket-Protocol"] {
		for name := range strings.SplitSeq(line, ",") {
			if name = strings.TrimSpace(name); name != "" {
				names = append(names, name)
			}
		}
	}
	return names
}

// tokens reports whether a comma-separated list of tokens has this one, in any case.
func tokens(lines []string, want string) bool {
	for _, line := range lines {
		for item := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(item), want) {
				return true
			}
		}
	}
	return false
}

// token reports whether s is a token of RFC 9110, 5.6.2.
func token(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	})
}
