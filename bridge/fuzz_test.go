package bridge_test

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"unicode/utf8"

	"wsbridge/bridge"
)

// FuzzFramesNeverBreakTheServer sends any bytes as a client's stream and ends it. The server says nothing but frames of RFC 6455, and ends;
// the backend is sent exactly the messages that a slow, simple reading of the RFC finds in those bytes, and one goodbye with a code that
// fits them.
func FuzzFramesNeverBreakTheServer(f *testing.F) {
	const limit = 1000
	r := start(f, func(o *options) { o.bridge.MaxMessage, o.bridge.Compression = limit, "on" })

	for _, v := range violations {
		f.Add(false, slices.Concat(wire(text("before")), v.wire, wire(text("behind"))))
		f.Add(true, slices.Concat(wire(text("before")), v.wire, wire(text("behind"))))
	}
	for _, s := range slices.Concat(valid, invalid) {
		f.Add(false, wire(text(s)))
		f.Add(false, fragments(text(s), 1))
		f.Add(false, wire(goodbye(1000, s)))
	}
	for _, code := range []int{0, 999, 1000, 1005, 1012, 1014, 1015, 2999, 3000, 5000} {
		f.Add(false, wire(text("x"), goodbye(code, "")))
	}
	f.Add(false, []byte{})
	f.Add(false, wire(text("cut"))[:8])
	f.Add(false, wire(text("a").open(), ping("p"), rest("b"), pong(""), blob("c"), frame{op: opClose}))
	f.Add(false, wire(frame{op: opBinary, payload: random(limit)}, frame{op: opBinary, payload: random(limit + 1)}))
	f.Add(false, fragments(frame{op: opBinary, payload: random(limit + 1)}, 100))
	f.Add(false, wire(text(strings.Repeat("x", limit-1)+"é")))
	f.Add(false, bytes.Repeat(wire(ping(string(random(125)))), 100))
	f.Add(true, []byte{0x41, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0}) // a length over 2⁶³, before its mask
	f.Add(false, []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
	for _, p := range [][]byte{nil, {0}, {0xff}, []byte("\xf2\x48\xcd\xc9\xc9\x07\x00"), []byte("\xf3\x48\xcd\xc9\xc9\x07\x00\x00"), []byte("\x06\x00\x00"),
		deflate(make([]byte, limit), 9), deflate(make([]byte, limit+1), 9), deflate([]byte("\xed\xa0\x80"), 9), deflate(random(500), 9)[:300]} {
		f.Add(true, wire(frame{op: opText, rsv: rsv1, payload: p}, text("behind")))
		f.Add(true, fragments(frame{op: opText, rsv: rsv1, payload: p}, 2))
		f.Add(false, wire(frame{op: opText, rsv: rsv1, payload: p}))
	}

	var runs atomic.Int64
	f.Fuzz(func(t *testing.T, compressed bool, stream []byte) {
		target := fmt.Sprintf("/ws/%d", runs.Add(1))
		var extension []string
		if compressed {
			extension = []string{"Sec-WebSocket-Extensions: permessage-deflate"}
		}
		c := r.dial(t, target, extension...)
		go func() {
			c.Write(stream) // fails where the server has closed in the middle
			c.CloseWrite()
		}()
		for {
			frame, err := c.read()
			if err != nil {
				// A server that has ended may answer what is still coming with a reset.
				if timeout, ok := err.(interface{ Timeout() bool }); ok && timeout.Timeout() {
					t.Fatalf("the connection does not end: %v", err)
				} else if err != io.EOF && !reset(err) {
					t.Fatalf("read: %v", err)
				}
				break
			}
			if frame.op == opClose {
				if f, err := c.read(); err == nil {
					t.Fatalf("behind the close frame came %v", f)
				}
				break
			}
		}
		c.Close()

		events := r.await(t, target, "disconnect")
		r.forget(target)
		messages, codes := understand(stream, limit, compressed)
		if got, want := len(events), len(messages)+2; got != want {
			t.Fatalf("events = %d, want %d: connect, %d messages, disconnect", got, want, len(messages))
		}
		if code := said(t, events).Code; !slices.Contains(codes, code) {
			t.Errorf("code = %d, want one of %d", code, codes)
		}
		for i, e := range events {
			if got, want := e.header.Get("ce-sequence"), strconv.Itoa(i+1); got != want {
				t.Errorf("ce-sequence = %s, want %s", got, want)
			}
		}
		for i, want := range messages {
			e := events[i+1]
			kind := "application/octet-stream"
			if want.op == opText {
				kind = "text/plain; charset=utf-8"
			}
			if got := e.header.Get("Content-Type"); e.kind != "message" || got != kind || !bytes.Equal(e.body, want.payload) {
				t.Errorf("event = %s %s %q, want a message, %s %q", e.kind, got, e.body, kind, want.payload)
			}
			if len(e.body) > limit || want.op == opText && !utf8.Valid(e.body) {
				t.Errorf("the backend was sent %d bytes of %s: %q", len(e.body), kind, e.body)
			}
		}
	})
}

func reset(err error) bool { return strings.Contains(err.Error(), "connection reset") }

// understand reads a client's stream to its end, or to the first thing that ends the connection. It returns the messages, and the codes
// that may stand in the disconnect event.
func understand(stream []byte, limit int, compressed bool) (messages []frame, codes []int) {
	var message frame // that is being read
	var inflating, within bool
	end := func(codes ...int) ([]frame, []int) {
		if !within || !inflating {
			return messages, codes
		}
		// A compressed message that its last frame has not come of may be whole already, by a final block, or broken.
		plain, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(message.payload)), int64(limit)+1))
		if err == nil && len(plain) <= limit && (message.op == opBinary || utf8.Valid(plain)) {
			return append(messages, frame{op: message.op, payload: plain}), codes
		}
		return messages, append(codes, 1007, 1009)
	}
	for {
		if len(stream) < 2 {
			return end(1006)
		}
		fin, rsv, op, masked, n := stream[0]&0x80 != 0, stream[0]>>4&7, stream[0]&0xf, stream[1]&0x80 != 0, uint64(stream[1]&0x7f)
		fault := rsv&3 != 0 || !masked
		switch op {
		case opText, opBinary:
			fault = fault || within || rsv == rsv1 && !compressed
		case opContinuation:
			fault = fault || !within || rsv != 0
		case opClose, opPing, opPong:
			fault = fault || !fin || n > 125 || rsv != 0 || op == opClose && n == 1
		default:
			fault = true
		}
		header := 2
		switch n {
		case 126:
			header = 4
		case 127:
			header = 10
		}
		if len(stream) < header+4 {
			// A header that is not whole may say enough, but nobody has to judge it yet.
			return end(1006, 1002)
		}
		switch header {
		case 4:
			n = uint64(binary.BigEndian.Uint16(stream[2:]))
			fault = fault || n < 126
		case 10:
			n = binary.BigEndian.Uint64(stream[2:])
			fault = fault || n < 1<<16 || n >= 1<<63
		}
		if fault {
			return end(1002)
		}
		key := stream[header : header+4]
		stream = stream[header+4:]
		whole := uint64(len(stream)) >= n
		payload := bytes.Clone(stream[:min(n, uint64(len(stream)))])
		for i := range payload {
			payload[i] ^= key[i%4]
		}
		stream = stream[len(payload):]

		if op >= opClose {
			switch {
			case !whole:
				return end(1006)
			case op != opClose:
				continue
			case n == 0:
				return end(1005)
			}
			code := int(binary.BigEndian.Uint16(payload))
			if !sendable(code) || !utf8.Valid(payload[2:]) {
				return end(1002)
			}
			return end(code)
		}
		if op != opContinuation {
			message, within, inflating = frame{op: op}, true, rsv == rsv1
		}
		message.payload = append(message.payload, payload...)
		plain, last := message.payload, fin && whole
		if inflating {
			if !whole {
				return end(1006)
			} else if !fin {
				continue
			}
			within = false
			var err error
			plain, err = io.ReadAll(io.LimitReader(unflate(message.payload), int64(limit)+1))
			if err != nil && len(plain) <= limit {
				return end(1007)
			}
		}
		if over := len(plain) > limit; over && (message.op == opBinary || prefix(plain)) {
			return end(1009)
		} else if over {
			return end(1007, 1009) // depending on which is seen first
		}
		switch {
		case message.op == opText && (!prefix(plain) || last && !utf8.Valid(plain)):
			return end(1007)
		case !whole:
			return end(1006)
		case fin:
			messages, within = append(messages, frame{op: message.op, payload: plain}), false
		}
	}
}

