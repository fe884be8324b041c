package bridge_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// caller is a connection to the push side.
type caller struct {
	net.Conn
	t testing.TB
	r *bufio.Reader
}

func call(t testing.TB, r *rig) *caller {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(r.push, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return &caller{conn, t, bufio.NewReader(conn)}
}

// want reads an answer.
func (c *caller) want(status int) (body string) {
	c.t.Helper()
	answer, err := http.ReadResponse(c.r, nil)
	if err != nil {
		c.t.Fatalf("want %d: %v", status, err)
	}
	p, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != status {
		c.t.Fatalf("got %d %q, %v, want %d", answer.StatusCode, p, err, status)
	}
	return string(p)
}

func pushOf(id, body string) string {
	return fmt.Sprintf("POST /connections/%s HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", id, len(body), body)
}

func TestAConnectionOfThePushSideCarriesAnything(t *testing.T) {
	r := start(t, nil)
	client := r.dial(t, "/ws")
	id := r.await(t, "/ws", "connect")[0].header.Get("ce-connectionid")
	c := call(t, r)

	io.WriteString(c, pushOf(id, "one"))
	c.want(202)
	client.want(text("one"))
	for _, piece := range []string{pushOf(id, "two")[:len(pushOf(id, "two"))-2], "w", "o"} { // a body that comes in pieces
		io.WriteString(c, piece)
		time.Sleep(time.Millisecond) // if they come in one piece all the same, the test says less and is right
	}
	c.want(202)
	client.want(text("two"))
	io.WriteString(c, pushOf("nobody", "x"))
	if body := c.want(410); !strings.Contains(body, `"detail"`) {
		t.Errorf("a problem is %q", body)
	}
	io.WriteString(c, pushOf(id, "three"))
	c.want(202)
	client.want(text("three"))
	large := strings.Repeat("x", 10_000)
	io.WriteString(c, pushOf(id, large))
	c.want(202)
	client.want(text(large))

	io.WriteString(c, pushOf(id, "four")+pushOf(id, "five")) // at once: the connection is net/http's at the latest here
	c.want(202)
	c.want(202)
	client.want(text("four"), text("five"))
	io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
	if body := c.want(200); body != "ok\n" {
		t.Errorf("got %q, want ok", body)
	}
	io.WriteString(c, pushOf(id, "six"))
	c.want(202)
	client.want(text("six"))
}

func TestAPlainPushNeedsTheToken(t *testing.T) {
	r := start(t, func(o *options) { o.bridge.PushToken = "secret" })
	client := r.dial(t, "/ws")
	id := r.await(t, "/ws", "connect")[0].header.Get("ce-connectionid")
	with := func(authorization string) string {
		return strings.Replace(pushOf(id, "x"), "\r\n", "\r\nAuthorization: "+authorization+"\r\n", 1)
	}
	for _, row := range []struct {
		request string
		status  int
	}{{pushOf(id, "x"), 401}, {with("Bearer wrong"), 401}, {with("Bearer secret"), 202}, {with("bearer secret"), 202}, {with("Basic OnNlY3JldA=="), 202}, {with("Basic secret"), 401}} {
		c := call(t, r)
		io.WriteString(c, row.request)
		c.want(row.status)
		if row.status == 202 {
			client.want(text("x"))
		}
	}
}

// A pusher under another name than this host's is a page whose name has been rebound to our address.
func TestAPlainPushNeedsALoopbackHost(t *testing.T) {
	r := start(t, nil)
	r.dial(t, "/ws")
	id := r.await(t, "/ws", "connect")[0].header.Get("ce-connectionid")
	c := call(t, r)
	io.WriteString(c, strings.Replace(pushOf(id, "x"), "localhost", "evil.example.org", 1))
	c.want(403)
}
