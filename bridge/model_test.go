package bridge

import (
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"wsbridge/ratelimit"
	"wsbridge/upstream"
)

// member is a client of the model: what it has been sent, by group, and what has come.
type member struct {
	id    string
	conn  *websocket.Conn
	heard map[string][]string // by group; complete when its reader has ended
	done  chan struct{}
	gone  atomic.Bool // it was closed, by itself or by a push
}

// Joins, leaves, sends and closes at random, by many pushers at once over real sockets: every message reaches exactly the members that its group has
// at that moment, once, in the order of its pusher. Each group has one pusher, which therefore knows who its members are.
func TestEveryMessageReachesTheMembersOfItsGroup(t *testing.T) {
	const clients, groups, steps = 100, 8, 250 // groups of some 60: larger ones are kept in order
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("ce-type") == "wsbridge.connect" {
			io.WriteString(w, r.Header.Get("ce-connectionid"))
		}
	}))
	defer backend.Close()
	config := upstream.Config{
		TextType: "text/plain", Events: upstream.Types{"connect", "disconnect"}, Timeout: time.Minute, Retry: upstream.RetrySafe, RetryFor: time.Minute,
		MaxConcurrent: 16, MaxAnswer: 1 << 20,
	}
	if err := config.URL.UnmarshalText([]byte(backend.URL)); err != nil {
		t.Fatal(err)
	}
	client, err := upstream.New(config, "test", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	b, err := New(Config{
		Paths: []Path{"/*"}, TrustedProxies: []netip.Prefix{}, MaxConnections: 1000, HandshakeTimeout: time.Minute, MaxMessage: 1000, Compression: "on", PingInterval: time.Minute,
		PongTimeout: time.Minute, SendBuffer: 64 << 20, SlowClient: SlowClose, WriteTimeout: time.Minute, PushMaxBody: 1 << 20,
		GoodbyeFor: time.Hour, GoodbyeMax: 100_000, GoodbyeBytes: 64 << 20,
	}, ratelimit.Config{Policy: ratelimit.Wait}, client, slog.New(slog.DiscardHandler), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: b}
	server.SetKeepAlivesEnabled(false)
	go server.Serve(listener)
	defer server.Close()
	push := b.Push(http.NotFoundHandler(), http.NotFoundHandler())
	call := func(method, path, body string) int {
		r := httptest.NewRequest(method, path, strings.NewReader(body))
		r.Host = "localhost"
		w := httptest.NewRecorder()
		push.ServeHTTP(w, r)
		return w.Code
	}

	reaches := func(want int) {
		t.Helper()
		r := httptest.NewRequest("POST", "/connections", strings.NewReader("all of you"))
		r.Host = "localhost"
		w := httptest.NewRecorder()
		push.ServeHTTP(w, r)
		if answer := fmt.Sprintf(`{"matched":%d,"queued":%[1]d,"dropped":0}`, want); strings.TrimSpace(w.Body.String()) != answer {
			t.Errorf("what is sent to all is answered %s, want %s", w.Body, answer)
		}
	}

	var all []*member
	for i := range clients {
		if i == clients/2 {
			reaches(i)
		}
		dialer := websocket.Dialer{EnableCompression: i%3 == 0} // one group has frames of both forms
		conn, _, err := dialer.Dial("ws://"+listener.Addr().String()+"/ws", nil)
		if err != nil {
			t.Fatal(err)
		}
		_, id, err := conn.ReadMessage()
		if err != nil {
			t.Fatal(err)
		}
		m := &member{id: string(id), conn: conn, heard: map[string][]string{}, done: make(chan struct{})}
		all = append(all, m)
		go func() {
			defer close(m.done)
			for {
				_, data, err := conn.ReadMessage()
				if err != nil {
					return
				}
				group, _, _ := strings.Cut(string(data), " ")
				m.heard[group] = append(m.heard[group], string(data))
			}
		}()
	}

	reaches(clients)
	if status := call("GET", "/connections?after="+all[clients/2].id, ""); status != http.StatusOK { // which leaves the list as it is
		t.Errorf("GET /connections: %d", status)
	}
	reaches(clients)

	// What each group's pusher has sent each member.
	sent := make([]map[*member][]string, groups)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var pushers sync.WaitGroup
	for g := range groups {
		sent[g] = map[*member][]string{}
		pushers.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(g)))
			name := fmt.Sprint("g", g)
			in := map[*member]bool{}
			for step := range steps {
				m := all[random.IntN(len(all))]
				switch path := "/groups/" + name + "/connections/" + m.id; random.IntN(10) {
				case 0, 1, 2:
					if status := call("PUT", path, ""); status == http.StatusNoContent {
						in[m] = true
					} else if !m.gone.Load() {
						t.Errorf("PUT %s: %d", path, status)
					}
				case 3, 4:
					if status := call("DELETE", path, ""); status != http.StatusNoContent && !m.gone.Load() {
						t.Errorf("DELETE %s: %d", path, status)
					}
					delete(in, m)
				case 5:
					if step%20 != 0 {
						continue
					}
					m.gone.Store(true) // before it is: others may see it gone
					if random.IntN(2) == 0 {
						m.conn.Close()
					} else {
						call("DELETE", "/connections/"+m.id, "")
					}
				default:
					message := fmt.Sprintf("%s %d %s", name, step, strings.Repeat("x", random.IntN(2000)))
					query := ""
					var left *member
					if random.IntN(4) == 0 {
						left = all[random.IntN(len(all))]
						query = "?except=" + left.id
					}
					if status := call("POST", "/groups/"+name+query, message); status != http.StatusAccepted {
						t.Errorf("POST: %d", status)
					}
					for to := range in {
						if to != left {
							sent[g][to] = append(sent[g][to], message)
						}
					}
				}
			}
		})
	}
	pushers.Wait()
	for _, m := range all { // behind all that was sent
		call("DELETE", "/connections/"+m.id, "")
	}
	reaches(0)
	stayed := 0
	for _, m := range all {
		<-m.done
		m.conn.Close()
		for g := range groups {
			want, got := sent[g][m], m.heard[fmt.Sprint("g", g)]
			if !m.gone.Load() {
				stayed++
				if !slices.Equal(got, want) {
					t.Errorf("a member of g%d has heard %d messages, want %d:\n%.60q\n%.60q", g, len(got), len(want), got, want)
				}
			} else if len(got) > len(want) || !slices.Equal(got, want[:len(got)]) { // it was closed at some moment
				t.Errorf("a member of g%d that has gone has heard %d messages that are not the first of its %d", g, len(got), len(want))
			}
		}
	}
	if stayed < clients {
		t.Errorf("only %d of the memberships have stayed: this tests nothing", stayed)
	}
	if n := len(b.registry.users) + len(b.registry.groups) + len(b.registry.open); n != 0 {
		t.Errorf("%d users, groups and connections are left in the registry", n)
	}
	b.Drain(time.Minute, false)
}
