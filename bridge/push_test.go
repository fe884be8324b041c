package bridge

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"
)

func TestAPushReachesItsConnectionInItsKind(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		c := b.dial()
		id := b.id()
		tests := []struct {
			contentType, body string
			kind              int
		}{
			{"", "no type", websocket.TextMessage},
			{"", "\xff", websocket.BinaryMessage},
			{"application/x-www-form-urlencoded", "what curl -d says", websocket.TextMessage},
			{"application/json", `{"a":1}`, websocket.TextMessage},
			{"image/png", "png", websocket.BinaryMessage},
			{"text/plain", "\xff\xfe", websocket.BinaryMessage},
			{"text/plain", "", websocket.TextMessage},
			{"application/octet-stream", "", websocket.BinaryMessage},
		}
		for _, test := range tests {
			r := httptest.NewRequest("POST", "/connections/"+id, strings.NewReader(test.body))
			r.Host = "127.0.0.1:8081"
			if test.contentType != "" {
				r.Header.Set("Content-Type", test.contentType)
			}
			w := httptest.NewRecorder()
			b.push.ServeHTTP(w, r)
			if w.Code != http.StatusAccepted || w.Body.Len() != 0 {
				t.Errorf("%v: answer = %d %q, want an empty 202", test, w.Code, w.Body)
			}
			kind, data, err := c.ReadMessage()
			if err != nil || kind != test.kind || string(data) != test.body {
				t.Errorf("%v: got kind %d %q (%v)", test, kind, data, err)
			}
		}
		c.Close()
	})
}

func TestPushesOfOneCallerArriveInOrder(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		c := b.dial()
		id := b.id()
		for i := range 200 {
			b.call("POST", "/connections/"+id, fmt.Sprint(i))
		}
		for i := range 200 {
			if got := receive(t, c); got != fmt.Sprint(i) {
				t.Fatalf("got = %s, want %d", got, i)
			}
		}
		c.Close()
	})
}

func TestAnOpeningConnectionTakesPushesThatComeBeforeTheAnswersBody(t *testing.T) {
	inBubble(t, func(w *world) {
		w.answer = func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("ce-type") == "wsbridge.connect" {
				time.Sleep(time.Second)
				w.Header().Set("Ws-User", "7")
				io.WriteString(w, "welcome")
			}
		}
	}, func(b *bubble) {
		opened := make(chan *websocket.Conn)
		go func() { opened <- b.dial() }()
		id := b.id()
		if got := b.call("POST", "/connections/"+id, "early").Code; got != http.StatusAccepted {
			t.Errorf("push = %d, want 202", got)
		}
		if got := b.call("GET", "/connections/"+id, "").Body.String(); !strings.Contains(got, `"opening":true,"groups":[]`) || strings.Contains(got, "user") {
			t.Errorf("connection = %s, want it opening, without user and groups", got)
		}
		c := <-opened
		for _, want := range []string{"early", "welcome"} {
			if got := receive(t, c); got != want {
				t.Errorf("got = %q, want %q", got, want)
			}
		}
		if got := b.call("GET", "/connections/"+id, "").Body.String(); strings.Contains(got, "opening") || !strings.Contains(got, `"user":"7"`) {
			t.Errorf("connection = %s, want it open, with its user", got)
		}
		c.Close()
	})
}

func TestARefusedHandshakeDiscardsWhatWasPushed(t *testing.T) {
	inBubble(t, func(w *world) {
		w.answer = func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Second)
			w.WriteHeader(403)
		}
	}, func(b *bubble) {
		refused := make(chan int)
		go func() {
			_, answer, _ := b.tryDial()
			refused <- answer.StatusCode
		}()
		id := b.id()
		b.call("POST", "/connections/"+id, "for nobody")
		if got := <-refused; got != 403 {
			t.Errorf("handshake = %d, want 403", got)
		}
		if got := b.call("POST", "/connections/"+id, "too late").Code; got != http.StatusGone {
			t.Errorf("push = %d, want 410", got)
		}
	})
}

func TestDeletingAnOpeningConnectionClosesItOnceItIsOpen(t *testing.T) {
	inBubble(t, func(w *world) {
		w.answer = func(w http.ResponseWriter, r *http.Request) { time.Sleep(time.Second) }
	}, func(b *bubble) {
		opened := make(chan *websocket.Conn)
		go func() { opened <- b.dial() }()
		if got := b.call("DELETE", "/connections/"+b.id()+"?code=4004", "").Code; got != http.StatusNoContent {
			t.Errorf("DELETE = %d, want 204", got)
		}
		if code, _ := closing(<-opened); code != 4004 {
			t.Errorf("close code = %d, want 4004", code)
		}
	})
}

