package bridge_test

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"

	"wsbridge/upstream"
)

// What a public conformance suite asks of a server, in its order: messages, pings, reserved bits and opcodes, fragments, UTF-8, closes,
// limits, and last compression.

// random returns n bytes that do not compress, and are the same in every run.
func random(n int) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(p)
	return p
}

// prose returns n bytes of text that compresses, with characters of one to four bytes.
func prose(n int) string {
	const line = "Hello-µ@ßöäüàá-κόσμε-\u20ac-\U0001d11e! "
	s := strings.Repeat(line, n/len(line)+1)[:n]
	return strings.ToValidUTF8(s, "") + strings.Repeat("x", n-len(strings.ToValidUTF8(s, "")))
}

func TestMessagesOfEverySizeComeBackAsTheyWent(t *testing.T) {
	t.Parallel()
	r := start(t, func(o *options) { o.bridge.MaxMessage = 65536 })
	c := r.dial(t, "/ws")
	// Where the length's form changes, where gorilla's read buffer ends, and our limit itself.
	for _, size := range []int{0, 1, 125, 126, 127, 128, 511, 512, 513, 4096, 65535, 65536} {
		for _, f := range []frame{text(prose(size)), {op: opBinary, payload: random(size)}} {
			c.write(f)
			c.want(f)
			c.chop(wire(f), max(1, size/50))
			c.want(f)
		}
	}
	c.wantOpen()
}

func TestAHandfulOfBytesAtATimeIsAMessageLikeAnyOther(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	c := r.dial(t, "/ws")
	all := wire(text("Hello-µ@ßöäü").open(), ping("p"), rest("àá-UTF-8!!"), frame{op: opBinary, payload: random(300)}, text(""))
	for size := 1; size <= 9; size++ {
		c.chop(all, size)
		c.want(pong("p"))
		c.want(text("Hello-µ@ßöäüàá-UTF-8!!"), frame{op: opBinary, payload: random(300)}, text(""))
	}
	c.wantOpen()
}

func TestTheBackendGetsEachMessageOnceAndInOrder(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	c := r.dial(t, "/ws/order")
	var sent []frame
	for i := range 50 {
		f := text(fmt.Sprintf("message %d", i))
		if i%2 == 1 {
			f.op = opBinary
		}
		sent = append(sent, f)
	}
	c.write(sent...)
	c.want(sent...)
	c.write(goodbye(4001, "bye"))
	c.wantEnd(4001)

	events := r.await(t, "/ws/order", "disconnect")
	if got, want := len(events), len(sent)+2; got != want {
		t.Fatalf("events = %d, want %d", got, want)
	}
	ids := map[string]bool{}
	for i, e := range events {
		if got, want := e.header.Get("ce-sequence"), fmt.Sprint(i+1); got != want {
			t.Errorf("ce-sequence of event %d = %s, want %s", i, got, want)
		}
		id := e.header.Get("ce-id")
		if ids[id] {
			t.Errorf("ce-id %s is there twice", id)
		}
		ids[id] = true
		if i == 0 || i == len(events)-1 {
			continue
		}
		kind := "text/plain; charset=utf-8"
		if sent[i-1].op == opBinary {
			kind = "application/octet-stream"
		}
		if got := e.header.Get("Content-Type"); e.kind != "message" || got != kind || !bytes.Equal(e.body, sent[i-1].payload) {
			t.Errorf("event %d = %s %s %q, want a message, %s %q", i, e.kind, got, e.body, kind, sent[i-1].payload)
		}
	}
}

func TestPingsAreAnsweredWithTheirPayload(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	c := r.dial(t, "/ws")
	for _, payload := range []string{"", "Hello, world!", "\x00\xff\xfe\xfd\xfc\xfb\x00\xff", string(random(125))} {
		c.write(ping(payload))
		c.want(pong(payload))
		c.chop(wire(ping(payload)), 1)
		c.want(pong(payload))
	}
	// Pongs that nobody asked for mean nothing.
	c.write(pong(""), pong("unsolicited"), ping("asked"), pong("unsolicited"))
	c.want(pong("asked"))

	var pings, pongs []frame
	for i := range 10 {
		pings = append(pings, ping(fmt.Sprintf("payload-%d", i)))
		pongs = append(pongs, pong(fmt.Sprintf("payload-%d", i)))
	}
	c.write(pings...)
	c.want(pongs...)
	c.chop(wire(pings...), 1)
	c.want(pongs...)
	c.wantOpen()
}

func TestPingsAreAnsweredWhileAPostIsUnderWay(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	r := start(t, func(o *options) {
		o.answer = func(w http.ResponseWriter, e event) {
			if e.kind == "message" {
				<-release
			}
			echo(w, e)
		}
	})
	c := r.dial(t, "/ws")
	c.write(text("slow"))
	r.await(t, "/ws", "message")
	want := []frame{text("slow")}
	for i := range 10 {
		payload := fmt.Sprintf("while the backend works: %d", i)
		c.write(ping(payload))
		c.want(pong(payload))
		// Messages that wait don't keep it from what comes behind them.
		c.write(text(payload), ping(""))
		c.want(pong(""))
		want = append(want, text(payload))
	}
	close(release)
	c.want(want...)
	c.wantOpen()
}

