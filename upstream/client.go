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
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// idleFor is how long a connection to the backend is kept without use: less than any server's own limit (Starman's is 1 s), so
// that a POST hardly ever meets the server's close.
const idleFor = 500 * time.Millisecond

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
		c.forward = append(c.forward, textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(name)))
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
	dialer := net.Dialer{}
	t := &http.Transport{
		// No proxy from the environment: the backend is a neighbour. No compression: Accept-Encoding is ours. HTTP/1.1 only.
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			if config.URL.socket != "" {
				return dialer.DialContext(ctx, "unix", config.URL.socket)
			}
			return dialer.DialContext(ctx, "tcp", address)
		},
		DisableCompression:     true,
		MaxIdleConnsPerHost:    config.MaxConcurrent,
		IdleConnTimeout:        idleFor,
		MaxResponseHeaderBytes: 64 << 10,
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

func (c *Client) attempt(ctx context.Context, e *Event) *Reply {
	connected := false
	trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected = true }}
	answer, err := c.transport.RoundTrip(c.request(e).WithContext(httptrace.WithClientTrace(ctx, trace)))
	if err != nil {
		return broken(ctx, connected, err)
	}
	defer answer.Body.Close()
	if answer.StatusCode == http.StatusSwitchingProtocols {
		return &Reply{Outcome: Invalid, Status: answer.StatusCode, Err: errors.New("the backend answered 101 to a POST without Upgrade")}
	}
	body, err := io.ReadAll(io.LimitReader(answer.Body, c.config.MaxAnswer+1))
	if err != nil {
		return broken(ctx, true, fmt.Errorf("reading the answer: %w", err))
	}
	if int64(len(body)) > c.config.MaxAnswer {
		if answer.StatusCode >= 300 {
			body = nil // an error page: its status says enough
		} else {
			return &Reply{Outcome: Invalid, Status: answer.StatusCode, Err: fmt.Errorf("the answer is larger than %d bytes", c.config.MaxAnswer)}
		}
	}
	return c.reply(e, answer, body, time.Now())
}

// broken is the reply where none came. Without a connection the backend certainly did not take the event; with one it may have.
func broken(ctx context.Context, connected bool, err error) *Reply {
	r := &Reply{Outcome: Unreachable, Err: err}
	if connected {
		r.Outcome = Uncertain
	}
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
