// Package upstream is what the backend is to us: it turns an event into a POST and the answer into a reply. It is the only
// package that talks to the backend, and its codec is the only place that knows how events look on the wire.
package upstream

import (
	"fmt"
	"net/http"
	"strings"
	"time"
)

// Event is one thing that happened to a connection, as the backend is told of it.
type Event struct {
	Type         Type
	ID           string // the same on every attempt
	Time         time.Time
	ConnectionID string
	Sequence     uint64 // 1 for the first event of the connection, then one more for each
	Attempt      int    // 1, 2, …
	UserID       string
	State        string
	Subprotocol  string
	Subprotocols []string   // what the client offers, on connect
	Body         Payload    // the message
	Goodbye      *Goodbye   // on disconnect
	Handshake    *Handshake // of the connection
	Trip         Trip       `json:"-"` // hears how the event fares, where it is not nil
}

// Trip hears how an event fares on its way: what must be known of it if this process is killed meanwhile.
type Trip interface {
	// Leaves says that the first byte of that attempt is about to be sent.
	Leaves(attempt int)
	// Spared says that the backend has certainly not taken it.
	Spared()
}

// Payload is the content of one message, either way.
type Payload struct {
	Binary bool
	Data   []byte
}

// Goodbye is what a disconnect event says of the connection that has ended.
type Goodbye struct {
	Code        int     `json:"code"` // RFC 6455, 7.4; 1006 where the client just vanished, 1005 where it gave none
	Reason      string  `json:"reason"`
	By          string  `json:"by"` // client, backend or bridge
	Seconds     float64 `json:"seconds"`
	MessagesIn  uint64  `json:"messages_in"`
	MessagesOut uint64  `json:"messages_out"`
	BytesIn     uint64  `json:"bytes_in"`
	BytesOut    uint64  `json:"bytes_out"`
}

// Handshake is what every event of a connection repeats of the request that opened it.
type Handshake struct {
	Path         string // as it came, percent-encoding included
	Query        string
	RequestHost  string
	Header       []Field // the forwarded headers but Cookie, as they came: for a few of them a list is a quarter of a map
	Cookie       string  // as the backend has changed it since
	ForwardedFor string
	Proto        string
	Host         string // as the client asked for it, before any proxy
	Address      string // the client's own
}

// Field is one header field.
type Field struct{ Name, Value string }

// Outcome says what became of an event.
type Outcome int

// The outcomes. Each stands for a row of the contract's table of failures.
const (
	Accepted        Outcome = iota // 2xx
	Refused                        // a final 4xx; the reply's messages are what the client is meant to see
	Unauthenticated                // 401
	Forbidden                      // 403
	Gone                           // 410
	Misconfigured                  // a status that says the URL or the application is set up wrongly
	Redirected                     // 3xx
	Later                          // 425, 429 or 503: not taken, try again later
	Unreachable                    // no connection: not taken
	Uncertain                      // it may have been taken: timed out, broken off, 408, 502, 504
	Failed                         // another 5xx
	Invalid                        // an answer that breaks a rule, or is too large
	Withdrawn                      // it was waiting when Client.Withdraw was called
)

// String returns the outcome as a label of a metric.
func (o Outcome) String() string {
	return [...]string{"accepted", "refused", "unauthenticated", "forbidden", "gone", "misconfigured", "redirected",
		"later", "unreachable", "uncertain", "failed", "invalid", "withdrawn"}[o]
}

// Reply is what the backend says to an event.
type Reply struct {
	Outcome  Outcome
	Status   int           // of the answer; 0 when there was none
	TimedOut bool          // with Unreachable and Uncertain: for want of time
	After    time.Duration // Retry-After, or 0
	Err      error         // for every outcome but Accepted: what was wrong, for a log

	Messages    []Payload // for the client, or for To
	To          string    // a send route of the push side, or empty for the client itself
	User, State *string   // nil: as before
	Join, Leave []string
	Close       *Close
	Subprotocol string   // of the connect answer
	SetCookie   []string // of a 2xx answer

	// Of a refused handshake: what the client is shown.
	Header http.Header
	Body   []byte

	only [1]Payload // where Messages is one, as it mostly is
}

// Close is a close frame that the backend asks for.
type Close struct {
	Code   int
	Reason string
}

// Type is a kind of event.
type Type string

// The events of a connection.
const (
	Connect    Type = "connect"
	Message    Type = "message"
	Disconnect Type = "disconnect"
)

// Types is the set of events that a backend wants.
type Types []Type

// UnmarshalText parses a comma-separated list of event types.
func (t *Types) UnmarshalText(text []byte) error {
	var parsed Types
	for name := range strings.SplitSeq(string(text), ",") {
		switch kind := Type(strings.TrimSpace(name)); kind {
		case Connect, Message, Disconnect:
			parsed = append(parsed, kind)
		default:
			return fmt.Errorf("%q is no event: use connect, message and disconnect", string(kind))
		}
	}
	*t = parsed
	return nil
}

// String returns the list as it is written in a setting.
func (t Types) String() string {
	names := make([]string, len(t))
	for i, kind := range t {
		names[i] = string(kind)
	}
	return strings.Join(names, ",")
}