func TestAFloodOfPingsIsAnsweredByTheLastPongs(t *testing.T) {
	t.Parallel()
	r := start(t, func(o *options) { o.bridge.WriteTimeout = patience })
	c := r.dial(t, "/ws")
	// Far more than the kernel's buffers hold for a client that does not read. What does not fit must not pile up in the bridge.
	const flood = 60_000
	padding := random(117)
	number := func(i int) string { return string(append(binary.BigEndian.AppendUint64(nil, uint64(i)), padding...)) }
	for first := 0; first < flood; first += 100 {
		var pings []frame
		for i := first; i < first+100; i++ {
			pings = append(pings, ping(number(i)))
		}
		c.write(pings...)
	}
	pongs := 0
	for last := -1; last < flood-1; pongs++ {
		f, err := c.read()
		if err != nil || f.op != opPong || len(f.payload) != 125 {
			t.Fatalf("got = %v, %v, want a pong behind the one to ping %d", f, err, last)
		}
		n := int(binary.BigEndian.Uint64(f.payload))
		if n <= last || n >= flood || string(f.payload) != number(n) {
			t.Fatalf("got = %v, want a pong behind the one to ping %d", f, last)
		}
		last = n
	}
	if pongs == flood {
		t.Errorf("pongs = %d, want fewer: they have all been kept", pongs)
	}
	c.wantOpen()
}

// violations are what a client must not send. Each stands behind a message that is answered before the close frame.
var violations = []struct {
	name string
	wire []byte
	code int
}{
	{"a ping of 126 bytes", wire(ping(strings.Repeat("x", 126))), 1002},
	{"a pong of 126 bytes", wire(pong(strings.Repeat("x", 126))), 1002},
	{"a close frame of 126 bytes", wire(goodbye(1000, strings.Repeat("x", 124))), 1002},
	{"a ping with its length in 16 bits", wire(frame{op: opPing, payload: []byte("x"), bits: 16}), 1002},
	{"a fragmented ping", wire(ping("x").open(), rest("y")), 1002},
	{"a fragmented pong", wire(pong("x").open(), rest("y")), 1002},
	{"a fragmented close frame", wire(goodbye(1000, "").open(), rest("y")), 1002},

	{"RSV1", wire(text("x").reserved(4)), 1002},
	{"RSV2", wire(text("x").reserved(2)), 1002},
	{"RSV3", wire(text("x").reserved(1)), 1002},
	{"RSV2 and RSV3 on a binary message", wire(blob("x").reserved(3)), 1002},
	{"RSV1 and RSV2 on a close frame", wire(goodbye(1000, "").reserved(6)), 1002},
	{"all reserved bits on a ping", wire(ping("x").reserved(7)), 1002},
	{"RSV1 on a pong", wire(pong("x").reserved(4)), 1002},
	{"RSV1 on a continuation", wire(text("x").open(), rest("y").reserved(4)), 1002},

	{"opcode 3", wire(frame{op: 3}), 1002},
	{"opcode 4", wire(frame{op: 4, payload: []byte("x")}), 1002},
	{"opcode 5", wire(frame{op: 5}, ping("")), 1002},
	{"opcode 6", wire(frame{op: 6, payload: []byte("x")}, ping("")), 1002},
	{"opcode 7", wire(frame{op: 7, payload: []byte("x")}.open(), ping("")), 1002},
	{"opcode 11", wire(frame{op: 11}), 1002},
	{"opcode 12", wire(frame{op: 12, payload: []byte("x")}), 1002},
	{"opcode 13", wire(frame{op: 13}, ping("")), 1002},
	{"opcode 14", wire(frame{op: 14, payload: []byte("x")}, ping("")), 1002},
	{"opcode 15", wire(frame{op: 15, payload: []byte("x")}), 1002},

	{"a continuation of nothing", wire(rest("x")), 1002},
	{"a continuation of nothing that goes on", wire(rest("x").open(), rest("y")), 1002},
	{"a continuation behind a whole message", wire(text("whole"), rest("x")), 1002},
	{"a text message inside a fragmented one", wire(text("x").open(), text("y")), 1002},
	{"a binary message inside a fragmented one", wire(blob("x").open(), rest("y").open(), blob("z")), 1002},
	{"fragments that all start a message", wire(text("x").open(), text("y").open(), text("z")), 1002},

	{"a frame without a mask", wire(frame{op: opText, payload: []byte("x"), bare: true}), 1002},
	{"a ping without a mask", wire(frame{op: opPing, bare: true}), 1002},
	{"a length of 2 in 16 bits", wire(frame{op: opText, payload: []byte("xy"), bits: 16}), 1002},
	{"a length of 125 in 16 bits", wire(frame{op: opText, payload: []byte(prose(125)), bits: 16}), 1002},
	{"a length of 2 in 64 bits", wire(frame{op: opText, payload: []byte("xy"), bits: 64}), 1002},
	{"a length of 65535 in 64 bits", wire(frame{op: opBinary, payload: random(65535), bits: 64}), 1002},
	{"a length over 2⁶³", []byte{0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0}, 1002},

	{"a close frame of one byte", wire(frame{op: opClose, payload: []byte{3}}), 1002},
	{"a close reason that is not UTF-8", wire(goodbye(1000, "Hello-µ@\xed\xa0\x80edited")), 1002},
}

