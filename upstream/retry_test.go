package upstream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// try is one delivery of an event, as a backend in fake time has read it.
type try struct {
	*posted
	at time.Duration // since the start
}

// inTime runs a test in fake time with a client of a backend that says these things in turn, the last of them for ever; "refuse" stands for nobody who
// listens, and "" for the end of the connection. What it was sent is in tries, but for what it refused.
func inTime(t *testing.T, change func(*Config), answers []string, test func(t *testing.T, c *Client, tries func() []try)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		config := standard(t, "http://backend/events")
		if change != nil {
			change(&config)
		}
		var all sync.WaitGroup
		defer all.Wait()
		var mu sync.Mutex
		var seen []try
		next := 0
		answer := func() string {
			mu.Lock()
			defer mu.Unlock()
			next++
			return answers[min(next, len(answers))-1]
		}
		start := time.Now()
		c, err := New(config, "node-1", nil, func(context.Context) (net.Conn, error) {
			say := answer()
			if say == "refuse" {
				return nil, errors.New("connection refused")
			}
			here, there := net.Pipe()
			all.Go(func() { // each connection carries one request: what comes next is said on the next
				defer there.Close()
				p, err := receive(bufio.NewReader(there))
				if err != nil {
					return
				}
				mu.Lock()
				seen = append(seen, try{p, time.Since(start)})
				mu.Unlock()
				io.WriteString(there, strings.ReplaceAll(say, "\r\n\r\n", "\r\nConnection: close\r\n\r\n"))
			})
			return here, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		test(t, c, func() []try {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(seen)
		})
	})
}

func status(line string) string { return "HTTP/1.1 " + line + "\r\nContent-Length: 0\r\n\r\n" }

