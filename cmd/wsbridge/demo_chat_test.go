package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
)

func TestWhoConnectsIsWelcomedWithANicknameAndTheOthersAreTold(t *testing.T) {
	to := newPushed(t)
	c := newChat(to.url)

	first := welcomed(t, event(c, "wsbridge.connect", "a", ""))
	if first.Name == "" || len(first.Present) != 0 || first.Push != to.url+"/connections/a" {
		t.Errorf("welcome of the first = %+v, want a nickname, nobody else and its push address", first)
	}
	second := welcomed(t, event(c, "wsbridge.connect", "b", ""))
	if second.Name == first.Name || !slices.Equal(second.Present, []string{first.Name}) {
		t.Errorf("welcome of the second = %+v, want another nickname than %q, which is present", second, first.Name)
	}
	if got, want := to.all("a"), []said{{Type: "joined", Name: second.Name}}; !equal(got, want) {
		t.Errorf("pushed to the first = %+v, want %+v", got, want)
	}
	if got := to.all("b"); got != nil {
		t.Errorf("pushed to the second = %+v, want nothing", got)
	}
}

func TestNicknamesShareNoInitialsAsLongAsThereAreAny(t *testing.T) {
	var taken []string
	shown := make(map[string]bool)
	for range 300 {
		name := nickname(taken)
		if slices.Contains(taken, name) {
			t.Fatalf("%q is given twice", name)
		}
		taken = append(taken, name)
		shown[initials(name)] = true
		if n := len(taken); n <= 100 && len(shown) != n {
			t.Fatalf("%d people have %d different initials: %q", n, len(shown), taken)
		}
	}
}

func TestAMessageIsAnsweredToItsSenderAndPushedToEveryOther(t *testing.T) {
	to := newPushed(t)
	c := newChat(to.url)
	name := welcomed(t, event(c, "wsbridge.connect", "a", "")).Name
	event(c, "wsbridge.connect", "b", "")
	event(c, "wsbridge.connect", "c", "")
	to.forget()

	answer := event(c, "wsbridge.message", "a", `{"text":" hello <all> "}`)
	want := said{Type: "message", Name: name, Text: "hello <all>"}
	var got said
	if err := json.Unmarshal(answer.Body.Bytes(), &got); err != nil || !equal([]said{got}, []said{want}) {
		t.Errorf("answer = %q, want %+v", answer.Body, want)
	}
	if got := answer.Header().Get("Content-Type"); got != "application/json" {
		t.Errorf("Content-Type = %q, want application/json", got)
	}
	for _, id := range []string{"b", "c"} {
		if got := to.all(id); !equal(got, []said{want}) {
			t.Errorf("pushed to %s = %+v, want %+v once", id, got, want)
		}
	}
	if got := to.all("a"); got != nil {
		t.Errorf("pushed to the sender = %+v, want nothing", got)
	}
}

func TestWhatIsNoMessageIsRefusedInASentence(t *testing.T) {
	to := newPushed(t)
	c := newChat(to.url)
	event(c, "wsbridge.connect", "a", "")
	event(c, "wsbridge.connect", "b", "")
	to.forget()
	for _, test := range []struct {
		name, body, sentence string
		status               int
	}{
		{"no JSON", "hello", "send JSON", 422},
		{"nothing", "", "send JSON", 422},
		{"JSON of another shape", `["hello"]`, "send JSON", 422},
		{"a text that is none", `{"text":7}`, "send JSON", 422},
		{"no text", `{}`, "send JSON", 422},
		{"only space", `{"text":" \n "}`, "send JSON", 422},
		{"the longest text", `{"text":"` + strings.Repeat("ü", longestText) + `"}`, "", 200},
		{"a longer text", `{"text":"` + strings.Repeat("ü", longestText+1) + `"}`, "at most 500", 422},
	} {
		answer := event(c, "wsbridge.message", "a", test.body)
		if answer.Code != test.status {
			t.Errorf("%s: status = %d, want %d", test.name, answer.Code, test.status)
		}
		if test.status == 200 {
			to.forget()
			continue
		}
		// wsbridge gives the sentence to the client because of its type.
		if got := answer.Header().Get("Content-Type"); !strings.HasPrefix(got, "text/plain") {
			t.Errorf("%s: Content-Type = %q, want text/plain", test.name, got)
		}
		if !strings.Contains(answer.Body.String(), test.sentence) {
			t.Errorf("%s: answer = %q, want a sentence with %q", test.name, answer.Body, test.sentence)
		}
		if got := to.all("b"); got != nil {
			t.Errorf("%s: pushed %+v, want nothing", test.name, got)
		}
	}
}

func TestAMessageOfAnUnknownConnectionIsGone(t *testing.T) {
	c := newChat(newPushed(t).url)
	if got := event(c, "wsbridge.message", "nobody", `{"text":"hello"}`).Code; got != http.StatusGone {
		t.Errorf("status = %d, want 410", got)
	}
}

func TestAnEventOfNoKnownTypeIsRefused(t *testing.T) {
	c := newChat(newPushed(t).url)
	if got := event(c, "wsbridge.dance", "a", "").Code; got != http.StatusBadRequest {
		t.Errorf("status = %d, want 400", got)
	}
}