func TestABrokenRuleEndsTheConnectionBehindTheAnswersThatAreDue(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	for i, v := range violations {
		t.Run(v.name, func(t *testing.T) {
			target := fmt.Sprintf("/ws/%d", i)
			c := r.dial(t, target)
			c.write(text("before"))
			c.raw(v.wire)
			c.write(text("behind"))
			c.want(text("before"))
			if v.name == "a continuation behind a whole message" {
				c.want(text("whole"))
			}
			c.wantEnd(v.code)

			events := r.await(t, target, "disconnect")
			if got := said(t, events); got.Code != v.code || got.By != "bridge" {
				t.Errorf("disconnect event = %+v, want code %d by bridge", got, v.code)
			}
			for _, e := range events {
				if string(e.body) == "behind" {
					t.Error("what came behind the broken rule was posted")
				}
			}
		})
	}
}

// said returns what the disconnect event at the end tells.
func said(t testing.TB, events []event) upstream.Goodbye {
	t.Helper()
	var g upstream.Goodbye
	if err := json.Unmarshal(events[len(events)-1].body, &g); err != nil {
		t.Fatalf("the disconnect event's body: %v", err)
	}
	return g
}

func TestFragmentsMakeOneMessage(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	for _, test := range []struct {
		name string
		send []frame
		want []frame
	}{
		{"two", []frame{text("frag").open(), rest("ment")}, []frame{text("fragment")}},
		{"two of a binary message", []frame{blob("\xff").open(), rest("\xfe")}, []frame{blob("\xff\xfe")}},
		{"three empty ones", []frame{text("").open(), rest("").open(), rest("")}, []frame{text("")}},
		{"an empty start and end", []frame{text("").open(), rest("middle").open(), rest("")}, []frame{text("middle")}},
		{"a ping between", []frame{text("frag").open(), ping("p"), rest("ment")}, []frame{pong("p"), text("fragment")}},
		{"two pings between", []frame{text("a").open(), ping("1"), rest("b").open(), rest("c").open(), ping("2"), rest("d").open(), rest("e")},
			[]frame{pong("1"), pong("2"), text("abcde")}},
		{"a pong between", []frame{text("frag").open(), pong("p"), rest("ment")}, []frame{text("fragment")}},
		{"one message behind the other", []frame{text("a").open(), rest("b"), blob("c").open(), rest("d"), text("e")},
			[]frame{text("ab"), blob("cd"), text("e")}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := r.dial(t, "/ws")
			c.write(test.send...)
			c.want(test.want...)
			c.chop(wire(test.send...), 1)
			c.want(test.want...)
			for _, f := range test.send {
				c.write(f)
			}
			c.want(test.want...)
			c.wantOpen()
		})
	}
}

func TestAMessageInFragmentsOfAnySizeComesBackWhole(t *testing.T) {
	t.Parallel()
	r := start(t, func(o *options) { o.bridge.MaxMessage = 65536 })
	c := r.dial(t, "/ws")
	whole := prose(65536)
	for _, size := range []int{1, 64, 256, 1024, 4096, 16384, 32768} {
		c.raw(fragments(frame{op: opText, payload: []byte(whole)}, size))
		c.want(text(whole))
		c.raw(fragments(frame{op: opBinary, payload: []byte(whole)}, size))
		c.want(blob(whole))
	}
	c.wantOpen()
}

// fragments returns a message cut into frames with that much payload.
func fragments(f frame, size int) []byte {
	var out []byte
	for piece := range slices.Chunk(f.payload, size) {
		out = append(out, wire(frame{op: f.op, rsv: f.rsv, payload: piece, more: true})...)
		f.op, f.rsv = opContinuation, 0
	}
	return append(out, wire(frame{op: f.op, rsv: f.rsv})...)
}

func TestMoreThanIsReadAheadWaitsForASlowBackend(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	r := start(t, func(o *options) {
		o.bridge.MaxMessage = 1000
		o.answer = func(w http.ResponseWriter, e event) {
			if e.kind == "message" {
				<-release
			}
			echo(w, e)
		}
	})
	c := r.dial(t, "/ws")
	// Far more than is read ahead, in whole messages and fragments.
	var sent []frame
	for i := range 100 {
		f := text(fmt.Sprintf("%0*d", 1+i*10, i))
		sent = append(sent, f)
		c.raw(fragments(f, 100))
	}
	r.await(t, "/ws", "message")
	close(release)
	c.want(sent...)
	c.wantOpen()
}

// valid are texts that are UTF-8, down to code points that stand for no character.
var valid = []string{
	"", "Hello-µ@ßöäüàá-UTF-8!!", "κ", "κό", "κόσ", "κόσμ", "κόσμε",
	"\x00", "\u0080", "\u0800", "\U00010000", // the first of each length
	"\x7f", "\u07ff", "\uffff", "\U0010ffff", // and the last
	"\ud7ff", "\ue000", "\ufffd",
	"\ufffe", "\uffff", "\ufdd0", "\ufdef", "\U0001fffe", "\U0001ffff", "\U0002fffe", "\U0008ffff", "\U000ffffe", "\U0010fffe",
	"\ufff9", "\ufffa", "\ufffb", "\ufffc", "\ufeff",
	"\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0002a6d6",
}