func TestWhatWasPushedBeforeADeleteGoesOutBeforeTheClose(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		c := b.dial()
		id := b.id()
		b.call("POST", "/connections/"+id, "last words")
		b.call("DELETE", "/connections/"+id+"?reason=so+long", "")
		code, messages := closing(c)
		if code != 1000 || len(messages) != 1 || messages[0] != "last words" {
			t.Errorf("closed %d after %q, want 1000 after the message", code, messages)
		}
	})
}

func TestABadPushGetsAProblemThatNamesTheField(t *testing.T) {
	inBubble(t, func(w *world) { w.config.PushMaxBody = 10 }, func(b *bubble) {
		c := b.dial()
		id := b.id()
		tests := []struct {
			method, target, contentType, body string
			status                            int
			field                             string
		}{
			{"POST", "/connections/" + id, "", "more than ten bytes", 413, ""},
			{"POST", "/connections/" + id, "multipart/form-data; boundary=x", "--x", 415, "Content-Type"},
			{"POST", "/connections/" + id + "?confrim=5s", "", "typo", 400, "confrim"},
			{"POST", "/connections/nobody", "", "x", 410, ""},
			{"POST", "/connections/", "", "x", 404, ""},
			{"POST", "/connections//", "", "x", 404, ""},
			{"POST", "//connections/" + id, "", "x", 404, ""},
			{"POST", "/", "", "x", 405, ""},
			{"POST", "/connections/../connections/" + id, "", "x", 404, ""},
			{"GET", "/./connections", "", "", 404, ""},
			{"PUT", "/connections/" + id, "", "x", 405, ""},
			{"DELETE", "/connections/" + id + "?code=1001", "", "", 400, "code"},
			{"DELETE", "/connections/" + id + "?code=1006", "", "", 400, "code"},
			{"DELETE", "/connections/" + id + "?code=5000", "", "", 400, "code"},
			{"DELETE", "/connections/" + id + "?code=many", "", "", 400, "code"},
			{"DELETE", "/connections/" + id + "?reason=" + strings.Repeat("x", 124), "", "", 400, "reason"},
			{"DELETE", "/connections/" + id + "?reason=%ff", "", "", 400, "reason"},
			{"DELETE", "/connections/nobody", "", "", 410, ""},
			{"GET", "/connections/nobody", "", "", 410, ""},
			{"GET", "/connections?limit=0", "", "", 400, "limit"},
			{"GET", "/connections?limit=1001", "", "", 400, "limit"},
			{"GET", "/connections?user=a+b", "", "", 400, "user"},
			{"GET", "/connections?group=a,b", "", "", 400, "group"},
			{"GET", "/connections?grup=x", "", "", 400, "grup"},
		}
		for _, test := range tests {
			r := httptest.NewRequest(test.method, test.target, strings.NewReader(test.body))
			r.Host = "localhost"
			if test.contentType != "" {
				r.Header.Set("Content-Type", test.contentType)
			}
			w := httptest.NewRecorder()
			b.push.ServeHTTP(w, r)
			var got struct {
				Title, Detail, Field string
				Status               int
			}
			json.Unmarshal(w.Body.Bytes(), &got)
			if w.Code != test.status || got.Status != test.status || got.Field != test.field || got.Detail == "" || got.Title != http.StatusText(test.status) {
				t.Errorf("%s %s: %d %s, want %d with field %q", test.method, test.target, w.Code, w.Body, test.status, test.field)
			}
			if kind := w.Header().Get("Content-Type"); kind != "application/problem+json" {
				t.Errorf("%s %s: Content-Type = %q", test.method, test.target, kind)
			}
			if test.status == 405 && w.Header().Get("Allow") == "" {
				t.Errorf("%s %s: 405 without Allow", test.method, test.target)
			}
		}
		send(t, c, "nothing came")
		if got := receive(t, c); got != "nothing came" {
			t.Errorf("the client got %q", got)
		}
		c.Close()
	})
}

