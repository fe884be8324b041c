package bridge

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"wsbridge/upstream"
)

// parcel is one sending, to one connection or to many. Each form of its frame is built once, and all that are sent it share the bytes.
type parcel struct {
	frames   *frames
	messages []upstream.Payload
	options
	receipt *receipt
	owed    *owed // the message that it answers, where that is kept
	lease   lease
	at      time.Time     // it is sent
	own     bool          // it goes to the connection that it answers
	sentNow int           // to how many at once, without a writer
	plain   frame         // for connections without compression; without a wire it has not been built
	packed  map[int]frame // for the others, by the window their client allows
}

// options are what a push may ask for beyond being sent.
type options struct {
	until    time.Time     // it is dropped if it has not been written by then; zero: never
	collapse string        // it takes the place of a message that waits under the same key; empty: of none
	confirm  time.Duration // how long the clients' word is waited for; 0: not at all
	except   []string      // connections that it does not go to
}

// The bounds of the options.
const (
	maxConfirm  = time.Minute
	maxCollapse = 200 // bytes
)

// newParcel returns a parcel that is sent now. It may be sent by one goroutine.
func (b *Bridge) newParcel(messages []upstream.Payload, o options, now time.Time) *parcel {
	p := &parcel{frames: &b.frames, messages: messages, options: o, at: now, lease: lease{in: b.keeping}}
	if o.confirm > 0 {
		p.receipt = b.newReceipt()
	}
	return p
}

// frame returns the parcel's frame for connections whose client allows a window of so many bits.
func (p *parcel) frame(window int) frame {
	if window == 0 {
		if p.plain.wire == nil {
			p.plain = p.build(0)
		}
		return p.plain
	}
	f, built := p.packed[window]
	if !built {
		if p.packed == nil {
			p.packed = map[int]frame{}
		}
		f = p.build(window)
		p.packed[window] = f
	}
	return f
}

func (p *parcel) build(window int) frame {
	f := p.frames.build(p.messages, window)
	if p.collapse != "" || !p.until.IsZero() {
		terms := p.options // of its own, so that a parcel need not outlive its sending
		f.terms = &terms
	}
	if p.receipt != nil {
		f.receipt = p.receipt
		f.wire = controlFrame(f.wire, opPing, p.receipt.ping[:]) // in one piece with the message: who loses that, loses this
	}
	return f
}

// target is whom a send route names.
type target struct {
	kind  targetKind
	name  string // of a connection, user or group
	own   *conn  // for an answer: the connection that it is for, even while that ends
	route string // of an answer for others: what the backend wrote
}

type targetKind int

const (
	toOne targetKind = iota
	toUser
	toGroup
	toAll
)

// parseTarget reads a send route: /connections/ID, /users/USER, /groups/GROUP or /connections, its names percent-encoded where need be.
func parseTarget(path string) (target, error) {
	wrong := func() (target, error) {
		return target{}, fmt.Errorf("%q is no send route: use /connections/ID, /users/USER, /groups/GROUP or /connections", path)
	}
	if path == "/connections" {
		return target{kind: toAll}, nil
	}
	rest, ok := strings.CutPrefix(path, "/")
	kind, encoded, more := strings.Cut(rest, "/")
	if !ok || !more || strings.ContainsAny(encoded, "/?#") {
		return wrong()
	}
	name, err := url.PathUnescape(encoded)
	if err != nil || name == "" {
		return wrong()
	}
	t := target{name: name}
	switch kind {
	case "connections":
	case "users":
		t.kind = toUser
	case "groups":
		t.kind = toGroup
	default:
		return wrong()
	}
	return t, t.valid()
}

// valid returns why there can be no such user or group. An id of a connection is opaque.
func (t target) valid() error {
	what := "user"
	if t.kind == toGroup {
		what = "group"
	}
	if (t.kind == toUser || t.kind == toGroup) && !upstream.ValidName(t.name) {
		return fmt.Errorf("%s %q: use 1 to 200 printable ASCII characters without space, comma, quotes and %%", what, t.name)
	}
	return nil
}

// parse reads one option as its name and value say. What is no option is an error: one that is ignored is a promise that is broken.
func (o *options) parse(name, value string, now time.Time) error {
	switch name {
	case "confirm":
		limit, err := time.ParseDuration(value)
		if err != nil || limit <= 0 || limit > maxConfirm {
			return fmt.Errorf("confirm %q: use a duration such as 5s, at most %s", value, maxConfirm)
		}
		o.confirm = limit
	case "ttl":
		limit, err := time.ParseDuration(value)
		if err != nil || limit <= 0 {
			return fmt.Errorf("ttl %q: use a duration such as 5s", value)
		}
		o.until = now.Add(limit)
	case "collapse":
		if value == "" || len(value) > maxCollapse {
			return fmt.Errorf("collapse: use a key of 1 to %d bytes", maxCollapse)
		}
		o.collapse = value
	case "except":
		for id := range strings.SplitSeq(value, ",") {
			if id = strings.TrimSpace(id); id != "" {
				o.except = append(o.except, id)
			}
		}
	default:
		return errNoOption
	}
	return nil
}

