package bridge

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"wsbridge/upstream"
)

// maxList is the most connections that one GET lists.
const maxList = 1000

// Push returns the handler of the push side: what the backend and the operator may call. The metrics handler is served at /metrics.
func (b *Bridge) Push(metrics http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /connections/{id}", b.pushSend)
	mux.HandleFunc("GET /connections/{id}", b.pushShow)
	mux.HandleFunc("DELETE /connections/{id}", b.pushClose)
	mux.HandleFunc("GET /connections", b.pushList)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", b.ready)
	mux.Handle("GET /metrics", metrics)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)

	var sites http.CrossOriginProtection
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// A body that nobody has read by then is not waited for.
		defer func() { http.NewResponseController(w).SetReadDeadline(time.Now().Add(time.Second)) }()
		if r.URL.Path != "/healthz" && r.URL.Path != "/readyz" {
			if !b.authorized(w, r) {
				return
			}
		}
		// Check lets reading pass, whose answers another site's page can't see. It could still start a profile.
		site := r.Header.Get("Sec-Fetch-Site")
		if sites.Check(r) != nil || site == "cross-site" || site == "same-site" {
			problem(w, http.StatusForbidden, "", "a page of another site may not call this")
			return
		}
		handler, pattern := mux.Handler(r)
		if pattern == "" || !clean(r.URL.EscapedPath()) {
			probe := verdict{header: http.Header{}, status: http.StatusNotFound}
			if pattern == "" {
				handler.ServeHTTP(&probe, r)
			}
			if allow := probe.header.Get("Allow"); allow != "" {
				w.Header().Set("Allow", allow)
				problem(w, http.StatusMethodNotAllowed, "", fmt.Sprintf("%s is not for %s: use %s", r.Method, r.URL.Path, allow))
				return
			}
			problem(w, http.StatusNotFound, "", fmt.Sprintf("there is no %s", r.URL.Path))
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// clean reports whether a path has no dot segments and no empty ones: the mux would redirect to what it makes of it.
func clean(p string) bool {
	return p == "/" || path.Clean(p) == strings.TrimSuffix(p, "/")
}

// verdict is a response of which only the status and the headers matter.
type verdict struct {
	header http.Header
	status int
}

func (v *verdict) Header() http.Header         { return v.header }
func (v *verdict) Write(p []byte) (int, error) { return len(p), nil }
func (v *verdict) WriteHeader(status int)      { v.status = status }

// authorized lets a request with the token pass. Without a token configured only this host may call, under a name of its own: a page that
// has its name rebound to our address carries another.
func (b *Bridge) authorized(w http.ResponseWriter, r *http.Request) bool {
	if b.config.PushToken == "" {
		local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		if local != nil && local.Network() == "unix" || loopbackHost(r.Host) {
			return true
		}
		problem(w, http.StatusForbidden, "Host", fmt.Sprintf("without WSBRIDGE_PUSH_TOKEN the Host must be a loopback name such as localhost, not %q", r.Host))
		return false
	}
	scheme, offered, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		_, offered, _ = r.BasicAuth()
	}
	// Hashes have one length: the comparison tells nothing of the token's.
	want, got := sha256.Sum256([]byte(b.config.PushToken)), sha256.Sum256([]byte(offered))
	if subtle.ConstantTimeCompare(want[:], got[:]) == 1 {
		return true
	}
	w.Header()["Www-Authenticate"] = []string{`Bearer realm="wsbridge"`, `Basic realm="wsbridge"`}
	problem(w, http.StatusUnauthorized, "Authorization", "send the token of WSBRIDGE_PUSH_TOKEN as Authorization: Bearer, or as the password of Basic")
	return false
}

func loopbackHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.Trim(host, "[]"), ".")
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.Unmap().IsLoopback()
	}
	return strings.EqualFold(host, "localhost") || strings.HasSuffix(strings.ToLower(host), ".localhost")
}

// ready is 200 once the listeners are open and until the drain begins, whatever the backend does.
func (b *Bridge) ready(w http.ResponseWriter, _ *http.Request) {
	switch {
	case b.isDraining():
		problem(w, http.StatusServiceUnavailable, "", "draining")
	case !b.serving.Load():
		problem(w, http.StatusServiceUnavailable, "", "starting")
	default:
		fmt.Fprintln(w, "ready")
	}
}

func (b *Bridge) pushSend(w http.ResponseWriter, r *http.Request) {
	if !knownQuery(w, r) {
		return
	}
	contentType := r.Header.Get("Content-Type")
	if kind, _, _ := mime.ParseMediaType(contentType); strings.HasPrefix(kind, "multipart/") {
		problem(w, http.StatusUnsupportedMediaType, "Content-Type", fmt.Sprintf("%s is no message: send the body as it is", kind))
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, b.config.PushMaxBody))
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		b.metrics.pushes.WithLabelValues("too_large").Inc()
		problem(w, http.StatusRequestEntityTooLarge, "", fmt.Sprintf("the body is larger than %d bytes (WSBRIDGE_PUSH_MAX_BODY)", b.config.PushMaxBody))
		return
	} else if err != nil {
		problem(w, http.StatusBadRequest, "", "the body can't be read: "+err.Error())
		return
	}
	c := b.registry.find(r.PathValue("id"))
	if c == nil || !b.send(c, []upstream.Payload{upstream.NewPayload(contentType, false, body)}, false) {
		b.metrics.pushes.WithLabelValues("gone").Inc()
		gone(w, r)
		return
	}
	b.metrics.pushes.WithLabelValues("queued").Inc()
	w.WriteHeader(http.StatusAccepted)
}

