package bridge

import (
	"crypto/sha256"
	"crypto/subtle"
	_ "embed" // for openapi.json
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"
)

//go:embed openapi.json
var openAPI []byte

// routes are what the backend may call, as openapi.json describes them.
func (b *Bridge) routes() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"POST /connections":                       b.pushSend,
		"GET /connections":                        b.pushList,
		"POST /connections/{id}":                  b.pushSend,
		"GET /connections/{id}":                   b.pushShow,
		"DELETE /connections/{id}":                b.hereOrThere(b.pushClose),
		"POST /users/{user}":                      b.pushSend,
		"GET /users/{user}":                       b.pushList,
		"DELETE /users/{user}":                    b.hereOrThere(b.pushClose),
		"PUT /users/{user}/connections/{id}":      b.hereOrThere(b.pushMember),
		"DELETE /users/{user}/connections/{id}":   b.hereOrThere(b.pushMember),
		"POST /groups/{group}":                    b.pushSend,
		"GET /groups/{group}":                     b.pushList,
		"DELETE /groups/{group}":                  b.hereOrThere(b.pushClose),
		"PUT /groups/{group}/connections/{id}":    b.hereOrThere(b.pushMember),
		"DELETE /groups/{group}/connections/{id}": b.hereOrThere(b.pushMember),
		"POST /batch":                             b.pushBatch,
		"GET /openapi.json": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Write(openAPI)
		},
	}
}

// Push returns the handler of the push side: what the backend and the operator may call. The metrics handler is served at /metrics, the page at /.
func (b *Bridge) Push(metrics, page http.Handler) http.Handler {
	mux := http.NewServeMux()
	for pattern, handler := range b.routes() {
		mux.HandleFunc(pattern, handler)
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", b.ready)
	mux.Handle("GET /metrics", metrics)
	mux.Handle("GET /{$}", page)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)

	var sites http.CrossOriginProtection
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		read := false
		defer func() {
			if !read { // a body that nobody has read by then is not waited for
				http.NewResponseController(w).SetReadDeadline(time.Now().Add(time.Second))
			}
		}()
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
		if next := b.next.Load(); next != nil {
			next.serve(w, r, nil)
			return
		}
		if t, ok := sendRoute(r); ok {
			read = b.send(w, r, t)
			return
		}
		handler, pattern := mux.Handler(r)
		if pattern == "" || !clean(r.URL.EscapedPath()) {
			probe := outline{header: http.Header{}, status: http.StatusNotFound}
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

// hereOrThere makes of a handler that does not wait one that passes on what comes too late.
func (b *Bridge) hereOrThere(handler http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if next := b.here(func() { handler(w, r) }); next != nil {
			next.serve(w, r, nil)
		}
	}
}

// clean reports whether a path has no dot segments and no empty ones: the mux would redirect to what it makes of it.
func clean(p string) bool {
	return p == "/" || path.Clean(p) == strings.TrimSuffix(p, "/")
}

// outline is a response of which only the status and the headers matter.
type outline struct {
	header http.Header
	status int
}

func (o *outline) Header() http.Header         { return o.header }
func (o *outline) Write(p []byte) (int, error) { return len(p), nil }
func (o *outline) WriteHeader(status int)      { o.status = status }

// authorized lets a request with the token pass. Without a token configured only this host may call, under a name of its own: a page that
// has its name rebound to our address carries another.
func (b *Bridge) authorized(w http.ResponseWriter, r *http.Request) bool {
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if b.allows(local, r.Host, r.Header.Get("Authorization")) {
		return true
	}
	if b.config.PushToken == "" {
		problem(w, http.StatusForbidden, "Host", fmt.Sprintf("without WSBRIDGE_PUSH_TOKEN the Host must be a loopback name such as localhost, not %q", r.Host))
		return false
	}
	w.Header()["Www-Authenticate"] = []string{`Bearer realm="wsbridge"`, `Basic realm="wsbridge"`}
	problem(w, http.StatusUnauthorized, "Authorization", "send the token of WSBRIDGE_PUSH_TOKEN as Authorization: Bearer, or as the password of Basic")
	return false
}

// allows reports whether a request to the local address, with that Host and Authorization, may pass.
func (b *Bridge) allows(local net.Addr, host, authorization string) bool {
	if b.config.PushToken == "" {
		return local != nil && local.Network() == "unix" || loopbackHost(host)
	}
	scheme, offered, _ := strings.Cut(authorization, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		_, offered, _ = (&http.Request{Header: http.Header{"Authorization": {authorization}}}).BasicAuth()
	}
	// Hashes have one length: the comparison tells nothing of the token's.
	want, got := sha256.Sum256([]byte(b.config.PushToken)), sha256.Sum256([]byte(offered))
	return subtle.ConstantTimeCompare(want[:], got[:]) == 1
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

// knownQuery refuses a request with a query parameter that means nothing here: an option that is ignored is a promise that is broken.
func knownQuery(w http.ResponseWriter, r *http.Request, names ...string) bool {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		problem(w, http.StatusBadRequest, "", "the query can't be read: "+err.Error())
		return false
	}
	for name := range query {
		if !slices.Contains(names, name) {
			noOption(w, r, name)
			return false
		}
	}
	return true
}

func noOption(w http.ResponseWriter, r *http.Request, name string) {
	problem(w, http.StatusBadRequest, name, fmt.Sprintf("%s %s has no option %q", r.Method, r.URL.Path, name))
}

func gone(w http.ResponseWriter, r *http.Request) {
	problem(w, http.StatusGone, "", fmt.Sprintf("connection %q is not open", r.PathValue("id")))
}

// named returns whom the route of a request names. Without a name it is all connections.
func named(w http.ResponseWriter, r *http.Request) (target, bool) {
	t := target{kind: toAll}
	for kind, field := range map[targetKind]string{toOne: "id", toUser: "user", toGroup: "group"} {
		if name := r.PathValue(field); name != "" {
			t = target{kind: kind, name: name}
		}
	}
	if err := t.valid(); err != nil {
		problem(w, http.StatusBadRequest, map[targetKind]string{toUser: "user", toGroup: "group"}[t.kind], err.Error())
		return t, false
	}
	return t, true
}

func answer(w http.ResponseWriter, status int, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(value)
}

// problemDetails is a problem (RFC 9457). The field names what is wrong in the request, if one thing is.
type problemDetails struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	Field  string `json:"field,omitempty"`
}

func newProblem(status int, field, detail string) problemDetails {
	return problemDetails{"about:blank", http.StatusText(status), status, detail, field}
}

func problem(w http.ResponseWriter, status int, field, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(newProblem(status, field, detail))
}
