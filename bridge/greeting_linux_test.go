package bridge_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What the backend says to a client as it comes goes out with the 101, where it is small.
func TestAGreetingComesWithTheAnswerToTheHandshake(t *testing.T) {
	large := strings.Repeat("x", 100<<10)
	for name, test := range map[string]struct {
		header   map[string]string
		body     string
		want     []frame
		together bool // in one segment with the 101
	}{
		"one":                  {map[string]string{"Ws-Messages": "one"}, "welcome", []frame{text("welcome")}, true},
		"none":                 {nil, "", nil, true},
		"several":              {map[string]string{"Ws-Messages": "lines"}, "a\nb\n", []frame{text("a"), text("b")}, true},
		"a large one":          {map[string]string{"Ws-Messages": "one"}, large, []frame{text(large)}, false},
		"one, and the end":     {map[string]string{"Ws-Messages": "one", "Ws-Close": `4001 "bye"`}, "welcome", []frame{text("welcome"), goodbye(4001, "bye")}, false},
		"the end at the 101":   {map[string]string{"Ws-Close": `4001 "bye"`}, "", []frame{goodbye(4001, "bye")}, false},
		"with its subprotocol": {map[string]string{"Ws-Messages": "one", "Ws-Subprotocol": "chat"}, "welcome", []frame{text("welcome")}, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, func(o *options) {
				o.bridge.PingInterval = unheard
				o.answer = func(w http.ResponseWriter, e event) {
					if e.kind == "connect" {
						for field, value := range test.header {
							w.Header().Set(field, value)
						}
						io.WriteString(w, test.body)
					}
				}
			})
			c := r.dial(t, "/ws", "Sec-WebSocket-Protocol: chat")
			c.want(test.want...)
			if !test.together {
				return
			}
			if n := c.segments(t); n != 1 {
				t.Errorf("what the client was sent came in %d segments, want 1", n)
			}
			bytes := 0
			for _, f := range test.want {
				bytes += len(f.payload)
			}
			id := r.await(t, "/ws", "connect")[0].header.Get("ce-connectionid")
			answer, err := http.Get(r.push + "/connections/" + id)
			if err != nil {
				t.Fatal(err)
			}
			defer answer.Body.Close()
			list, err := io.ReadAll(answer.Body)
			if err != nil {
				t.Fatal(err)
			}
			if want := fmt.Sprintf(`"messages_out":%d,"bytes_in":0,"bytes_out":%d`, len(test.want), bytes); !strings.Contains(string(list), want) {
				t.Errorf("the connection is %s, want %s", list, want)
			}
		})
	}
}

// segments returns in how many segments data has come (tcp(7), TCP_INFO).
func (c *client) segments(t *testing.T) (n int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	failed := raw.Control(func(fd uintptr) {
		var info *unix.TCPInfo
		if info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			n = int(info.Data_segs_in)
		}
	})
	if err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	return n
}
