package bridge

import (
	"fmt"
	"math"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"wsbridge/upstream"
)

// Close is how a connection ends: the code and reason of the close frame (RFC 6455, 7.4), and what is still done before it. It is the
// cause of the cancellation of the connection's context; the first one counts. This file lists every way there is.
type Close struct {
	Code   int
	Reason string
	By     string // client, backend or bridge: who decided

	answers time.Duration // how long the answers to what was already taken may take before the frame is sent
	abandon bool          // messages that wait are not posted
	urgent  bool          // queued messages are not sent
	silent  bool          // there is nobody left to send a frame to
	failure error         // what was behind it, for the log
}

// Error returns the ending as a sentence for a log.
func (c *Close) Error() string {
	return fmt.Sprintf("closed by the %s: %d %s", c.By, c.Code, c.Reason)
}

const (
	byClient  = "client"
	byBackend = "backend"
	byBridge  = "bridge"
)

const (
	// partingAnswers is how long a client that has said goodbye, or broken a rule, waits for the answers to what it sent before. Short,
	// because its own close should be answered as soon as practical (RFC 6455, 5.5.1), and enough for a backend that is up.
	partingAnswers = 500 * time.Millisecond
	// allAnswers waits for every answer; each POST has its own timeout, and a drain its end.
	allAnswers = time.Duration(math.MaxInt64)
)

// What the client did. Its own code is echoed; 1005 stands for a close frame without one.
func closeByClient(code int, reason string) *Close {
	return &Close{Code: code, Reason: reason, By: byClient, answers: partingAnswers}
}

func closeVanished(err error) *Close {
	return &Close{Code: 1006, Reason: "connection lost", By: byClient, silent: true, failure: err}
}

func closeProtocol(err error) *Close {
	return &Close{Code: 1002, Reason: strings.TrimPrefix(err.Error(), "websocket: "), By: byBridge, answers: partingAnswers, failure: err}
}

func closeInvalidText(reason string) *Close {
	return &Close{Code: 1007, Reason: reason, By: byBridge, answers: partingAnswers}
}

func closeTooBig(limit int64) *Close {
	return &Close{Code: 1009, Reason: fmt.Sprintf("message larger than %d bytes", limit), By: byBridge, answers: partingAnswers}
}

func closeFlooding() *Close {
	return &Close{Code: 1008, Reason: "too many messages", By: byBridge, answers: partingAnswers}
}

func closeSlow(err error) *Close {
	return &Close{Code: 1008, Reason: "too slow to read", By: byBridge, urgent: true, failure: err}
}

func closeHeartbeat() *Close {
	return &Close{Code: 3008, Reason: "heartbeat missed", By: byBridge, urgent: true}
}

// What time did.
func closeIdle() *Close {
	return &Close{Code: 1000, Reason: "idle", By: byBridge, answers: allAnswers}
}

func closeOld() *Close {
	return &Close{Code: 1001, Reason: "maximum age", By: byBridge, answers: allAnswers}
}

func closeShutdown() *Close {
	return &Close{Code: 1001, Reason: "shutting down", By: byBridge, answers: allAnswers}
}

// closeRestarting ends a connection that can't outlive this process.
func closeRestarting(failure error) *Close {
	return &Close{Code: 1012, Reason: "restarting", By: byBridge, answers: allAnswers, failure: failure}
}

// What the backend asked for.
func closeByBackend(code int, reason string) *Close {
	return &Close{Code: code, Reason: reason, By: byBackend, abandon: true}
}

// closeOpen ends a connection whose last message may or may not have been done.
func closeOpen(failure error) *Close {
	return &Close{Code: 1011, Reason: "the outcome of the last message is open", By: byBridge, abandon: true, failure: failure}
}

// closeFor returns how a connection ends on the reply to one of its messages, or nil when it goes on.
func closeFor(r *upstream.Reply) *Close {
	refused := func() string {
		return strings.TrimSpace(fmt.Sprintf("message refused: %d %s", r.Status, http.StatusText(r.Status)))
	}
	switch r.Outcome {
	case upstream.Accepted, upstream.Refused:
		if r.Close != nil {
			return closeByBackend(r.Close.Code, r.Close.Reason)
		}
		if r.Outcome == upstream.Accepted || len(r.Messages) > 0 {
			return nil
		}
		return &Close{Code: 1008, Reason: refused(), By: byBackend, abandon: true, failure: r.Err}
	case upstream.Unauthenticated, upstream.Forbidden, upstream.Gone, upstream.Misconfigured:
		if r.Close != nil {
			return closeByBackend(r.Close.Code, r.Close.Reason)
		}
	}
	switch r.Outcome {
	case upstream.Unauthenticated:
		return &Close{Code: 3000, Reason: "not signed in", By: byBackend, abandon: true, failure: r.Err}
	case upstream.Forbidden:
		return &Close{Code: 3003, Reason: "not allowed", By: byBackend, abandon: true, failure: r.Err}
	case upstream.Gone:
		return &Close{Code: 1000, Reason: "done", By: byBackend, abandon: true, failure: r.Err}
	case upstream.Misconfigured:
		return &Close{Code: 1008, Reason: refused(), By: byBridge, abandon: true, failure: r.Err}
	case upstream.Later, upstream.Unreachable:
		return &Close{Code: 1013, Reason: "try again later", By: byBridge, abandon: true, failure: r.Err}
	case upstream.Uncertain:
		return closeOpen(r.Err)
	default:
		return &Close{Code: 1011, Reason: "the backend failed", By: byBridge, abandon: true, failure: r.Err}
	}
}

// body returns the payload of the close frame: empty for 1005, which never goes on the wire.
func (c *Close) body() []byte {
	if c.Code == 1005 {
		return nil
	}
	reason := c.Reason
	if len(reason) > 123 {
		reason = reason[:123]
		for !utf8.ValidString(reason) {
			reason = reason[:len(reason)-1]
		}
	}
	return append([]byte{byte(c.Code >> 8), byte(c.Code)}, reason...)
}
