package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Client POSTs events to the backend. It is safe for concurrent use.
type Client struct {
	config  Config
	source  string
	forward []string // canonical names
	pool    *pool
	guard   *guard
	buffers sync.Pool // of *[]byte, to write requests into

	repeats prometheus.Counter
	counts  map[Type]*counts
}

// counts are the metrics of one type of event. To look each up by its labels would be a fiftieth of what a message costs.
type counts struct {
	posts   [Withdrawn + 1]prometheus.Counter // by outcome
	seconds prometheus.Observer
}

// New returns a client of the configured backend. The node names this program in ce-source. A nil registry keeps no
// metrics; a nil dial connects to where the configured URL says. The client must be closed.
func New(config Config, node string, registry prometheus.Registerer, dial func(context.Context) (net.Conn, error)) (*Client, error) {
	c := &Client{
		config: config, source: "/wsbridge/" + node, buffers: sync.Pool{New: func() any { return new([]byte) }},
		counts: map[Type]*counts{},
		repeats: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "wsbridge_event_repeats_total", Help: "POSTs repeated on a fresh connection, since the backend had closed the idle one before it took them."}),
	}
	posts := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "wsbridge_events_total", Help: "Events POSTed to the backend, by type and result; each attempt counts."}, []string{"type", "result"})
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "wsbridge_event_duration_seconds", Help: "Time from the start of a POST to its whole answer.",
		Buckets: prometheus.ExponentialBuckets(0.001, 2.5, 12)}, []string{"type"})
	for _, kind := range []Type{Connect, Message, Disconnect} { // from the beginning: the rate of what appears with its first event lacks that
		of := &counts{seconds: seconds.WithLabelValues(string(kind))}
		for outcome := range of.posts {
			of.posts[outcome] = posts.WithLabelValues(string(kind), Outcome(outcome).String())
		}
		c.counts[kind] = of
	}
	for _, name := range config.ForwardHeaders {
		if name = textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(name)); !slices.Contains(c.forward, name) {
			c.forward = append(c.forward, name)
		}
	}
	if dial == nil {
		network, address := config.URL.address()
		dial = func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, network, address) }
	}
	secure, err := tlsConfig(config)
	if err != nil {
		return nil, err
	}
	c.pool = &pool{dial: func(ctx context.Context) (*conn, error) { return connect(ctx, dial, secure) }}
	c.guard = newGuard(config, c.alive, c.pool.renew)
	if registry != nil {
		gauge := func(name, help string, value func(busy, waiting int, down bool) int) prometheus.Collector {
			return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return float64(value(c.guard.state())) })
		}
		registry.MustRegister(posts, c.repeats, seconds,
			gauge("wsbridge_events_in_flight", "POSTs under way.", func(busy, _ int, _ bool) int { return busy }),
			gauge("wsbridge_events_waiting", "Events that wait for their turn at the backend.", func(_, waiting int, _ bool) int { return waiting }),
			gauge("wsbridge_backend_up", "1, or 0 while the backend is taken as down.", func(_, _ int, down bool) int {
				if down {
					return 0
				}
				return 1
			}))
	}
	return c, nil
}

// Watch sets who is told when the backend goes down, with the failure that was the last straw, and when it comes back. It must be
// called before the first POST.
func (c *Client) Watch(told func(down bool, why error)) { c.guard.told = told }

// Busy returns how many POSTs are under way.
func (c *Client) Busy() int {
	busy, _, _ := c.guard.state()
	return busy
}

// Lend takes so many of the turns for POSTs that others make.
func (c *Client) Lend(posts int) { c.guard.lend(posts) }

// Withdraw gives back the messages and the disconnect events that wait for a turn or to be sent again, and from now on those that would have to: their
// outcome is Withdrawn, and somebody else posts them. POSTs under way go on, and connect events as ever. Restore ends it.
func (c *Client) Withdraw() { c.guard.withdrawAll() }

// Restore ends what Withdraw began.
func (c *Client) Restore() { c.guard.restore() }

// Close gives up the idle connections. POSTs under way go on.
func (c *Client) Close() {
	c.guard.close()
	c.pool.close()
}

