package e2e

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// pusher is a program with a backend that knows its connections, and what asks the push side.
type pusher struct {
	*sidecar
	http   http.Client
	base   string // URL of the push side
	dialer websocket.Dialer

	held    chan string   // ids of connections whose connect event or message the backend holds
	release chan struct{} // lets go of one of them
}

// serveForPushes starts the program with its push side on tcp or unix. Its clients come over a unix socket, where the kernel holds little.
func serveForPushes(t *testing.T, network string, env ...string) *pusher {
	t.Helper()
	p := &pusher{held: make(chan string), release: make(chan struct{})}
	over := make(chan struct{})
	b := newBackend(t, func(w http.ResponseWriter, e event) {
		hold := func() {
			select {
			case p.held <- e.connection:
			case <-over:
			}
			select {
			case <-p.release:
			case <-over:
			}
		}
		target, _ := url.Parse(e.path)
		switch query := target.Query(); e.kind {
		case "connect":
			if query.Has("held") {
				hold()
			}
			for header, name := range map[string]string{"Ws-User": "user", "Ws-Join": "join"} {
				if query.Has(name) {
					w.Header().Set(header, query.Get(name))
				}
			}
			fmt.Fprint(w, e.connection)
		case "message":
			if e.body == "wait" {
				hold()
			}
			if to, text, ok := strings.Cut(e.body, "\n"); ok {
				w.Header().Set("Ws-To", to)
				io.WriteString(w, text)
			}
		}
	})
	dir := tempDir(t)
	env = append(env, "WSBRIDGE_BACKEND_URL="+b.URL, "WSBRIDGE_LISTEN=unix:"+filepath.Join(dir, "ws.sock"))
	if network == "unix" {
		env = append(env, "WSBRIDGE_PUSH_LISTEN=unix:"+filepath.Join(dir, "push.sock"))
	}
	p.sidecar = serve(t, env...)
	p.base = "http://localhost"
	if network == "tcp" {
		p.base = "http://" + p.pushes
	}
	dial := func(network, address string) func(context.Context, string, string) (net.Conn, error) {
		return func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}
	}
	transport := &http.Transport{DialContext: dial(network, p.pushes)}
	p.http.Transport = transport
	p.dialer.NetDialContext = dial("unix", p.clients)
	t.Cleanup(func() {
		close(over)
		transport.CloseIdleConnections()
	})
	return p
}

// dial connects a client, which the backend tells its id.
func (p *pusher) dial(t *testing.T, query ...string) (c *client, id string) {
	t.Helper()
	values := url.Values{}
	for i := 0; i < len(query); i += 2 {
		values.Set(query[i], query[i+1])
	}
	c = connect(t, p.dialer, "ws://example.org/ws?"+values.Encode(), nil)
	c.SetReadDeadline(time.Now().Add(patience))
	_, first, err := c.ReadMessage()
	if err != nil {
		t.Fatal(err)
	}
	return c, string(first)
}

// dialUnread connects a client that does not read, and pushes until what comes then has to wait in its queue.
func (p *pusher) dialUnread(t *testing.T) (c *client, id string) {
	t.Helper()
	c, id = p.dial(t)
	for range unread {
		p.want(t, 202, "POST", "/connections/"+id, large)
	}
	return c, id
}

const unread = 4 // large messages, of which the kernel holds less than one for a unix socket

var large = strings.Repeat("x", 256<<10)

// ask sends a request to the push side.
func (p *pusher) ask(t *testing.T, method, target string, body io.Reader, header ...string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, p.base+target, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		if r.Header.Set(header[i], header[i+1]); header[i] == "Host" {
			r.Host = header[i+1]
		}
	}
	answer, err := p.http.Do(r)
	if err != nil {
		t.Fatalf("%s %s: %v", method, target, err)
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, target, err)
	}
	return answer, string(content)
}

// want sends a request that must be answered with this status, and returns the body. What is wrong is a problem.
func (p *pusher) want(t *testing.T, status int, method, target, body string, header ...string) string {
	t.Helper()
	answer, content := p.ask(t, method, target, strings.NewReader(body), header...)
	if answer.StatusCode != status {
		t.Fatalf("%s %s: %d %s, want %d", method, target, answer.StatusCode, content, status)
	}
	if status >= 400 && (answer.Header.Get("Content-Type") != "application/problem+json" || !strings.Contains(content, fmt.Sprintf(`"status":%d`, status))) {
		t.Errorf("%s %s: %s %s, want a problem", method, target, answer.Header.Get("Content-Type"), content)
	}
	return content
}

// wantJSON is want for an answer that is this.
func (p *pusher) wantJSON(t *testing.T, status int, result, method, target, body string, header ...string) {
	t.Helper()
	if got := strings.TrimSpace(p.want(t, status, method, target, body, header...)); got != result {
		t.Fatalf("%s %s: %s, want %s", method, target, got, result)
	}
}

// wantProblem is want for a problem that names a field.
func (p *pusher) wantProblem(t *testing.T, status int, field, method, target, body string, header ...string) {
	t.Helper()
	var got struct{ Field, Detail string }
	json.Unmarshal([]byte(p.want(t, status, method, target, body, header...)), &got)
	if got.Field != field || got.Detail == "" {
		t.Errorf("%s %s: field %q, detail %q, want field %q", method, target, got.Field, got.Detail, field)
	}
}

// list returns the ids of a page and what it says is next.
func (p *pusher) list(t *testing.T, target string) (ids []string, next string) {
	t.Helper()
	var page struct {
		Connections []struct{ ID string }
		Next        string
	}
	if err := json.Unmarshal([]byte(p.want(t, 200, "GET", target, "")), &page); err != nil {
		t.Fatal(err)
	}
	for _, c := range page.Connections {
		ids = append(ids, c.ID)
	}
	return ids, page.Next
}

// reads reads in the background, as a client does that answers pings.
func (c *client) reads() <-chan string {
	heard := make(chan string, 1000)
	c.SetReadDeadline(time.Now().Add(patience))
	go func() {
		defer close(heard)
		for {
			_, data, err := c.ReadMessage()
			if err != nil {
				return
			}
			heard <- string(data)
		}
	}()
	return heard
}

