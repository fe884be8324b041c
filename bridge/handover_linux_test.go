package bridge

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/sys/unix"

	"wsbridge/holder"
	"wsbridge/ratelimit"
	"wsbridge/upstream"
)

// shelf keeps what connections leave, for workers within one process.
type shelf struct {
	table *holder.Table

	mu       sync.Mutex
	held     map[uint32]holder.Conn
	released []uint32
	change   chan struct{}
}

func newShelf(t testing.TB) *shelf {
	table, err := holder.NewTable(100)
	if err != nil {
		t.Fatal(err)
	}
	s := &shelf{table: table, held: map[uint32]holder.Conn{}, change: make(chan struct{})}
	t.Cleanup(func() {
		for _, c := range s.held {
			unix.Close(c.Fd)
		}
	})
	return s
}

// hand is a worker's hold on the shelf.
type hand struct {
	*shelf
	serial uint32
}

func (h hand) Serial() uint32       { return h.serial }
func (h hand) Table() *holder.Table { return h.table }
func (h hand) Busy(int) error       { return nil }

func (h hand) Keep(slot, gen uint32, fd int) error {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if old, ok := h.held[slot]; ok {
		unix.Close(old.Fd)
	}
	h.held[slot] = holder.Conn{Slot: slot, Gen: gen, Fd: dup}
	return nil
}

func (h hand) Release(slot uint32) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.released = append(h.released, slot)
	close(h.change)
	h.change = make(chan struct{})
	return nil
}

// conns returns duplicates of the sockets that are free to be taken.
func (s *shelf) conns(lingering ...uint32) (conns []holder.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for slot, c := range s.held {
		if !slices.Contains(lingering, s.table.Slot(slot).Owner.Load()) {
			c.Fd, _ = unix.FcntlInt(uintptr(c.Fd), unix.F_DUPFD_CLOEXEC, 3)
			conns = append(conns, c)
		}
	}
	s.released = nil
	return conns
}

// relay is a row of workers behind two listeners, of which one serves.
type relay struct {
	*shelf
	t       *testing.T
	config  Config
	backend upstream.Config
	clients net.Listener
	pushes  *httptest.Server
	older   bool // the kernel
	linger  time.Duration
	serving atomic.Pointer[Bridge]
	serial  uint32
	old     *Bridge
}

func newRelay(t *testing.T, older bool, backend http.HandlerFunc, change func(*Config, *upstream.Config)) *relay {
	r := &relay{shelf: newShelf(t), t: t, older: older}
	application := httptest.NewServer(backend)
	r.backend = upstream.Config{TextType: "text/plain", Events: upstream.Types{"connect", "message", "disconnect"}, Timeout: time.Minute, Retry: upstream.RetrySafe, RetryFor: time.Minute, MaxConcurrent: 16, MaxAnswer: 1 << 20}
	r.config = Config{
		Paths: []Path{"/*"}, MaxConnections: 1000, HandshakeTimeout: time.Minute, MaxMessage: 300_000, Compression: "on", PingInterval: unheard,
		PongTimeout: time.Hour, SendBuffer: 1 << 20, SlowClient: SlowClose, WriteTimeout: time.Minute, PushMaxBody: 1 << 20,
		GoodbyeFor: time.Hour, GoodbyeMax: 100_000, GoodbyeBytes: 64 << 20,
	}
	if change != nil {
		change(&r.config, &r.backend)
	}
	if err := r.backend.URL.UnmarshalText([]byte(application.URL)); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.clients = Unpolled(l)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { r.serving.Load().ServeHTTP(w, req) })}
	server.SetKeepAlivesEnabled(false)
	go acceptAll(r.clients, func(conn net.Conn) { go r.serving.Load().Clients(server).serve(conn) })
	r.pushes = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.serving.Load().Push(http.NotFoundHandler(), http.NotFoundHandler()).ServeHTTP(w, req)
	}))
	r.next()
	t.Cleanup(func() {
		r.finish()
		if lost := r.serving.Load().Drain(patience, false); lost != 0 {
			t.Errorf("%d disconnect events lost", lost)
		}
		r.clients.Close()
		r.pushes.Close()
		application.Close()
	})
	return r
}

const patience = time.Minute

// unheard is an interval of pings within which no test meets one: the first comes anywhere in it.
const unheard = 10_000 * time.Hour