// unflate reads a whole compressed message.
func unflate(p []byte) io.Reader {
	return flate.NewReader(bytes.NewReader(append(bytes.Clone(p), 0, 0, 0xff, 0xff, 1, 0, 0, 0xff, 0xff)))
}

// prefix reports whether p may be the start of UTF-8 text.
func prefix(p []byte) bool {
	for len(p) > 0 {
		r, size := utf8.DecodeRune(p)
		if r == utf8.RuneError && size == 1 {
			return !utf8.FullRune(p)
		}
		p = p[size:]
	}
	return true
}

// FuzzAnOfferOfCompressionIsTakenByTheGrammar compares what is agreed with RFC 7692's grammar, written down as one expression.
func FuzzAnOfferOfCompressionIsTakenByTheGrammar(f *testing.F) {
	for _, test := range offers {
		f.Add(test.offer)
	}
	const space = `[ \t]*`
	bits := `=` + space + `(?:(8|9|1[0-5])|"(8|9|1[0-5])")`
	parameter := regexp.MustCompile(`^` + space + `(?:(server_no_context_takeover)|(client_no_context_takeover)|(client_max_window_bits)(?:` +
		space + bits + `)?|(server_max_window_bits)` + space + bits + `)` + space + `$`)
	// Quoted strings are cut nowhere; where their quotes don't match up, they last to the end of the line.
	part := func(separator string) *regexp.Regexp {
		return regexp.MustCompile(`(?s)^(?:[^"` + separator + `]|"(?:[^"\\]|\\.)*"|"(?:[^"\\]|\\.)*\\?$)*`)
	}
	cut := func(s, separator string) (parts []string) {
		for {
			p := part(separator).FindString(s)
			parts = append(parts, p)
			if p == s {
				return parts
			}
			s = s[len(p)+1:]
		}
	}
	f.Fuzz(func(t *testing.T, header string) {
		// What can't stand in a header does not get here.
		if strings.ContainsFunc(header, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' || r >= 0x7f }) {
			t.Skip()
		}
		lines := strings.Split(header, "\n")
		want, wantWindow, wantConfirm := false, 0, 0
	search:
		for _, line := range lines {
		offers:
			for _, offer := range cut(line, ",") {
				parts := cut(offer, ";")
				if strings.TrimSpace(parts[0]) != "permessage-deflate" {
					continue
				}
				window, confirm, seen := 15, 0, map[string]bool{}
				for _, p := range parts[1:] {
					found := parameter.FindStringSubmatch(p)
					if found == nil {
						continue offers
					}
					name := found[1] + found[2] + found[3] + found[6]
					if seen[name] {
						continue offers
					}
					seen[name] = true
					if n, err := strconv.Atoi(found[7] + found[8]); err == nil {
						window, confirm = n, n
					}
				}
				want, wantWindow, wantConfirm = true, window, confirm
				break search
			}
		}
		got, window, confirm := bridge.Negotiate(lines)
		if got != want || window != wantWindow || confirm != wantConfirm {
			t.Errorf("%q: got = %v, %d, %d, want %v, %d, %d", lines, got, window, confirm, want, wantWindow, wantConfirm)
		}
	})
}