func TestListingGoesThroughAllConnectionsOldestFirst(t *testing.T) {
	inBubble(t, func(w *world) {
		w.answer = func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Ws-User", r.URL.Query().Get("u"))
			w.Header().Set("Ws-Join", "all")
		}
	}, func(b *bubble) {
		var want []string
		for i := range 7 {
			dialer := &websocket.Dialer{}
			b.buffered(1000)(dialer, nil)
			c, _, err := dialer.Dial(fmt.Sprintf("ws://host/ws?u=%d", i%2), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			want = append(want, b.id())
			time.Sleep(time.Millisecond)
		}
		list := func(query string) (ids []string, next string) {
			var page struct {
				Connections []view
				Next        string
			}
			json.Unmarshal(b.call("GET", "/connections?"+query, "").Body.Bytes(), &page)
			for _, c := range page.Connections {
				ids = append(ids, c.ID)
			}
			return ids, page.Next
		}
		first, next := list("limit=3")
		second, next2 := list("limit=3&after=" + next)
		third, last := list("limit=3&after=" + next2)
		if got := append(append(first, second...), third...); fmt.Sprint(got) != fmt.Sprint(want) || last != "" {
			t.Errorf("got = %v and next %q, want %v and none", got, last, want)
		}
		if got, _ := list("user=1"); fmt.Sprint(got) != fmt.Sprint([]string{want[1], want[3], want[5]}) {
			t.Errorf("user=1: %v", got)
		}
		if got, next := list("group=all&limit=7"); len(got) != 7 || next != "" {
			t.Errorf("group=all: %d and next %q, want 7 and none", len(got), next)
		}
		if got, _ := list("user=&group=&limit=&after="); len(got) != 7 {
			t.Errorf("with empty parameters: %d, want all 7", len(got))
		}
		if got, _ := list("group=nobody"); len(got) != 0 {
			t.Errorf("group=nobody: %v", got)
		}
	})
}

func TestWhoMayPush(t *testing.T) {
	const token = "s3cret-of-the-pushers"
	tests := []struct {
		name, token, host string
		header            []string
		method, target    string
		status            int
	}{
		{"this host by name", "", "localhost:8081", nil, "GET", "/connections", 200},
		{"this host by address", "", "127.0.0.1:8081", nil, "GET", "/connections", 200},
		{"this host by IPv6", "", "[::1]:8081", nil, "GET", "/connections", 200},
		{"a rebound name", "", "evil.example:8081", nil, "GET", "/connections", 403},
		{"a name that starts well", "", "localhost.evil.example", nil, "GET", "/connections", 403},
		{"a rebound name asks for metrics", "", "evil.example:8081", nil, "GET", "/metrics", 403},
		{"a rebound name asks for health", "", "evil.example:8081", nil, "GET", "/healthz", 200},
		{"no token", token, "localhost", nil, "GET", "/connections", 401},
		{"no token for profiles", token, "localhost", nil, "GET", "/debug/pprof/", 401},
		{"no token for readiness", token, "localhost", nil, "GET", "/readyz", 200},
		{"the token", token, "bridge.internal", []string{"Authorization", "Bearer " + token}, "GET", "/connections", 200},
		{"the token under a scheme in small letters", token, "bridge.internal", []string{"Authorization", "bearer " + token}, "GET", "/connections", 200},
		{"a page of another site that only looks", "", "localhost", []string{"Sec-Fetch-Site", "cross-site"}, "GET", "/debug/pprof/trace", 403},
		{"another token", token, "bridge.internal", []string{"Authorization", "Bearer " + token + "x"}, "GET", "/connections", 401},
		{"an empty token", token, "bridge.internal", []string{"Authorization", "Bearer "}, "GET", "/connections", 401},
		{"the token as a password", token, "bridge.internal", []string{"Authorization", "Basic b3BzOnMzY3JldC1vZi10aGUtcHVzaGVycw=="}, "GET", "/connections", 200},
		{"another password", token, "bridge.internal", []string{"Authorization", "Basic b3BzOngK"}, "GET", "/connections", 401},
		{"a page of another site", "", "localhost", []string{"Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site"}, "POST", "/connections/x", 403},
		{"a page of another site with the token", token, "localhost", []string{"Origin", "https://evil.example", "Authorization", "Bearer " + token}, "DELETE", "/connections/x", 403},
		{"a page of our own", "", "localhost:8081", []string{"Origin", "http://localhost:8081", "Sec-Fetch-Site", "same-origin"}, "POST", "/connections/x", 410},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(w *world) { w.config.PushToken = test.token }, func(b *bubble) {
				r := httptest.NewRequest(test.method, test.target, nil)
				r.Host = test.host
				for i := 0; i < len(test.header); i += 2 {
					r.Header.Set(test.header[i], test.header[i+1])
				}
				w := httptest.NewRecorder()
				b.push.ServeHTTP(w, r)
				if test.target == "/metrics" && test.status == 200 {
					test.status = 404 // the bubble serves none
				}
				if w.Code != test.status {
					t.Errorf("status = %d (%s), want %d", w.Code, w.Body, test.status)
				}
				if strings.Contains(w.Body.String(), token) {
					t.Error("the answer has the token in it")
				}
				if (w.Code == 401) != (w.Header().Get("WWW-Authenticate") != "") {
					t.Errorf("WWW-Authenticate = %q with %d", w.Header().Get("WWW-Authenticate"), w.Code)
				}
			})
		})
	}
}