// onKernels runs a test on this kernel and as on one that does not remember where we look (before Linux 6.9).
func onKernels(t *testing.T, test func(t *testing.T, older bool)) {
	t.Run("this kernel", func(t *testing.T) { test(t, false) })
	t.Run("an older kernel", func(t *testing.T) { test(t, true) })
}

// next makes another worker serve.
func (r *relay) next() {
	r.t.Helper()
	r.finish()
	r.serial++
	client, err := upstream.New(r.backend, "test", nil, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(client.Close)
	b, err := New(r.config, ratelimit.Config{Policy: ratelimit.Wait}, client, slog.New(slog.DiscardHandler), nil, hand{r.shelf, r.serial})
	if err != nil {
		r.t.Fatal(err)
	}
	b.keeping.old = r.older
	if r.linger > 0 {
		b.linger = r.linger
	}
	start := holder.Start{Cause: "start"}
	if r.old = r.serving.Load(); r.old != nil {
		r.old.Suspend(http.DefaultTransport.(*http.Transport).Clone())
		start = holder.Start{Cause: "reload", Lingering: []uint32{r.serial - 1}}
	}
	b.Resume(r.conns(start.Lingering...), start)
	b.Serving()
	r.serving.Store(b)
}

// back makes a worker serve that has served before, in the place of the one that was to take over from it.
func (r *relay) back(b *Bridge, serial uint32) {
	r.t.Helper()
	r.finish()
	r.old = r.serving.Load()
	r.old.Suspend(http.DefaultTransport.(*http.Transport).Clone())
	start := holder.Start{Cause: "reload", Lingering: []uint32{r.serial}}
	r.serial = serial
	b.Resume(r.conns(start.Lingering...), start)
	b.Serving()
	r.serving.Store(b)
}

// finish waits until the worker before has handed over all it had.
func (r *relay) finish() {
	if r.old == nil {
		return
	}
	done := r.old.Unfinished()
	for timeout := time.After(patience); ; {
		r.mu.Lock()
		released, change := r.released, r.change
		r.released = nil
		r.mu.Unlock()
		for _, slot := range released {
			r.mu.Lock()
			c, ok := r.held[slot]
			r.mu.Unlock()
			if !ok {
				c = holder.Conn{Slot: slot, Gen: r.table.Slot(slot).Gen.Load(), Fd: -1}
			} else {
				c.Fd, _ = unix.FcntlInt(uintptr(c.Fd), unix.F_DUPFD_CLOEXEC, 3)
			}
			r.serving.Load().Take([]holder.Conn{c})
		}
		if len(released) > 0 {
			continue
		}
		select {
		case <-change:
		case <-done:
			r.mu.Lock()
			more := len(r.released) > 0
			r.mu.Unlock()
			if !more {
				r.old = nil
				return
			}
		case <-timeout:
			r.t.Fatal("the worker before does not come to an end")
		}
	}
}

// dial opens a connection through the relay.
func (r *relay) dial(path string) *websocket.Conn {
	r.t.Helper()
	c, _, err := websocket.DefaultDialer.Dial("ws://"+r.clients.Addr().String()+path, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	c.SetReadDeadline(time.Now().Add(patience))
	return c
}

// TestAHandoverAnywhereChangesNothing hands a connection to another worker behind each byte of what its client sends.
func TestAHandoverAnywhereChangesNothing(t *testing.T) { onKernels(t, aHandoverAnywhereChangesNothing) }

func aHandoverAnywhereChangesNothing(t *testing.T, older bool) {
	var mu sync.Mutex
	var log []string
	r := newRelay(t, older, func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		mu.Lock()
		log = append(log, fmt.Sprintf("%s %s %s", req.Header.Get("ce-type"), req.Header.Get("ce-sequence"), body))
		mu.Unlock()
		if req.Header.Get("ce-type") == "wsbridge.message" {
			w.Header().Set("Content-Type", "text/plain")
			w.Write(body)
		}
	}, nil)
	c := r.dial("/")
	pinged := make(chan string, 100)
	c.SetPongHandler(func(payload string) error { pinged <- payload; return nil })
	raw := c.UnderlyingConn()
	mask := func(first byte, payload string) []byte {
		return append([]byte{first, 0x80 | byte(len(payload)), 0, 0, 0, 0}, payload...)
	}
	var wire []byte
	wire = append(wire, mask(0x81, "one")...)
	wire = append(wire, mask(0x89, "ping")...)
	wire = append(wire, mask(0x01, "tw")...)
	wire = append(wire, mask(0x8a, "pong")...)
	wire = append(wire, mask(0x80, "o")...)
	wire = append(wire, mask(0x81, "three")...)
	answers := make(chan string, 10)
	go func() {
		for {
			_, p, err := c.ReadMessage()
			if err != nil {
				t.Log(err)
				close(answers)
				return
			}
			answers <- string(p)
		}
	}()
	for i := range wire {
		raw.Write(wire[i : i+1])
		r.next()
	}
	r.finish()
	for _, want := range []string{"one", "two", "three"} {
		if got := <-answers; got != want {
			t.Fatalf("answer %q, want %q", got, want)
		}
	}
	r.next()
	c.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(1000, ""), time.Now().Add(time.Second))
	if _, more := <-answers; more {
		t.Error("more than three answers")
	}
	r.next()
	r.finish()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		mu.Lock()
		n := len(log)
		mu.Unlock()
		if n >= 5 || time.Now().After(end) {
			break
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(log) != 5 || !slices.Equal(log[:4], []string{"wsbridge.connect 1 ", "wsbridge.message 2 one", "wsbridge.message 3 two", "wsbridge.message 4 three"}) || !strings.HasPrefix(log[4], "wsbridge.disconnect 5 ") {
		t.Errorf("the backend was sent %q", log)
	}
	if len(pinged) == 0 {
		t.Error("the ping was not answered")
	}
}

// TestAHandoverDuringAPostAndALongWrite hands over while a message is at the backend, and while a client does not read.
func TestAHandoverDuringAPostAndALongWrite(t *testing.T) {
	onKernels(t, aHandoverDuringAPostAndALongWrite)
}

func aHandoverDuringAPostAndALongWrite(t *testing.T, older bool) {
	gate := make(chan struct{})
	arrived := make(chan struct{}, 10)
	r := newRelay(t, older, func(w http.ResponseWriter, req *http.Request) {
		switch body, _ := io.ReadAll(req.Body); {
		case req.Header.Get("ce-type") == "wsbridge.connect":
			w.Header().Set("Ws-User", "ann")
			w.Header().Set("Ws-Join", "room")
			w.Header().Set("Ws-Messages", "none")
		case string(body) == "wait":
			arrived <- struct{}{}
			<-gate
			w.Header().Set("Ws-State", "waited")
			io.WriteString(w, "waited")
		default:
			io.WriteString(w, string(body)+" in state "+req.Header.Get("ce-state")+" of "+req.Header.Get("ce-userid"))
		}
	}, nil)
	c := r.dial("/")
	c.WriteMessage(1, []byte("wait"))
	<-arrived
	c.WriteMessage(1, []byte("second"))
	r.next()
	// A push meanwhile waits for the connection to arrive, and so does a change.
	answer, err := http.Post(r.pushes.URL+"/groups/room", "text/plain", strings.NewReader("pushed"))
	if err != nil || answer.StatusCode != 202 {
		t.Fatalf("push = %v, %v", answer, err)
	}
	if body, _ := io.ReadAll(answer.Body); !bytes.Contains(body, []byte(`"queued":1`)) {
		t.Errorf("push to a connection on its way: %s", body)
	}
	close(gate)
	var got []string
	for range 3 {
		_, p, err := c.ReadMessage()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(p))
		r.finish()
	}
	if got[0] != "waited" || !slices.Contains(got, "pushed") || !slices.Contains(got, "second in state waited of ann") {
		t.Errorf("the client was sent %q", got)
	}

	// 8 MiB that nobody reads: more than a socket takes.
	big := strings.Repeat("x", 1<<20)
	for range 8 {
		if answer, err := http.Post(r.pushes.URL+"/users/ann", "text/plain", strings.NewReader(big)); err != nil || answer.StatusCode != 202 {
			t.Fatalf("push = %v, %v", answer, err)
		}
		if _, p, err := c.ReadMessage(); err != nil || len(p) != len(big) {
			t.Fatalf("%d bytes, %v", len(p), err)
		}
	}
	for i := range 3 {
		http.Post(r.pushes.URL+"/users/ann", "text/plain", strings.NewReader(fmt.Sprint(i)+big[:1<<20-1]))
	}
	done := make(chan struct{})
	go func() {
		for i := range 3 {
			_, p, err := c.ReadMessage()
			if err != nil || len(p) != 1<<20 || p[0] != byte('0'+i) {
				t.Errorf("message %d: %d bytes, %v", i, len(p), err)
				break
			}
		}
		close(done)
	}()
	r.next()
	r.finish()
	<-done
}