// hearsOnly checks that a client got these messages and nothing else before what it is sent now.
func (p *pusher) hearsOnly(t *testing.T, c *client, id string, texts ...string) {
	t.Helper()
	p.want(t, 202, "POST", "/connections/"+id, "that was all")
	for _, text := range append(texts, "that was all") {
		c.hears(t, websocket.TextMessage, text)
	}
}

func TestThePushSideOverTCPAndOverAUnixSocket(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		test func(*testing.T, *pusher)
	}{
		{"a message goes to one, a user, a group and all", pushesToOneAndMany},
		{"names are percent-encoded", pushesToNames},
		{"a message is text or binary by its type", pushesOfEachKind},
		{"the client's word is waited for", pushesConfirmed},
		{"an opening connection takes messages and confirms nothing", pushesWhileOpening},
		{"a message that nobody reads expires or makes room for a later one", pushesUnread},
		{"a client that is too slow is closed", pushesToASlowClient},
		{"a key sends once", pushesUnderAKey},
		{"a batch answers line by line", pushesInABatch},
		{"memberships come and go", pushMemberships},
		{"a listing has pages", pushListings},
		{"connections are closed", pushCloses},
		{"what is wrong is said", pushesRefused},
		{"an answer goes where Ws-To says", answersToOthers},
		{"the operator's addresses are there", operatorsAddresses},
	}
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			p := serveForPushes(t, network, "WSBRIDGE_SEND_BUFFER=1MiB", "WSBRIDGE_PUSH_MAX_BODY=256KiB")
			for _, test := range tests {
				t.Run(test.name, func(t *testing.T) { test.test(t, p) })
			}
		})
	}
}

func pushesToOneAndMany(t *testing.T, p *pusher) {
	a, idA := p.dial(t, "user", "ann", "join", "room1")
	b, idB := p.dial(t, "user", "bob", "join", "room1, room2")
	c, idC := p.dial(t, "user", "bob")
	if got := p.want(t, 202, "POST", "/connections/"+idA, "to one"); got != "" {
		t.Errorf("body of a 202 = %q, want none", got)
	}
	p.wantJSON(t, 202, `{"matched":2,"queued":2,"dropped":0}`, "POST", "/users/bob", "to bob")
	p.wantJSON(t, 202, `{"matched":2,"queued":2,"dropped":0}`, "POST", "/groups/room1", "to room1")
	p.wantJSON(t, 202, `{"matched":1,"queued":1,"dropped":0}`, "POST", "/groups/room1?except="+idA+",nobody", "to room1 but ann")
	p.wantJSON(t, 202, `{"matched":1,"queued":1,"dropped":0}`, "POST", "/users/bob?except="+idB, "to bob's other one")
	p.wantJSON(t, 202, `{"matched":0,"queued":0,"dropped":0}`, "POST", "/groups/nobody", "to nobody")
	p.wantJSON(t, 202, `{"matched":0,"queued":0,"dropped":0}`, "POST", "/users/nobody", "to nobody")
	p.wantJSON(t, 202, `{"matched":3,"queued":3,"dropped":0}`, "POST", "/connections", "to all")
	p.wantJSON(t, 202, `{"matched":1,"queued":1,"dropped":0}`, "POST", "/connections?except="+idA+","+idC+"&ttl=1m&collapse=k", "to all but ann and one of bob's", "Idempotency-Key", "k")
	p.hearsOnly(t, a, idA, "to one", "to room1", "to all")
	p.hearsOnly(t, b, idB, "to bob", "to room1", "to room1 but ann", "to all", "to all but ann and one of bob's")
	p.hearsOnly(t, c, idC, "to bob", "to bob's other one", "to all")
}

func pushesToNames(t *testing.T, p *pusher) {
	const odd = "we/ird?na#me+&=;:@~$(x)"
	escaped := url.PathEscape(odd)
	if strings.ContainsAny(escaped, "/?#") {
		t.Fatalf("%s is not encoded", escaped)
	}
	c, id := p.dial(t, "user", odd, "join", odd)
	const one = `{"matched":1,"queued":1,"dropped":0}`
	p.wantJSON(t, 202, one, "POST", "/users/"+escaped, "to the user")
	p.wantJSON(t, 202, one, "POST", "/groups/"+escaped, "to the group")
	every := ""
	for _, b := range []byte(odd) {
		every += fmt.Sprintf("%%%02x", b)
	}
	p.wantJSON(t, 202, one, "POST", "/users/"+every, "all of it encoded")
	line, _ := json.Marshal(map[string]string{"to": "/users/" + escaped, "body": "in a batch"})
	p.wantJSON(t, 200, `{"status":202,"matched":1,"queued":1,"dropped":0}`, "POST", "/batch", string(line))
	for _, target := range []string{"/users/" + escaped, "/groups/" + escaped, "/connections?user=" + url.QueryEscape(odd), "/connections?group=" + url.QueryEscape(odd)} {
		if ids, _ := p.list(t, target); len(ids) != 1 || ids[0] != id {
			t.Errorf("GET %s: %v, want %s", target, ids, id)
		}
	}
	p.want(t, 204, "DELETE", "/groups/"+escaped+"/connections/"+id, "")
	p.wantJSON(t, 202, `{"matched":0,"queued":0,"dropped":0}`, "POST", "/groups/"+escaped, "to nobody")
	p.want(t, 204, "PUT", "/groups/a%2Fb/connections/"+id, "")
	p.wantJSON(t, 202, one, "POST", "/groups/a%2Fb", "a slash")
	p.want(t, 404, "POST", "/groups/a/b", "another path")
	for name, field := range map[string]string{"a%20b": "user", "a%2Cb": "user", "%C3%A4": "user", "a%25b": "user", "%2E%2E": "user", strings.Repeat("x", 201): "user"} {
		p.wantProblem(t, 400, field, "POST", "/users/"+name, "no name")
		p.wantProblem(t, 400, field, "PUT", "/users/"+name+"/connections/"+id, "")
	}
	p.hearsOnly(t, c, id, "to the user", "to the group", "all of it encoded", "in a batch", "a slash")
}