// connect opens a connection to the backend.
func connect(ctx context.Context, dial func(context.Context) (net.Conn, error), secure *tls.Config) (*conn, error) {
	socket, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	c := newConn(socket)
	if secure == nil {
		return c, nil
	}
	if err := c.secure(secure).HandshakeContext(ctx); err != nil {
		socket.Close()
		return nil, err
	}
	return c, nil
}

// tlsConfig returns how an https backend is known, or nil for another.
func tlsConfig(config Config) (*tls.Config, error) {
	if config.URL.scheme != "https" {
		return nil, nil
	}
	t := &tls.Config{ServerName: config.TLSName, NextProtos: []string{"http/1.1"}}
	if t.ServerName == "" {
		authority := url.URL{Host: config.URL.host}
		t.ServerName = authority.Hostname()
	}
	if config.CA == "" {
		return t, nil
	}
	pem, err := os.ReadFile(config.CA)
	if err != nil {
		return nil, err
	}
	t.RootCAs = x509.NewCertPool()
	if !t.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no PEM certificate", config.CA)
	}
	return t, nil
}

// Wants reports whether the backend is to be sent events of this type.
func (c *Client) Wants(kind Type) bool { return slices.Contains(c.config.Events, kind) }

// Repeats reports whether an event that may have been taken is sent again.
func (c *Client) Repeats() bool { return c.config.Retry == RetryAlways }

// URL returns the backend's URL, as configured.
func (c *Client) URL() string { return c.config.URL.String() }

// attempt posts the event once and returns what became of it. The caller has its turn.
func (c *Client) attempt(ctx context.Context, e *Event) *Reply {
	start := time.Now()
	buffer := c.buffers.Get().(*[]byte)
	*buffer = c.appendRequest((*buffer)[:0], e, start)
	r, end := c.post(ctx, e, *buffer, start)
	if cap(*buffer) <= maxBuffer {
		c.buffers.Put(buffer)
	}
	counts := c.counts[e.Type]
	counts.seconds.Observe(end.Sub(start).Seconds())
	counts.posts[r.Outcome].Inc()
	if e.Trip != nil && (r.Outcome == Later || r.Outcome == Unreachable) {
		e.Trip.Spared()
	}
	return r
}

// maxBuffer is the largest buffer that is kept to write requests into, in bytes.
const maxBuffer = 128 << 10

func (c *Client) post(ctx context.Context, e *Event, request []byte, start time.Time) (r *Reply, end time.Time) {
	answer, body, err := c.roundTrip(ctx, request, start, e)
	end = time.Now()
	switch lost, ok := errors.AsType[*lostError](err); {
	case ok && e.Type == Disconnect && lost.answer != nil:
		answer, body = lost.answer, nil // its status says everything
	case ok:
		return lost.reply(), end
	case e.Type == Disconnect:
		body = nil
	case int64(len(body)) <= c.config.MaxAnswer:
	case answer.code >= 300:
		body = nil // an error page: its status says enough
	default:
		return &Reply{Outcome: Invalid, Status: answer.code, Err: fmt.Errorf("the answer is larger than %d bytes", c.config.MaxAnswer)}, end
	}
	r = c.reply(e, answer, body, end)
	heads.Put(answer) // the reply has nothing of it but strings
	return r, end
}

// lostError is why a request has no answer, and what that means for it.
type lostError struct {
	error
	outcome  Outcome // Unreachable, Uncertain or Invalid
	answer   *head   // whose body can't be read; or nil
	timedOut bool
}

func (l *lostError) reply() *Reply {
	r := &Reply{Outcome: l.outcome, TimedOut: l.timedOut, Err: l.error}
	if l.outcome == Invalid && l.answer != nil {
		r.Status = l.answer.code
	}
	return r
}