// invalid are texts that are not.
var invalid = []string{
	"κόσμε\xed\xa0\x80edited",                                                   // an encoded surrogate amid text
	"\xce", "\xce\xba\xe1", "\xce\xba\xe1\xbd", "κό\xcf", "κόσ\xce", "κόσμ\xce", // cut short
	"\xf8\x88\x80\x80\x80", "\xfc\x84\x80\x80\x80\x80", // five and six bytes
	"\xf7\xbf\xbf\xbf", "\xfb\xbf\xbf\xbf\xbf", "\xfd\xbf\xbf\xbf\xbf\xbf",
	"\xf4\x90\x80\x80",                                                                                                 // behind the last code point
	"\x80", "\xbf", "\x80\xbf", "\x80\xbf\x80", "\x80\xbf\x80\xbf", "\x80\xbf\x80\xbf\x80", "\x80\xbf\x80\xbf\x80\xbf", // continuations of nothing
	"\xc0 \xc1 \xc2 \xc3 \xdf ", "\xe0 \xe1 \xef ", "\xf0 \xf1 \xf7 ", "\xf8 \xfb ", "\xfc \xfd ", // starts that nothing continues
	"\xc0", "\xe0\x80", "\xf0\x80\x80", "\xf8\x80\x80\x80", "\xdf", "\xef\xbf", "\xf7\xbf\xbf", "\xfb\xbf\xbf\xbf", "\xfd\xbf\xbf\xbf\xbf",
	"\xc0\xe0\x80\xf0\x80\x80\xf8\x80\x80\x80", "\xfe", "\xff", "\xfe\xfe\xff\xff",
	"\xc0\xaf", "\xe0\x80\xaf", "\xf0\x80\x80\xaf", "\xf8\x80\x80\x80\xaf", "\xfc\x80\x80\x80\x80\xaf", // longer than need be
	"\xc1\xbf", "\xe0\x9f\xbf", "\xf0\x8f\xbf\xbf", "\xf8\x87\xbf\xbf\xbf", "\xfc\x83\xbf\xbf\xbf\xbf",
	"\xc0\x80", "\xe0\x80\x80", "\xf0\x80\x80\x80", "\xf8\x80\x80\x80\x80", "\xfc\x80\x80\x80\x80\x80",
	"\xed\xa0\x80", "\xed\xad\xbf", "\xed\xae\x80", "\xed\xaf\xbf", "\xed\xb0\x80", "\xed\xbe\x80", "\xed\xbf\xbf", // surrogates
	"\xed\xa0\x80\xed\xb0\x80", "\xed\xad\xbf\xed\xbf\xbf", "\xed\xaf\xbf\xed\xbf\xbf", // and pairs of them
}

func TestTextSplitAnywhereIsTextAllTheSame(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	c := r.dial(t, "/ws")
	for _, s := range valid {
		var sent []byte
		for i := range len(s) + 1 {
			sent = append(sent, wire(text(s[:i]).open(), ping(""), rest(s[i:]))...)
		}
		c.raw(sent)
		echoes := 0
		for echoes < len(s)+1 {
			f, err := c.read()
			if err != nil {
				t.Fatalf("text %q: read: %v, after %d echoes", s, err, echoes)
			}
			if f.op == opPong {
				continue // pongs may overtake the answers
			}
			if f.op != opText || string(f.payload) != s {
				t.Fatalf("got = %v, want text %q", f, s)
			}
			echoes++
		}
		c.raw(fragments(text(s), 1))
		c.want(text(s))
		// The same as binary messages, which are nobody's text.
		c.write(blob(s))
		c.want(blob(s))
	}
	c.wantOpen()
}

func TestTextThatIsNotUTF8EndsTheConnection(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	for i, s := range invalid {
		t.Run(fmt.Sprintf("%+q", s), func(t *testing.T) {
			t.Parallel()
			for how, sent := range map[string][]byte{
				"whole":     wire(text(s)),
				"fragments": fragments(text(s), 1),
				"amid text": wire(text("κόσμε"+s).open(), ping(""), rest("κόσμε")),
			} {
				target := fmt.Sprintf("/ws/%d-%s", i, how[:1])
				c := r.dial(t, target)
				c.write(blob(s)) // as a binary message it is none of our business
				c.want(blob(s))
				c.raw(sent)
				if f, err := c.read(); err != nil {
					t.Fatalf("%s: read: %v", how, err)
				} else if f.op != opPong {
					if got, want := f.String(), "opcode 8 1007"; !strings.HasPrefix(got, want) {
						t.Fatalf("%s: got = %v, want a close frame with 1007", how, got)
					}
				} else {
					c.wantEnd(1007)
				}
				c.Close()
				if got := said(t, r.await(t, target, "disconnect")); got.Code != 1007 || got.MessagesIn != 1 {
					t.Errorf("%s: disconnect event = %+v, want 1007 after 1 message", how, got)
				}
			}
		})
	}
}

// A client that sends what can't become text any more is told so, before it has sent a large message to its end.
func TestTextThatCanOnlyBeInvalidIsNotReadToItsEnd(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	for _, test := range []struct {
		name string
		send []byte
	}{
		{"in a later fragment", wire(text("κόσμε").open(), rest("\xf4\x90\x80\x80").open())},
		{"between two fragments", wire(text("κόσμε\xf4").open(), rest("\x90").open())},
		{"within a frame", wire(text("κόσμε\xed\xa0\x80" + strings.Repeat("x", 10_000)))[:1000]},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := r.dial(t, "/ws")
			c.raw(test.send)
			c.wantEnd(1007)
		})
	}
}

