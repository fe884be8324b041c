package bridge

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/prometheus/client_golang/prometheus"

	"wsbridge/ratelimit"
	"wsbridge/upstream"
)

// modest are settings for a bridge that a test of the inside builds by itself.
var modest = Config{
	Paths: []Path{"/*"}, MaxConnections: 1000, HandshakeTimeout: time.Minute, MaxMessage: 1000, Compression: "off", PingInterval: time.Minute,
	PongTimeout: time.Minute, SendBuffer: 10000, SlowClient: SlowClose, WriteTimeout: time.Minute, PushMaxBody: 1000,
	GoodbyeFor: time.Hour, GoodbyeMax: 100_000, GoodbyeBytes: 64 << 20,
}

// newModest returns a bridge to the backend, and its client of that, which is to be closed.
func newModest(t *testing.T, config Config, backend string, events ...upstream.Type) (*Bridge, *upstream.Client) {
	t.Helper()
	to := upstream.Config{TextType: "text/plain", Events: events, Timeout: time.Minute, Retry: upstream.RetrySafe, RetryFor: time.Minute, MaxConcurrent: 16, MaxAnswer: 1 << 20}
	if err := to.URL.UnmarshalText([]byte(backend)); err != nil {
		t.Fatal(err)
	}
	client, err := upstream.New(to, "test", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := New(config, ratelimit.Config{Policy: ratelimit.Wait}, client, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return b, client
}

// TestNothingIsLeftOfTenThousandConnections lets connections come and go over real sockets, by every ending in turn, and counts what
// the process holds before and after.
func TestNothingIsLeftOfTenThousandConnections(t *testing.T) {
	var mu sync.Mutex
	connects, disconnects := 0, map[string]int{}
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		switch r.Header.Get("ce-type") {
		case "wsbridge.connect":
			if strings.HasSuffix(r.URL.Path, "/refused") {
				w.WriteHeader(403)
				return
			}
			mu.Lock()
			connects++
			mu.Unlock()
			io.WriteString(w, r.Header.Get("ce-connectionid"))
		case "wsbridge.message":
			if string(body) == "fail" {
				w.WriteHeader(500)
				return
			}
			w.Write(body)
		case "wsbridge.disconnect":
			mu.Lock()
			disconnects[r.Header.Get("ce-id")]++
			mu.Unlock()
		}
	}))
	defer backend.Close()
	b, client := newModest(t, modest, backend.URL, "connect", "message", "disconnect")
	defer client.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: b}
	server.SetKeepAlivesEnabled(false)
	go server.Serve(listener)
	defer server.Close()
	push := b.Push(http.NotFoundHandler(), http.NotFoundHandler())
	url := "ws://" + listener.Addr().String()

	endings := []func(c *websocket.Conn, id string){
		func(c *websocket.Conn, _ string) { c.UnderlyingConn().Close() },
		func(c *websocket.Conn, _ string) { c.WriteControl(8, []byte{3, 0xe8}, time.Time{}); closing(c) },
		func(c *websocket.Conn, _ string) {
			c.WriteMessage(1, []byte("hello"))
			c.ReadMessage()
			c.UnderlyingConn().Close()
		},
		func(c *websocket.Conn, _ string) { c.WriteMessage(1, []byte("fail")); closing(c) },
		func(c *websocket.Conn, _ string) { c.WriteMessage(1, make([]byte, 2000)); closing(c) },
		func(c *websocket.Conn, _ string) { c.UnderlyingConn().Write([]byte{0xff, 0xff}); closing(c) },
		func(c *websocket.Conn, _ string) { c.UnderlyingConn().Write([]byte{0x01, 0xfe, 1}); c.Close() }, // half a frame
		func(c *websocket.Conn, _ string) { c.UnderlyingConn().(*net.TCPConn).SetLinger(0); c.Close() },  // a reset
		func(c *websocket.Conn, id string) {
			r := httptest.NewRequest("DELETE", "/connections/"+id, nil)
			r.Host = "localhost"
			push.ServeHTTP(httptest.NewRecorder(), r)
			closing(c)
		},
	}
	batch := func(n int) {
		var clients sync.WaitGroup
		for worker := range 40 {
			clients.Go(func() {
				for i := worker; i < n; i += 40 {
					if i%10 == 9 {
						if _, answer, err := websocket.DefaultDialer.Dial(url+"/refused", nil); err == nil || answer == nil || answer.StatusCode != 403 {
							t.Errorf("handshake = %v (%v), want 403", answer, err)
						}
						continue
					}
					c, _, err := websocket.DefaultDialer.Dial(url, nil)
					if err != nil {
						t.Errorf("dial: %v", err)
						continue
					}
					_, id, err := c.ReadMessage()
					if err != nil {
						t.Errorf("no id: %v", err)
					}
					endings[i%10](c, string(id))
				}
			})
		}
		clients.Wait()
		b.conns.Wait()
		<-b.goodbyes.settled()
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	}
	held := func() (goroutines, descriptors int, heap uint64) {
		for range 3 { // pools are emptied by the second collection
			runtime.GC()
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		files, _ := os.ReadDir("/proc/self/fd")
		return runtime.NumGoroutine(), len(files), m.HeapAlloc
	}

	batch(1000)
	goroutines, descriptors, heap := held()
	batch(10_000)
	// The POSTs' idle connections end by themselves, half a second after their last use; net/http's servers notice soon after.
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if now, files, _ := held(); now <= goroutines && files <= descriptors {
			break
		}
	}
	goroutinesNow, descriptorsNow, heapNow := held()
	if goroutinesNow > goroutines || descriptorsNow > descriptors {
		stacks := make([]byte, 1<<20)
		t.Errorf("goroutines %d, descriptors %d, were %d and %d:\n%s", goroutinesNow, descriptorsNow, goroutines, descriptors, stacks[:runtime.Stack(stacks, true)])
	}
	if heapNow > heap+4<<20 {
		t.Errorf("heap %d bytes, was %d: over 400 bytes are left of each connection", heapNow, heap)
	}
	if b.registry.held != 0 || len(b.registry.open) != 0 || len(b.registry.addresses) != 0 {
		t.Errorf("left in the registry: %d sockets, %d connections, %d addresses", b.registry.held, len(b.registry.open), len(b.registry.addresses))
	}
	mu.Lock()
	defer mu.Unlock()
	if connects != 9900 || len(disconnects) != connects {
		t.Errorf("%d connects, %d disconnects, want 9900 of each", connects, len(disconnects))
	}
	for id, n := range disconnects {
		if n != 1 {
			t.Errorf("disconnect event %s came %d times", id, n)
		}
	}
}