func pushesOfEachKind(t *testing.T, p *pusher) {
	c, id := p.dial(t)
	tests := []struct {
		contentType, body string
		kind              int
	}{
		{"", "no type", websocket.TextMessage},
		{"", "\xff", websocket.BinaryMessage},
		{"text/plain", "grüße", websocket.TextMessage},
		{"text/html; charset=utf-8", "<p>", websocket.TextMessage},
		{"text/plain", "\xff", websocket.BinaryMessage},
		{"application/json", `{"a":1}`, websocket.TextMessage},
		{"application/problem+json", `{}`, websocket.TextMessage},
		{"application/x-www-form-urlencoded", "a=b&c", websocket.TextMessage},
		{"application/octet-stream", "text", websocket.BinaryMessage},
		{"image/png", "png", websocket.BinaryMessage},
		{"", "", websocket.TextMessage},
		{"text/plain", "", websocket.TextMessage},
		{"application/octet-stream", "", websocket.BinaryMessage},
	}
	for _, test := range tests {
		var header []string
		if test.contentType != "" {
			header = []string{"Content-Type", test.contentType}
		}
		p.want(t, 202, "POST", "/connections/"+id, test.body, header...)
		c.hears(t, test.kind, test.body)
	}
	p.want(t, 202, "POST", "/connections/"+id, large)
	c.hears(t, websocket.TextMessage, large)
	if answer, content := p.ask(t, "POST", "/connections/"+id, io.MultiReader(strings.NewReader("in "), strings.NewReader("chunks"))); answer.StatusCode != 202 {
		t.Errorf("a body without a length: %d %s, want 202", answer.StatusCode, content)
	}
	c.hears(t, websocket.TextMessage, "in chunks")
}

func pushesConfirmed(t *testing.T, p *pusher) {
	c, id := p.dial(t, "user", "carl", "join", "confirming")
	heard := c.reads()
	if got := p.want(t, 200, "POST", "/connections/"+id+"?confirm=60s", "received"); got != "" || <-heard != "received" {
		t.Errorf("answer = %q, want none, and the message received before it", got)
	}
	deaf, deafID := p.dial(t, "join", "confirming")
	p.want(t, 504, "POST", "/connections/"+deafID+"?confirm=10ms", "not answered")
	p.wantJSON(t, 200, `{"matched":1,"queued":1,"dropped":0,"confirmed":1}`, "POST", "/users/carl?confirm=1m", "all are")
	p.wantJSON(t, 200, `{"matched":0,"queued":0,"dropped":0,"confirmed":0}`, "POST", "/users/nobody?confirm=1m", "nobody is")
	p.wantJSON(t, 200, `{"matched":1,"queued":1,"dropped":0,"confirmed":1}`, "POST", "/connections?confirm=1m&except="+strings.Join(p.others(t, id), ","), "you alone")

	// They leave when they have the message, and have not looked at the ping behind it.
	leaves := func(c *client, target string) string {
		t.Helper()
		verdict := make(chan string, 1)
		go func() {
			defer close(verdict)
			answer, content := p.ask(t, "POST", target+"?confirm=60s", strings.NewReader("do you leave?"))
			verdict <- fmt.Sprint(answer.StatusCode, " ", content)
		}()
		c.hears(t, websocket.TextMessage, "do you leave?")
		c.Close()
		return <-verdict
	}
	deaf.hears(t, websocket.TextMessage, "not answered")
	if got, want := leaves(deaf, "/groups/confirming"), `200 {"matched":2,"queued":2,"dropped":0,"confirmed":1}`+"\n"; got != want {
		t.Errorf("one of two leaves meanwhile: %s, want %s", got, want)
	}
	leaving, leavingID := p.dial(t)
	if got := leaves(leaving, "/connections/"+leavingID); !strings.HasPrefix(got, "410 ") {
		t.Errorf("it leaves meanwhile: %s, want 410", got)
	}

	// While the backend works on its first message, the second fills what is read ahead. The pong comes behind the third.
	c.says(t, websocket.TextMessage, "wait")
	if got := <-p.held; got != id {
		t.Fatalf("the message of %s is held, want %s", got, id)
	}
	full := strings.Repeat("x", 64<<10)
	c.says(t, websocket.TextMessage, full)
	c.says(t, websocket.TextMessage, full)
	p.want(t, 504, "POST", "/connections/"+id+"?confirm=200ms", "behind a full inbox")
	p.release <- struct{}{}
	p.want(t, 200, "POST", "/connections/"+id+"?confirm=60s", "behind an empty one")
	for _, want := range []string{"all are", "you alone", "do you leave?", "behind a full inbox", "behind an empty one"} {
		if got := <-heard; got != want {
			t.Errorf("got = %q, want %q", got, want)
		}
	}
	for _, value := range []string{"", "0s", "-1s", "61s", "5", "soon"} {
		p.wantProblem(t, 400, "confirm", "POST", "/connections/"+id+"?confirm="+value, "x")
	}
}

// others are the ids of all connections but one.
func (p *pusher) others(t *testing.T, id string) []string {
	t.Helper()
	ids, next := p.list(t, "/connections?limit=1000")
	if next != "" {
		t.Fatal("more than a thousand connections")
	}
	return slices.DeleteFunc(ids, func(other string) bool { return other == id })
}

func pushesWhileOpening(t *testing.T, p *pusher) {
	opened := make(chan *websocket.Conn, 1)
	go func() {
		c, _, err := p.dialer.DialContext(t.Context(), "ws://example.org/ws?held=1&user=dora", nil)
		if err != nil {
			t.Errorf("dial: %v", err)
		}
		opened <- c
	}()
	id := <-p.held
	p.want(t, 202, "POST", "/connections/"+id, "early")
	p.wantProblem(t, 409, "confirm", "POST", "/connections/"+id+"?confirm=60s", "can't be confirmed")
	if got := p.want(t, 200, "GET", "/connections/"+id, ""); !strings.Contains(got, `"opening":true`) || strings.Contains(got, "dora") {
		t.Errorf("connection = %s, want it opening and without a user", got)
	}
	p.release <- struct{}{}
	conn := <-opened
	if conn == nil {
		return
	}
	c := &client{Conn: conn}
	defer c.Close()
	p.hearsOnly(t, c, id, "early", id)
	if got := p.want(t, 200, "GET", "/connections/"+id, ""); strings.Contains(got, "opening") || !strings.Contains(got, `"user":"dora"`) {
		t.Errorf("connection = %s, want it open, with its user", got)
	}
}