// TestNothingOvertakesWhatIsLeftToAnotherWorker withdraws messages that wait for the backend, which has room again before their connection is handed over.
func TestNothingOvertakesWhatIsLeftToAnotherWorker(t *testing.T) {
	t.Run("another serves", func(t *testing.T) { nothingOvertakes(t, true) })
	t.Run("the same serves again", func(t *testing.T) { nothingOvertakes(t, false) })
}

func nothingOvertakes(t *testing.T, another bool) {
	gate, arrived := make(chan struct{}), make(chan struct{})
	r := newRelay(t, false, func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		if string(body) == "wait" {
			close(arrived)
			<-gate
		}
		w.Write(body)
	}, func(c *Config, u *upstream.Config) { u.MaxConcurrent, u.Events = 1, upstream.Types{"message"} })
	slow, c := r.dial("/"), r.dial("/")
	slow.WriteMessage(1, []byte("wait"))
	<-arrived
	words := []string{"one", "two", "three", "four"}
	for _, word := range words[:3] {
		c.WriteMessage(1, []byte(word))
	}
	worker := r.serving.Load()
	var left *conn
	for end := time.Now().Add(patience); left == nil; time.Sleep(time.Millisecond) {
		for _, c := range worker.registry.all() {
			c.mu.Lock()
			if c.unsettled() == 3 {
				left = c
			}
			c.mu.Unlock()
		}
		if time.Now().After(end) {
			t.Fatal("the messages don't wait")
		}
	}
	worker.upstream.Withdraw() // as Suspend does, which has not come to the connections yet
	var position int64
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		left.mu.Lock()
		withdrawn := left.unsettled() == 0
		position = left.record.Position
		left.mu.Unlock()
		if withdrawn {
			break
		} else if time.Now().After(end) {
			t.Fatal("the messages are not withdrawn")
		}
	}
	worker.upstream.Restore() // and as Resume does, if the new worker has died
	close(gate)
	if _, p, err := slow.ReadMessage(); string(p) != "wait" {
		t.Fatalf("%q, %v", p, err)
	}
	c.WriteMessage(1, []byte(words[3]))
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		left.mu.Lock()
		done := left.handed || left.record.Position > position
		left.mu.Unlock()
		if done {
			break
		} else if time.Now().After(end) {
			t.Fatal("nobody reads the last message")
		}
	}
	if another {
		r.next()
		r.finish()
	}
	for _, word := range words {
		if _, p, err := c.ReadMessage(); string(p) != word {
			t.Fatalf("answer %q, %v, want %q", p, err, word)
		}
	}
}

