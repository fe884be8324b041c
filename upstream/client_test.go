package upstream

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// patience bounds the wait for something that comes at once, or never.
const patience = 20 * time.Second

// said returns the text of the reply's only message, or what came in its place.
func said(r *Reply) string {
	if r.Outcome == Accepted && len(r.Messages) == 1 {
		return string(r.Messages[0].Data)
	}
	return fmt.Sprintf("%s %d %s: %v", r.Outcome, r.Status, show(r.Messages), r.Err)
}

// reset ends a TCP connection with a RST.
func reset(conn net.Conn) {
	if l, ok := conn.(interface{ SetLinger(int) error }); ok {
		l.SetLinger(0)
	}
	conn.Close()
}

// acknowledge has the kernel acknowledge at once what has come. Else it does so within 40 ms, or when something is sent.
func acknowledge(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		if raw, err := tcp.SyscallConn(); err == nil {
			raw.Control(func(fd uintptr) { quickAck(int(fd)) })
		}
	}
}

// awaitEnd waits until the other side has closed the connection.
func awaitEnd(t *testing.T, conn net.Conn) {
	conn.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection was left open")
	}
}

const fresh = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfresh"

func TestWhateverABackendAnswersHasOneOutcome(t *testing.T) {
	const max = 1000 // bytes of an answer
	forged := "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
	say := func(answer string) func(net.Conn) {
		return func(conn net.Conn) { io.WriteString(conn, answer) }
	}
	hangUp := func(answer string) func(net.Conn) {
		return func(conn net.Conn) {
			io.WriteString(conn, answer)
			conn.Close()
		}
	}
	breakOff := func(answer string) func(net.Conn) {
		return func(conn net.Conn) {
			io.WriteString(conn, answer)
			acknowledge(conn)
			reset(conn)
		}
	}
	forever := func(head, more string) func(net.Conn) {
		return func(conn net.Conn) {
			_, err := io.WriteString(conn, head)
			for err == nil {
				_, err = io.WriteString(conn, more)
			}
		}
	}
	rows := []struct {
		name   string
		do     func(net.Conn)
		want   Outcome
		status int
		says   string // the message
	}{
		{"an answer", say("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"), Accepted, 200, "hello"},
		{"an answer in chunks", say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nTrailer: x\r\n\r\n"), Accepted, 200, "hello"},
		{"an answer up to the close", hangUp("HTTP/1.1 200 OK\r\n\r\nhello"), Accepted, 200, "hello"},
		{"an answer of HTTP/1.0", hangUp("HTTP/1.0 200 OK\r\n\r\nhello"), Accepted, 200, "hello"},
		{"an answer of HTTP/1.0 with its length", say("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello"), Accepted, 200, "hello"},
		{"an answer of HTTP/1.0 that keeps the connection", say("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello"), Accepted, 200, "hello"},
		{"an answer and Connection: close", say("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello"), Accepted, 200, "hello"},
		{"an answer and the end", hangUp("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"), Accepted, 200, "hello"},
		{"an answer with bare line feeds", say("HTTP/1.1 200 OK\nContent-Length: 5\n\nhello"), Accepted, 200, "hello"},
		{"an answer without a reason", say("HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello"), Accepted, 200, "hello"},
		{"nothing", say(noContent), Accepted, 204, ""},
		{"nothing, with its length", say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), Accepted, 200, ""},
		{"an answer of the largest size", say("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + strings.Repeat("x", max)), Accepted, 200, strings.Repeat("x", max)},

		{"100 and 103 before the answer", say("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"), Accepted, 200, "hello"},
		{"100 without end", forever("", "HTTP/1.1 100 Continue\r\n\r\n"), Invalid, 0, ""},
		{"101", say("HTTP/1.1 101 Switching Protocols\r\n\r\n"), Invalid, 101, ""},
		{"101 with a protocol", say("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"), Invalid, 101, ""},
		{"101 and the end", hangUp("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"), Invalid, 101, ""},
		{"a redirect", say("HTTP/1.1 307 Temporary Redirect\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n"), Redirected, 307, ""},
		{"a status of two digits", say("HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n"), Invalid, 0, ""},
		{"a status of 600", say("HTTP/1.1 600 What\r\nContent-Length: 0\r\n\r\n"), Invalid, 600, ""},
		{"gzip", say("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00"), Invalid, 200, ""},

		{"no answer, but the end", hangUp(""), Uncertain, 0, ""},
		{"no answer, but a reset", breakOff(""), Uncertain, 0, ""},
		{"half a status line", hangUp("HTTP/1.1 20"), Uncertain, 0, ""},
		{"half a status line, reset", breakOff("HTTP/1.1 20"), Uncertain, 0, ""},
		{"half the headers", hangUp("HTTP/1.1 200 OK\r\nContent-Le"), Uncertain, 0, ""},
		{"half the headers, reset", breakOff("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n"), Uncertain, 0, ""},
		{"half the body", hangUp("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel"), Uncertain, 0, ""},
		{"half the body, reset", breakOff("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel"), Uncertain, 0, ""},
		{"none of the body", hangUp("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"), Uncertain, 0, ""},
		{"none of the chunks", hangUp("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), Uncertain, 0, ""},
		{"half a chunk", hangUp("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel"), Uncertain, 0, ""},
		{"no last chunk", hangUp("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"), Uncertain, 0, ""},
		{"half a refusal", hangUp("HTTP/1.1 422 No\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhel"), Uncertain, 0, ""},
		{"100 and the end", hangUp("HTTP/1.1 100 Continue\r\n\r\n"), Uncertain, 0, ""},

		{"no HTTP", say("220 mail.example.org ESMTP\r\n\r\n"), Invalid, 0, ""},
		{"no HTTP, and the end", hangUp("hello\r\n"), Invalid, 0, ""},
		{"a header without a colon", say("HTTP/1.1 200 OK\r\nnonsense\r\n\r\n"), Invalid, 0, ""},
		{"a length that is no number", say("HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello"), Invalid, 0, ""},
		{"a negative length", say("HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello"), Invalid, 0, ""},
		{"two lengths", say("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello"), Invalid, 0, ""},
		{"another transfer encoding", say("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello"), Invalid, 0, ""},
		{"a chunk of no size", say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\nhello\r\n0\r\n\r\n"), Invalid, 200, ""},
		{"a chunk of too large a size", say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n"), Invalid, 200, ""},
		{"a chunk longer than its size", say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhello\r\n0\r\n\r\n"), Invalid, 200, ""},

		{"a large header", say("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 60<<10) + "\r\nContent-Length: 5\r\n\r\nhello"), Accepted, 200, "hello"},
		{"a header over 64 KiB", say("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n"), Invalid, 0, ""},
		{"headers without end", forever("HTTP/1.1 200 OK\r\n", "X: y\r\n"), Invalid, 0, ""},
		{"a status line without end", forever("HTTP/1.1 200 ", "OK"), Invalid, 0, ""},
		{"an answer that is too large", say("HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n" + strings.Repeat("x", max+1)), Invalid, 200, ""},
		{"an answer far too large", say("HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n" + strings.Repeat("x", max+1)), Invalid, 200, ""},
		{"chunks without end", forever("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "5\r\nhello\r\n"), Invalid, 200, ""},
		{"a body without end", forever("HTTP/1.1 200 OK\r\n\r\n", "hello"), Invalid, 200, ""},
		{"an error page that is too large", forever("HTTP/1.1 500 Oops\r\n\r\n", "<p>"), Failed, 500, ""},
		{"a 404 that is too large", forever("HTTP/1.1 404 No\r\n\r\n", "<p>"), Misconfigured, 404, ""},
		{"a refusal that is too large", forever("HTTP/1.1 422 No\r\nContent-Type: text/plain\r\n\r\n", "no"), Refused, 422, ""},

		{"more than it said", say("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello, world"), Accepted, 200, "hello"},
		{"another answer behind it", say("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello" + forged), Accepted, 200, "hello"},
		{"another answer behind chunks", say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + forged), Accepted, 200, "hello"},
		{"another answer behind nothing", say(noContent + forged), Accepted, 204, ""},
		{"a 204 with a body", say("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello"), Accepted, 204, ""},
		{"half an answer behind it", say("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nfor"), Accepted, 200, "hello"},
	}
	for _, row := range rows {
		for _, reused := range []bool{false, true} {
			name := row.name
			if reused {
				name += ", on a connection that was used before"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				var asked atomic.Int64
				var others atomic.Int64
				config := standard(t, listen(t, func(conn net.Conn) {
					for r := bufio.NewReader(conn); ; {
						p, err := receive(r)
						if err != nil {
							return
						}
						if string(p.body) != "the one" {
							others.Add(1)
							io.WriteString(conn, fresh)
							continue
						}
						asked.Add(1)
						row.do(conn)
					}
				}))
				config.MaxAnswer = max
				c := newClient(t, config)
				if reused {
					if got := said(c.Post(t.Context(), text("before"))); got != "fresh" {
						t.Fatalf("before: got = %s, want fresh", got)
					}
				}
				r := c.Post(t.Context(), text("the one"))
				if r.Outcome != row.want || r.Status != row.status || r.TimedOut {
					t.Errorf("got = %s, %d, timed out %v, %v, want %s, %d", r.Outcome, r.Status, r.TimedOut, r.Err, row.want, row.status)
				}
				if (r.Err == nil) != (r.Outcome == Accepted) {
					t.Errorf("error = %v", r.Err)
				}
				var want []Payload
				if row.says != "" {
					want = []Payload{{Data: []byte(row.says)}}
				}
				if !equalPayloads(r.Messages, want) {
					t.Errorf("messages = %s, want %s", show(r.Messages), show(want))
				}
				// Whatever it was: it was asked once, and the next POST has its own answer.
				for range 3 {
					if got := said(c.Post(t.Context(), text("after"))); got != "fresh" {
						t.Errorf("after: got = %s, want fresh", got)
					}
				}
				if got := asked.Load(); got != 1 {
					t.Errorf("asked %d times, want 1", got)
				}
				if got, want := others.Load(), int64(3); !reused && got != want || reused && got != want+1 {
					t.Errorf("the others were asked %d times", got)
				}
			})
		}
	}
}

// What follows an answer must not answer another client's message, however many are waiting for the connection.
func TestWhatFollowsAnAnswerAnswersNobodyElse(t *testing.T) {
	for name, answer := range map[string]string{
		"a body":    "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood",
		"no body":   noContent,
		"in chunks": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngood\r\n0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			c := clientFor(t, listen(t, answering(answer+"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")))
			var all sync.WaitGroup
			for range 32 {
				all.Go(func() {
					for range 10 {
						r := c.Post(t.Context(), text("x"))
						if r.Outcome != Accepted || len(r.Messages) > 1 || len(r.Messages) == 1 && string(r.Messages[0].Data) != "good" {
							t.Errorf("got = %s", said(r))
							return
						}
					}
				})
			}
			all.Wait()
		})
	}
}

func TestABackendThatIsTooSlowTimesOut(t *testing.T) {
	rows := []struct{ name, answer, more string }{
		{"no answer", "", ""},
		{"half a status line", "HTTP/1.1 2", ""},
		{"half the headers", "HTTP/1.1 200 OK\r\nX: ", ""},
		{"half the body", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", ""},
		{"half the chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n", ""},
		{"a body up to a close that doesn't come", "HTTP/1.1 200 OK\r\n\r\nhello", ""},
		{"100 and no more", "HTTP/1.1 100 Continue\r\n\r\n", ""},
		{"half an error page", "HTTP/1.1 500 Oops\r\nContent-Length: 5\r\n\r\nhel", ""},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			config := standard(t, listen(t, func(conn net.Conn) {
				r := bufio.NewReader(conn)
				if _, err := receive(r); err != nil {
					t.Errorf("the request: %v", err)
				}
				io.WriteString(conn, row.answer)
				awaitEnd(t, conn)
			}))
			config.Timeout = 400 * time.Millisecond
			start := time.Now()
			r := newClient(t, config).Post(t.Context(), text("hello"))
			if took := time.Since(start); took < config.Timeout {
				t.Errorf("took %s, want %s", took, config.Timeout)
			}
			if r.Outcome != Uncertain || !r.TimedOut || r.Err == nil || r.Err.Error() != "no answer within 400ms" {
				t.Errorf("got = %s, timed out %v, %v, want uncertain, for want of time", r.Outcome, r.TimedOut, r.Err)
			}
		})
	}
}

// Who waits for a POST may have less time than the POST, and says why.
func TestTheCallersTimeCountsToo(t *testing.T) {
	asked := make(chan struct{})
	c := clientFor(t, listen(t, func(conn net.Conn) {
		receive(bufio.NewReader(conn))
		close(asked)
		awaitEnd(t, conn)
	}))
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the drain is over")
	go func() {
		<-asked
		cancel(why)
	}()
	r := c.Post(ctx, text("hello"))
	if r.Outcome != Uncertain || !r.TimedOut || !errors.Is(r.Err, why) {
		t.Errorf("got = %s, timed out %v, %v, want uncertain and the cause", r.Outcome, r.TimedOut, r.Err)
	}
}

func TestWithoutAConnectionTheBackendHasNotTakenIt(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refusing := "http://" + l.Addr().String()
	l.Close()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	rows := []struct{ name, url string }{
		{"a port where nobody listens", refusing},
		{"a socket that is not there", "http://unix:" + filepath.Join(t.TempDir(), "app.sock") + ":/x"},
		{"a socket that is a file", "http://unix:" + file + ":/x"},
		{"a name that is none", "http://backend.invalid./"},
		{"a name that can't be one", "http://" + strings.Repeat("a", 64) + ".invalid/"},
	}
	for _, row := range rows {
		config := standard(t, row.url)
		config.Retry = RetryNever
		r := newClient(t, config).Post(t.Context(), text("hello"))
		if r.Outcome != Unreachable || r.TimedOut || r.Err == nil || r.Status != 0 {
			t.Errorf("%s: got = %s, %d, timed out %v, %v, want unreachable", row.name, r.Outcome, r.Status, r.TimedOut, r.Err)
		}
	}
}

// An overloaded backend may take a connection and close it at once. What could not be sent was not taken.
func TestAConnectionThatIsClosedBeforeARequestHasNotTakenIt(t *testing.T) {
	config := standard(t, "http://127.0.0.1")
	config.Retry = RetryNever
	for range 100 {
		c, err := New(config, "node-1", nil, func(context.Context) (net.Conn, error) {
			here, there := net.Pipe()
			there.Close()
			return here, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if r := c.Post(t.Context(), text("hello")); r.Outcome != Unreachable || r.TimedOut || r.Err == nil {
			t.Fatalf("got = %s, %v, want unreachable", r.Outcome, r.Err)
		}
		c.Close()
	}
}

func TestNeverMorePostsThanConfigured(t *testing.T) {
	const most, posts = 7, 100
	var (
		mu          sync.Mutex
		under, high int
		full        = make(chan struct{})
	)
	config := standard(t, listen(t, func(conn net.Conn) {
		for r := bufio.NewReader(conn); ; {
			if _, err := receive(r); err != nil {
				return
			}
			mu.Lock()
			under++
			high = max(high, under)
			if under == most {
				select {
				case <-full:
				default:
					close(full)
				}
			}
			mu.Unlock()
			<-full                       // no answer before as many are under way as may be
			time.Sleep(time.Millisecond) // and room for one that may not
			mu.Lock()
			under--
			mu.Unlock()
			io.WriteString(conn, fresh)
		}
	}))
	config.MaxConcurrent = most
	registry := prometheus.NewRegistry()
	c, err := New(config, "node-1", registry, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var all sync.WaitGroup
	for range posts {
		all.Go(func() {
			for range 3 {
				if got := said(c.Post(t.Context(), text("x"))); got != "fresh" {
					t.Errorf("got = %s, want fresh", got)
				}
			}
		})
	}
	all.Wait()
	mu.Lock()
	defer mu.Unlock()
	if high != most {
		t.Errorf("%d POSTs at once, want %d", high, most)
	}
	if got := metric(t, registry, "wsbridge_events_total", "message", "accepted"); got != 3*posts {
		t.Errorf("events accepted = %v, want %d", got, 3*posts)
	}
	if got := metric(t, registry, "wsbridge_event_duration_seconds", "message"); got != 3*posts {
		t.Errorf("durations = %v, want %d", got, 3*posts)
	}
	if got := metric(t, registry, "wsbridge_events_in_flight"); got != 0 {
		t.Errorf("in flight = %v, want 0", got)
	}
}

// metric returns the value with these labels, in the order of their names' definition here: result, type.
func metric(t *testing.T, registry *prometheus.Registry, name string, labels ...string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			found := 0
			for _, pair := range m.GetLabel() {
				for _, label := range labels {
					if pair.GetValue() == label {
						found++
					}
				}
			}
			if family.GetName() == name && found == len(labels) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return 0
}

func TestATurnThatDoesNotComeIsNoPost(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	var posts atomic.Int64
	config := standard(t, listen(t, func(conn net.Conn) {
		for r := bufio.NewReader(conn); ; {
			if _, err := receive(r); err != nil {
				return
			}
			posts.Add(1)
			asked <- struct{}{}
			<-answer
			io.WriteString(conn, fresh)
		}
	}))
	config.MaxConcurrent = 1
	c := newClient(t, config)
	first := make(chan *Reply)
	go func() { first <- c.Post(t.Context(), text("first")) }()
	<-asked

	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the handshake can't wait")
	second := make(chan *Reply)
	go func() { second <- c.Post(ctx, text("second")) }()
	cancel(why)
	if r := <-second; r.Outcome != Unreachable || !r.TimedOut || !errors.Is(r.Err, why) {
		t.Errorf("got = %s, timed out %v, %v, want unreachable and the cause", r.Outcome, r.TimedOut, r.Err)
	}
	close(answer)
	if got := said(<-first); got != "fresh" {
		t.Errorf("the first: got = %s, want fresh", got)
	}
	if got := posts.Load(); got != 1 {
		t.Errorf("%d POSTs, want 1", got)
	}
	go func() { <-asked }()
	if got := said(c.Post(t.Context(), text("third"))); got != "fresh" { // the turn is free again
		t.Errorf("the third: got = %s, want fresh", got)
	}
}

// Waiting for the turn takes nothing from the time of the POST.
func TestTheTimeoutBeginsWithTheTurn(t *testing.T) {
	config := standard(t, listen(t, func(conn net.Conn) {
		awaitEnd(t, conn)
	}))
	config.MaxConcurrent, config.Timeout = 1, 400*time.Millisecond
	c := newClient(t, config)
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			if r := c.Post(t.Context(), text("slow")); r.Outcome != Uncertain || !r.TimedOut {
				t.Errorf("got = %s, %v, want uncertain", r.Outcome, r.Err)
			}
		})
	}
	all.Wait()
}

func TestAConnectionIsUsedAgainAndNotKeptForLong(t *testing.T) {
	conns := make(chan net.Conn, 10)
	ended := make(chan struct{})
	c := clientFor(t, listen(t, func(conn net.Conn) {
		conns <- conn
		answering(fresh)(conn)
		close(ended)
	}))
	for range 5 {
		if got := said(c.Post(t.Context(), text("x"))); got != "fresh" {
			t.Fatalf("got = %s, want fresh", got)
		}
	}
	if got := len(conns); got != 1 {
		t.Errorf("%d connections, want 1", got)
	}
	select {
	case <-ended:
	case <-time.After(patience):
		t.Errorf("the idle connection was left open")
	}
}

// A POST that meets the close of its connection goes out again: the backend gets each once, and nobody has another's answer.
func TestABackendThatClosesWithoutAWordIsAskedOnce(t *testing.T) {
	var mu sync.Mutex
	asked := map[string]int{}
	c := clientFor(t, listen(t, func(conn net.Conn) {
		if p, err := receive(bufio.NewReader(conn)); err == nil {
			mu.Lock()
			asked[string(p.body)]++
			mu.Unlock()
			fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(p.body), p.body)
		}
	}))
	var all sync.WaitGroup
	for client := range 4 {
		all.Go(func() {
			for i := range 50 {
				body := fmt.Sprintf("%d of %d", i, client)
				r := c.Post(t.Context(), text(body))
				if said(r) != body && r.Outcome != Uncertain { // that is where this machine took more than 40 ms to close
					t.Errorf("got = %s, want %s", said(r), body)
				}
				mu.Lock()
				if times := asked[body]; times != 1 && r.Outcome == Accepted || times != 0 && r.Outcome == Uncertain {
					t.Errorf("%s, %s: asked %d times", body, r.Outcome, times)
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
}

func TestARedirectIsNotFollowed(t *testing.T) {
	var lines []string
	var mu sync.Mutex
	c := clientFor(t, listen(t, func(conn net.Conn) {
		for r := bufio.NewReader(conn); ; {
			p, err := receive(r)
			if err != nil {
				return
			}
			mu.Lock()
			lines = append(lines, p.line)
			mu.Unlock()
			io.WriteString(conn, "HTTP/1.1 308 Permanent Redirect\r\nLocation: /ws/\r\nContent-Length: 0\r\n\r\n")
		}
	}))
	if r := c.Post(t.Context(), text("x")); r.Outcome != Redirected || !strings.Contains(r.Err.Error(), `"/ws/"`) {
		t.Errorf("got = %s, %v, want redirected", r.Outcome, r.Err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(lines) != 1 {
		t.Errorf("requests = %q, want one", lines)
	}
}

func TestNoProxyOfTheEnvironmentIsBetween(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	t.Setenv("http_proxy", "http://127.0.0.1:1")
	if got := said(clientFor(t, listen(t, answering(fresh))).Post(t.Context(), text("x"))); got != "fresh" {
		t.Errorf("got = %s, want fresh", got)
	}
}

func TestABackendOnAUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	came := make(chan *posted, 1)
	serveOn(t, l, func(conn net.Conn) {
		for r := bufio.NewReader(conn); ; {
			p, err := receive(r)
			if err != nil {
				return
			}
			came <- p
			io.WriteString(conn, fresh)
		}
	})
	for _, row := range []struct{ url, line, host, want string }{
		{"http://unix:" + path, "POST /ws HTTP/1.1", "chat.example.org", "chat.example.org"},
		{"http://unix:" + path + ":/in.cgi?x=1", "POST /in.cgi?x=1 HTTP/1.1", "chat.example.org", "chat.example.org"},
		{"http://unix:" + path + ":/", "POST / HTTP/1.1", "", "unix"},
	} {
		e := text("x")
		e.Handshake.RequestHost = row.host
		if got := said(clientFor(t, row.url).Post(t.Context(), e)); got != "fresh" {
			t.Fatalf("%s: got = %s, want fresh", row.url, got)
		}
		if p := <-came; p.line != row.line || p.value("Host") != row.want {
			t.Errorf("%s: got = %q to %q, want %q to %q", row.url, p.line, p.value("Host"), row.line, row.want)
		}
	}
}

// authority signs certificates.
type authority struct {
	file string // its own certificate
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{file: filepath.Join(t.TempDir(), "ca.pem"), key: key}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(a.file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

// backend returns the URL of an https backend for the name or address, and how many requests it has had.
func (a *authority) backend(t *testing.T, name string, serve func(net.Conn)) (string, *atomic.Int64) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature}
	if ip := net.ParseIP(name); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		NextProtos:   []string{"h2", "http/1.1"}, // HTTP/2 is there to be taken, and must not be
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var requests atomic.Int64
	serveOn(t, l, func(conn net.Conn) {
		secure := tls.Server(conn, config)
		defer secure.Close()
		if err := secure.Handshake(); err != nil {
			return
		}
		if protocol := secure.ConnectionState().NegotiatedProtocol; protocol == "h2" {
			t.Errorf("protocol = %s, want HTTP/1.1", protocol)
		}
		r := bufio.NewReader(secure)
		if _, err := r.Peek(1); err != nil {
			return
		}
		requests.Add(1)
		serve(&peeked{secure, r})
	})
	return "https://" + l.Addr().String(), &requests
}

// peeked is a connection that is read from through a buffer.
type peeked struct {
	net.Conn
	r *bufio.Reader
}

func (p *peeked) Read(b []byte) (int, error) { return p.r.Read(b) }

func TestABackendOverTLSIsTheOneThatWasMeant(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	rows := []struct {
		name         string
		signer       *authority
		certificate  string
		ca           string
		expectedName string
		want         bool
	}{
		{"its address", ours, "127.0.0.1", ours.file, "", true},
		{"another address", ours, "127.0.0.2", ours.file, "", false},
		{"a name that is expected", ours, "app.internal", ours.file, "app.internal", true},
		{"a name that is not", ours, "app.internal", ours.file, "", false},
		{"another name than expected", ours, "127.0.0.1", ours.file, "app.internal", false},
		{"another authority", theirs, "127.0.0.1", ours.file, "", false},
		{"an authority that nobody knows", ours, "127.0.0.1", "", "", false},
	}
	for _, row := range rows {
		url, requests := row.signer.backend(t, row.certificate, answering(fresh))
		config := standard(t, url)
		config.CA, config.TLSName, config.Retry = row.ca, row.expectedName, RetryNever
		c := newClient(t, config)
		for range 3 {
			r := c.Post(t.Context(), text("x"))
			if row.want && said(r) != "fresh" {
				t.Errorf("%s: got = %s, want fresh", row.name, said(r))
			} else if !row.want && (r.Outcome != Unreachable || r.TimedOut) {
				t.Errorf("%s: got = %s, want unreachable: it was certainly not taken", row.name, said(r))
			}
		}
		if got := requests.Load(); row.want && got != 1 || !row.want && got != 0 {
			t.Errorf("%s: %d connections with a request, want as it was accepted: %v", row.name, got, row.want)
		}
		if err := c.Probe(t.Context(), "/"); (err == nil) != row.want {
			t.Errorf("%s: probe = %v", row.name, err)
		}
	}
}

func TestWhatFollowsAnAnswerOverTLSAnswersNobodyElse(t *testing.T) {
	ours := newAuthority(t)
	url, _ := ours.backend(t, "127.0.0.1", answering(noContent+"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"))
	config := standard(t, url)
	config.CA = ours.file
	c := newClient(t, config)
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for range 5 {
				if r := c.Post(t.Context(), text("x")); r.Outcome != Accepted || r.Messages != nil {
					t.Errorf("got = %s", said(r))
				}
			}
		})
	}
	all.Wait()
}

func TestABackendWithoutTLSIsUnreachableOverTLS(t *testing.T) {
	c := clientFor(t, strings.Replace(listen(t, answering(fresh)), "http:", "https:", 1))
	go func() { c.Probe(t.Context(), "/") }() // the backend waits for the end of a line that may not come
	config := standard(t, strings.Replace(listen(t, func(conn net.Conn) { io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\n\r\n") }), "http:", "https:", 1))
	config.Retry = RetryNever
	if r := newClient(t, config).Post(t.Context(), text("x")); r.Outcome != Unreachable {
		t.Errorf("got = %s, %v, want unreachable", r.Outcome, r.Err)
	}
}

// A dial outlives its POST, in case the next one can use it. It must not do so for ever.
func TestATLSHandshakeThatHangsIsGivenUp(t *testing.T) {
	ended := make(chan struct{})
	config := standard(t, strings.Replace(listen(t, func(conn net.Conn) {
		defer close(ended)
		awaitEnd(t, conn)
	}), "http:", "https:", 1))
	config.Timeout, config.Retry = 200*time.Millisecond, RetryNever
	r := newClient(t, config).Post(t.Context(), text("x"))
	if r.Outcome != Unreachable || r.Err == nil {
		t.Errorf("got = %s, %v, want unreachable", r.Outcome, r.Err)
	}
	<-ended
}

func TestACertificateFileThatIsNoneIsAFault(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, []byte("-----BEGIN NOTHING-----\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{empty, empty + ".missing"} {
		config := standard(t, "https://127.0.0.1")
		config.CA = file
		if _, err := New(config, "node-1", nil, nil); err == nil || !strings.Contains(err.Error(), "empty.pem") {
			t.Errorf("%s: got = %v, want an error that names the file", file, err)
		}
	}
}

func TestAProbeAsksForOptionsAndHarmsNothing(t *testing.T) {
	rows := []struct {
		answer, want string // in the error; empty: good
	}{
		{"200 OK", ""}, {"204 No Content", ""}, {"400 Bad Request", ""}, {"401 Unauthorized", ""}, {"403 Forbidden", ""}, {"405 Method Not Allowed", ""}, {"422 No", ""},
		{"404 Not Found", "404"}, {"301 Moved\r\nLocation: /x/", `"/x/"`}, {"307 Moved\r\nLocation: /x/", "307"}, {"500 Oops", "500"}, {"502 Bad Gateway", "502"}, {"503 No", "503"},
	}
	for _, row := range rows {
		came := make(chan *posted, 1)
		c := clientFor(t, listen(t, func(conn net.Conn) {
			p, err := receive(bufio.NewReader(conn))
			if err != nil {
				t.Errorf("%s: %v", row.answer, err)
				return
			}
			came <- p
			io.WriteString(conn, "HTTP/1.1 "+row.answer+"\r\nContent-Length: 0\r\n\r\n")
		}))
		err := c.Probe(t.Context(), "/ws")
		if (err == nil) != (row.want == "") || err != nil && !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: got = %v, want %q in it", row.answer, err, row.want)
		}
		p := <-came
		if p.line != "OPTIONS /ws HTTP/1.1" || len(p.body) != 0 || p.value("Host") != c.config.URL.host || p.value("User-Agent") != "wsbridge" {
			t.Errorf("%s: request = %q %q", row.answer, p.line, p.header)
		}
		for _, line := range p.header {
			if strings.HasPrefix(strings.ToLower(line), "ce-") {
				t.Errorf("%s: a probe looks like an event: %s", row.answer, line)
			}
		}
	}
	if err := clientFor(t, "http://unix:/does/not/exist:/").Probe(t.Context(), "/"); err == nil {
		t.Error("a socket that is not there is good")
	}
}

func TestEveryPostIsCountedByItsOutcome(t *testing.T) {
	registry := prometheus.NewRegistry()
	config := standard(t, listen(t, answering("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")))
	config.Retry = RetryNever
	c, err := New(config, "node-1", registry, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 3 {
		c.Post(t.Context(), text("x"))
	}
	if got := metric(t, registry, "wsbridge_events_total", "message", "later"); got != 3 {
		t.Errorf("got = %v, want 3", got)
	}
}

func FuzzRawAnswer(f *testing.F) {
	for _, answer := range []string{
		"", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", noContent + noContent, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nWs-Close: 4001 \"x\"\r\n\r\nhello", "HTTP/1.0 422 No\r\nContent-Type: text/plain\r\n\r\nno",
		"HTTP/1.1 101 X\r\nUpgrade: x\r\n\r\n", "\x16\x03\x01", "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
	} {
		f.Add([]byte(answer))
	}
	config := standard(f, "http://127.0.0.1")
	config.MaxAnswer, config.Timeout = 1000, patience
	f.Fuzz(func(t *testing.T, answer []byte) {
		// A pipe that ends behind the answer.
		var all sync.WaitGroup
		defer all.Wait()
		c, err := New(config, "node-1", nil, func(context.Context) (net.Conn, error) {
			here, there := net.Pipe()
			all.Go(func() {
				defer there.Close()
				if _, err := receive(bufio.NewReader(there)); err == nil {
					there.Write(answer)
				}
			})
			return here, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		r := c.Post(t.Context(), text("hello"))
		wantRules(t, r)
		if r.TimedOut {
			t.Errorf("%q: took %s", answer, patience)
		}
		if r.Outcome == Unreachable {
			t.Errorf("%q: unreachable, where the request was sent: %v", answer, r.Err)
		}
	})
}

// A caller whose time ends just as its answer is there has had the connection that another one has by then.
func TestTheEndOfACallersTimeIsNobodyElsesEnd(t *testing.T) {
	url := listen(t, answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nKeep-Alive: timeout=60\r\n\r\nok"))
	config := standard(t, url)
	config.Timeout = time.Minute
	client := newClient(t, config)
	for range 3000 {
		ctx, cancel := context.WithCancel(t.Context())
		first := client.Post(ctx, &Event{Type: Connect, Handshake: &Handshake{Path: "/"}})
		go cancel()
		second := client.Post(t.Context(), &Event{Type: Message, Handshake: &Handshake{Path: "/"}})
		if first.Outcome != Accepted || second.Outcome != Accepted {
			t.Fatalf("the outcomes are %s (%v) and %s (%v)", first.Outcome, first.Err, second.Outcome, second.Err)
		}
	}
}

func TestALineThatIsResetIsToldAsSuch(t *testing.T) {
	url := listen(t, func(conn net.Conn) {
		receive(bufio.NewReader(conn))
		reset(conn)
	})
	if r := clientFor(t, url).Post(t.Context(), text("x")); r.Outcome != Uncertain || !errors.Is(r.Err, syscall.ECONNRESET) {
		t.Errorf("got = %s (%v), want an uncertain outcome of a connection that was reset", said(r), r.Err)
	}
}