func (b *Bridge) pushClose(w http.ResponseWriter, r *http.Request) {
	if !knownQuery(w, r, "code", "reason") {
		return
	}
	code, reason := 1000, r.URL.Query().Get("reason")
	if value := r.URL.Query().Get("code"); value != "" {
		var err error
		if code, err = strconv.Atoi(value); err != nil {
			problem(w, http.StatusBadRequest, "code", fmt.Sprintf("close code %q is no number", value))
			return
		}
	}
	if err := upstream.ValidClose(code, reason); err != nil {
		field := "code"
		if upstream.ValidClose(code, "") == nil {
			field = "reason"
		}
		problem(w, http.StatusBadRequest, field, err.Error())
		return
	}
	c := b.registry.find(r.PathValue("id"))
	if c == nil {
		gone(w, r)
		return
	}
	c.end(closeByBackend(code, reason))
	w.WriteHeader(http.StatusNoContent)
}

// view is a connection as the push side shows it.
type view struct {
	ID          string    `json:"id"`
	Opening     bool      `json:"opening,omitempty"`
	User        string    `json:"user,omitempty"`
	Groups      []string  `json:"groups"`
	Address     string    `json:"address"`
	Path        string    `json:"path"`
	Subprotocol string    `json:"subprotocol,omitempty"`
	Since       time.Time `json:"since"`
	LastSeen    time.Time `json:"last_seen"`
	Queue       struct {
		Messages int   `json:"messages"`
		Bytes    int64 `json:"bytes"`
	} `json:"queue"`
	MessagesIn  uint64 `json:"messages_in"`
	MessagesOut uint64 `json:"messages_out"`
	BytesIn     uint64 `json:"bytes_in"`
	BytesOut    uint64 `json:"bytes_out"`
	Dropped     uint64 `json:"dropped"`
}

func (c *conn) view() view {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := &c.record
	v := view{
		ID: r.ID, Opening: c.opening, User: r.User, Groups: append([]string{}, r.Groups...), Address: r.Handshake.Address, Path: r.Handshake.Path,
		Subprotocol: r.Subprotocol, Since: r.Since.UTC(), LastSeen: r.Since.UTC(),
		MessagesIn: r.MessagesIn, MessagesOut: r.MessagesOut, BytesIn: r.BytesIn, BytesOut: r.BytesOut, Dropped: r.Dropped,
	}
	if c.socket != nil {
		v.LastSeen = time.Unix(0, c.socket.heard.Load()).UTC()
	}
	for _, f := range c.out.messages {
		v.Queue.Messages += f.messages
	}
	v.Queue.Bytes = c.out.bytes
	return v
}

func (b *Bridge) pushShow(w http.ResponseWriter, r *http.Request) {
	if c := b.registry.find(r.PathValue("id")); c != nil {
		answer(w, c.view())
		return
	}
	gone(w, r)
}

func (b *Bridge) pushList(w http.ResponseWriter, r *http.Request) {
	if !knownQuery(w, r, "user", "group", "limit", "after") {
		return
	}
	query := r.URL.Query()
	for _, field := range []string{"user", "group"} {
		if value := query.Get(field); value != "" && !upstream.ValidName(value) {
			problem(w, http.StatusBadRequest, field, fmt.Sprintf("%s %q: use 1 to 200 printable ASCII characters without space, comma, quotes and %%", field, value))
			return
		}
	}
	limit := 100
	if value := query.Get("limit"); value != "" {
		var err error
		if limit, err = strconv.Atoi(value); err != nil || limit < 1 || limit > maxList {
			problem(w, http.StatusBadRequest, "limit", fmt.Sprintf("limit %q: use a number from 1 to %d", value, maxList))
			return
		}
	}
	page := struct {
		Connections []view `json:"connections"`
		Next        string `json:"next,omitempty"`
	}{Connections: []view{}}
	for _, c := range b.registry.after(query.Get("after")) {
		v := c.view()
		if user := query.Get("user"); user != "" && v.User != user {
			continue
		}
		if group := query.Get("group"); group != "" && !slices.Contains(v.Groups, group) {
			continue
		}
		if len(page.Connections) == limit {
			page.Next = page.Connections[limit-1].ID
			break
		}
		page.Connections = append(page.Connections, v)
	}
	answer(w, page)
}

// knownQuery refuses a request with a query parameter that means nothing here: an option that is ignored is a promise that is broken.
func knownQuery(w http.ResponseWriter, r *http.Request, names ...string) bool {
	for name := range r.URL.Query() {
		if !slices.Contains(names, name) {
			problem(w, http.StatusBadRequest, name, fmt.Sprintf("%s %s has no option %q", r.Method, r.URL.Path, name))
			return false
		}
	}
	return true
}

func gone(w http.ResponseWriter, r *http.Request) {
	problem(w, http.StatusGone, "", fmt.Sprintf("connection %q is not open", r.PathValue("id")))
}

func answer(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	json.NewEncoder(w).Encode(value)
}

// problem answers with a problem (RFC 9457). The field names what is wrong in the request, if one thing is.
func problem(w http.ResponseWriter, status int, field, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(struct {
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
		Field  string `json:"field,omitempty"`
	}{"about:blank", http.StatusText(status), status, detail, field})
}
