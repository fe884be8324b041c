package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// longestText is how many characters one may say at once. The page's input has the same bound.
const longestText = 500

// chat is the application of the demo, written the way an application is that sits behind wsbridge: it answers POSTs and
// makes HTTP requests, and there is no WebSocket in this file.
type chat struct {
	pushURL string
	client  *http.Client

	mu    sync.Mutex        // guards the following field
	names map[string]string // nickname of each open connection, by its id
}

// said is what the application says to a tab.
type said struct {
	Type    string   `json:"type"` // welcome, joined, left or message
	Name    string   `json:"name"` // who came, left or spoke; of a welcome: who the tab is now
	Text    string   `json:"text,omitempty"`
	Present []string `json:"present,omitempty"` // who else is here
	Push    string   `json:"push,omitempty"`    // where anything POSTed reaches this very tab
}

func newChat(pushURL string) *chat {
	return &chat{
		pushURL: pushURL,
		client:  &http.Client{Timeout: 5 * time.Second},
		names:   make(map[string]string),
	}
}

// ServeHTTP takes the events. What is answered here goes back to the tab that the event is about.
func (c *chat) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := r.Header.Get("ce-connectionid")
	switch r.Header.Get("ce-type") {
	case "wsbridge.connect":
		c.connect(w, r, id)
	case "wsbridge.message":
		c.message(w, r, id)
	case "wsbridge.disconnect":
		c.leave(r.Context(), id)
		w.WriteHeader(http.StatusNoContent)
	default:
		http.Error(w, "This address takes the events of wsbridge.", http.StatusBadRequest)
	}
}

func (c *chat) connect(w http.ResponseWriter, r *http.Request, id string) {
	c.mu.Lock()
	present := slices.Sorted(maps.Values(c.names))
	name := nickname(present)
	c.names[id] = name
	c.mu.Unlock()

	c.tellOthers(r.Context(), id, said{Type: "joined", Name: name})
	answer(w, said{Type: "welcome", Name: name, Present: present, Push: c.pushAddress(id)})
}

func (c *chat) message(w http.ResponseWriter, r *http.Request, id string) {
	c.mu.Lock()
	name, known := c.names[id]
	c.mu.Unlock()
	if !known {
		http.Error(w, "This connection is not known here.", http.StatusGone)
		return
	}

	var in struct {
		Text string `json:"text"`
	}
	err := json.NewDecoder(r.Body).Decode(&in)
	text := strings.TrimSpace(in.Text)
	switch {
	case err != nil || text == "":
		http.Error(w, `Please send JSON with a text: {"text": "hello"}.`, http.StatusUnprocessableEntity)
		return
	case utf8.RuneCountInString(text) > longestText:
		http.Error(w, fmt.Sprintf("Please send at most %d characters.", longestText), http.StatusUnprocessableEntity)
		return
	}

	m := said{Type: "message", Name: name, Text: text}
	c.tellOthers(r.Context(), id, m)
	answer(w, m)
}

// leave forgets a connection and tells the others. A connection may leave twice: a push finds it gone before its
// disconnect event comes.
func (c *chat) leave(ctx context.Context, id string) {
	c.mu.Lock()
	name, known := c.names[id]
	delete(c.names, id)
	c.mu.Unlock()
	if known {
		c.tellOthers(ctx, id, said{Type: "left", Name: name})
	}
}

// tellOthers pushes to every connection but one. The lock is not held meanwhile: nobody's events wait for another's push.
func (c *chat) tellOthers(ctx context.Context, id string, m said) {
	c.mu.Lock()
	others := slices.Sorted(maps.Keys(c.names))
	c.mu.Unlock()
	for _, other := range others {
		if other != id && c.push(ctx, other, m) == http.StatusGone {
			c.leave(ctx, other)
		}
	}
}

// push sends to one connection. Its verdict is the status, 0 when there was none.
func (c *chat) push(ctx context.Context, id string, m said) int {
	body, err := json.Marshal(m)
	if err != nil {
		return 0
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.pushAddress(id), bytes.NewReader(body))
	if err != nil {
		return 0
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.client.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body) // lets the TCP connection be used again
	return resp.StatusCode
}

func (c *chat) pushAddress(id string) string {
	return c.pushURL + "/connections/" + id
}

func answer(w http.ResponseWriter, m said) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(m)
}

// nickname finds a name that nobody has, with initials that nobody has as long as there are any: the page shows people by them.
func nickname(taken []string) string {
	moods := []string{"Amber", "Brisk", "Calm", "Clever", "Curious", "Gentle", "Happy", "Jolly", "Lucky", "Merry", "Nimble", "Quiet", "Sunny", "Swift", "Wise"}
	animals := []string{"Badger", "Beaver", "Falcon", "Fox", "Hare", "Heron", "Lynx", "Marten", "Otter", "Owl", "Panda", "Robin", "Seal", "Sparrow", "Wren"}
	shown := make(map[string]bool)
	for _, name := range taken {
		shown[initials(name)] = true
	}
	var chosen string
	for _, i := range rand.Perm(len(moods) * len(animals)) {
		chosen = moods[i/len(animals)] + " " + animals[i%len(animals)]
		if !shown[initials(chosen)] {
			return chosen
		}
	}
	name := chosen
	for n := 2; slices.Contains(taken, name); n++ {
		name = fmt.Sprintf("%s %d", chosen, n)
	}
	return name
}

func initials(name string) string {
	mood, animal, _ := strings.Cut(name, " ")
	return mood[:1] + animal[:1]
}