func pushesUnread(t *testing.T, p *pusher) {
	c, id := p.dialUnread(t)
	to := "/connections/" + id
	p.want(t, 202, "POST", to+"?collapse=price", "1 euro")
	p.want(t, 202, "POST", to+"?collapse=stock", "five left")
	p.want(t, 202, "POST", to, "between")
	p.want(t, 202, "POST", to+"?collapse=price", "2 euros")
	p.want(t, 504, "POST", to+"?ttl=1ms&confirm=50ms", "too late") // by then its time is over
	p.want(t, 202, "POST", to+"?ttl=1h", "in time")
	p.wantJSON(t, 200, `{"status":202}`, "POST", "/batch", `{"to":"`+to+`","body":"3 euros","collapse":"price"}`)
	for range unread {
		c.hears(t, websocket.TextMessage, large)
	}
	p.hearsOnly(t, c, id, "five left", "between", "in time", "3 euros")
	for option, values := range map[string][]string{"ttl": {"", "0s", "-1s", "5"}, "collapse": {"", strings.Repeat("x", 201)}} {
		for _, value := range values {
			p.wantProblem(t, 400, option, "POST", to+"?"+option+"="+value, "x")
		}
	}
}

func pushesToASlowClient(t *testing.T, p *pusher) {
	c, id := p.dialUnread(t)
	queued, status := unread, 0
	for ; queued < 100; queued++ { // SEND_BUFFER is less
		answer, _ := p.ask(t, "POST", "/connections/"+id, strings.NewReader(large))
		if status = answer.StatusCode; status != 202 {
			break
		}
	}
	if status != 410 {
		t.Fatalf("push to a client that does not read = %d after %d messages, want 410", status, queued)
	}
	p.want(t, 410, "GET", "/connections/"+id, "")
	c.SetReadDeadline(time.Now().Add(patience))
	for {
		_, data, err := c.ReadMessage()
		if err == nil && string(data) == large {
			continue
		}
		if !websocket.IsCloseError(err, 1008) {
			t.Errorf("end = %v, want close 1008", err)
		}
		return
	}
}

func pushesUnderAKey(t *testing.T, p *pusher) {
	c, id := p.dial(t, "join", "keys")
	other, otherID := p.dial(t)
	var together sync.WaitGroup
	for range 20 {
		together.Go(func() {
			if answer, content := p.ask(t, "POST", "/groups/keys?ttl=1m", strings.NewReader("once"), "Idempotency-Key", "k1"); answer.StatusCode != 202 || content != `{"matched":1,"queued":1,"dropped":0}`+"\n" {
				t.Errorf("one of those at the same time: %d %s, want the first one's verdict", answer.StatusCode, content)
			}
		})
	}
	together.Wait()
	p.want(t, 202, "POST", "/groups/keys?ttl=1m", "once", "Idempotency-Key", "k1")
	p.wantProblem(t, 422, "Idempotency-Key", "POST", "/groups/keys?ttl=1m", "another", "Idempotency-Key", "k1")
	p.wantProblem(t, 422, "Idempotency-Key", "POST", "/groups/keys?ttl=2m", "once", "Idempotency-Key", "k1")
	p.wantProblem(t, 422, "Idempotency-Key", "POST", "/groups/keys?ttl=1m", "once", "Idempotency-Key", "k1", "Content-Type", "text/plain")
	p.want(t, 202, "POST", "/groups/keys", "under another key", "Idempotency-Key", "k2")
	p.want(t, 202, "POST", "/connections/"+id, "to another route", "Idempotency-Key", "k1")
	p.want(t, 202, "POST", "/connections/"+otherID, "to another connection", "Idempotency-Key", "k1")
	p.wantProblem(t, 400, "Idempotency-Key", "POST", "/groups/keys", "x", "Idempotency-Key", "")
	p.wantProblem(t, 400, "Idempotency-Key", "POST", "/groups/keys", "x", "Idempotency-Key", strings.Repeat("k", 256))
	p.wantProblem(t, 400, "Idempotency-Key", "POST", "/batch", `{"to":"/groups/keys","body":"x"}`, "Idempotency-Key", "k3")
	p.hearsOnly(t, c, id, "once", "under another key", "to another route")
	p.hearsOnly(t, other, otherID, "to another connection")

	// The second comes while the client has the first one's message, and has not looked at the ping behind it.
	verdicts := make(chan int, 2)
	send := func() {
		answer, _ := p.ask(t, "POST", "/connections/"+otherID+"?confirm=60s", strings.NewReader("confirmed once"), "Idempotency-Key", "k4")
		verdicts <- answer.StatusCode
	}
	together.Go(send)
	other.hears(t, websocket.TextMessage, "confirmed once")
	together.Go(send)
	p.want(t, 200, "GET", "/connections/"+otherID, "")
	heard := other.reads()
	together.Wait()
	p.want(t, 200, "POST", "/connections/"+otherID+"?confirm=60s", "that was all")
	if first, second := <-verdicts, <-verdicts; first != 200 || second != 200 {
		t.Errorf("verdicts = %d and %d, want 200 for both", first, second)
	}
	if got := <-heard; got != "that was all" {
		t.Errorf("got = %q, want what was confirmed once", got)
	}
}