func TestOverAUnixSocketAnyHostMayBeNamed(t *testing.T) {
	var handler http.Handler
	inBubble(t, nil, func(b *bubble) { handler = b.push })
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "push.sock"))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: handler}
	go server.Serve(listener)
	defer server.Close()
	client := http.Client{Transport: &http.Transport{Dial: func(string, string) (net.Conn, error) { return net.Dial("unix", listener.Addr().String()) }}}
	answer, err := client.Get("http://anything.example/connections")
	if err != nil || answer.StatusCode != 200 {
		t.Errorf("answer = %v (%v), want 200", answer, err)
	}
}

func TestReadinessFollowsTheStartAndTheDrain(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		if got := b.call("GET", "/readyz", "").Code; got != 200 {
			t.Errorf("/readyz = %d, want 200", got)
		}
		b.serving.Store(false)
		if got := b.call("GET", "/readyz", "").Code; got != 503 {
			t.Errorf("/readyz before the start = %d, want 503", got)
		}
		b.serving.Store(true)
		b.Drain(time.Second, false)
		if got := b.call("GET", "/readyz", "").Code; got != 503 {
			t.Errorf("/readyz while draining = %d, want 503", got)
		}
		if got := b.call("GET", "/healthz", "").Code; got != 200 {
			t.Errorf("/healthz = %d, want 200", got)
		}
	})
}

func TestConnectionsAreLimitedInAllAndByAddress(t *testing.T) {
	from := func(address string) func(*websocket.Dialer, http.Header) {
		return func(_ *websocket.Dialer, h http.Header) { h.Set("X-Forwarded-For", address) }
	}
	inBubble(t, func(w *world) { w.config.MaxConnections, w.config.MaxConnectionsPerAddress = 4, 2 }, func(b *bubble) {
		first := b.dial(from("2001:db8::1"))
		b.dial(from("2001:db8::2:2")).SetReadLimit(0)
		_, answer, err := b.tryDial(from("2001:db8::3:3:3")) // the same /64
		if err == nil || answer.StatusCode != http.StatusTooManyRequests || answer.Header.Get("Retry-After") == "" {
			t.Fatalf("third of one /64 = %v (%v), want 429 with Retry-After", answer, err)
		}
		b.dial(from("192.0.2.1"))
		b.dial(from("192.0.2.2"))
		_, answer, err = b.tryDial(from("192.0.2.3"))
		if err == nil || answer.StatusCode != http.StatusServiceUnavailable || answer.Header.Get("Retry-After") == "" {
			t.Fatalf("fifth = %v (%v), want 503 with Retry-After", answer, err)
		}
		first.Close()
		synctest.Wait()
		time.Sleep(closeWait)
		b.dial(from("2001:db8::4"))
		if got := len(b.seen("connect")); got != 5 {
			t.Errorf("connect events = %d, want 5", got)
		}
	})
}

func TestAForeignOriginIsRefusedBeforeTheBackendHears(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		origin := func(value string) func(*websocket.Dialer, http.Header) {
			return func(_ *websocket.Dialer, h http.Header) { h.Set("Origin", value) }
		}
		b.dial(origin("https://host")).Close()
		if _, answer, err := b.tryDial(origin("https://evil.example")); err == nil || answer.StatusCode != http.StatusForbidden {
			t.Errorf("answer = %v, want 403", answer)
		}
		if got := len(b.seen("connect")); got != 1 {
			t.Errorf("connect events = %d, want 1", got)
		}
	})
}
