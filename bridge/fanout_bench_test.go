package bridge

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"wsbridge/ratelimit"
	"wsbridge/upstream"
)

// BenchmarkAGroupWithStalledMembers sends to a group of 4,000 clients that read, and in turn to the same with 1,000 more that don't. It prints how long it takes
// until the last of those that read has each message, and what memory the queues of the others take.
func BenchmarkAGroupWithStalledMembers(b *testing.B) {
	const reading, stalled, rounds = 4000, 1000, 40
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/reads") {
			w.Header().Add("Ws-Join", "readers")
		}
		w.Header().Add("Ws-Join", "all")
	}))
	defer backend.Close()
	config := upstream.Config{Events: upstream.Types{"connect"}, Timeout: time.Minute, Retry: upstream.RetrySafe, RetryFor: time.Minute, MaxConcurrent: 16, MaxAnswer: 1 << 20}
	if err := config.URL.UnmarshalText([]byte(backend.URL)); err != nil {
		b.Fatal(err)
	}
	client, err := upstream.New(config, "bench", nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	const sendBuffer = 256 << 10
	bridge, err := New(Config{
		Paths: []Path{"/*"}, MaxConnections: 10_000, HandshakeTimeout: time.Minute, MaxMessage: 64 << 10, Compression: "off", PingInterval: time.Hour, PongTimeout: time.Hour,
		SendBuffer: sendBuffer, SlowClient: SlowDropOldest, WriteTimeout: time.Hour, PushMaxBody: 1 << 20, GoodbyeFor: time.Hour, GoodbyeMax: 1, GoodbyeBytes: 1 << 20,
	}, ratelimit.Config{Policy: ratelimit.Wait}, client, slog.New(slog.DiscardHandler), nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	small := func(option int) func(_, _ string, raw syscall.RawConn) error {
		return func(_, _ string, raw syscall.RawConn) error {
			return raw.Control(func(fd uintptr) { syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, option, 8<<10) })
		}
	}
	// The kernel's own buffers would take megabytes for each client that reads nothing.
	lc := net.ListenConfig{Control: small(syscall.SO_SNDBUF)}
	listener, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	server := &http.Server{Handler: bridge}
	server.SetKeepAlivesEnabled(false)
	go server.Serve(listener)
	push := bridge.Push(http.NotFoundHandler(), http.NotFoundHandler())

	var arrived atomic.Int64
	last := make(chan time.Time, 1)
	var clients []*websocket.Conn
	var readers sync.WaitGroup
	for i := range reading + stalled {
		dialer := websocket.Dialer{ReadBufferSize: 512, WriteBufferSize: 512, NetDialContext: (&net.Dialer{Control: small(syscall.SO_RCVBUF)}).DialContext}
		path := "/reads"
		if i >= reading {
			path = "/stalls"
		}
		c, _, err := dialer.Dial("ws://"+listener.Addr().String()+path, nil)
		if err != nil {
			b.Fatal(err)
		}
		clients = append(clients, c)
		if i >= reading {
			continue
		}
		readers.Go(func() {
			for {
				_, r, err := c.NextReader()
				if err != nil {
					return
				}
				if io.Copy(io.Discard, r); arrived.Add(1) == reading {
					last <- time.Now()
				}
			}
		})
	}
	message := strings.Repeat("x", 1<<10)
	send := func(group string) time.Duration {
		arrived.Store(0)
		r := httptest.NewRequest("POST", "/groups/"+group, strings.NewReader(message))
		r.Host = "localhost"
		start := time.Now()
		w := httptest.NewRecorder()
		push.ServeHTTP(w, r)
		if w.Code != http.StatusAccepted {
			b.Fatalf("push: %d %s", w.Code, w.Body)
		}
		return (<-last).Sub(start)
	}
	heap := func() uint64 {
		var stats runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&stats)
		return stats.HeapInuse
	}
	before := heap()
	for range 2 * sendBuffer / len(message) { // until the queues of those that read nothing are full
		send("all")
	}
	after := heap()
	for b.Loop() {
		var without, with []time.Duration
		for range rounds {
			without = append(without, send("readers"))
			with = append(with, send("all"))
		}
		slices.Sort(without)
		slices.Sort(with)
		fmt.Printf("time until the last of %d has it (median, slowest): alone %s %s, beside %d that are stalled %s %s\n", reading,
			without[rounds/2].Round(time.Microsecond), without[rounds-1].Round(time.Microsecond), stalled, with[rounds/2].Round(time.Microsecond), with[rounds-1].Round(time.Microsecond))
		fmt.Printf("heap grown by %d KiB with %d full queues of %d KiB each: their frames are shared\n", (int64(after)-int64(before))>>10, stalled, sendBuffer>>10)
		b.ReportMetric(float64(with[rounds/2])/float64(without[rounds/2]), "with/without")
	}
	for _, c := range clients {
		c.Close()
	}
	readers.Wait()
	bridge.Drain(time.Minute, false)
	server.Close()
}
