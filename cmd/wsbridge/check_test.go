package main

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wsbridge/bridge"
)

// checked runs check with free ports and returns its exit code and what it prints.
func checked(ctx context.Context, environ ...string) (code int, stdout string) {
	var out strings.Builder
	environ = append([]string{"WSBRIDGE_LISTEN=127.0.0.1:0", "WSBRIDGE_PUSH_LISTEN=127.0.0.1:0"}, environ...)
	code = check(ctx, environ, &out)
	return code, out.String()
}

// backend answers every request with the status and counts what was not asked for by OPTIONS.
type backend struct {
	*httptest.Server
	asked, events atomic.Int64
	path          atomic.Value
}

func newBackend(t *testing.T, status int) *backend {
	t.Helper()
	b := &backend{}
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodOptions {
			b.asked.Add(1)
		} else {
			b.events.Add(1)
		}
		b.path.Store(r.URL.Path)
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(status)
	}))
	t.Cleanup(b.Close)
	return b
}

func TestCheckAsksTheBackendForItsOptionsOnly(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]int{200: 0, 204: 0, 401: 0, 405: 0, 426: 0, 301: 1, 302: 1, 404: 1, 500: 1, 503: 1} {
		b := newBackend(t, status)
		code, stdout := checked(t.Context(), "WSBRIDGE_BACKEND_URL="+b.URL)
		if code != want {
			t.Errorf("backend answers %d: code = %d, want %d\n%s", status, code, want, stdout)
		}
		if asked, events := b.asked.Load(), b.events.Load(); asked != 1 || events != 0 {
			t.Errorf("backend answers %d: it was asked %d times and sent %d others, want 1 and 0", status, asked, events)
		}
		verdict := "ok   WSBRIDGE_BACKEND_URL=" + b.URL
		if want == 1 {
			verdict = "FAIL WSBRIDGE_BACKEND_URL=" + b.URL
		}
		if !strings.Contains(stdout, verdict) {
			t.Errorf("backend answers %d: output has no line %q:\n%s", status, verdict, stdout)
		}
	}
}

func TestCheckAsksForThePathThatEventsGoTo(t *testing.T) {
	t.Parallel()
	for _, row := range []struct{ url, paths, want string }{
		{"", "", "/ws"},
		{"", "/rooms/*,/chat", "/chat"},
		{"", "/rooms/*", "/rooms/"},
		{"/realtime.php", "", "/realtime.php"},
		{"/realtime.php", "/chat", "/realtime.php"},
	} {
		b := newBackend(t, 200)
		if code, stdout := checked(t.Context(), "WSBRIDGE_BACKEND_URL="+b.URL+row.url, "WSBRIDGE_PATHS="+row.paths); code != 0 {
			t.Errorf("code = %d, want 0\n%s", code, stdout)
		}
		if got := b.path.Load(); got != row.want {
			t.Errorf("URL path %q, WSBRIDGE_PATHS=%q: asked for %v, want %s", row.url, row.paths, got, row.want)
		}
	}
}

func TestEveryPatternHasAnExamplePath(t *testing.T) {
	t.Parallel()
	if got := examplePath([]bridge.Path{"/*"}); got != "/" {
		t.Errorf("examplePath(/*) = %q, want /", got)
	}
}

func TestCheckReachesABackendOnAUnixSocket(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	server := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusMethodNotAllowed) })}
	go server.Serve(mustListen(t, "unix:"+path, 0o600))
	defer server.Close()
	if code, stdout := checked(t.Context(), "WSBRIDGE_BACKEND_URL=http://unix:"+path+":/events"); code != 0 {
		t.Errorf("code = %d, want 0\n%s", code, stdout)
	}
}

