package e2e

import (
	"encoding/json"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gorilla/websocket"
)

// printed is an event as app.py prints it.
type printed struct {
	Type, Path, Sequence, User, Cookie, Body string
	ContentType                              string `json:"content_type"`
}

func TestAPythonScriptIsABackend(t *testing.T) {
	t.Parallel()
	for name, where := range map[string]string{"over TCP": "0", "over a unix socket": filepath.Join(tempDir(t), "app.sock")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			python := tool(t, "/usr/bin/python3", "python3") // Debian's own, whatever else is in the PATH
			push := "127.0.0.1:" + freePort(t)
			app := start(t, []string{"PUSH=http://" + push}, python, "testdata/app.py", where)
			_, address, _ := strings.Cut(app.awaitLine(t, "listening on"), "on ")
			s := serve(t, "WSBRIDGE_BACKEND_URL=http://"+address+"/events?by=bridge", "WSBRIDGE_PUSH_LISTEN="+push)

			resp, body := refused(t, websocket.Dialer{}, "ws://"+s.clients+"/", nil)
			if got := resp.Header.Get("WWW-Authenticate"); resp.StatusCode != http.StatusUnauthorized || body != "Who are you?\n" || got != `Name realm="app"` {
				t.Errorf("refusal = %s %q, WWW-Authenticate %q; want the script's own", resp.Status, body, got)
			}

			c := connect(t, websocket.Dialer{}, "ws://"+s.clients+"/chat?name=ada", http.Header{"Cookie": {"lang=en"}})
			if got := c.handshake.Header.Get("Set-Cookie"); got != "visit=1; HttpOnly" {
				t.Errorf("Set-Cookie of the 101 = %q, want the script's own", got)
			}
			c.says(t, websocket.TextMessage, "hello")
			c.hears(t, websocket.TextMessage, "HELLO")
			c.says(t, websocket.BinaryMessage, "\x00\x01\xff")
			c.hears(t, websocket.BinaryMessage, "\xff\x01\x00")
			var list struct{ Connections []struct{ ID, User string } }
			_, body = request(t, "GET", "http://"+push+"/connections?user=ada", nil, "")
			if err := json.Unmarshal([]byte(body), &list); err != nil || len(list.Connections) != 1 {
				t.Fatalf("connections of the user that the script named: %v %s", err, body)
			}
			// A push from within an event: it comes before the event's own answer.
			c.says(t, websocket.TextMessage, "push "+list.Connections[0].ID+" here you are")
			c.hears(t, websocket.TextMessage, "here you are")
			c.hears(t, websocket.TextMessage, "202")
			c.leaves(t, 4002)

			// The first is the refused client's.
			var got []printed
			for _, line := range app.awaitLines(t, 6, `"sequence"`) {
				var e printed
				if err := json.Unmarshal([]byte(line), &e); err != nil {
					t.Fatal(err)
				}
				got = append(got, e)
			}
			push = "push " + list.Connections[0].ID + " here you are"
			want := []printed{
				{Type: "wsbridge.connect", Sequence: "1"},
				{Type: "wsbridge.connect", Sequence: "1", Cookie: "lang=en"},
				{Type: "wsbridge.message", Sequence: "2", Cookie: "lang=en; visit=1", User: "ada", Body: "hello", ContentType: "text/plain; charset=utf-8"},
				{Type: "wsbridge.message", Sequence: "3", Cookie: "lang=en; visit=1", User: "ada", Body: "\x00\x01ÿ", ContentType: "application/octet-stream"},
				{Type: "wsbridge.message", Sequence: "4", Cookie: "lang=en; visit=1", User: "ada", Body: push, ContentType: "text/plain; charset=utf-8"},
				{Type: "wsbridge.disconnect", Sequence: "5", Cookie: "lang=en; visit=1", User: "ada", ContentType: "application/json"},
			}
			for i := range want {
				if want[i].Path = "/events?by=bridge&name=ada"; i == 0 {
					want[i].Path = "/events?by=bridge"
				}
				if want[i].Type == "wsbridge.disconnect" {
					var goodbye struct{ Code, Messages_In, Messages_Out int }
					if err := json.Unmarshal([]byte(got[i].Body), &goodbye); err != nil || goodbye.Code != 4002 || goodbye.Messages_In != 3 || goodbye.Messages_Out != 4 {
						t.Errorf("disconnect event: %v %s, want code 4002, 3 messages in and 4 out", err, got[i].Body)
					}
					got[i].Body = ""
				}
				if got[i] != want[i] {
					t.Errorf("event %d = %+v\nwant %+v", i, got[i], want[i])
				}
			}
		})
	}
}