func pushesInABatch(t *testing.T, p *pusher) {
	c, id := p.dial(t, "user", "eve", "join", "batch")
	deaf, deafID := p.dial(t, "join", "batch")
	to := "/connections/" + id
	lines, body := io.Pipe()
	r, err := http.NewRequestWithContext(t.Context(), "POST", p.base+"/batch", lines)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-ndjson")
	go io.WriteString(body, `{"to":"`+to+`","body":"the first"}`+"\n")
	answer, err := p.http.Do(r) // it comes while the request is still being sent
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if kind := answer.Header.Get("Content-Type"); answer.StatusCode != 200 || kind != "application/x-ndjson" {
		t.Errorf("answer = %d %s, want 200 application/x-ndjson", answer.StatusCode, kind)
	}
	verdicts := bufio.NewScanner(answer.Body)
	const fine = `{"status":202`
	expect := func(line, want, field string) {
		t.Helper()
		if !verdicts.Scan() {
			t.Fatalf("%s: no verdict: %v", shorten(line), verdicts.Err())
		}
		got := verdicts.Text()
		var problem struct{ Detail, Field string }
		json.Unmarshal([]byte(got), &problem)
		if !strings.HasPrefix(got, want) || problem.Field != field || (problem.Detail == "") != strings.HasPrefix(want, fine) {
			t.Errorf("%s: %s, want %s and field %q", shorten(line), got, want, field)
		}
	}
	expect("the first line", `{"status":202}`, "")
	c.hears(t, websocket.TextMessage, "the first") // nor does the message wait for the others
	say := func(line, want, field string) {
		t.Helper()
		if _, err := io.WriteString(body, line+"\n"); err != nil {
			t.Fatal(err)
		}
		expect(line, want, field)
	}
	say(`{"to":"`+to+`","base64":"AP8="}`, `{"status":202}`, "")
	c.hears(t, websocket.BinaryMessage, "\x00\xff")
	say("\n\r\n"+`{"to":"/users/eve","body":"behind empty lines"}`+"\r", `{"status":202,"matched":1,"queued":1,"dropped":0}`, "")
	say(`{"to":"/groups/batch","body":"to a group","except":["`+deafID+`"]}`, `{"status":202,"matched":1,"queued":1,"dropped":0}`, "")
	say(`{"to":"/groups/batch","body":"with a string","except":"nobody,`+deafID+`"}`, `{"status":202,"matched":1,"queued":1,"dropped":0}`, "")
	say(`{"to":"/connections/nobody","body":"x"}`, `{"status":410,`, "")
	say(`{"to":"`+to+`","body":""}`, `{"status":202}`, "")
	say("no JSON", `{"status":400,`, "")
	say(`{"to":"`+to+`","body":"x"} {}`, `{"status":400,`, "")
	say(`{"to":"`+to+`","body":"x","colapse":"typo"}`, `{"status":400,`, "")
	say(`{"to":"`+to+`","body":"`+"\xff"+`"}`, `{"status":400,`, "")
	say(`{"to":"`+to+`"}`, `{"status":400,`, "body")
	say(`{"to":"`+to+`","body":"x","base64":"eA=="}`, `{"status":400,`, "body")
	say(`{"to":"`+to+`","base64":"?"}`, `{"status":400,`, "base64")
	say(`{"to":"/rooms/x","body":"x"}`, `{"status":400,`, "to")
	say(`{"to":"/groups/a%20b","body":"x"}`, `{"status":400,`, "to")
	say(`{"body":"x"}`, `{"status":400,`, "to")
	say(`{"to":"`+to+`","body":"x","except":"`+id+`"}`, `{"status":400,`, "except")
	say(`{"to":"/groups/batch","body":"x","except":[1]}`, `{"status":400,`, "except")
	say(`{"to":"`+to+`","body":"x","ttl":"soon"}`, `{"status":400,`, "ttl")
	say(`{"to":"`+to+`","body":"x","confirm":"61s"}`, `{"status":400,`, "confirm")
	say(`{"to":"`+to+`","body":"x`+large+`"}`, `{"status":413,`, "body")
	say(`{"to":"`+to+`","body":"`+strings.Repeat(large, 7)+`"}`, `{"status":413,`, "")
	say(`{"to":"`+deafID+`","body":"x","confirm":"10ms"}`, `{"status":400,`, "to")
	if _, err := io.WriteString(body, `{"to":"/connections/`+deafID+`","body":"x","confirm":"10ms"}`+"\n"+`{"to":"`+to+`","body":"the last"}`); err != nil { // without a line's end
		t.Fatal(err)
	}
	body.Close()
	expect("an unconfirmed line", `{"status":504,`, "")
	expect("the last line", `{"status":202}`, "")
	if verdicts.Scan() {
		t.Errorf("one more verdict: %s", verdicts.Text())
	}
	p.hearsOnly(t, c, id, "behind empty lines", "to a group", "with a string", "", "the last")
	p.hearsOnly(t, deaf, deafID, "x")

	for _, kind := range []string{"application/json", "application/jsonl", "text/plain; charset=utf-8", "application/x-www-form-urlencoded"} {
		p.wantJSON(t, 200, `{"status":202}`, "POST", "/batch", `{"to":"`+to+`","body":"x"}`, "Content-Type", kind)
	}
	p.wantJSON(t, 200, "", "POST", "/batch", "")
	p.wantProblem(t, 415, "Content-Type", "POST", "/batch", "x", "Content-Type", "application/xml")
	p.wantProblem(t, 400, "confirm", "POST", "/batch?confirm=5s", "x")
	heard := c.reads()
	p.wantJSON(t, 200, `{"status":200}`, "POST", "/batch", `{"to":"`+to+`","body":"x","confirm":"60s"}`)
	c.Close()
	for range heard {
	}
}

func pushMemberships(t *testing.T, p *pusher) {
	c, id := p.dial(t, "user", "fred")
	reached := func(target string, want int) {
		t.Helper()
		p.wantJSON(t, 202, fmt.Sprintf(`{"matched":%d,"queued":%[1]d,"dropped":0}`, want), "POST", target, target)
	}
	p.want(t, 204, "PUT", "/users/gina/connections/"+id, "")
	reached("/users/fred", 0)
	reached("/users/gina", 1)
	p.want(t, 204, "DELETE", "/users/fred/connections/"+id, "") // not its user any more
	reached("/users/gina", 1)
	p.want(t, 204, "DELETE", "/users/gina/connections/"+id, "")
	reached("/users/gina", 0)
	for range 2 {
		p.want(t, 204, "PUT", "/groups/b/connections/"+id, "")
		p.want(t, 204, "PUT", "/groups/a/connections/"+id, "")
	}
	reached("/groups/a", 1)
	if got := p.want(t, 200, "GET", "/connections/"+id, ""); !strings.Contains(got, `"groups":["a","b"]`) || strings.Contains(got, `"user"`) {
		t.Errorf("connection = %s, want groups a and b and no user", got)
	}
	for range 2 {
		p.want(t, 204, "DELETE", "/groups/a/connections/"+id, "")
	}
	reached("/groups/a", 0)
	reached("/groups/b", 1)
	p.hearsOnly(t, c, id, "/users/gina", "/users/gina", "/groups/a", "/groups/b")
	for _, route := range []string{"/users/gina/connections/", "/groups/b/connections/"} {
		p.want(t, 410, "PUT", route+"nobody", "")
		p.want(t, 410, "DELETE", route+"nobody", "")
		p.want(t, 404, "PUT", route, "")
		p.wantProblem(t, 400, "x", "PUT", route+id+"?x=y", "")
	}
}