// TestLargeMessagesPass sends messages that no socket's buffer holds, one after the other and several at once.
func TestLargeMessagesPass(t *testing.T) { onKernels(t, largeMessagesPass) }

func largeMessagesPass(t *testing.T, older bool) {
	r := newRelay(t, older, func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		if req.Header.Get("ce-type") == "wsbridge.message" {
			w.Write(body)
		}
	}, func(c *Config, u *upstream.Config) { c.MaxMessage, u.MaxAnswer = 1<<20, 1<<20 })
	c := r.dial("/")
	go func() {
		for i := range 6 {
			c.WriteMessage(1, []byte(strings.Repeat(string(rune('a'+i)), 900_000)))
			c.WriteMessage(1, []byte{byte('a' + i)})
		}
	}()
	for i := range 12 {
		_, p, err := c.ReadMessage()
		if want := []int{900_000, 1}[i%2]; err != nil || len(p) != want || p[0] != byte('a'+i/2) {
			t.Fatalf("answer %d: %d bytes, %v", i, len(p), err)
		}
	}
}

// TestAConnectionThatIsTakenOverAtRestWakesByWhateverHappensToIt lets nothing happen to connections over several workers, and then one thing to each.
func TestAConnectionThatIsTakenOverAtRestWakesByWhateverHappensToIt(t *testing.T) {
	onKernels(t, aConnectionAtRestWakes)
}

