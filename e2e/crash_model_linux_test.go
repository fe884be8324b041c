package e2e

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// witness is a backend that keeps what it has said under each id, as one that is to be run with WSBRIDGE_BACKEND_RETRY=always must, and writes down all
// it is told that can't be true.
type witness struct {
	always bool // no event may be missing

	mu    sync.Mutex // guards the following
	told  map[string]*telling
	story map[string]*story // by connection
	wrong []string
	again int // messages that came more than once
}

// telling is one event.
type telling struct {
	kind     string
	what     string       // all that must be the same whenever it comes
	attempts map[int]bool // that came, in whatever order: what a dead worker sent may be read behind what its successor did
	header   http.Header  // of the answer
	answer   string
}

// story is what was told of one connection.
type story struct {
	sequences map[int]string // kind of the event with each
	last      int
	state     int
	goodbye   string // its id
	unheard   bool   // of its connect event
}

func newWitness(always bool) *witness {
	return &witness{always: always, told: map[string]*telling{}, story: map[string]*story{}}
}

func (w *witness) complain(format string, args ...any) {
	if len(w.wrong) < 20 {
		w.wrong = append(w.wrong, fmt.Sprintf(format, args...))
	}
}

func (w *witness) ServeHTTP(to http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // whoever posted it is dead, and what has come of it is no event
	}
	t := w.hear(r, string(body))
	if t.kind == "message" {
		time.Sleep(time.Duration(rand.IntN(15)) * time.Millisecond) // the time a real one takes: kills are to meet messages there
	}
	for name, values := range t.header {
		to.Header()[name] = values
	}
	io.WriteString(to, t.answer)
}

// hear takes note of an event, and returns what there is to say to it.
func (w *witness) hear(r *http.Request, body string) *telling {
	id, connection, kind := r.Header.Get("ce-id"), r.Header.Get("ce-connectionid"), strings.TrimPrefix(r.Header.Get("ce-type"), "wsbridge.")
	sequence, _ := strconv.Atoi(r.Header.Get("ce-sequence"))
	attempt, _ := strconv.Atoi(r.Header.Get("ce-attempt"))
	what := fmt.Sprintf("%s %s %d %s", connection, kind, sequence, body)
	w.mu.Lock()
	defer w.mu.Unlock()
	if t := w.told[id]; t != nil {
		if kind == "message" {
			w.again++
		}
		if t.what != what && kind != "disconnect" {
			w.complain("%s was %.80q, and then %.80q", id, t.what, what)
		}
		if t.attempts[attempt] && kind == "message" {
			w.complain("%s came as attempt %d twice", id, attempt)
		}
		t.attempts[attempt] = true
		return t
	}
	t := &telling{kind: kind, what: what, attempts: map[int]bool{attempt: true}, header: http.Header{"Content-Type": {r.Header.Get("Content-Type")}}}
	w.told[id] = t
	s := w.story[connection]
	if s == nil {
		s = &story{sequences: map[int]string{}}
		w.story[connection] = s
	}
	if other, ok := s.sequences[sequence]; ok {
		w.complain("%s: two events have sequence %d: %s and %s", connection, sequence, other, kind)
	}
	s.sequences[sequence] = kind
	// A connect event that was about to be sent at a kill may not have been: the goodbye comes all the same.
	unheard := kind == "disconnect" && sequence == 2 && s.last == 0
	s.unheard = s.unheard || unheard
	late := kind == "connect" && sequence == 1 && s.unheard // it had been sent, and is read behind what its worker's successor sent
	if w.always && sequence != s.last+1 && !unheard && !late {
		w.complain("%s: %s has sequence %d behind %d", connection, kind, sequence, s.last)
	}
	s.last = max(sequence, s.last)
	switch kind {
	case "connect":
		if user := strings.TrimPrefix(r.URL.Path, "/ws/member/"); user != r.URL.Path {
			t.header = http.Header{"Ws-User": {user}, "Ws-Join": {everybody}, "Ws-State": {"0"}}
		}
	case "disconnect":
		if s.goodbye != "" {
			w.complain("%s: two disconnect events: %s and %s", connection, s.goodbye, id)
		}
		s.goodbye = id
	case "message":
		w.answer(t, s, r.Header, body)
	}
	return t
}

// answer makes the answer to a message, which says what it wants: to hear itself, something large, or the state of its connection.
func (w *witness) answer(t *telling, s *story, header http.Header, body string) {
	switch verb, rest, _ := strings.Cut(body, " "); verb {
	case "large":
		t.answer = largeAnswer(body)
	case "count":
		if state := header.Get("ce-state"); state != strconv.Itoa(s.state) || header.Get("ce-userid") == "" {
			w.complain("state %q of user %q, want %d", state, header.Get("ce-userid"), s.state)
		}
		s.state++
		t.header.Set("Ws-State", strconv.Itoa(s.state))
		t.answer = fmt.Sprintf("count %d %s", s.state, rest)
	default:
		t.answer = body
	}
}

// largeAnswer is more than a socket takes at once, and no two are alike.
func largeAnswer(body string) string {
	unit := body + "/"
	return strings.Repeat(unit, (30_000+len(body)*31_337%70_000)/len(unit))
}

// ended returns how many connections have had their disconnect event, and how many there were.
func (w *witness) ended() (ended, all int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.story {
		if s.goodbye != "" {
			ended++
		}
	}
	return ended, len(w.story)
}

// verdict returns all that was wrong, once every connection has ended.
func (w *witness) verdict() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	for connection, s := range w.story {
		for sequence := range s.last {
			// The outcome of the message before the goodbye is open where nothing is repeated: it may never have been sent.
			if _, ok := s.sequences[sequence+1]; !ok && !s.unheard && (w.always || sequence+1 != s.last-1) {
				w.complain("%s: there is no event with sequence %d, and the last is %d", connection, sequence+1, s.last)
			}
		}
		if s.sequences[s.last] != "disconnect" {
			w.complain("%s: the last event, %d, is %s", connection, s.last, s.sequences[s.last])
		}
	}
	return w.wrong
}
