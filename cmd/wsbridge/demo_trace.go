package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	tracedEntries = 200       // kept for tabs that come later
	tracedBody    = 4 << 10   // bytes of a body that are shown
	longestEvent  = 256 << 10 // bytes of a POST that are read at all; wsbridge sends less
)

// trace remembers what travelled between wsbridge and the application, so that the page can show it. It stands around
// the application, which knows nothing of it.
type trace struct {
	mu      sync.Mutex    // guards the following fields
	entries []traced      // oldest first, at most tracedEntries
	last    int64         // id of the newest entry
	changed chan struct{} // closed when an entry is added, and replaced
}

// traced is one thing that travelled: an event's POST, the answer to it, or a push and its answer; or that the worker was killed.
type traced struct {
	ID         int64     `json:"id,string"` // rising; a string, since it is too large for a number of JavaScript
	Time       time.Time `json:"time"`
	Kind       string    `json:"kind"`       // post, answer, push or death
	Event      string    `json:"event"`      // ce-id of the event, also of the one that a push was made for
	Connection string    `json:"connection"` // whose event it is, or who is pushed to
	Request    *written  `json:"request,omitempty"`
	Answer     *written  `json:"answer,omitempty"`
	Failed     string    `json:"failed,omitempty"` // why a push got no answer
	Took       float64   `json:"took,omitempty"`   // milliseconds from the request to the answer
	Death      *death    `json:"death,omitempty"`
}

// written is an HTTP message as it is written on the wire.
type written struct {
	Start   string      `json:"start"`
	Headers [][2]string `json:"headers"`
	Body    string      `json:"body"`
}

// eventKey is the context key under which a push finds the event that it is made for.
type eventKey struct{}

func newTrace() *trace {
	return &trace{changed: make(chan struct{})}
}

// posts records what comes to app and what app answers.
func (t *trace) posts(app http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		r.Body = http.MaxBytesReader(w, r.Body, longestEvent)
		request, err := httputil.DumpRequest(r, true)
		if err != nil {
			http.Error(w, "The event could not be read.", http.StatusBadRequest)
			return
		}
		event, connection := r.Header.Get("ce-id"), r.Header.Get("ce-connectionid")
		t.add(traced{Kind: "post", Event: event, Connection: connection, Request: read(request)})

		rec := &recorder{ResponseWriter: w, status: http.StatusOK}
		app.ServeHTTP(rec, r.WithContext(context.WithValue(r.Context(), eventKey{}, event)))

		response := &http.Response{
			ProtoMajor: 1, ProtoMinor: 1, StatusCode: rec.status, Header: rec.Header(),
			Body: io.NopCloser(&rec.body), ContentLength: int64(rec.body.Len()),
		}
		if answer, err := httputil.DumpResponse(response, true); err == nil {
			t.add(traced{Kind: "answer", Event: event, Connection: connection, Answer: read(answer), Took: since(began)})
		}
	})
}

// recorder keeps a copy of an answer.
type recorder struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
}

func (r *recorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	r.body.Write(p)
	return r.ResponseWriter.Write(p)
}

// pushes records what the application sends through next, and the answers.
func (t *trace) pushes(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		began := time.Now()
		event, _ := r.Context().Value(eventKey{}).(string)
		_, connection, _ := strings.Cut(r.URL.Path, "/connections/")
		e := traced{Kind: "push", Event: event, Connection: connection}
		if request, err := httputil.DumpRequestOut(r, true); err == nil {
			e.Request = read(request)
		}
		resp, err := next.RoundTrip(r)
		e.Took = since(began)
		if err != nil {
			e.Failed = err.Error()
		} else if answer, err := httputil.DumpResponse(resp, true); err == nil {
			e.Answer = read(answer)
		}
		t.add(e)
		return resp, err
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func since(began time.Time) float64 {
	return float64(time.Since(began).Microseconds()) / 1000
}

// read takes a dumped message apart. Cookies and credentials are masked: a browser sends the cookies of every
// application on this host, whatever its port.
func read(dump []byte) *written {
	head, body, _ := strings.Cut(string(dump), "\r\n\r\n")
	start, rest, _ := strings.Cut(head, "\r\n")
	w := &written{Start: start, Headers: [][2]string{}, Body: body}
	if len(body) > tracedBody {
		w.Body = strings.ToValidUTF8(body[:tracedBody], "") + "…"
	}
	for line := range strings.SplitSeq(rest, "\r\n") {
		name, value, ok := strings.Cut(line, ": ")
		if !ok {
			continue
		}
		switch lower := strings.ToLower(name); {
		case lower == "cookie", lower == "set-cookie", lower == "authorization", lower == "proxy-authorization":
			value = "•••"
		case strings.HasPrefix(lower, "ce-"), strings.HasPrefix(lower, "webhook-"), lower == "traceparent":
			name = lower // net/http writes Ce-Type; the documents say ce-type
		}
		w.Headers = append(w.Headers, [2]string{name, value})
	}
	return w
}

func (t *trace) add(e traced) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e.Time = time.Now()
	t.last = max(t.last+1, e.Time.UnixNano())
	e.ID = t.last
	t.entries = append(t.entries, e)
	if over := len(t.entries) - tracedEntries; over > 0 {
		t.entries = slices.Delete(t.entries, 0, over)
	}
	close(t.changed)
	t.changed = make(chan struct{})
}

// after returns the entries that came after the one with this id, and a channel that closes when there are more.
func (t *trace) after(id int64) ([]traced, <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	first := slices.IndexFunc(t.entries, func(e traced) bool { return e.ID > id })
	if first < 0 {
		return nil, t.changed
	}
	return slices.Clone(t.entries[first:]), t.changed
}

// ServeHTTP streams the entries as server-sent events, from the one after ?after= on.
func (t *trace) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id, _ := strconv.ParseInt(r.FormValue("after"), 10, 64)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	out := http.NewResponseController(w)
	for {
		open := r.Context().Err() == nil // what came before the end is told all the same
		entries, changed := t.after(id)
		out.SetWriteDeadline(time.Now().Add(10 * time.Second))
		for _, e := range entries {
			data, err := json.Marshal(e)
			if err != nil {
				return
			}
			fmt.Fprintf(w, "data: %s\n\n", data)
			id = e.ID
		}
		if out.Flush() != nil || !open {
			return
		}
		select {
		case <-changed:
		case <-r.Context().Done():
		}
	}
}