func TestACloseIsAnsweredWithItsCode(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	type row struct {
		name, reason string
		send         frame
		code, answer int
		by           string
	}
	rows := []row{
		{"without a code", "", frame{op: opClose}, 1005, 1005, "client"},
		{"with a reason", "Hello World!", goodbye(1000, "Hello World!"), 1000, 1000, "client"},
		{"with a reason of 123 bytes", strings.Repeat("é", 61) + "x", goodbye(1000, strings.Repeat("é", 61)+"x"), 1000, 1000, "client"},
	}
	for _, code := range []int{1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 3999, 4000, 4999} {
		rows = append(rows, row{fmt.Sprint(code), "", goodbye(code, ""), code, code, "client"})
	}
	for _, code := range []int{0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535} {
		rows = append(rows, row{fmt.Sprint(code), "", goodbye(code, ""), 1002, 1002, "bridge"})
	}
	for i, test := range rows {
		t.Run(test.name, func(t *testing.T) {
			target := fmt.Sprintf("/ws/%d", i)
			c := r.dial(t, target)
			c.write(text("Hello World!"), test.send)
			c.want(text("Hello World!"))
			reason := c.wantEnd(test.answer)
			got := said(t, r.await(t, target, "disconnect"))
			if got.Code != test.code || got.By != test.by || got.MessagesIn != 1 || got.MessagesOut != 1 {
				t.Errorf("disconnect event = %+v, want code %d by %s, a message each way", got, test.code, test.by)
			}
			if test.by == "client" && (reason != test.reason || got.Reason != test.reason) {
				t.Errorf("reason = %q, and in the event %q, want %q", reason, got.Reason, test.reason)
			}
		})
	}
}

func TestNothingThatComesBehindACloseCounts(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	for i, test := range []struct {
		name   string
		behind []byte
	}{
		{"a message", wire(text("behind"))},
		{"a ping", wire(ping("behind"))},
		{"a second close", wire(goodbye(1001, "behind"))},
		{"the end of a fragmented message", wire(rest("behind"))},
		{"a large message", wire(frame{op: opBinary, payload: random(256 << 10)})},
		{"rubbish", random(1000)},
	} {
		t.Run(test.name, func(t *testing.T) {
			target := fmt.Sprintf("/ws/%d", i)
			c := r.dial(t, target)
			c.write(text("frag").open(), goodbye(1000, "first"))
			c.raw(test.behind)
			if got, want := c.wantEnd(1000), "first"; got != want {
				t.Errorf("reason = %q, want %q", got, want)
			}
			events := r.await(t, target, "disconnect")
			if got, want := len(events), 2; got != want {
				t.Errorf("events = %d, want %d: connect and disconnect", got, want)
			}
		})
	}
}

func TestMessagesBeforeACloseAreAnsweredBeforeTheClose(t *testing.T) {
	t.Parallel()
	r := start(t, func(o *options) {
		o.bridge.MaxMessage, o.bridge.SendBuffer = 1<<20, 4<<20
	})
	c := r.dial(t, "/ws")
	large := frame{op: opBinary, payload: random(256 << 10)}
	c.write(large, text("a"), ping("p"), text("b"), goodbye(1000, ""))
	for _, want := range []frame{large, text("a"), text("b")} {
		f, err := c.read()
		if err == nil && f.op == opPong {
			f, err = c.read()
		}
		if err != nil || f.op != want.op || !bytes.Equal(f.payload, want.payload) {
			t.Fatalf("got = %v, %v, want %v", f, err, want)
		}
	}
	c.wantEnd(1000)
}

func TestACloseIsAnsweredWhileTheBackendHangs(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	r := start(t, func(o *options) {
		o.answer = func(w http.ResponseWriter, e event) {
			if e.kind == "message" {
				<-release
			}
			echo(w, e)
		}
	})
	c := r.dial(t, "/ws")
	c.write(text("slow"), text("next"))
	r.await(t, "/ws", "message")
	c.write(goodbye(1001, "gone"))
	c.wantEnd(1001)
	close(release)
	events := r.await(t, "/ws", "disconnect")
	if got, want := len(events), 4; got != want {
		t.Errorf("events = %d, want %d: connect, both messages, disconnect", got, want)
	}
	if got := said(t, events); got.Code != 1001 || got.By != "client" {
		t.Errorf("disconnect event = %+v, want 1001 by client", got)
	}
}

func TestAClientThatVanishesIsGoneWithoutACode(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	for i, test := range []struct {
		name string
		last []byte
	}{
		{"between two messages", nil},
		{"amid a frame's header", wire(text("x"))[:1]},
		{"amid a frame", wire(text("Hello"))[:9]},
		{"amid a ping", wire(ping("Hello"))[:9]},
		{"amid a close frame", wire(goodbye(1000, ""))[:7]},
		{"amid a fragmented message", wire(text("Hello").open())},
	} {
		t.Run(test.name, func(t *testing.T) {
			target := fmt.Sprintf("/ws/%d", i)
			c := r.dial(t, target)
			c.write(text("before"))
			c.want(text("before"))
			c.raw(test.last)
			c.CloseWrite()
			if f, err := c.read(); err == nil && f.op != opClose {
				t.Errorf("got = %v, want a close frame or the end", f)
			}
			got := said(t, r.await(t, target, "disconnect"))
			if got.Code != 1006 || got.By != "client" || got.MessagesIn != 1 {
				t.Errorf("disconnect event = %+v, want 1006 by client after 1 message", got)
			}
		})
	}
}