// FuzzACloseFrameFitsItsReason puts reasons of any length into a close frame.
func FuzzACloseFrameFitsItsReason(f *testing.F) {
	for _, reason := range []string{"", "bye", strings.Repeat("x", 123), strings.Repeat("x", 124), strings.Repeat("é", 61), strings.Repeat("é", 62),
		"x" + strings.Repeat("é", 61), strings.Repeat("\U0001d11e", 31), "xyz" + strings.Repeat("\U0001d11e", 31), strings.Repeat("x", 122) + "\ufffd"} {
		f.Add(uint16(1000), reason)
	}
	f.Add(uint16(1005), "never seen")
	f.Add(uint16(4999), "")
	f.Fuzz(func(t *testing.T, code uint16, reason string) {
		if !utf8.ValidString(reason) {
			t.Skip() // clients' and the backend's reasons are checked where they come in
		}
		body := (&bridge.Close{Code: int(code), Reason: reason}).Body()
		if code == 1005 {
			if len(body) != 0 {
				t.Errorf("body = %q, want none", body)
			}
			return
		}
		if len(body) < 2 || binary.BigEndian.Uint16(body) != code {
			t.Fatalf("body = %q, want one that starts with %d", body, code)
		}
		said := string(body[2:])
		if len(body) > 125 || !utf8.ValidString(said) || !strings.HasPrefix(reason, said) {
			t.Errorf("%d bytes, reason = %q, want at most 125 with the start of %q", len(body), said, reason)
		}
		if _, next := utf8.DecodeRuneInString(reason[len(said):]); next > 0 && len(body)+next <= 125 {
			t.Errorf("reason = %q, want more of %q", said, reason)
		}
	})
}