func pushListings(t *testing.T, p *pusher) {
	var ids []string
	for i := range 5 {
		_, id := p.dial(t, "user", fmt.Sprint("reader", i%2), "join", "readers")
		ids = append(ids, id)
	}
	slices.Sort(ids) // those of one millisecond have no order
	for _, target := range []string{"/groups/readers?limit=2", "/connections?group=readers&limit=2"} {
		var all []string
		pages, after := 0, ""
		for pages = range 10 {
			page, next := p.list(t, target+"&after="+after)
			if all = append(all, page...); next == "" {
				break
			}
			after = next
		}
		if !slices.Equal(all, ids) || pages != 2 {
			t.Errorf("%s: %v in %d pages, want %v in 3", target, all, pages+1, ids)
		}
	}
	if got, _ := p.list(t, "/users/reader0"); len(got) != 3 {
		t.Errorf("a user's: %v, want 3", got)
	}
	if got, _ := p.list(t, "/connections?user=reader1&group=readers"); len(got) != 2 {
		t.Errorf("a user's in a group: %v, want 2", got)
	}
	if got, _ := p.list(t, "/connections?user=reader1&group=others"); len(got) != 0 {
		t.Errorf("a user's in another group: %v, want none", got)
	}
	if got, _ := p.list(t, "/connections"); !slices.Equal(slices.DeleteFunc(got, func(id string) bool { return !slices.Contains(ids, id) }), ids) {
		t.Errorf("all: %v, want %v among them, in order", got, ids)
	}
	p.wantJSON(t, 200, `{"connections":[]}`, "GET", "/users/nobody", "")
	for _, value := range []string{"0", "1001", "many", "-1"} {
		p.wantProblem(t, 400, "limit", "GET", "/groups/readers?limit="+value, "")
	}
	p.wantProblem(t, 400, "user", "GET", "/groups/readers?user=x", "")
	p.wantProblem(t, 400, "user", "GET", "/connections?user=a,b", "")
	var shown struct {
		ID, User, Path       string
		Groups               []string
		MessagesOut          int             `json:"messages_out"`
		Since                string          `json:"since"`
		LastSeen             string          `json:"last_seen"`
		Queue                map[string]int  `json:"queue"`
		Address, Subprotocol json.RawMessage // the address of one behind a unix socket is not known
	}
	if err := json.Unmarshal([]byte(p.want(t, 200, "GET", "/connections/"+ids[0], "")), &shown); err != nil {
		t.Fatal(err)
	}
	if shown.ID != ids[0] || !strings.HasPrefix(shown.User, "reader") || !slices.Equal(shown.Groups, []string{"readers"}) || !strings.HasPrefix(shown.Path, "/ws") ||
		shown.MessagesOut != 1 || shown.Since == "" || shown.LastSeen == "" || len(shown.Queue) != 2 {
		t.Errorf("connection = %+v", shown)
	}
	p.want(t, 410, "GET", "/connections/nobody", "")
	p.want(t, 404, "GET", "/connections/", "")
}

func pushCloses(t *testing.T, p *pusher) {
	ended := func(c *client, id string, code int, reason string) {
		t.Helper()
		c.SetReadDeadline(time.Now().Add(patience))
		for {
			_, _, err := c.ReadMessage()
			if err == nil {
				continue
			}
			if closed, ok := err.(*websocket.CloseError); !ok || closed.Code != code || closed.Text != reason {
				t.Errorf("end = %v, want close %d %q", err, code, reason)
			}
			break
		}
		p.want(t, 410, "POST", "/connections/"+id, "too late")
		p.want(t, 410, "DELETE", "/connections/"+id, "")
	}
	a, idA := p.dial(t)
	p.want(t, 202, "POST", "/connections/"+idA, "last words")
	p.want(t, 204, "DELETE", "/connections/"+idA+"?code=4001&reason=gr%C3%BC%C3%9Fe", "")
	a.hears(t, websocket.TextMessage, "last words")
	ended(a, idA, 4001, "grüße")
	b, idB := p.dial(t)
	p.want(t, 204, "DELETE", "/connections/"+idB, "")
	ended(b, idB, 1000, "")

	c, idC := p.dial(t, "user", "hugo", "join", "closing")
	d, idD := p.dial(t, "user", "hugo")
	e, idE := p.dial(t, "join", "closing")
	for _, target := range []string{"/users/hugo", "/groups/closing", "/connections/" + idC} {
		for _, code := range []string{"1001", "1005", "1006", "1015", "2999", "5000", "many"} {
			p.wantProblem(t, 400, "code", "DELETE", target+"?code="+code, "")
		}
		p.wantProblem(t, 400, "reason", "DELETE", target+"?reason="+strings.Repeat("x", 124), "")
		p.wantProblem(t, 400, "reason", "DELETE", target+"?reason=%ff", "")
		p.wantProblem(t, 400, "why", "DELETE", target+"?why=x", "")
	}
	p.wantJSON(t, 202, `{"matched":2}`, "DELETE", "/users/hugo?code=1008&reason=out", "")
	p.wantJSON(t, 202, `{"matched":1}`, "DELETE", "/groups/closing?code=3000", "")
	p.wantJSON(t, 202, `{"matched":0}`, "DELETE", "/groups/closing", "")
	p.wantJSON(t, 202, `{"matched":0}`, "DELETE", "/users/nobody", "")
	ended(c, idC, 1008, "out")
	ended(d, idD, 1008, "out")
	ended(e, idE, 3000, "")
	p.want(t, 404, "DELETE", "/connections/", "")
	p.want(t, 405, "DELETE", "/connections", "") // nobody closes all by an empty variable
}