func TestAMessageOverTheLimitEndsTheConnection(t *testing.T) {
	t.Parallel()
	const limit = 1000
	r := start(t, func(o *options) { o.bridge.MaxMessage, o.bridge.Compression = limit, "on" })
	over := random(limit + 1)
	bomb := deflate(make([]byte, 4<<20), flate.BestCompression)
	for i, test := range []struct {
		name string
		ok   []byte
		over []byte
	}{
		{"whole", wire(frame{op: opBinary, payload: over[:limit]}), wire(frame{op: opBinary, payload: over})},
		{"fragments", fragments(frame{op: opBinary, payload: over[:limit]}, 10), fragments(frame{op: opBinary, payload: over}, 10)},
		{"one fragment that never ends", nil, wire(frame{op: opBinary, payload: over, more: true})},
		{"far over it", nil, wire(frame{op: opBinary, payload: random(300 << 10)})},
		{"text whose limit cuts a character", nil, wire(text(strings.Repeat("x", limit-1) + "é"))},
		{"compressed", wire(frame{op: opBinary, rsv: rsv1, payload: deflate(make([]byte, limit), 9)}), wire(frame{op: opBinary, rsv: rsv1, payload: deflate(make([]byte, limit+1), 9)})},
		{"compressed fragments", fragments(frame{op: opBinary, rsv: rsv1, payload: deflate(make([]byte, limit), 9)}, 3), fragments(frame{op: opBinary, rsv: rsv1, payload: deflate(make([]byte, limit+1), 9)}, 3)},
		{"a bomb", nil, wire(frame{op: opBinary, rsv: rsv1, payload: bomb})},
	} {
		t.Run(test.name, func(t *testing.T) {
			target := fmt.Sprintf("/ws/%d", i)
			c := r.dial(t, target, "Sec-WebSocket-Extensions: permessage-deflate")
			if test.ok != nil {
				c.raw(test.ok)
				if f, err := c.read(); err != nil || len(f.payload) != limit {
					t.Fatalf("got = %v, %v, want %d bytes", f, err, limit)
				}
			}
			c.write(text("before"))
			c.raw(test.over)
			c.want(text("before"))
			c.wantEnd(1009)
			for _, e := range r.await(t, target, "disconnect") {
				if len(e.body) > limit {
					t.Errorf("the backend got %d bytes, want at most %d", len(e.body), limit)
				}
			}
		})
	}
}

func TestLargeMessagesComeBackAsTheyWent(t *testing.T) {
	t.Parallel()
	const limit = 17 << 20
	r := start(t, func(o *options) {
		o.bridge.MaxMessage, o.bridge.SendBuffer, o.backend.MaxAnswer = limit, limit, limit
	})
	c := r.dial(t, "/ws")
	for _, f := range []frame{
		{op: opBinary, payload: random(256 << 10)}, text(prose(2 << 20)), {op: opBinary, payload: random(16 << 20)},
	} {
		c.write(f)
		c.want(f)
	}
	const size = 512 << 10
	for _, f := range []frame{text(prose(size)), {op: opBinary, payload: random(size)}} {
		for _, piece := range []int{64, 4 << 10, 256 << 10} {
			c.raw(fragments(f, piece))
			c.want(f)
		}
		for _, piece := range []int{64, 2048} {
			c.chop(wire(f), piece)
			c.want(f)
		}
	}
	c.wantOpen()
}

// agreed is the answer to an offer where the client asked for nothing more.
const agreed = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"