// roundTrip sends a request and returns its answer. One that was not taken since its idle connection was closed at that moment goes out again, on a
// fresh one. Every error is a *lostError. The event is whose request it is, or nil.
func (c *Client) roundTrip(ctx context.Context, request []byte, start time.Time, e *Event) (*head, []byte, error) {
	deadline := start.Add(c.config.Timeout)
	timed := func(lost *lostError) *lostError {
		if ctx.Err() != nil {
			lost.timedOut, lost.error = true, context.Cause(ctx)
		} else if now := time.Now(); errors.Is(lost.error, os.ErrDeadlineExceeded) || !now.Before(deadline) {
			lost.timedOut, lost.error = true, fmt.Errorf("no answer within %s", c.config.Timeout)
		}
		return lost
	}
	for line := c.pool.take(start); ; {
		if line == nil {
			dialing, cancel := context.WithDeadline(ctx, deadline)
			var err error
			line, err = c.pool.fresh(dialing)
			cancel()
			if err != nil {
				return nil, nil, timed(&lostError{error: err, outcome: Unreachable})
			}
		}
		if e != nil && e.Trip != nil {
			e.Trip.Leaves(e.Attempt)
		}
		line.begin(ctx, deadline)
		answer, body, err := line.exchange(request, c.config.MaxAnswer)
		interrupted := line.interrupted.Load()
		untaken := line.untaken(err)
		if err == nil && !interrupted && line.reusable(answer, time.Now()) {
			c.pool.put(line)
		} else {
			line.Close()
		}
		switch {
		case errors.Is(err, errStale) && !interrupted:
			line = c.pool.take(time.Now())
			continue
		case untaken && line.reused && ctx.Err() == nil && time.Now().Before(deadline):
			c.repeats.Inc()
			line = nil
			continue
		case untaken:
			return nil, nil, timed(&lostError{error: err, outcome: Unreachable})
		case err == nil:
			return answer, body, nil
		}
		lost := &lostError{error: err, outcome: Uncertain, answer: answer}
		if !line.garbled() {
			return nil, nil, timed(lost)
		}
		lost.outcome = Invalid
		if answer != nil && answer.code != http.StatusSwitchingProtocols {
			lost.error = errors.New("the answer's body is no HTTP/1.1")
		} else if answer == nil {
			// The parser's error may quote what came, and a log is no place for that.
			lost.error = fmt.Errorf("the answer is no HTTP/1.1, or its headers are larger than %d bytes", maxHeader)
		}
		return nil, nil, lost
	}
}

// Probe asks the backend for its options, as a check that harms nothing: any answer below 500 other than a redirect and 404 is
// good. The path is the client's, for a backend URL that has none.
func (c *Client) Probe(ctx context.Context, path string) error {
	target, answer, err := c.options(ctx, &Handshake{Path: path})
	if err != nil {
		return err
	}
	switch status := answer.code; {
	case status >= 500, status == http.StatusNotFound:
		return fmt.Errorf("OPTIONS %s answered %s", target, answer.status)
	case status >= 300 && status < 400:
		return fmt.Errorf("OPTIONS %s answered %s to %q: name the final URL", target, answer.status, answer.fields.get("Location"))
	}
	return nil
}

func (c *Client) options(ctx context.Context, h *Handshake) (target string, answer *head, err error) {
	target = c.config.URL.target(h.Path, h.Query)
	request := append([]byte("OPTIONS "+target+" HTTP/1.1\r\nHost: "), c.host(h)...)
	request = append(request, "\r\nUser-Agent: wsbridge\r\nContent-Length: 0\r\n\r\n"...)
	answer, _, err = c.roundTrip(ctx, request, time.Now(), nil)
	return target, answer, err
}

// alive asks a backend that is down, by something that is no event, whether it is back: it answers, whatever it says, other than by a proxy's
// word that it is not there.
func (c *Client) alive(ctx context.Context, h *Handshake) *Reply {
	_, answer, err := c.options(ctx, h)
	if lost, ok := errors.AsType[*lostError](err); ok {
		return lost.reply()
	}
	r := &Reply{Outcome: outcome(answer.code), Status: answer.code, After: retryAfter(answer.fields, time.Now())}
	if r.Outcome != Accepted {
		r.Err = fmt.Errorf("the backend answered OPTIONS with %s", answer.status)
	}
	return r
}
