package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestTheTraceTellsAMessageFromPOSTToAnswerWithItsPushes(t *testing.T) {
	to := newPushed(t)
	seen := newTrace()
	c := newChat(to.url)
	c.client.Transport = seen.pushes(http.DefaultTransport)
	app := seen.posts(c)
	event(app, "wsbridge.connect", "a", "")
	event(app, "wsbridge.connect", "b", "")

	before, _ := seen.after(0)
	event(app, "wsbridge.message", "a", `{"text":"hello"}`)
	got, _ := seen.after(before[len(before)-1].ID)
	if len(got) != 3 || got[0].Kind != "post" || got[1].Kind != "push" || got[2].Kind != "answer" {
		t.Fatalf("entries = %+v, want a post, a push and an answer", got)
	}
	for i, e := range got {
		if e.Event != "a-event" {
			t.Errorf("event of the %s = %q, want the one that it was made for", e.Kind, e.Event)
		}
		if want := []string{"a", "b", "a"}[i]; e.Connection != want {
			t.Errorf("connection of the %s = %q, want %q", e.Kind, e.Connection, want)
		}
	}
	post, push, answer := got[0].Request, got[1], got[2].Answer
	if post.Start != "POST /ws HTTP/1.1" || !slices.Contains(post.Headers, [2]string{"ce-type", "wsbridge.message"}) || post.Body != `{"text":"hello"}` {
		t.Errorf("post = %+v", post)
	}
	if push.Request.Start != "POST /connections/b HTTP/1.1" || !strings.Contains(push.Request.Body, `"text":"hello"`) || push.Answer.Start != "HTTP/1.1 202 Accepted" {
		t.Errorf("push = %+v, answer = %+v", push.Request, push.Answer)
	}
	if answer.Start != "HTTP/1.1 200 OK" || !slices.Contains(answer.Headers, [2]string{"Content-Type", "application/json"}) || !strings.Contains(answer.Body, `"text":"hello"`) {
		t.Errorf("answer = %+v", answer)
	}
	if len(to.all("b")) != 1 {
		t.Errorf("pushed = %+v, want the message to have passed through the trace", to.all("b"))
	}
}

func TestAPushWithoutAnAnswerIsTracedWithItsReason(t *testing.T) {
	seen := newTrace()
	c := newChat("http://sidecar.invalid")
	c.client.Transport = seen.pushes(roundTripper(func(*http.Request) (*http.Response, error) {
		return nil, errors.New("the sidecar is away")
	}))
	app := seen.posts(c)
	event(app, "wsbridge.connect", "a", "")
	event(app, "wsbridge.connect", "b", "")
	got, _ := seen.after(0)
	push := slices.IndexFunc(got, func(e traced) bool { return e.Kind == "push" })
	if push < 0 || got[push].Failed != "the sidecar is away" || got[push].Answer != nil {
		t.Errorf("entries = %+v, want a push that failed", got)
	}
}

func TestCookiesAndCredentialsAreMaskedInTheTrace(t *testing.T) {
	seen := newTrace()
	app := seen.posts(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Cookie") != "session=secret" {
			t.Error("the application did not get the cookie")
		}
		w.Header().Set("Set-Cookie", "session=secret2")
	}))
	r := httptest.NewRequest(http.MethodPost, "/ws", nil)
	r.Header.Set("Cookie", "session=secret")
	r.Header.Set("Authorization", "Bearer secret")
	r.Header.Set("Proxy-Authorization", "Basic secret")
	app.ServeHTTP(httptest.NewRecorder(), r)

	got, _ := seen.after(0)
	text, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "secret") {
		t.Errorf("the trace shows a secret: %s", text)
	}
	if n := strings.Count(string(text), `"•••"`); n != 4 {
		t.Errorf("masked values = %d, want 4: %s", n, text)
	}
}

func TestTheTraceIsBounded(t *testing.T) {
	seen := newTrace()
	for i := range tracedEntries + 30 {
		seen.add(traced{Event: strconv.Itoa(i)})
	}
	got, _ := seen.after(0)
	if len(got) != tracedEntries || got[0].Event != "30" {
		t.Errorf("entries = %d from %q on, want %d from 30 on", len(got), got[0].Event, tracedEntries)
	}
	if !slices.IsSortedFunc(got, func(a, b traced) int { return int(a.ID - b.ID) }) {
		t.Error("the ids do not rise")
	}

	long := read([]byte("POST /ws HTTP/1.1\r\nHost: a\r\n\r\n" + strings.Repeat("€", tracedBody)))
	if len(long.Body) > tracedBody+len("…") || !utf8.ValidString(long.Body) {
		t.Errorf("body = %d bytes, want at most %d and whole characters", len(long.Body), tracedBody)
	}
}

func TestTheStreamOfTheTraceGoesOnWhereATabLeftOff(t *testing.T) {
	seen := newTrace()
	server := httptest.NewServer(seen)
	t.Cleanup(server.Close)
	seen.add(traced{Event: "known"})
	known, _ := seen.after(0)
	seen.add(traced{Event: "missed"})

	resp, err := http.Get(server.URL + "?after=" + strconv.FormatInt(known[0].ID, 10))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got := resp.Header.Get("Content-Type"); got != "text/event-stream" {
		t.Errorf("Content-Type = %q, want text/event-stream", got)
	}
	lines := bufio.NewScanner(resp.Body)
	next := func() string {
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				var e traced
				if err := json.Unmarshal([]byte(data), &e); err != nil {
					t.Fatalf("data = %q: %v", data, err)
				}
				return e.Event
			}
		}
		return "nothing"
	}
	if got := next(); got != "missed" {
		t.Errorf("first = %q, want what was missed", got)
	}
	seen.add(traced{Event: "new"})
	if got := next(); got != "new" {
		t.Errorf("second = %q, want what came later", got)
	}
}