// offers are what a client may say of permessage-deflate, and what RFC 7692 lets us answer.
var offers = []struct {
	offer string // header lines, between newlines
	want  string
}{
	{"permessage-deflate", agreed},
	{" permessage-deflate ", agreed},
	{"permessage-deflate;client_max_window_bits", agreed},
	{"permessage-deflate; client_max_window_bits=8", agreed},
	{"permessage-deflate; client_max_window_bits=15", agreed},
	{`permessage-deflate; client_max_window_bits="10"`, agreed},
	{"permessage-deflate; server_no_context_takeover", agreed},
	{"permessage-deflate; client_no_context_takeover", agreed},
	{"permessage-deflate ; server_no_context_takeover ;client_no_context_takeover; client_max_window_bits", agreed},
	{"permessage-deflate; server_max_window_bits=8", agreed + "; server_max_window_bits=8"},
	{"permessage-deflate; server_max_window_bits=9", agreed + "; server_max_window_bits=9"},
	{"permessage-deflate; server_max_window_bits=15", agreed + "; server_max_window_bits=15"},
	{`permessage-deflate; server_max_window_bits="12"`, agreed + "; server_max_window_bits=12"},
	{"permessage-deflate; server_max_window_bits = 12", agreed + "; server_max_window_bits=12"},
	{"permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=10; client_max_window_bits=10", agreed + "; server_max_window_bits=10"},

	// Several offers are in the client's order of preference.
	{"permessage-deflate; server_max_window_bits=10, permessage-deflate", agreed + "; server_max_window_bits=10"},
	{"permessage-deflate; server_max_window_bits=16, permessage-deflate; server_max_window_bits=9, permessage-deflate", agreed + "; server_max_window_bits=9"},
	{"permessage-deflate; unknown, permessage-deflate; client_max_window_bits", agreed},
	{"x-webkit-deflate-frame, permessage-deflate", agreed},
	{"x-webkit-deflate-frame\nbbf-usp-protocol; eid=\"a, b\"\npermessage-deflate; server_max_window_bits=11", agreed + "; server_max_window_bits=11"},

	{"", ""},
	{"x-webkit-deflate-frame", ""},
	{"permessage-deflate-frame", ""},
	{"permessage-bzip2", ""},
	{"permessage-deflate; unknown", ""},
	{"permessage-deflate; unknown=1", ""},
	{"permessage-deflate; server_no_context_takeover=1", ""},
	{"permessage-deflate; client_no_context_takeover=", ""},
	{"permessage-deflate; server_no_context_takeover; server_no_context_takeover", ""},
	{"permessage-deflate; client_no_context_takeover; client_no_context_takeover", ""},
	{"permessage-deflate; server_max_window_bits=10; server_max_window_bits=10", ""},
	{"permessage-deflate; client_max_window_bits; client_max_window_bits=10", ""},
	{"permessage-deflate; server_max_window_bits", ""},
	{"permessage-deflate; server_max_window_bits=", ""},
	{"permessage-deflate; server_max_window_bits=7", ""},
	{"permessage-deflate; server_max_window_bits=16", ""},
	{"permessage-deflate; server_max_window_bits=08", ""},
	{"permessage-deflate; server_max_window_bits=+9", ""},
	{"permessage-deflate; server_max_window_bits=-9", ""},
	{"permessage-deflate; server_max_window_bits=9.0", ""},
	{"permessage-deflate; server_max_window_bits=10x", ""},
	{"permessage-deflate; client_max_window_bits=0", ""},
	{"permessage-deflate; client_max_window_bits=7", ""},
	{"permessage-deflate; client_max_window_bits=16", ""},
	{"permessage-deflate; client_max_window_bits=", ""},

	// What is no list of extensions offers nothing.
	{"permessage-deflate;", ""},
	{"permessage-deflate;;server_no_context_takeover", ""},
	{"permessage-deflate server_no_context_takeover", ""},
	{`permessage-deflate; server_max_window_bits="10`, ""},
	{`permessage-deflate; server_max_window_bits=10"`, ""},
	{`permessage-deflate; unknown="a, permessage-deflate, b"`, ""},
	{`x; y="a, permessage-deflate, b"`, ""},
	{`x; y="\", permessage-deflate, "`, ""},
}

func extensionLines(offer string) []string {
	if offer == "" {
		return nil
	}
	var lines []string
	for line := range strings.SplitSeq(offer, "\n") {
		lines = append(lines, "Sec-WebSocket-Extensions: "+line)
	}
	return lines
}

func TestCompressionIsAgreedAsRFC7692Says(t *testing.T) {
	t.Parallel()
	r := start(t, func(o *options) { o.bridge.Compression = "on" })
	for _, test := range offers {
		t.Run(test.offer, func(t *testing.T) {
			c := r.dial(t, "/ws", extensionLines(test.offer)...)
			if got := strings.Join(c.response.Header.Values("Sec-WebSocket-Extensions"), "\n"); got != test.want {
				t.Fatalf("Sec-WebSocket-Extensions = %q, want %q", got, test.want)
			}
			// The connection works as agreed.
			compressed := byte(0)
			if test.want != "" {
				compressed = rsv1
			}
			c.write(text(prose(200)))
			c.want(text(prose(200)).reserved(compressed))
			c.wantOpen()
		})
	}
}

func TestWithoutTheSettingCompressionIsNeverAgreed(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	c := r.dial(t, "/ws", "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits")
	if got := c.response.Header.Values("Sec-WebSocket-Extensions"); len(got) > 0 {
		t.Fatalf("Sec-WebSocket-Extensions = %q, want none", got)
	}
	c.write(text(prose(1000)))
	c.want(text(prose(1000)))
	c.wantOpen()
}

func TestCompressedMessagesComeBackAsTheyWent(t *testing.T) {
	t.Parallel()
	const limit = 128 << 10
	r := start(t, func(o *options) { o.bridge.Compression, o.bridge.MaxMessage, o.bridge.SendBuffer = "on", limit, limit })
	for _, bits := range []int{8, 12, 15} {
		c := r.dial(t, "/ws", fmt.Sprintf("Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=%d", bits))
		for _, size := range []int{0, 16, 127, 128, 256, 257, 4096, 4097, 32768, limit} {
			for _, f := range []frame{text(prose(size)), {op: opBinary, payload: bytes.Repeat([]byte("0123456789"), size/10)}, {op: opBinary, payload: random(size)}} {
				sent := f
				sent.payload, sent.rsv = deflate(f.payload, flate.BestSpeed), rsv1
				c.write(sent)
				got, err := c.read()
				if err != nil || got.op != f.op || !bytes.Equal(got.payload, f.payload) {
					t.Fatalf("window %d: got = %v, %v, want %v", bits, got, err, f)
				}
				// What is longer than the window must not refer back beyond it, and our compressor knows no small windows.
				if n := len(got.payload); got.rsv == rsv1 && bits < 15 && n > 1<<bits {
					t.Errorf("window %d: %d bytes came compressed, want them as they are", bits, n)
				} else if got.rsv == 0 && f.op == opText && n >= 128 && n <= 1<<bits {
					t.Errorf("window %d: %d bytes of prose came uncompressed", bits, n)
				}
				if size <= 32768 {
					c.raw(fragments(sent, max(1, len(sent.payload)/7)))
					c.want(f)
				}
			}
		}
		c.wantOpen()
	}
}