// What the contract's table says of each failure, in each mode.
func TestWhatIsTriedAgain(t *testing.T) {
	always, never := RetryAlways, RetryNever
	rows := []struct {
		name   string
		answer string
		mode   Retry
		want   Outcome // empty tries: in the end
		tries  int     // that reached the backend, with the good one at last
	}{
		{"refused", "refuse", RetrySafe, Accepted, 1},
		{"refused", "refuse", always, Accepted, 1},
		{"refused", "refuse", never, Unreachable, 0},
		{"425", status("425 Too Early"), RetrySafe, Accepted, 2},
		{"429", status("429 Too Many Requests"), RetrySafe, Accepted, 2},
		{"503", status("503 Service Unavailable"), RetrySafe, Accepted, 2},
		{"503", status("503 Service Unavailable"), always, Accepted, 2},
		{"503", status("503 Service Unavailable"), never, Later, 1},
		{"broken off", "", RetrySafe, Uncertain, 1},
		{"broken off", "", always, Accepted, 2},
		{"broken off", "", never, Uncertain, 1},
		{"half an answer", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", RetrySafe, Uncertain, 1},
		{"half an answer", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", always, Accepted, 2},
		{"408", status("408 Request Timeout"), RetrySafe, Uncertain, 1},
		{"408", status("408 Request Timeout"), always, Accepted, 2},
		{"502", status("502 Bad Gateway"), RetrySafe, Uncertain, 1},
		{"502", status("502 Bad Gateway"), always, Accepted, 2},
		{"504", status("504 Gateway Timeout"), always, Accepted, 2},
		{"504", status("504 Gateway Timeout"), never, Uncertain, 1},
		{"500", status("500 Oops"), always, Failed, 1},
		{"501", status("501 Oops"), always, Failed, 1},
		{"422", status("422 No"), always, Refused, 1},
		{"404", status("404 No"), always, Misconfigured, 1},
		{"307", status("307 Elsewhere"), always, Redirected, 1},
		{"garbage", "220 mail.example.org ESMTP\r\n", always, Invalid, 1},
	}
	for _, row := range rows {
		t.Run(fmt.Sprint(row.name, ", ", row.mode), func(t *testing.T) {
			inTime(t, func(c *Config) { c.Retry = row.mode }, []string{row.answer, fresh}, func(t *testing.T, c *Client, tries func() []try) {
				r := c.Post(t.Context(), text("x"))
				if r.Outcome != row.want {
					t.Errorf("got = %s, %v, want %s", r.Outcome, r.Err, row.want)
				}
				seen := tries()
				if len(seen) != row.tries {
					t.Fatalf("the backend was sent %d, want %d", len(seen), row.tries)
				}
				for i, one := range seen {
					attempt := fmt.Sprint(i + 1)
					if row.answer == "refuse" {
						attempt = "2"
					}
					if one.value("ce-id") != "conn1-17" || one.value("ce-sequence") != "2" || one.value("ce-attempt") != attempt {
						t.Errorf("try %d has id %s, sequence %s, attempt %s", i, one.value("ce-id"), one.value("ce-sequence"), one.value("ce-attempt"))
					}
				}
			})
		})
	}
}

func TestRetryAfterIsHonoured(t *testing.T) {
	for _, row := range []struct {
		name, after string
		want        time.Duration
	}{
		{"seconds", "Retry-After: 7", 7 * time.Second},
		{"a date", "Retry-After: " + time.Date(2000, 1, 1, 0, 0, 30, 0, time.UTC).Format(http.TimeFormat), 30 * time.Second}, // the bubble begins at 2000-01-01 00:00:00
	} {
		for _, code := range []string{"429", "503"} {
			inTime(t, nil, []string{"HTTP/1.1 " + code + " Later\r\n" + row.after + "\r\nContent-Length: 0\r\n\r\n", fresh}, func(t *testing.T, c *Client, tries func() []try) {
				if got := said(c.Post(t.Context(), text("x"))); got != "fresh" {
					t.Errorf("%s: got = %s, want fresh", row.name, got)
				}
				if seen := tries(); len(seen) != 2 || seen[1].at != row.want {
					t.Errorf("%s: tried %v, want the second at %s", row.name, seen, row.want)
				}
			})
		}
	}
	// A time beyond the one that a message is held: there is nothing to wait for.
	inTime(t, nil, []string{"HTTP/1.1 503 Later\r\nRetry-After: 121\r\nContent-Length: 0\r\n\r\n"}, func(t *testing.T, c *Client, tries func() []try) {
		start := time.Now()
		if r := c.Post(t.Context(), text("x")); r.Outcome != Later || r.After != 121*time.Second || time.Since(start) != 0 {
			t.Errorf("got = %s after %s, want later, at once", r.Outcome, time.Since(start))
		}
	})
}

func TestAMessageIsHeldForItsTimeAndNoLonger(t *testing.T) {
	for _, row := range []struct {
		mode   Retry
		answer string
		want   Outcome
	}{
		{RetrySafe, "refuse", Unreachable}, {RetrySafe, status("429 No"), Later}, {RetryAlways, status("502 No"), Later}, {RetryAlways, "", Later},
	} {
		inTime(t, func(c *Config) { c.Retry, c.RetryFor = row.mode, 90*time.Second }, []string{row.answer}, func(t *testing.T, c *Client, tries func() []try) {
			start := time.Now()
			r := c.Post(t.Context(), text("x"))
			if took := time.Since(start); r.Outcome != row.want || took != 90*time.Second {
				t.Errorf("%q: got = %s after %s, want %s after 1m30s", row.answer, r.Outcome, took, row.want)
			}
			last := 0 * time.Second
			seen := tries()
			for i, one := range seen {
				// The last comes when the time is over, however short that is behind the one before.
				if pause := one.at - last; pause > lastRetry || i > 0 && i < len(seen)-1 && pause < firstRetry/2 {
					t.Errorf("%q: try %d after a pause of %s", row.answer, i, pause)
				}
				last = one.at
			}
		})
	}
}

// A handshake waits for a limited time, and its answer should say what is wrong.
func TestAConnectEventIsTriedAgainWhileItsHandshakeCanWait(t *testing.T) {
	connect := func(t *testing.T, c *Client) *Reply {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		e := text("")
		e.Type = Connect
		return c.Post(ctx, e)
	}
	inTime(t, nil, []string{"refuse", "refuse", "refuse", "refuse", noContent}, func(t *testing.T, c *Client, tries func() []try) {
		if r := connect(t, c); r.Outcome != Accepted {
			t.Errorf("got = %s, want it accepted by the backend that came back", r.Outcome)
		}
	})
	for _, row := range []struct {
		answer string
		want   Outcome
		status int
	}{
		{"refuse", Unreachable, 0}, {status("503 No"), Later, 503}, {status("429 No"), Later, 429},
		{"HTTP/1.1 503 No\r\nRetry-After: 11\r\nContent-Length: 0\r\n\r\n", Later, 503},
		{"", Uncertain, 0},
	} {
		inTime(t, nil, []string{row.answer}, func(t *testing.T, c *Client, tries func() []try) {
			start := time.Now()
			r := connect(t, c)
			if r.Outcome != row.want || r.Status != row.status || r.TimedOut || time.Since(start) > 10*time.Second {
				t.Errorf("%q: got = %s, %d, timed out %v, after %s, want %s, %d", row.answer, r.Outcome, r.Status, r.TimedOut, time.Since(start), row.want, row.status)
			}
		})
	}
}

func TestAGoodbyeIsTriedOnceByUs(t *testing.T) {
	inTime(t, func(c *Config) { c.Retry = RetryAlways }, []string{status("503 No")}, func(t *testing.T, c *Client, tries func() []try) {
		e := text("")
		e.Type, e.Goodbye = Disconnect, &Goodbye{}
		if r := c.Post(t.Context(), e); r.Outcome != Later || len(tries()) != 1 {
			t.Errorf("got = %s after %d tries, want later after one", r.Outcome, len(tries()))
		}
	})
}

func TestEachAttemptIsSignedAnew(t *testing.T) {
	var s Secrets
	if err := s.UnmarshalText([]byte("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")); err != nil {
		t.Fatal(err)
	}
	change := func(c *Config) { c.Secret = s }
	inTime(t, change, []string{"HTTP/1.1 503 Later\r\nRetry-After: 60\r\nContent-Length: 0\r\n\r\n", fresh}, func(t *testing.T, c *Client, tries func() []try) {
		c.Post(t.Context(), text("x"))
		seen := tries()
		if len(seen) != 2 || seen[0].value("webhook-id") != seen[1].value("webhook-id") ||
			seen[0].value("webhook-timestamp") == seen[1].value("webhook-timestamp") || seen[0].value("webhook-signature") == seen[1].value("webhook-signature") {
			t.Errorf("tries = %v, want one id, and a time and signature for each", seen)
		}
	})
}

// While one connection is told to wait the others go on.
func TestA429HoldsItsOwnConnectionOnly(t *testing.T) {
	late := "HTTP/1.1 429 No\r\nRetry-After: 100\r\nContent-Length: 0\r\n\r\n"
	inTime(t, func(c *Config) { c.MaxConcurrent = 1 }, []string{late, late, late, late, fresh}, func(t *testing.T, c *Client, tries func() []try) {
		var all sync.WaitGroup
		for i := range 4 {
			all.Go(func() {
				e := text("x")
				e.ConnectionID = fmt.Sprint(i)
				if got := said(c.Post(t.Context(), e)); got != "fresh" {
					t.Errorf("%d: got = %s, want fresh", i, got)
				}
			})
			synctest.Wait()
		}
		start := time.Now()
		if got := said(c.Post(t.Context(), text("x"))); got != "fresh" || time.Since(start) != 0 {
			t.Errorf("got = %s after %s, want fresh at once", got, time.Since(start))
		}
		all.Wait()
	})
}
