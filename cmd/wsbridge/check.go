package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"
	"time"

	"wsbridge/bridge"
	"wsbridge/ratelimit"
	"wsbridge/upstream"
)

// check says whether the program would start with this environment and whether the backend answers, one line for each finding. It
// sends no event. The exit code is 0 when all is well, 1 when something failed and 2 when a setting is faulty.
func check(ctx context.Context, environ []string, stdout io.Writer) int {
	r := findings{out: stdout}
	s, faults := parse(environ)
	for _, f := range faults {
		r.fail("%v", f)
	}
	if r.failed {
		return exitSettings
	}
	r.ok("the settings are valid")
	r.listener(ctx, "WSBRIDGE_LISTEN", s.Process.Listen, s)
	r.listener(ctx, "WSBRIDGE_PUSH_LISTEN", s.Process.PushListen, s)
	if s.Bridge.PushToken != "" {
		r.ok("pushes need the token")
	} else {
		r.ok("pushes need no token; only this machine can reach WSBRIDGE_PUSH_LISTEN")
	}
	if len(s.Backend.Secret) > 0 {
		r.ok("events are signed")
	} else {
		r.warn("events are not signed (WSBRIDGE_BACKEND_SECRET): whoever else reaches WSBRIDGE_BACKEND_URL can claim to be any user")
	}
	if dir := s.Bridge.StateDir; dir == "" {
		r.warn("disconnect events that the backend has not taken when the program stops are lost (WSBRIDGE_STATE_DIR)")
	} else if err := bridge.CheckStateDir(dir); err != nil {
		r.fail("WSBRIDGE_STATE_DIR=%s cannot be used: %v", dir, err)
	} else {
		r.ok("WSBRIDGE_STATE_DIR=%s keeps disconnect events over a stop", dir)
	}
	if s.Process.TLSCert != "" {
		r.certificate(s.Process.TLSCert, s.Process.TLSKey)
	}
	if limit := descriptors(); limit > 0 && uint64(s.Bridge.MaxConnections) >= limit {
		r.warn("WSBRIDGE_MAX_CONNECTIONS is %d, but this process may open %d files only: raise LimitNOFILE= of the unit", s.Bridge.MaxConnections, limit)
	}
	if rate := s.Rate; rate.Policy == ratelimit.End && rate.Bytes > 0 && rate.BytesBurst < s.Bridge.MaxMessage {
		r.warn("WSBRIDGE_RATE_BYTES_BURST is %d bytes: with WSBRIDGE_RATE_POLICY=close a larger message ends its connection, though WSBRIDGE_MAX_MESSAGE allows it", rate.BytesBurst)
	}
	r.backend(ctx, s)
	if r.failed {
		return exitFailure
	}
	return 0
}

// findings prints what check finds out.
type findings struct {
	out    io.Writer
	failed bool
}

func (r *findings) ok(format string, args ...any)   { fmt.Fprintf(r.out, "ok   "+format+"\n", args...) }
func (r *findings) warn(format string, args ...any) { fmt.Fprintf(r.out, "warn "+format+"\n", args...) }
func (r *findings) fail(format string, args ...any) {
	fmt.Fprintf(r.out, "FAIL "+format+"\n", args...)
	r.failed = true
}

// listener binds and lets go again. A check is often run beside the running service, which then is what holds the address.
func (r *findings) listener(ctx context.Context, name, address string, s settings) {
	l, err := listen(ctx, address, s.Process.SocketMode)
	switch {
	case errors.Is(err, syscall.EADDRINUSE) && running(ctx, s.Process.PushListen):
		r.warn("%s=%s is in use: wsbridge is already running", name, address)
	case errors.Is(err, syscall.EADDRINUSE):
		r.fail("%s=%s is in use by another program: no wsbridge answers at WSBRIDGE_PUSH_LISTEN=%s", name, address, s.Process.PushListen)
	case err != nil:
		r.fail("%s=%s cannot be bound: %v", name, address, err)
	default:
		l.Close()
		r.ok("%s=%s can be bound", name, address)
	}
}

// running reports whether a wsbridge is healthy at the address for pushes.
func running(ctx context.Context, pushListen string) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/healthz", nil)
	if err != nil {
		return false
	}
	answer, err := transportTo(pushListen).RoundTrip(request)
	if err != nil {
		return false
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, 16))
	return err == nil && answer.StatusCode == http.StatusOK && strings.TrimSpace(string(body)) == "ok"
}

func (r *findings) certificate(certFile, keyFile string) {
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		r.fail("WSBRIDGE_TLS_CERT=%s and WSBRIDGE_TLS_KEY=%s do not load: %v", certFile, keyFile, err)
		return
	}
	if now := time.Now(); now.After(pair.Leaf.NotAfter) || now.Before(pair.Leaf.NotBefore) {
		r.warn("WSBRIDGE_TLS_CERT=%s is valid from %s to %s only: clients will refuse it", certFile,
			pair.Leaf.NotBefore.Format(time.DateOnly), pair.Leaf.NotAfter.Format(time.DateOnly))
		return
	}
	r.ok("WSBRIDGE_TLS_CERT=%s is valid until %s", certFile, pair.Leaf.NotAfter.Format(time.DateOnly))
}

// backend asks for the options of the path that events go to, which changes nothing there.
func (r *findings) backend(ctx context.Context, s settings) {
	client, err := upstream.New(s.Backend, s.Process.Node, nil, nil)
	if err == nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, 5*time.Second, errors.New("no answer to OPTIONS within 5s"))
		defer cancel()
		err = client.Probe(ctx, examplePath(s.Bridge.Paths))
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
	}
	if err != nil {
		r.fail("WSBRIDGE_BACKEND_URL=%s: %v", s.Backend.URL, err)
		return
	}
	r.ok("WSBRIDGE_BACKEND_URL=%s answers", s.Backend.URL)
}

// examplePath returns a path that a client might ask for: the first that is written out, or what stands before the first pattern's *.
func examplePath(paths []bridge.Path) string {
	for _, p := range paths {
		if !strings.Contains(string(p), "*") {
			return string(p)
		}
	}
	return strings.TrimSuffix(string(paths[0]), "*")
}