func TestCheckTrustsTheBackendsOwnAuthority(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // of the handshakes that are meant to fail
	server.StartTLS()
	defer server.Close()
	authority := writeFile(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	for _, row := range []struct {
		environ []string
		want    int
	}{
		{nil, 1},
		{[]string{"WSBRIDGE_BACKEND_CA=" + authority}, 0},
		{[]string{"WSBRIDGE_BACKEND_CA=" + authority, "WSBRIDGE_BACKEND_TLS_NAME=example.com"}, 0},
		{[]string{"WSBRIDGE_BACKEND_CA=" + authority, "WSBRIDGE_BACKEND_TLS_NAME=example.net"}, 1},
	} {
		if code, stdout := checked(t.Context(), append(row.environ, "WSBRIDGE_BACKEND_URL="+server.URL)...); code != row.want {
			t.Errorf("with %q: code = %d, want %d\n%s", row.environ, code, row.want, stdout)
		}
	}
}

func TestCheckDoesNotWaitForASilentBackend(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	start := time.Now()
	code, stdout := checked(t.Context(), "WSBRIDGE_BACKEND_URL=http://"+silent.Addr().String())
	if code != 1 || !strings.Contains(stdout, "no answer to OPTIONS within 5s") {
		t.Errorf("code = %d, want 1 with the reason\n%s", code, stdout)
	}
	if elapsed := time.Since(start); elapsed < 5*time.Second || elapsed > 8*time.Second {
		t.Errorf("elapsed = %v, want about 5s", elapsed)
	}
}

func TestCheckFailsWhereNothingListens(t *testing.T) {
	t.Parallel()
	gone := mustListen(t, "127.0.0.1:0", 0)
	gone.Close()
	code, stdout := checked(t.Context(), "WSBRIDGE_BACKEND_URL=http://"+gone.Addr().String())
	if code != 1 || !strings.Contains(stdout, "connection refused") {
		t.Errorf("code = %d, want 1 with the reason\n%s", code, stdout)
	}
}

func TestCheckReportsEveryFaultAndStops(t *testing.T) {
	t.Parallel()
	b := newBackend(t, 200)
	code, stdout := checked(t.Context(), "WSBRIDGE_BACKEND_URL="+b.URL, "WSBRIDGE_PING_INTERVAL=x", "WSBRIDGE_PATHZ=Tr0ub4dor", "WSBRIDGE_PUSH_LISTEN=:0")
	if code != 2 || b.asked.Load() != 0 {
		t.Errorf("code = %d, the backend was asked %d times, want 2 and 0\n%s", code, b.asked.Load(), stdout)
	}
	for _, finding := range []string{`FAIL WSBRIDGE_PING_INTERVAL="x": `, "FAIL WSBRIDGE_PATHZ: ", "FAIL WSBRIDGE_PUSH_TOKEN: "} {
		if !strings.Contains("\n"+stdout, "\n"+finding) {
			t.Errorf("no line starts with %s:\n%s", finding, stdout)
		}
	}
	if got := strings.Count(stdout, "\n"); got != 3 || strings.Contains(stdout, "Tr0ub4dor") {
		t.Errorf("findings = %q, want three lines without the value of an unknown variable", stdout)
	}
}

func TestCheckOnlyWarnsOfListenersThatARunningWsbridgeHolds(t *testing.T) {
	t.Parallel()
	b := newBackend(t, 200)
	for _, addresses := range [][2]string{
		{"127.0.0.1:0", "127.0.0.1:0"},
		{"127.0.0.1:0", "[::]:0"},
		{"unix:" + socketPath(t), "unix:" + socketPath(t)},
	} {
		ctx, stop := context.WithCancel(t.Context())
		clients, pushes := mustListen(t, addresses[0], 0o600), mustListen(t, addresses[1], 0o600)
		environ := []string{"WSBRIDGE_BACKEND_URL=" + b.URL, "WSBRIDGE_PUSH_TOKEN=t", "WSBRIDGE_LISTEN=" + spelled(clients), "WSBRIDGE_PUSH_LISTEN=" + spelled(pushes)}
		s := mustParse(t, environ...)
		var serving sync.WaitGroup
		serving.Go(func() {
			if err := serve(ctx, s, nil, slog.New(slog.DiscardHandler), clients, pushes); err != nil {
				t.Error(err)
			}
		})
		code, stdout := checked(t.Context(), environ...)
		if code != 0 || strings.Count(stdout, "is in use: wsbridge is already running\n") != 2 || strings.Count(stdout, "warn WSBRIDGE_") != 2 {
			t.Errorf("%q: code = %d, want 0 with two warnings\n%s", addresses, code, stdout)
		}
		stop()
		serving.Wait()
	}
}

func TestCheckFailsWhereAnotherProgramHoldsAListener(t *testing.T) {
	t.Parallel()
	b := newBackend(t, 200)
	answering := func(address string, status int, body string) string {
		l := mustListen(t, address, 0o600)
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			io.WriteString(w, body)
		})}
		go server.Serve(l)
		t.Cleanup(func() { server.Close() })
		return spelled(l)
	}
	silent := spelled(mustListen(t, "127.0.0.1:0", 0))
	for _, row := range []struct{ what, listen, push, fails string }{
		{"the clients' address is another's, that of the pushes is free", answering("127.0.0.1:0", 200, "ok\n"), "127.0.0.1:0", "WSBRIDGE_LISTEN"},
		{"no answer", "127.0.0.1:0", silent, "WSBRIDGE_PUSH_LISTEN"},
		{"another answer", "127.0.0.1:0", answering("127.0.0.1:0", 200, "okay, but what is this?"), "WSBRIDGE_PUSH_LISTEN"},
		{"another status", "127.0.0.1:0", answering("127.0.0.1:0", 404, "ok\n"), "WSBRIDGE_PUSH_LISTEN"},
		{"another program on a unix socket", "127.0.0.1:0", answering("unix:"+socketPath(t), 500, ""), "WSBRIDGE_PUSH_LISTEN"},
	} {
		start := time.Now()
		code, stdout := checked(t.Context(), "WSBRIDGE_BACKEND_URL="+b.URL, "WSBRIDGE_LISTEN="+row.listen, "WSBRIDGE_PUSH_LISTEN="+row.push)
		if code != 1 || !strings.Contains(stdout, "FAIL "+row.fails+"=") || !strings.Contains(stdout, "is in use by another program") || strings.Count(stdout, "FAIL") != 1 {
			t.Errorf("%s: code = %d, want 1 with %s\n%s", row.what, code, row.fails, stdout)
		}
		if elapsed := time.Since(start); elapsed > 4*time.Second {
			t.Errorf("%s: elapsed = %v, want about 2s at most", row.what, elapsed)
		}
	}
}