func TestCompressedAndPlainMessagesMix(t *testing.T) {
	t.Parallel()
	r := start(t, func(o *options) { o.bridge.Compression = "on" })
	for _, test := range []struct {
		name string
		send []byte
		want []frame
	}{
		{"a plain message", wire(text("Hello")), []frame{text("Hello")}},
		// The examples of RFC 7692, 7.2.3.
		{"one block", wire(frame{op: opText, rsv: rsv1, payload: []byte("\xf2\x48\xcd\xc9\xc9\x07\x00")}), []frame{text("Hello")}},
		{"two fragments", wire(frame{op: opText, rsv: rsv1, payload: []byte("\xf2\x48\xcd"), more: true}, rest("\xc9\xc9\x07\x00")), []frame{text("Hello")}},
		{"a block without compression", wire(frame{op: opText, rsv: rsv1, payload: []byte("\x00\x05\x00\xfa\xffHello\x00")}), []frame{text("Hello")}},
		{"a final block", wire(frame{op: opText, rsv: rsv1, payload: []byte("\xf3\x48\xcd\xc9\xc9\x07\x00\x00")}), []frame{text("Hello")}},
		{"two blocks", wire(frame{op: opText, rsv: rsv1, payload: []byte("\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00")}), []frame{text("Hello")}},
		{"an empty message", wire(frame{op: opText, rsv: rsv1, payload: []byte{0}}), []frame{text("")}},
		{"an empty message by a compressor", wire(frame{op: opBinary, rsv: rsv1, payload: deflate(nil, 9)}), []frame{blob("")}},
		{"empty fragments around", wire(frame{op: opText, rsv: rsv1, more: true}, rest("\xf2\x48\xcd\xc9\xc9\x07\x00").open(), rest("")), []frame{text("Hello")}},
		{"a ping between the fragments", wire(frame{op: opText, rsv: rsv1, payload: []byte("\xf2\x48\xcd"), more: true}, ping("p"), rest("\xc9\xc9\x07\x00")), []frame{pong("p"), text("Hello")}},
		{"a final block amid fragments", wire(frame{op: opText, rsv: rsv1, payload: []byte("\xf3\x48\xcd\xc9\xc9\x07\x00"), more: true}, rest("\x00")), []frame{text("Hello")}},
		{"one of each kind", wire(text("a"), frame{op: opText, rsv: rsv1, payload: deflate([]byte("b"), 9)}, text("c").open(), rest("d")), []frame{text("a"), text("b"), text("cd")}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := r.dial(t, "/ws", "Sec-WebSocket-Extensions: permessage-deflate")
			for range 3 { // what a message left behind would show in the next
				c.raw(test.send)
				c.want(test.want...)
			}
			c.wantOpen()
		})
	}
}

func TestMisusedCompressionEndsTheConnection(t *testing.T) {
	t.Parallel()
	r := start(t, func(o *options) { o.bridge.Compression = "on" })
	good := deflate([]byte(prose(1000)), flate.DefaultCompression)
	for _, test := range []struct {
		name string
		send []byte
		code int
	}{
		{"RSV1 on a ping", wire(ping("x").reserved(4)), 1002},
		{"RSV1 on a pong", wire(pong("x").reserved(4)), 1002},
		{"RSV1 on a close frame", wire(goodbye(1000, "").reserved(4)), 1002},
		{"RSV1 on a continuation", wire(text("x").open(), rest("y").reserved(4)), 1002},
		{"RSV1 on the continuation of a compressed message", wire(frame{op: opText, rsv: rsv1, payload: good[:9], more: true}, rest(string(good[9:])).reserved(4)), 1002},
		{"RSV2 beside RSV1", wire(frame{op: opText, rsv: 6, payload: good}), 1002},
		{"RSV3 beside RSV1", wire(frame{op: opText, rsv: 5, payload: good}), 1002},
		{"nothing at all", wire(frame{op: opText, rsv: rsv1}), 1007},
		{"a block of no known type", wire(frame{op: opText, rsv: rsv1, payload: []byte("\x06\x00\x00")}), 1007},
		{"what was never compressed", wire(frame{op: opBinary, rsv: rsv1, payload: []byte("\xff\xff\xff\xff\xff\xff")}), 1007},
		{"a reference before the start", wire(frame{op: opBinary, rsv: rsv1, payload: []byte("\x02\x03\x02\x00")}), 1007},
		{"a message cut short", wire(frame{op: opBinary, rsv: rsv1, payload: good[:len(good)/2]}), 1007},
		{"text that is not UTF-8 inside", wire(frame{op: opText, rsv: rsv1, payload: deflate([]byte("κόσμε\xed\xa0\x80"), 9)}), 1007},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := r.dial(t, "/ws", "Sec-WebSocket-Extensions: permessage-deflate")
			c.write(text("before"))
			c.raw(test.send)
			c.want(text("before"))
			c.wantEnd(test.code)
		})
	}
}