func pushesRefused(t *testing.T, p *pusher) {
	c, id := p.dial(t, "user", "ida", "join", "refusing")
	for _, target := range []string{"/connections/" + id, "/users/ida", "/groups/refusing", "/connections"} {
		p.want(t, 413, "POST", target, large+"x")
		if answer, _ := p.ask(t, "POST", target, io.MultiReader(strings.NewReader(large), strings.NewReader("x"))); answer.StatusCode != 413 {
			t.Errorf("too large in chunks: %d, want 413", answer.StatusCode)
		}
		p.wantProblem(t, 415, "Content-Type", "POST", target, "--x", "Content-Type", "multipart/form-data; boundary=x")
		p.wantProblem(t, 400, "confrim", "POST", target+"?confrim=5s", "a typo")
		p.wantProblem(t, 400, "ttl", "POST", target+"?ttl=5s&ttl=6s", "twice")
		p.want(t, 403, "POST", target, "x", "Origin", "https://evil.example")
		p.want(t, 403, "POST", target, "x", "Sec-Fetch-Site", "cross-site")
		p.want(t, 403, "GET", target, "", "Sec-Fetch-Site", "same-site")
	}
	p.wantProblem(t, 400, "except", "POST", "/connections/"+id+"?except="+id, "x")
	p.want(t, 410, "POST", "/connections/nobody", "x")
	for _, target := range []string{"/connections/", "/connections//", "//connections", "/connections/" + id + "/", "/users/", "/groups/", "/users", "/connections/../connections"} {
		p.want(t, 404, "POST", target, "for nobody")
	}
	for target, allow := range map[string]string{"/": "GET, HEAD", "/connections/" + id: "DELETE, GET, HEAD, POST", "/groups/refusing": "DELETE, GET, HEAD, POST", "/batch": "POST", "/users/ida/connections/" + id: "DELETE, PUT"} {
		if answer, _ := p.ask(t, "PATCH", target, nil); answer.StatusCode != 405 || answer.Header.Get("Allow") != allow {
			t.Errorf("PATCH %s: %d, Allow %q, want 405, %q", target, answer.StatusCode, answer.Header.Get("Allow"), allow)
		}
	}
	// Who can open the socket is trusted, whatever name it uses. Over TCP it may be a page whose name was bound to our address.
	status := 403
	if p.base == "http://localhost" {
		status = 200
	}
	p.want(t, status, "GET", "/connections", "", "Host", "evil.example")
	p.want(t, 200, "GET", "/connections", "", "Host", "LOCALHOST:80")
	p.want(t, 200, "GET", "/healthz", "", "Host", "evil.example")
	p.hearsOnly(t, c, id)
}

func answersToOthers(t *testing.T, p *pusher) {
	a, idA := p.dial(t, "user", "jane", "join", "talk/1")
	b, idB := p.dial(t, "user", "jane", "join", "talk/1")
	c, idC := p.dial(t, "user", "kurt")
	for _, m := range []string{
		"/groups/talk%2F1\nto the group", "/groups/talk%2F1?except=" + idA + "\nto the group but me", "/users/kurt\nto kurt",
		"/users/jane?ttl=1m&collapse=k\nto jane", "/connections/" + idB + "\nto one", "/connections/nobody\nto nobody", "/connections\nto all",
	} {
		a.says(t, websocket.TextMessage, m)
	}
	a.hears(t, websocket.TextMessage, "to the group")
	a.hears(t, websocket.TextMessage, "to jane")
	a.hears(t, websocket.TextMessage, "to all") // the last: all are on their way
	p.hearsOnly(t, a, idA)
	p.hearsOnly(t, b, idB, "to the group", "to the group but me", "to jane", "to one", "to all")
	p.hearsOnly(t, c, idC, "to kurt", "to all")
	for _, to := range []string{"/rooms/x", "/groups/a%20b", "/groups/x?confirm=1s", "/groups/x?excep=y", "groups/x"} {
		bad, _ := p.dial(t)
		bad.says(t, websocket.TextMessage, to+"\nx")
		bad.ends(t, 1011)
	}
}

func operatorsAddresses(t *testing.T, p *pusher) {
	p.wantJSON(t, 200, "ok", "GET", "/healthz", "")
	p.wantJSON(t, 200, "ready", "GET", "/readyz", "")
	if got := p.want(t, 200, "GET", "/metrics", ""); !strings.Contains(got, "\nwsbridge_pushes_total") {
		t.Error("the metrics have no pushes")
	}
	document, err := os.ReadFile("../bridge/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	if answer, got := p.ask(t, "GET", "/openapi.json", nil); got != string(document) || answer.Header.Get("Content-Type") != "application/json" {
		t.Errorf("/openapi.json = %s %s, want bridge/openapi.json", answer.Header.Get("Content-Type"), shorten(got))
	}
	p.want(t, 200, "GET", "/debug/pprof/", "")
}

func TestATokenIsAskedForOverTCPAndOverAUnixSocket(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			p := serveForPushes(t, network, "WSBRIDGE_PUSH_TOKEN=s3cret")
			c, id := p.dial(t)
			to := "/connections/" + id
			p.want(t, 202, "POST", to, "by bearer", "Authorization", "Bearer s3cret")
			p.want(t, 202, "POST", to, "by password", "Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte("anybody:s3cret")))
			p.want(t, 202, "POST", to, "from elsewhere", "Authorization", "bearer s3cret", "Host", "bridge.internal")
			for _, wrong := range []string{"", "Bearer", "Bearer ", "Bearer s3cret2", "s3cret", "Basic " + base64.StdEncoding.EncodeToString([]byte("s3cret:"))} {
				answer, content := p.ask(t, "POST", to, strings.NewReader("x"), "Authorization", wrong)
				if schemes := answer.Header.Values("WWW-Authenticate"); answer.StatusCode != 401 || len(schemes) != 2 || strings.Contains(content, "s3cret") {
					t.Errorf("Authorization %q: %d, WWW-Authenticate %q, %s; want 401 and two schemes", wrong, answer.StatusCode, schemes, content)
				}
			}
			for _, target := range []string{"/connections", "/metrics", "/openapi.json", "/debug/pprof/", "/nowhere"} {
				p.wantProblem(t, 401, "Authorization", "GET", target, "")
			}
			p.want(t, 403, "POST", to, "x", "Authorization", "Bearer s3cret", "Origin", "https://evil.example")
			p.want(t, 200, "GET", "/healthz", "")
			p.want(t, 200, "GET", "/readyz", "")
			c.hears(t, websocket.TextMessage, "by bearer")
			c.hears(t, websocket.TextMessage, "by password")
			c.hears(t, websocket.TextMessage, "from elsewhere")
		})
	}
}

