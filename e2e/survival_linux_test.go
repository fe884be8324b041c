package e2e

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"wsbridge/holder"
)

// survivors is a backend that echoes, and writes down what it is told of each connection.
type survivors struct {
	mu    sync.Mutex
	seen  map[string]string // what came under each id
	last  map[string]int    // sequence of each connection
	ended map[string]string // id of each connection's disconnect event
	wrong []string
}

func (b *survivors) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	id, connection, kind := r.Header.Get("ce-id"), r.Header.Get("ce-connectionid"), strings.TrimPrefix(r.Header.Get("ce-type"), "wsbridge.")
	sequence, _ := strconv.Atoi(r.Header.Get("ce-sequence"))
	what := fmt.Sprintf("%s %d %s", kind, sequence, body)
	b.mu.Lock()
	before, repeated := b.seen[id]
	switch {
	case repeated && before != what && kind != "disconnect":
		b.wrong = append(b.wrong, fmt.Sprintf("%s was %q, and then %q", id, before, what))
	case !repeated && sequence != b.last[connection]+1:
		b.wrong = append(b.wrong, fmt.Sprintf("%s has sequence %d behind %d", what, sequence, b.last[connection]))
	}
	b.seen[id] = what
	b.last[connection] = max(sequence, b.last[connection])
	if kind == "disconnect" {
		if other := b.ended[connection]; other != "" && other != id {
			b.wrong = append(b.wrong, fmt.Sprintf("two disconnect events: %s and %s", other, id))
		}
		b.ended[connection] = id
	}
	b.mu.Unlock()
	if kind == "message" {
		time.Sleep(time.Duration(rand.IntN(5)) * time.Millisecond) // the time a real one takes: kills are to meet messages there
		w.Header().Set("Content-Type", "text/plain")
		w.Write(body)
	}
}

// TestTheWorkerIsKilledAndReloadedAgainAndAgain kills the worker at random moments under chatting clients, and reloads it between two kills. With a backend that
// keeps ids nobody is closed, every message is answered once and in order, and every event comes under its own id.
func TestTheWorkerIsKilledAndReloadedAgainAndAgain(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("WSBRIDGE_SEED"); text != "" {
		seed, _ = strconv.ParseUint(text, 10, 64)
	}
	random := rand.New(rand.NewPCG(seed, 0))
	const clients, messages, kills = 40, 200, 16
	b := &survivors{seen: map[string]string{}, last: map[string]int{}, ended: map[string]string{}}
	backend := httptest.NewServer(b)
	t.Cleanup(backend.Close)
	env := []string{"WSBRIDGE_BACKEND_URL=" + backend.URL, "WSBRIDGE_BACKEND_RETRY=always", "WSBRIDGE_LISTEN=127.0.0.1:" + freePort(t), "WSBRIDGE_PUSH_LISTEN=127.0.0.1:" + freePort(t)}
	s := serve(t, env...)
	pid := s.cmd.Process.Pid

	var chatting sync.WaitGroup
	for i := range clients {
		c, _, err := websocket.DefaultDialer.Dial("ws://"+s.clients+"/ws", nil)
		if err != nil {
			t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(patience))
		text := func(n int) string { return fmt.Sprintf("%d of %d %s", n, i, strings.Repeat("x", (i*n*37)%3000)) }
		chatting.Go(func() {
			for n := range messages {
				ahead := 1 + i%4 // some are several messages ahead of the answers
				for n == 0 && ahead > 1 {
					ahead--
					c.WriteMessage(websocket.TextMessage, []byte(text(1+i%4-1-ahead)))
				}
				if next := n + i%4; next < messages {
					if err := c.WriteMessage(websocket.TextMessage, []byte(text(next))); err != nil {
						t.Errorf("client %d: %v (seed %d)", i, err, seed)
						return
					}
				}
				if _, p, err := c.ReadMessage(); err != nil || string(p) != text(n) {
					t.Errorf("client %d: answer %d is %.40q, %v (seed %d)", i, n, p, err, seed)
					return
				}
			}
			c.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(1000, ""), time.Now().Add(time.Second))
			if _, _, err := c.ReadMessage(); !websocket.IsCloseError(err, 1000) {
				t.Errorf("client %d: end = %v (seed %d)", i, err, seed)
			}
		})
	}
	for i := range kills {
		status, err := holder.Status(t.Context(), pid)
		for ; err == nil && status.Worker == 0; status, err = holder.Status(t.Context(), pid) {
		}
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(random.IntN(60)) * time.Millisecond) // a random moment is what this is about
		if i%4 == 3 {
			reload := exec.Command(program(t), "reload", strconv.Itoa(pid))
			reload.Env = append(os.Environ(), env...)
			if out, err := reload.CombinedOutput(); err != nil {
				t.Errorf("reload: %v %s (seed %d)", err, out, seed)
			}
			continue
		}
		syscall.Kill(status.Worker, syscall.SIGKILL)
	}
	chatting.Wait()
	if t.Failed() {
		return
	}
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		b.mu.Lock()
		ended := len(b.ended)
		b.mu.Unlock()
		if ended >= clients || time.Now().After(end) {
			break
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.ended) != clients || len(b.wrong) > 0 {
		t.Errorf("%d of %d disconnect events, and %q (seed %d)", len(b.ended), clients, b.wrong, seed)
	}
}
