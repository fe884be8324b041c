package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// idleFor is how long a connection to the backend is kept without use: less than any server's own limit (Starman's is 1 s), so
// that a POST hardly ever meets the server's close.
const idleFor = 500 * time.Millisecond

// maxHeader bounds the headers of an answer, in bytes.
const maxHeader = 64 << 10

// Client POSTs events to the backend. It is safe for concurrent use.
type Client struct {
	config    Config
	source    string
	forward   []string // canonical names
	transport http.RoundTripper
	turns     chan struct{} // one place for each POST that may be under way

	posts   *prometheus.CounterVec
	seconds *prometheus.HistogramVec
}

// New returns a client of the configured backend. The node names this program in ce-source. A nil registry keeps no
// metrics; a nil transport is the real one.
func New(config Config, node string, registry prometheus.Registerer, transport http.RoundTripper) (*Client, error) {
	c := &Client{
		config: config, source: "/wsbridge/" + node, transport: transport, turns: make(chan struct{}, config.MaxConcurrent),
		posts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "wsbridge_events_total", Help: "Events POSTed to the backend, by type and result."}, []string{"type", "result"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "wsbridge_event_duration_seconds", Help: "Time from the start of a POST to its whole answer.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2.5, 12)}, []string{"type"}),
	}
	for _, name := range config.ForwardHeaders {
		if name = textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(name)); !slices.Contains(c.forward, name) {
			c.forward = append(c.forward, name)
		}
	}
	if transport == nil {
		var err error
		if c.transport, err = newTransport(config); err != nil {
			return nil, err
		}
	}
	if registry != nil {
		registry.MustRegister(c.posts, c.seconds, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "wsbridge_events_in_flight", Help: "POSTs under way."}, func() float64 { return float64(len(c.turns)) }))
	}
	return c, nil
}

func newTransport(config Config) (*http.Transport, error) {
	// A dial goes on when its POST has given up, for the next one's sake. That must end, too.
	dialer := net.Dialer{Timeout: config.Timeout}
	t := &http.Transport{
		// No proxy from the environment: the backend is a neighbour. No compression: Accept-Encoding is ours. HTTP/1.1 only.
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			if config.URL.socket != "" {
				network, address = "unix", config.URL.socket
			}
			conn, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return newLink(conn), nil
		},
		TLSHandshakeTimeout:    config.Timeout,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    config.MaxConcurrent,
		IdleConnTimeout:        idleFor,
		MaxResponseHeaderBytes: maxHeader,
	}
	if config.URL.scheme == "https" {
		t.TLSClientConfig = &tls.Config{ServerName: config.TLSName}
		if config.CA != "" {
			pem, err := os.ReadFile(config.CA)
			if err != nil {
				return nil, err
			}
			t.TLSClientConfig.RootCAs = x509.NewCertPool()
			if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("%s holds no PEM certificate", config.CA)
			}
		}
	}
	return t, nil
}

// Wants reports whether the backend is to be sent events of this type.
func (c *Client) Wants(kind Type) bool { return slices.Contains(c.config.Events, kind) }

// URL returns the backend's URL, as configured.
func (c *Client) URL() string { return c.config.URL.String() }

// Post sends the event once, when it has its turn, and returns what became of it. Waiting for the turn is bounded by ctx alone, the
// POST also by Config.Timeout.
func (c *Client) Post(ctx context.Context, e *Event) *Reply {
	select {
	case c.turns <- struct{}{}:
	case <-ctx.Done():
		return &Reply{Outcome: Unreachable, TimedOut: true, Err: fmt.Errorf("waiting for one of %d turns at the backend: %w", cap(c.turns), context.Cause(ctx))}
	}
	defer func() { <-c.turns }()
	start := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, c.config.Timeout, fmt.Errorf("no answer within %s", c.config.Timeout))
	defer cancel()
	r := c.attempt(ctx, e)
	c.seconds.WithLabelValues(string(e.Type)).Observe(time.Since(start).Seconds())
	c.posts.WithLabelValues(string(e.Type), r.Outcome.String()).Inc()
	return r
}

// way is how one try to send a request has gone.
type way struct {
	connected, reused bool
	link              *link       // nil with another transport than ours
	began             atomic.Bool // the answer has
}

// unsent reports whether nothing of the request has left us.
func (w *way) unsent() bool { return !w.connected || w.link != nil && w.link.silent() }

// garbled reports whether err says that what came breaks the rules of HTTP, rather than that it broke off or took too long.
func (w *way) garbled(ctx context.Context, err error) bool {
	if w.link != nil && w.link.broken() || ctx.Err() != nil {
		return false
	}
	_, network := errors.AsType[net.Error](err)
	return w.began.Load() && !network && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, net.ErrClosed)
}