func TestWhoDisconnectsIsForgottenAndTheOthersAreToldOnce(t *testing.T) {
	to := newPushed(t)
	c := newChat(to.url)
	name := welcomed(t, event(c, "wsbridge.connect", "a", "")).Name
	event(c, "wsbridge.connect", "b", "")
	to.forget()

	for range 2 { // a goodbye may be repeated
		if got := event(c, "wsbridge.disconnect", "a", `{"code":1001}`).Code; got != http.StatusNoContent {
			t.Errorf("status = %d, want 204", got)
		}
	}
	if got, want := to.all("b"), []said{{Type: "left", Name: name}}; !equal(got, want) {
		t.Errorf("pushed to the other = %+v, want %+v", got, want)
	}
	if third := welcomed(t, event(c, "wsbridge.connect", "c", "")); slices.Contains(third.Present, name) {
		t.Errorf("present = %q, want it without %q, who left", third.Present, name)
	}
}

func TestAConnectionThatAPushFindsGoneIsForgotten(t *testing.T) {
	to := newPushed(t)
	c := newChat(to.url)
	event(c, "wsbridge.connect", "a", "")
	lost := welcomed(t, event(c, "wsbridge.connect", "b", "")).Name
	event(c, "wsbridge.connect", "c", "")
	to.forget()
	to.gone("b")

	event(c, "wsbridge.message", "a", `{"text":"who is still here?"}`)
	left := said{Type: "left", Name: lost}
	for _, id := range []string{"a", "c"} {
		if !slices.ContainsFunc(to.all(id), func(m said) bool { return m.Type == left.Type && m.Name == left.Name }) {
			t.Errorf("pushed to %s = %+v, want %+v among it", id, to.all(id), left)
		}
	}
	to.forget()
	event(c, "wsbridge.message", "a", `{"text":"and now?"}`)
	if got := to.all("b"); got != nil {
		t.Errorf("pushed to the connection that is gone = %+v, want nothing", got)
	}
}

func TestASlowPushHoldsUpNobodyElsesEvents(t *testing.T) {
	reached, release := make(chan struct{}), make(chan struct{})
	sidecar := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if body, _ := io.ReadAll(r.Body); strings.Contains(string(body), "slow") {
			close(reached)
			<-release
		}
		w.WriteHeader(http.StatusAccepted)
	}))
	t.Cleanup(sidecar.Close)
	c := newChat(sidecar.URL)
	event(c, "wsbridge.connect", "a", "")
	event(c, "wsbridge.connect", "b", "")

	slow := make(chan struct{})
	go func() {
		event(c, "wsbridge.message", "a", `{"text":"slow"}`)
		close(slow)
	}()
	<-reached
	if got := event(c, "wsbridge.message", "b", `{"text":"quick"}`).Code; got != http.StatusOK {
		t.Errorf("status = %d, want 200", got)
	}
	select {
	case <-slow:
		t.Error("the quick message waited for the slow one's push to fail")
	default:
	}
	close(release)
	<-slow
}

// event posts one to the application as the sidecar does.
func event(app http.Handler, kind, connection, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "/ws", strings.NewReader(body))
	r.Header.Set("ce-type", kind)
	r.Header.Set("ce-id", connection+"-event")
	r.Header.Set("ce-connectionid", connection)
	w := httptest.NewRecorder()
	app.ServeHTTP(w, r)
	return w
}

func welcomed(t *testing.T, answer *httptest.ResponseRecorder) said {
	t.Helper()
	var m said
	if err := json.Unmarshal(answer.Body.Bytes(), &m); err != nil || answer.Code != 200 || m.Type != "welcome" {
		t.Fatalf("answer = %d %q, want a welcome", answer.Code, answer.Body)
	}
	return m
}

func equal(a, b []said) bool {
	return slices.EqualFunc(a, b, func(a, b said) bool {
		return a.Type == b.Type && a.Name == b.Name && a.Text == b.Text
	})
}

// pushed stands for the sidecar's push address and keeps what comes, by connection.
type pushed struct {
	url string

	mu     sync.Mutex // guards the following fields
	bodies map[string][]said
	closed map[string]bool
}

func newPushed(t *testing.T) *pushed {
	p := &pushed{bodies: make(map[string][]said), closed: make(map[string]bool)}
	routes := http.NewServeMux()
	routes.HandleFunc("POST /connections/{id}", func(w http.ResponseWriter, r *http.Request) {
		var m said
		if err := json.NewDecoder(r.Body).Decode(&m); err != nil || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("a push is no JSON: %v", err)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.closed[r.PathValue("id")] {
			w.WriteHeader(http.StatusGone)
			return
		}
		p.bodies[r.PathValue("id")] = append(p.bodies[r.PathValue("id")], m)
		w.WriteHeader(http.StatusAccepted)
	})
	server := httptest.NewServer(routes)
	t.Cleanup(server.Close)
	p.url = server.URL
	return p
}

func (p *pushed) all(id string) []said {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.bodies[id]
}

func (p *pushed) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.bodies)
}

func (p *pushed) gone(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed[id] = true
}