var errNoOption = errors.New("there is no such option")

// parseQuery reads the options of a query.
func (o *options) parseQuery(query url.Values, now time.Time, allowed ...string) (name string, err error) {
	for name, values := range query {
		if !slices.Contains(allowed, name) {
			return name, errNoOption
		}
		if len(values) != 1 {
			return name, fmt.Errorf("%s is there %d times: once is allowed", name, len(values))
		}
		if err := o.parse(name, values[0], now); err != nil {
			return name, err
		}
	}
	return "", nil
}

// result is what became of a parcel.
type result struct {
	Matched   int  `json:"matched"`
	Queued    int  `json:"queued"`
	Dropped   int  `json:"dropped"`
	Confirmed *int `json:"confirmed,omitempty"`

	left    int  // of those that were to confirm
	opening bool // of a single connection: it can't confirm yet, and was sent nothing
}

// members are the connections that a target names now.
func (b *Bridge) members(t target) []*conn {
	if t.kind != toOne {
		return b.registry.members(t)
	}
	if c := b.registry.find(t.name); c != nil {
		return []*conn{c}
	}
	return nil
}

// confirmed completes the result of a sending that asks for the clients' word. Without a receipt none is asked for.
func (r result) confirmed(by *receipt, within time.Duration) result {
	if by != nil && !r.opening {
		confirmed, left := by.wait(within)
		r.Confirmed, r.left = &confirmed, left
	}
	return r
}

// dispatch sends a parcel to those whom the target names now.
func (b *Bridge) dispatch(t target, p *parcel) result {
	var r result
	var one [1]*conn
	conns := one[:]
	switch {
	case t.own != nil:
		one[0] = t.own
	case t.kind != toOne:
		conns = b.registry.members(t)
	default:
		if one[0] = b.registry.find(t.name); one[0] == nil {
			conns = nil
		}
	}
	for i, c := range conns {
		if i%ahead == 0 && len(conns) > 1 {
			b.approach(conns[i:min(i+ahead, len(conns))])
		}
		if slices.Contains(p.except, c.id) {
			continue
		}
		if t.kind == toOne && p.confirm > 0 && c.isOpening() {
			return result{opening: true}
		}
		r.Matched++
		if c.enqueue(p) {
			r.Queued++
		} else {
			r.Dropped++
		}
	}
	p.lease.end()
	for _, m := range p.messages { // in one go: counting each delivery by itself would cost as much as its lock
		b.metrics.sent(p.sentNow, p.sentNow*len(m.Data))
	}
	return r
}

// ahead is how many connections of a sending are approached at once: few enough to be in the caches still when their turn comes.
const ahead = 16

// approach reads a little of what the next deliveries touch of their connections and of their slots. Far apart as they lie in memory, each is fetched while the others are; met
// one by one, between system calls, each would be waited for: a tenth of a delivery to one of 5,000.
func (b *Bridge) approach(conns []*conn) {
	for _, c := range conns {
		c.heard.Load()
		if seat := c.seat.Load(); seat > 0 {
			slot := b.keeping.table.Slot(seat - 1)
			slot.Log.Load()
			slot.MessagesOut.Load()
		}
	}
}

// deliver sends an answer's messages, if it has any, to whom it is for, or counts them as dropped where nobody is there. What they answer is nil unless it is kept.
func (b *Bridge) deliver(t target, o options, messages []upstream.Payload, answered *owed, now time.Time) {
	if len(messages) == 0 {
		return
	}
	p := b.newParcel(messages, o, now)
	var r result
	if p.own = t.own != nil; p.own {
		p.owed = answered
		r = b.dispatch(t, p)
	} else if next := b.here(func() { r = b.dispatch(t, p) }); next != nil {
		if err := next.deliver(t.route, messages); err != nil {
			b.log.Error("an answer's message for others is lost: the worker that serves now does not take it", "to", t.route, "error", err)
			b.metrics.lost[lossGone].Add(float64(len(messages)))
		}
		return
	}
	if t.kind == toOne && r.Queued == 0 {
		b.metrics.lost[lossGone].Add(float64(len(messages)))
	}
}

// route returns whom a reply's messages are for: the connection it answers, or whom Ws-To names, and how they are sent. With a Ws-To that is no send
// route the reply is an invalid one.
func (b *Bridge) route(c *conn, r *upstream.Reply) (target, options, *upstream.Reply) {
	own := target{name: c.id, own: c}
	if r.To == "" {
		return own, options{}, r
	}
	path, query, _ := strings.Cut(r.To, "?")
	t, err := parseTarget(path)
	var o options
	if err == nil {
		var values url.Values
		if values, err = url.ParseQuery(query); err == nil {
			allowed := []string{"ttl", "collapse"}
			if t.kind != toOne {
				allowed = append(allowed, "except")
			}
			_, err = o.parseQuery(values, time.Now(), allowed...)
		}
	}
	if err != nil {
		return own, options{}, &upstream.Reply{Outcome: upstream.Invalid, Status: r.Status, Err: fmt.Errorf("Ws-To %q: %w", r.To, err)}
	}
	t.route = r.To
	return t, o, r
}