// send sends the event and returns the head of the answer. An idle connection that turns out to be closed before anything was sent on it is
// nobody's failure: another is taken, in the end a fresh one.
func (c *Client) send(ctx context.Context, e *Event) (*http.Response, *way, error) {
	for {
		w := &way{}
		trace := &httptrace.ClientTrace{
			GetConn: func(string) { w.connected = false },
			GotConn: func(info httptrace.GotConnInfo) {
				conn := info.Conn
				if secure, ok := conn.(*tls.Conn); ok {
					conn = secure.NetConn()
				}
				w.connected, w.reused = true, info.Reused
				if w.link, _ = conn.(*link); w.link != nil {
					w.link.ready()
				}
			},
			GotFirstResponseByte: func() { w.began.Store(true) },
		}
		answer, err := c.transport.RoundTrip(c.request(e).WithContext(httptrace.WithClientTrace(ctx, trace)))
		if err == nil || !w.connected || !w.reused || !w.unsent() || ctx.Err() != nil {
			return answer, w, err
		}
	}
}

func (c *Client) attempt(ctx context.Context, e *Event) *Reply {
	answer, way, err := c.send(ctx, e)
	switch {
	case err == nil:
	case way.unsent():
		return broken(ctx, Unreachable, err)
	case way.garbled(ctx, err):
		// The error may quote what came, and a log is no place for that.
		return broken(ctx, Invalid, fmt.Errorf("the answer is no HTTP/1.1, or its headers are larger than %d bytes", maxHeader))
	default:
		return broken(ctx, Uncertain, err)
	}
	defer answer.Body.Close()
	if answer.StatusCode == http.StatusSwitchingProtocols {
		return &Reply{Outcome: Invalid, Status: answer.StatusCode, Err: errors.New("the backend answered 101 to a POST without Upgrade")}
	}
	body, err := readBody(answer, c.config.MaxAnswer)
	switch {
	case e.Type == Disconnect:
		body = nil // its status says everything
	case err != nil && way.garbled(ctx, err):
		return &Reply{Outcome: Invalid, Status: answer.StatusCode, Err: errors.New("the answer's body is no HTTP/1.1")}
	case err != nil:
		return broken(ctx, Uncertain, fmt.Errorf("reading the answer: %w", err))
	case int64(len(body)) <= c.config.MaxAnswer:
	case answer.StatusCode >= 300:
		body = nil // an error page: its status says enough
	default:
		return &Reply{Outcome: Invalid, Status: answer.StatusCode, Err: fmt.Errorf("the answer is larger than %d bytes", c.config.MaxAnswer)}
	}
	return c.reply(e, answer, body, time.Now())
}

// readBody reads an answer's body, and no more than one byte beyond the limit.
func readBody(answer *http.Response, limit int64) ([]byte, error) {
	if answer.ContentLength < 0 || answer.ContentLength > limit {
		return io.ReadAll(io.LimitReader(answer.Body, limit+1))
	}
	body := make([]byte, answer.ContentLength)
	_, err := io.ReadFull(answer.Body, body)
	return body, err
}

// broken is the reply where no answer came.
func broken(ctx context.Context, outcome Outcome, err error) *Reply {
	r := &Reply{Outcome: outcome, Err: err}
	if ctx.Err() != nil {
		r.TimedOut, r.Err = true, context.Cause(ctx)
	}
	return r
}

// Probe asks the backend for its options, as a check that harms nothing: any answer below 500 other than a redirect and 404 is
// good. The path is the client's, for a backend URL that has none.
func (c *Client) Probe(ctx context.Context, path string) error {
	target := c.config.URL.target(path, "")
	host := c.config.Host
	if host == "" {
		host = target.Host
	}
	request := &http.Request{
		Method: http.MethodOptions, URL: target, Host: host, Header: http.Header{"User-Agent": {"wsbridge"}},
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	answer, err := c.transport.RoundTrip(request.WithContext(ctx))
	if err != nil {
		return err
	}
	answer.Body.Close()
	switch status := answer.StatusCode; {
	case status >= 500, status == http.StatusNotFound:
		return fmt.Errorf("OPTIONS %s answered %s", target.Opaque, answer.Status)
	case status >= 300 && status < 400:
		return fmt.Errorf("OPTIONS %s answered %s to %q: name the final URL", target.Opaque, answer.Status, answer.Header.Get("Location"))
	}
	return nil
}
