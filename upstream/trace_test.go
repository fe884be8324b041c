package upstream

import (
	"slices"
	"strings"
	"testing"
)

func TestATraceIsContinuedWithASpanForEachAttempt(t *testing.T) {
	const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	c := &Client{}
	e := text("x")
	e.Handshake = c.Handshake(handshake(t, "GET /ws HTTP/1.1", "Host: a", "traceparent: "+parent, "tracestate: a=1", "tracestate: b=2"))
	spans := map[string]bool{}
	for range 3 {
		p := request(t, c, e)
		got := p.value(traceParent)
		if !validTrace(got) || got[:36] != parent[:36] || got[52:] != parent[52:] || got == parent {
			t.Errorf("traceparent = %s, want a new span of %s", got, parent)
		}
		spans[got] = true
		if got := p.values("tracestate"); !slices.Equal(got, []string{"a=1,b=2"}) {
			t.Errorf("tracestate = %v", got)
		}
	}
	if len(spans) != 3 {
		t.Errorf("spans = %v, want three", spans)
	}
}

func TestATraceThatMakesNoSenseIsNotContinued(t *testing.T) {
	for _, parent := range []string{
		"", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7", "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
		"00-00000000000000000000000000000000-00f067aa0ba902b7-01", "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
		"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
		"00_4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7_01", "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01more",
	} {
		h := (&Client{}).Handshake(handshake(t, "GET /ws HTTP/1.1", "Host: a", "traceparent: "+parent, "tracestate: a=1"))
		if len(h.Header) != 0 {
			t.Errorf("%q: header = %v, want none", parent, h.Header)
		}
	}
	later := "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more"
	h := (&Client{}).Handshake(handshake(t, "GET /ws HTTP/1.1", "Host: a", "traceparent: "+later, "tracestate: "+strings.Repeat("x", 600)))
	if len(h.Header) != 1 || !strings.HasPrefix(continued(h.Header[0].Value), "00-4bf92f3577b34da6a3ce929d0e0e4736-") {
		t.Errorf("a later version: header = %v, want it continued in ours, without a tracestate that is too long", h.Header)
	}
}
