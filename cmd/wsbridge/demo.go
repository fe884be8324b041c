package main

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"time"
)

//go:embed demo.html
var demoHTML string

const demoUsage = "wsbridge demo [-listen address]"

const demoGreeting = `The demo of wsbridge is ready. Open this page, twice:

    %[1]s/

Push into one of its tabs from another terminal:

    curl %[2]s/connections
    curl -d 'hello from curl' %[2]s/connections/ID

The first lists the tabs by their ids, the second sends to one. Ctrl-C ends the demo.
`

// demo runs the sidecar with an application and a page to try it, each part at its own address as it would be in
// earnest.
func demo(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("wsbridge demo", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // an error is the caller's to print
	listen := flags.String("listen", "", "`address` of the page (default 127.0.0.1:8000, or a free port where that is taken)")
	err := flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(stdout, demoUsage)
		flags.SetOutput(stdout)
		flags.PrintDefaults()
		return nil
	}
	if err == nil && flags.NArg() > 0 {
		err = fmt.Errorf("takes no arguments, not %q", flags.Args())
	}
	if err != nil {
		return fault{Variable: "demo", Problem: fmt.Sprintf("%v; usage: %s", err, demoUsage)}
	}

	front, err := listenFront(*listen)
	if err != nil {
		return err
	}
	defer front.Close()
	var private [3]net.Listener
	for i := range private {
		if private[i], err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return err
		}
		defer private[i].Close()
	}
	clients, pushes, events := private[0], private[1], private[2]

	settings := []string{
		"WSBRIDGE_LISTEN=" + clients.Addr().String(),
		"WSBRIDGE_PUSH_LISTEN=" + pushes.Addr().String(),
		"WSBRIDGE_BACKEND_URL=" + httpURL(events) + "/ws",
		"WSBRIDGE_DRAIN_TIMEOUT=10s",
		"WSBRIDGE_LOG_LEVEL=warn",
	}
	s, faults := parse(settings)
	if len(faults) > 0 {
		return errors.Join(faultsAsErrors(faults)...)
	}
	logger, _ := newLogger(s, stderr)

	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	seen := newTrace()
	talk := newChat(httpURL(pushes))
	talk.client.Transport = seen.pushes(transport)
	app := http.NewServeMux()
	app.Handle("POST /ws", seen.posts(talk))
	app.Handle("GET /trace", seen)
	app.Handle("GET /{$}", servePage(demoHTML))

	// The front is what nginx is in earnest. No POST passes it: the application believes what an event says, so that only
	// the sidecar may bring one.
	doors := http.NewServeMux()
	doors.Handle("GET /ws", proxyTo(clients, transport))
	doors.Handle("GET /trace", proxyTo(events, transport))
	doors.Handle("GET /{$}", proxyTo(events, transport))
	if s.Process.Holder == "on" {
		doors.Handle("/worker", http.NewCrossOriginProtection().Handler(mortal{seen}))
	}

	// The servers outlive ctx: while the sidecar drains it still posts to the application.
	running, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	open, shut := context.WithCancel(context.WithoutCancel(ctx))
	defer shut()
	servers := []*http.Server{
		{Handler: app, BaseContext: func(net.Listener) context.Context { return open }},
		{Handler: doors},
	}
	var serving sync.WaitGroup
	for i, l := range []net.Listener{events, front} {
		servers[i].ReadHeaderTimeout = 10 * time.Second
		servers[i].ErrorLog = slog.NewLogLogger(logger.Handler(), slog.LevelDebug)
		serving.Go(func() {
			if err := servers[i].Serve(l); !errors.Is(err, http.ErrServerClosed) {
				fail(err)
			}
		})
	}

	fmt.Fprintf(stdout, demoGreeting, httpURL(front), httpURL(pushes))
	if s.Process.Holder == "on" {
		err = holdDemo(running, settings, clients, pushes, stderr)
	} else {
		err = serve(running, s, settings, logger, clients, pushes)
	}

	shut() // the streams of the trace have no end of their own
	patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	for _, server := range servers {
		if server.Shutdown(patience) != nil {
			server.Close()
		}
	}
	serving.Wait()
	if ctx.Err() == nil && err == nil {
		err = context.Cause(running)
	}
	return err
}

// listenFront opens the address of the page. Without a wish it is 8000, or any port where 8000 is taken.
func listenFront(address string) (net.Listener, error) {
	if address != "" {
		return net.Listen("tcp", address)
	}
	l, err := net.Listen("tcp", "127.0.0.1:8000")
	if err != nil {
		return net.Listen("tcp", "127.0.0.1:0")
	}
	return l, nil
}

func httpURL(l net.Listener) string {
	host, port, _ := net.SplitHostPort(l.Addr().String())
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	return "http://" + net.JoinHostPort(host, port)
}

func proxyTo(l net.Listener, transport http.RoundTripper) *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Transport: transport,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: l.Addr().String()})
			r.SetXForwarded()
			r.Out.Host = r.In.Host
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) {
			w.WriteHeader(http.StatusBadGateway) // the sidecar is ending; the page tries again
		},
	}
}

// servePage answers with a page whose only resources are its own style and script.
func servePage(html string) http.Handler {
	policy := strings.Join([]string{
		"default-src 'none'",
		"style-src " + hashOf(html, "<style>", "</style>"),
		"script-src " + hashOf(html, "<script>", "</script>"),
		"connect-src 'self'", // the trace and, on the same host and port, the WebSocket
		"img-src data:",
		"base-uri 'none'",
		"form-action 'none'",
		"frame-ancestors 'none'",
	}, "; ")
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", policy)
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-cache")
		io.WriteString(w, html)
	})
}

// hashOf names what stands between two tags, as a Content-Security-Policy does.
func hashOf(html, from, to string) string {
	_, rest, _ := strings.Cut(html, from)
	inside, _, _ := strings.Cut(rest, to)
	sum := sha256.Sum256([]byte(inside))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}