// spelled is a listener's address as a setting has it.
func spelled(l net.Listener) string {
	if l.Addr().Network() == "unix" {
		return "unix:" + l.Addr().String()
	}
	return l.Addr().String()
}

func TestCheckLeavesNoListenerBehind(t *testing.T) {
	t.Parallel()
	b := newBackend(t, 200)
	path := socketPath(t)
	code, stdout := checked(t.Context(), "WSBRIDGE_BACKEND_URL="+b.URL, "WSBRIDGE_LISTEN=unix:"+path)
	if code != 0 || !strings.Contains(stdout, "ok   WSBRIDGE_LISTEN=unix:"+path+" can be bound") {
		t.Errorf("code = %d, want 0 with the listener\n%s", code, stdout)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket after a check: Lstat = %v, want %v", err, fs.ErrNotExist)
	}
}

func TestCheckFailsWhereAListenerCannotBeBound(t *testing.T) {
	t.Parallel()
	b := newBackend(t, 200)
	for _, listener := range []string{"WSBRIDGE_LISTEN", "WSBRIDGE_PUSH_LISTEN"} {
		code, stdout := checked(t.Context(), "WSBRIDGE_BACKEND_URL="+b.URL, listener+"=unix:/nonexistent/sock")
		if code != 1 || !strings.Contains(stdout, "FAIL "+listener+"=unix:/nonexistent/sock cannot be bound") {
			t.Errorf("code = %d, want 1 with the listener\n%s", code, stdout)
		}
	}
}

func TestCheckLooksAtTheCertificate(t *testing.T) {
	t.Parallel()
	b := newBackend(t, 200)
	now := time.Now()
	for _, row := range []struct {
		what     string
		from, to time.Time
		code     int
		want     string
	}{
		{"valid", now.Add(-time.Hour), now.Add(time.Hour), 0, "ok   WSBRIDGE_TLS_CERT="},
		{"expired", now.Add(-2 * time.Hour), now.Add(-time.Hour), 0, "warn WSBRIDGE_TLS_CERT="},
		{"of the future", now.Add(time.Hour), now.Add(2 * time.Hour), 0, "warn WSBRIDGE_TLS_CERT="},
		{"missing", time.Time{}, time.Time{}, 1, "FAIL WSBRIDGE_TLS_CERT="},
	} {
		files := newPairFiles(t)
		if !row.from.IsZero() {
			cert, key := newPair(t, 1, row.from, row.to)
			renew(t, files.cert, cert)
			renew(t, files.key, key)
		}
		code, stdout := checked(t.Context(), "WSBRIDGE_BACKEND_URL="+b.URL, "WSBRIDGE_TLS_CERT="+files.cert, "WSBRIDGE_TLS_KEY="+files.key)
		if code != row.code || !strings.Contains(stdout, row.want) {
			t.Errorf("certificate %s: code = %d, want %d with %q\n%s", row.what, code, row.code, row.want, stdout)
		}
	}
}

