package bridge

import (
	"net/http"
	"testing"
)

// TestSwitching compares whole answers; the key and what it is answered are the RFC's (1.3).
func TestSwitching(t *testing.T) {
	const (
		key   = "dGhlIHNhbXBsZSBub25jZQ=="
		begin = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
	)
	for _, test := range []struct {
		name       string
		header     http.Header
		compressed bool
		window     int
		want       string
	}{
		{"plain", nil, false, 0, "\r\n"},
		{"compressed", nil, true, 0, "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover\r\n\r\n"},
		{"compressed with a window", nil, true, 10, "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=10\r\n\r\n"},
		{"fields", http.Header{"Set-Cookie": {"a=1", "b=2; Path=/"}}, false, 0, "Set-Cookie: a=1\r\nSet-Cookie: b=2; Path=/\r\n\r\n"},
		{"a field with line breaks", http.Header{"Set-Cookie": {"a=1\r\nX: y\x00\tz"}}, false, 0, "Set-Cookie: a=1  X: y  z\r\n\r\n"},
	} {
		if got := string(switching(nil, key, test.header, test.compressed, test.window)); got != begin+test.want {
			t.Errorf("%s: %q, want %q", test.name, got, begin+test.want)
		}
	}
}
