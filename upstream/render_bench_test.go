package upstream

import (
	"testing"
	"time"
)

// What it costs to write a message's request: see docs/performance.md.
func BenchmarkRequest(b *testing.B) {
	c, err := New(standard(b, "http://127.0.0.1:9/ws"), "node-1", nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	e := text("hello")
	e.ID, e.ConnectionID, e.UserID, e.Time = "06e9jc1k2v3n4p5q6r7s8t9u0v1-123456", "06e9jc1k2v3n4p5q6r7s8t9u0v1", "ada", time.Now()
	e.Handshake.Header = []Field{{"User-Agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"}, {"Origin", "https://chat.example.org"}, {"Accept-Language", "en"}}
	e.Handshake.Cookie, e.Handshake.ForwardedFor, e.Handshake.Proto, e.Handshake.Host = "session=0123456789abcdef0123456789abcdef", "203.0.113.7", "https", "chat.example.org"
	now := time.Now()
	var request []byte
	b.ReportAllocs()
	for b.Loop() {
		request = c.appendRequest(request[:0], e, now)
	}
	b.ReportMetric(float64(len(request)), "bytes")
}