func TestCheckWarnsOfMoreConnectionsThanDescriptors(t *testing.T) {
	t.Parallel()
	b := newBackend(t, 200)
	limit := descriptors()
	for connections, want := range map[uint64]bool{limit: true, limit - 1: false} {
		code, stdout := checked(t.Context(), "WSBRIDGE_BACKEND_URL="+b.URL, fmt.Sprintf("WSBRIDGE_MAX_CONNECTIONS=%d", connections))
		if got := strings.Contains(stdout, "warn WSBRIDGE_MAX_CONNECTIONS"); code != 0 || got != want {
			t.Errorf("%d connections with %d descriptors: code = %d, want 0, with a warning: %v\n%s", connections, limit, code, want, stdout)
		}
	}
}

func TestCheckWarnsOfMessagesThatNoRateLetsPass(t *testing.T) {
	t.Parallel()
	b := newBackend(t, 200)
	for _, row := range []struct {
		environ []string
		want    bool
	}{
		{[]string{"WSBRIDGE_RATE_POLICY=close", "WSBRIDGE_RATE_BYTES=16KiB"}, true},
		{[]string{"WSBRIDGE_RATE_POLICY=close", "WSBRIDGE_RATE_BYTES=16KiB", "WSBRIDGE_RATE_BYTES_BURST=64KiB"}, false},
		{[]string{"WSBRIDGE_RATE_POLICY=wait", "WSBRIDGE_RATE_BYTES=16KiB"}, false},
		{[]string{"WSBRIDGE_RATE_POLICY=close"}, false},
	} {
		code, stdout := checked(t.Context(), append(row.environ, "WSBRIDGE_BACKEND_URL="+b.URL)...)
		if got := strings.Contains(stdout, "warn WSBRIDGE_RATE_BYTES_BURST"); code != 0 || got != row.want {
			t.Errorf("with %q: code = %d, want 0, with a warning: %v\n%s", row.environ, code, row.want, stdout)
		}
	}
}

func TestCheckWarnsOfEventsThatAnybodyCouldForge(t *testing.T) {
	t.Parallel()
	b := newBackend(t, 200)
	if code, stdout := checked(t.Context(), "WSBRIDGE_BACKEND_URL="+b.URL); code != 0 || !strings.Contains(stdout, "warn events are not signed") {
		t.Errorf("without a secret: code = %d, want 0 with a warning\n%s", code, stdout)
	}
	if code, stdout := checked(t.Context(), "WSBRIDGE_BACKEND_URL="+b.URL, "WSBRIDGE_BACKEND_SECRET=whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"); code != 0 || strings.Contains(stdout, "warn events") {
		t.Errorf("with a secret: code = %d, want 0 without a warning\n%s", code, stdout)
	}
}

func TestCheckTriesTheStateDirectory(t *testing.T) {
	t.Parallel()
	b := newBackend(t, 200)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		environ []string
		code    int
		want    string
	}{
		{nil, 0, "warn disconnect events"},
		{[]string{"WSBRIDGE_STATE_DIR=" + filepath.Join(dir, "new")}, 0, "ok   WSBRIDGE_STATE_DIR="},
		{[]string{"WSBRIDGE_STATE_DIR=" + file}, 1, "FAIL WSBRIDGE_STATE_DIR=" + file},
	} {
		if code, stdout := checked(t.Context(), append(row.environ, "WSBRIDGE_BACKEND_URL="+b.URL)...); code != row.code || !strings.Contains(stdout, row.want) {
			t.Errorf("with %q: code = %d, want %d with %q\n%s", row.environ, code, row.code, row.want, stdout)
		}
	}
}