func aConnectionAtRestWakes(t *testing.T, older bool) {
	var mu sync.Mutex
	var ended []string
	r := newRelay(t, older, func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		switch req.Header.Get("ce-type") {
		case "wsbridge.connect":
			w.Header().Set("Ws-User", strings.TrimPrefix(req.URL.Path, "/"))
		case "wsbridge.message":
			w.Write(body)
		case "wsbridge.disconnect":
			var goodbye struct{ Code int }
			json.Unmarshal(body, &goodbye)
			mu.Lock()
			ended = append(ended, fmt.Sprint(req.Header.Get("ce-userid"), " ", goodbye.Code))
			mu.Unlock()
		}
	}, nil)
	pushed, closed, wrote, left, vanished := r.dial("/pushed"), r.dial("/closed"), r.dial("/wrote"), r.dial("/left"), r.dial("/vanished")
	pinging := r.config
	r.next() // the last may not have been at rest yet
	for range 3 {
		r.next()
		if n := parkedOf(r.serving.Load()); n != 5 {
			t.Fatalf("%d connections are parked, want 5", n)
		}
	}
	if answer, err := http.Post(r.pushes.URL+"/users/pushed", "text/plain", strings.NewReader("hello")); err != nil || answer.StatusCode != 202 {
		t.Fatalf("push = %v, %v", answer, err)
	}
	if _, p, err := pushed.ReadMessage(); err != nil || string(p) != "hello" {
		t.Errorf("pushed %q, %v", p, err)
	}
	request, _ := http.NewRequest(http.MethodDelete, r.pushes.URL+"/users/closed?code=4001", nil)
	if answer, err := http.DefaultClient.Do(request); err != nil || answer.StatusCode >= 300 {
		t.Fatalf("close = %v, %v", answer, err)
	}
	if _, _, err := closed.ReadMessage(); !websocket.IsCloseError(err, 4001) {
		t.Errorf("closed: %v", err)
	}
	closed.Close()
	wrote.WriteMessage(1, []byte("echo"))
	if _, p, err := wrote.ReadMessage(); err != nil || string(p) != "echo" {
		t.Errorf("answered %q, %v", p, err)
	}
	left.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(4002, ""), time.Now().Add(patience))
	if _, _, err := left.ReadMessage(); !websocket.IsCloseError(err, 4002) {
		t.Errorf("left: %v", err)
	}
	left.Close()
	vanished.UnderlyingConn().Close()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		mu.Lock()
		slices.Sort(ended)
		done := slices.Equal(ended, []string{"closed 4001", "left 4002", "vanished 1006"})
		mu.Unlock()
		if done {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("disconnect events %q", ended)
		}
	}

	// A heartbeat's ping is due at once.
	r.config.PingInterval = time.Millisecond
	pinged := make(chan struct{}, 1000)
	wrote.SetPingHandler(func(string) error { pinged <- struct{}{}; return nil })
	go wrote.ReadMessage()
	r.next()
	<-pinged
	r.config = pinging
	r.next()
	wrote.Close()
	pushed.Close()
}

// TestAMessageThatFindsNoRoomComesThrough lets a receive buffer be full before a message is there. That happens where the kernel keeps more with the bytes than they
// are, as with segments that come a second time; here the buffer is smaller than it was. One that may grow keeps all of the message.
func TestAMessageThatFindsNoRoomComesThrough(t *testing.T) {
	t.Run("the buffer grows", func(t *testing.T) { findsNoRoom(t, false, mostBuffer) })
	onKernels(t, func(t *testing.T, older bool) { findsNoRoom(t, older, 0) })
}

func findsNoRoom(t *testing.T, older bool, most int) {
	r := newRelay(t, older, func(w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("ce-type") == "wsbridge.message" {
			body, _ := io.ReadAll(req.Body)
			w.Write(body)
		}
	}, nil)
	c := r.dial("/")
	for end := time.Now().Add(patience); parkedOf(r.serving.Load()) != 1; time.Sleep(time.Millisecond) { // its client knows that it is open before that
		if time.Now().After(end) {
			t.Fatal("the connection is not parked")
		}
	}
	for _, c := range r.serving.Load().registry.members(target{kind: toAll}) {
		c.mu.Lock()
		c.unpark()
		c.socket.raw.Control(func(fd uintptr) { receiveBuffer(int(fd), 8<<10) })
		c.socket.held.most = most
		c.mu.Unlock()
	}
	for i := range 3 {
		text := strings.Repeat(fmt.Sprint(i), 60_000)
		if err := c.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if _, p, err := c.ReadMessage(); err != nil || string(p) != text {
			t.Fatalf("answered %d bytes, %v", len(p), err)
		}
	}
	for _, c := range r.serving.Load().registry.members(target{kind: toAll}) {
		if large := c.kept.slot.Large.Load() > 1; large != (most == 0) { // 1 is what came with the handshake
			t.Errorf("messages were taken out of the buffer: %t, where it may grow to %d", large, most)
		}
	}
	r.next() // it is as others are behind them
	r.finish()
	if err := c.WriteMessage(websocket.TextMessage, []byte("behind")); err != nil {
		t.Fatal(err)
	}
	if _, p, err := c.ReadMessage(); err != nil || string(p) != "behind" {
		t.Fatalf("answered %q, %v", p, err)
	}
}