// The requests that docs/push.md shows are made as they stand there, of three programs in the places that it names.
func TestThePageAboutPushesShowsWhatIsAnswered(t *testing.T) {
	t.Parallel()
	tool(t, "curl", "curl")
	page, err := os.ReadFile("../docs/push.md")
	if err != nil {
		t.Fatal(err)
	}
	const shownID, shownToken = "06h019c4brd72nvnr4d9koedm3fdm9f9u8hg", "6b1f7c0d2a"
	commands := consoleCommands(string(page))

	b := newBackend(t, func(w http.ResponseWriter, e event) {
		w.Header().Set("Ws-User", e.header.Get("Authorization"))
		w.Header().Set("Ws-Join", "room1")
	})
	socket := filepath.Join(tempDir(t), "push.sock")
	here := serve(t, "WSBRIDGE_BACKEND_URL="+b.URL)
	serve(t, "WSBRIDGE_BACKEND_URL="+b.URL, "WSBRIDGE_PUSH_LISTEN=unix:"+socket)
	guarded := serve(t, "WSBRIDGE_BACKEND_URL="+b.URL, "WSBRIDGE_PUSH_TOKEN="+shownToken)
	dial := func(user string) (heard <-chan string, id string) {
		t.Helper()
		c := connect(t, websocket.Dialer{}, "ws://"+here.clients+"/ws", http.Header{"Authorization": {user}})
		return c.reads(), b.expect(t, "connect").connection
	}
	first, id := dial("42")
	second, otherID := dial("43")
	for otherID <= id { // of the same millisecond
		request(t, "DELETE", "http://"+here.pushes+"/connections/"+otherID, nil, "")
		b.expect(t, "disconnect")
		second, otherID = dial("43")
	}

	real := strings.NewReplacer("127.0.0.1:8081", here.pushes, "10.0.0.5:8081", guarded.pushes, "/run/wsbridge/push.sock", socket, shownID, id)
	shown := strings.NewReplacer(id, shownID)
	environ := ""
	for _, c := range commands {
		if !strings.HasPrefix(c.line, "curl ") && !strings.Contains(c.line, "| curl ") {
			environ += real.Replace(c.line) + "\n" // ID=…
			continue
		}
		cmd := exec.CommandContext(t.Context(), "sh", "-c", environ+real.Replace(c.line))
		var errors strings.Builder
		cmd.Stderr = &errors
		out, err := cmd.Output()
		if err != nil {
			t.Errorf("%s: %v %s", c.line, err, errors.String())
		}
		got := shown.Replace(strings.ReplaceAll(string(out), "\r", ""))
		pattern := "^" + strings.ReplaceAll(regexp.QuoteMeta(strings.TrimSpace(c.output)), "…", "(?s:.*)") + "$"
		if !regexp.MustCompile(pattern).MatchString(strings.TrimSpace(got)) {
			t.Errorf("$ %s\n%s\nis answered with\n%s", c.line, c.output, got)
		}
	}

	for client, want := range map[<-chan string][]string{
		first: {"your order has shipped", "\x01\x02\x03", "three new messages", "we are closing at noon", "your order has shipped", "is anybody here?", "a taxi is near", `{"eur":17.20}`, "invoice 4711",
			"\x01\x02\x03"},
		second: {"somebody else came in", "we are closing at noon", "is anybody here?", `{"eur":17.20}`, "your turn", "43 is to move"},
	} {
		var got []string
		for text := range client { // to its end: the page closes both
			got = append(got, text)
		}
		if !slices.Equal(got, want) {
			t.Errorf("a client got %q, want %q", got, want)
		}
	}

	var document struct {
		Paths map[string]map[string]json.RawMessage
	}
	openAPI, err := os.ReadFile("../bridge/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(openAPI, &document); err != nil {
		t.Fatal(err)
	}
	for path, methods := range document.Paths {
		route := regexp.MustCompile("^" + regexp.MustCompile(`\\\{\w+\\\}`).ReplaceAllString(regexp.QuoteMeta(path), "[^/]+") + "$")
		for method := range methods {
			if method != "parameters" && !slices.ContainsFunc(commands, func(c consoleCommand) bool { return c.calls(method, route) }) {
				t.Errorf("docs/push.md does not show %s %s", strings.ToUpper(method), path)
			}
		}
	}
}

// consoleCommand is a command and the output that a page shows.
type consoleCommand struct{ line, output string }

// consoleCommands returns what stands in a page's console blocks. A command goes on to the end of its here-document.
func consoleCommands(page string) []consoleCommand {
	var all []consoleCommand
	for _, block := range regexp.MustCompile("(?s)\n```console\n(.*?)```\n").FindAllStringSubmatch(page, -1) {
		more := false
		for line := range strings.Lines(block[1]) {
			if command, ok := strings.CutPrefix(line, "$ "); ok {
				all = append(all, consoleCommand{line: strings.TrimSuffix(command, "\n")})
				more = strings.Contains(command, "<<'END'")
				continue
			}
			last := &all[len(all)-1]
			if !more {
				last.output += line
				continue
			}
			last.line += "\n" + strings.TrimSuffix(line, "\n")
			more = line != "END\n"
		}
	}
	return all
}

// calls reports whether a command is a request of this method to this route.
func (c consoleCommand) calls(method string, route *regexp.Regexp) bool {
	path := regexp.MustCompile(`(?:\$PUSH|localhost|10\.0\.0\.5:8081)(/[^\s"?]*)`).FindStringSubmatch(c.line)
	if path == nil || !route.MatchString(path[1]) {
		return false
	}
	used := "get"
	if strings.Contains(c.line, " -d ") || strings.Contains(c.line, " --data-binary ") {
		used = "post"
	}
	if explicit := regexp.MustCompile(` -X (\w+) `).FindStringSubmatch(c.line); explicit != nil {
		used = strings.ToLower(explicit[1])
	}
	return used == method
}