// TestAWorkerThatServesAgainGivesNoSlotToTwo lets a worker take over free slots from one that is dead, be succeeded by another, which uses them, and serve again.
func TestAWorkerThatServesAgainGivesNoSlotToTwo(t *testing.T) {
	r := newRelay(t, false, func(w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("ce-type") == "wsbridge.message" {
			io.Copy(w, req.Body)
		}
	}, nil)
	var clients []*websocket.Conn
	dial := func(n int) {
		for range n {
			clients = append(clients, r.dial("/"))
		}
	}
	dial(5)
	first := r.serving.Load()
	for _, c := range clients {
		c.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(1000, ""), time.Now().Add(patience))
		if _, _, err := c.ReadMessage(); !websocket.IsCloseError(err, 1000) {
			t.Fatal(err)
		}
	}
	clients = nil
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if first.keeping.mu.Lock(); len(first.keeping.free) == 5 {
			first.keeping.mu.Unlock()
			break
		}
		first.keeping.mu.Unlock()
		if time.Now().After(end) {
			t.Fatal("the slots are not free")
		}
	}
	r.next()
	r.finish()
	second, serial := r.serving.Load(), r.serial
	second.Gone(serial - 1)
	r.next()
	dial(3)
	r.back(second, serial)
	dial(5)
	r.finish() // one of the three may not have been at rest
	for i, c := range clients {
		text := fmt.Sprint("client ", i)
		c.WriteMessage(websocket.TextMessage, []byte(text))
		if _, p, err := c.ReadMessage(); err != nil || string(p) != text {
			t.Errorf("client %d is answered %q, %v", i, p, err)
		}
	}
	slots := map[uint32]bool{}
	for _, c := range second.registry.members(target{kind: toAll}) {
		slots[c.kept.index] = true
	}
	if len(slots) != len(clients) {
		t.Errorf("%d clients have %d slots", len(clients), len(slots))
	}
}

// TestAConnectionThatNobodyUsesIsParked lets connections fall asleep by themselves, and wakes them by everything there is.
func TestAConnectionThatNobodyUsesIsParked(t *testing.T) { onKernels(t, idleConnectionsAreParked) }

func idleConnectionsAreParked(t *testing.T, older bool) {
	var goodbyes atomic.Int32
	r := newRelay(t, older, func(w http.ResponseWriter, req *http.Request) {
		switch req.Header.Get("ce-type") {
		case "wsbridge.connect":
			w.Header().Set("Ws-User", strings.TrimPrefix(req.URL.Path, "/"))
			w.Header().Set("Ws-Join", "all")
		case "wsbridge.message":
			body, _ := io.ReadAll(req.Body)
			fmt.Fprintf(w, "%s %s", req.Header.Get("ce-sequence"), body)
		case "wsbridge.disconnect":
			goodbyes.Add(1)
		}
	}, func(c *Config, _ *upstream.Config) { c.PingInterval = 40 * time.Millisecond })
	r.linger = 20 * time.Millisecond
	r.next()
	r.finish()
	b := r.serving.Load()
	const clients = 8
	var conns []*websocket.Conn
	var pings [clients]atomic.Int64
	for i := range clients {
		c := r.dial(fmt.Sprint("/u", i))
		answer := c.PingHandler()
		c.SetPingHandler(func(data string) error { pings[i].Add(1); return answer(data) })
		conns = append(conns, c)
	}
	asleep := func(want int) {
		t.Helper()
		for end := time.Now().Add(patience); parkedOf(b) != want; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d connections are parked, want %d", parkedOf(b), want)
			}
		}
	}
	hears := func(c *websocket.Conn, want string) {
		t.Helper()
		if _, p, err := c.ReadMessage(); err != nil || string(p) != want {
			t.Fatalf("heard %q, %v, want %q", p, err, want)
		}
	}
	push := func(route, text string) string {
		t.Helper()
		answer, err := http.Post(r.pushes.URL+route, "text/plain", strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		body, _ := io.ReadAll(answer.Body)
		return fmt.Sprint(answer.StatusCode, " ", strings.TrimSpace(string(body)))
	}
	asleep(clients)

	// Pings and pongs wake nobody: each client answers several, by reading.
	var reading sync.WaitGroup
	before := b.built.Load()
	for i, c := range conns {
		reading.Go(func() {
			for range 3 {
				hears(c, "all of you")
			}
			for pings[i].Load() < 20 {
				if _, _, err := c.NextReader(); err != nil { // the push below
					t.Error(err)
				}
			}
		})
	}
	for range 3 {
		if got, want := push("/groups/all", "all of you"), fmt.Sprintf(`202 {"matched":%d,"queued":%[1]d,"dropped":0}`, clients); got != want {
			t.Errorf("push = %s, want %s", got, want)
		}
	}
	if got := push("/users/u1?confirm=10s", "is it there?"); !strings.HasPrefix(got, "200 ") { // by the pong of one that is parked
		t.Errorf("confirmed push = %s", got)
	}
	stop := make(chan struct{})
	go func() { // their reading ends with a message
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
				http.Post(r.pushes.URL+"/groups/all", "text/plain", strings.NewReader("on"))
			}
		}
	}()
	reading.Wait()
	close(stop)
	if built := b.built.Load() - before; built != 0 {
		t.Errorf("%d connections were built for pushes, pings and pongs", built)
	}
	// A message, in two pieces; the sequence and the id go on.
	for range 2 {
		asleep(clients)
		frame := []byte{0x81, 0x85, 0, 0, 0, 0, 'h', 'e', 'l', 'l', 'o'}
		conns[2].UnderlyingConn().Write(frame[:3])
		time.Sleep(5 * time.Millisecond)
		conns[2].UnderlyingConn().Write(frame[3:])
		for {
			_, p, err := conns[2].ReadMessage()
			if err != nil {
				t.Fatal(err)
			}
			if text := string(p); text != "on" {
				if text != "2 hello" && text != "3 hello" {
					t.Errorf("answered %q", text)
				}
				break
			}
		}
	}
	asleep(clients)
	// A ping, a close and a lost connection.
	ponged := make(chan struct{}, 1)
	conns[3].SetPongHandler(func(string) error { ponged <- struct{}{}; return nil })
	before = b.built.Load()
	conns[3].WriteControl(websocket.PingMessage, []byte("me"), time.Now().Add(patience))
	go func() {
		for {
			if _, _, err := conns[3].ReadMessage(); err != nil { // what was pushed meanwhile
				return
			}
		}
	}()
	<-ponged
	if built := b.built.Load() - before; built != 0 {
		t.Errorf("%d connections were built for a client's ping", built)
	}
	conns[4].WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(1000, ""), time.Now().Add(patience))
	conns[5].UnderlyingConn().Close()
	for end := time.Now().Add(patience); goodbyes.Load() != 2; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d disconnect events, want 2", goodbyes.Load())
		}
	}
	asleep(clients - 2)
	// A message that has to wait: the client reads nothing, and then everything.
	big := strings.Repeat("x", 400_000)
	for i := range 3 {
		if got := push("/users/u6", fmt.Sprint(i, big)); !strings.HasPrefix(got, "202 ") {
			t.Errorf("push = %s", got)
		}
	}
	for i := 0; i < 3; {
		_, p, err := conns[6].ReadMessage()
		if err != nil {
			t.Fatal(err)
		}
		if string(p) != "on" {
			if string(p) != fmt.Sprint(i, big) {
				t.Fatalf("message %d is %d bytes", i, len(p))
			}
			i++
		}
	}
	asleep(clients - 2)
	// And another worker takes them as they are.
	r.next()
	r.finish()
	b = r.serving.Load()
	asleep(clients - 2)
}

// parkedOf returns how many connections of the bridge nothing is built of.
func parkedOf(b *Bridge) (n int) {
	for _, c := range b.registry.members(target{kind: toAll}) {
		c.mu.Lock()
		if c.parked != 0 {
			n++
		}
		c.mu.Unlock()
	}
	return n
}
