package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/gorilla/websocket"
)

// ran is what a command did.
type ran struct {
	code           int
	stdout, stderr string
}

// command runs the program's command line, with a standard input.
func command(t *testing.T, environ []string, stdin io.Reader, args ...string) ran {
	t.Helper()
	var stdout, stderr strings.Builder
	code := run(t.Context(), args, environ, stdin, &stdout, &stderr)
	return ran{code, stdout.String(), stderr.String()}
}

// want fails unless the command ended with this exit code and this output, and said all the words on stderr.
func (r ran) want(t *testing.T, code int, stdout string, words ...string) {
	t.Helper()
	if r.code != code || r.stdout != stdout {
		t.Errorf("exit code = %d with %q, want %d with %q; stderr: %s", r.code, r.stdout, code, stdout, r.stderr)
	}
	if len(words) == 0 && r.stderr != "" {
		t.Errorf("stderr = %q, want nothing", r.stderr)
	}
	for _, word := range words {
		if !strings.Contains(r.stderr, word) {
			t.Errorf("stderr = %q, want %q in it", r.stderr, word)
		}
	}
}

// application accepts every connection as the user and in the groups that the query asks for, and says the connection's id.
func application(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("ce-type") != "wsbridge.connect" {
			return
		}
		query := r.URL.Query()
		for header, values := range map[string][]string{"Ws-User": query["user"], "Ws-Join": query["group"]} {
			if len(values) > 0 {
				w.Header().Set(header, strings.Join(values, ", "))
			}
		}
		io.WriteString(w, r.Header.Get("ce-connectionid"))
	}))
	t.Cleanup(server.Close)
	return "WSBRIDGE_BACKEND_URL=" + server.URL
}

// joined is a client that is connected.
type joined struct {
	*websocket.Conn
	id string
}

// join connects a client. The query is for the application.
func join(t *testing.T, address, query string) *joined {
	t.Helper()
	conn, _, err := websocket.DefaultDialer.Dial("ws://"+address+"/ws?"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c := &joined{Conn: conn}
	c.id = c.next(t)[len("text "):]
	return c
}

// next reads the next message, with its kind before it.
func (c *joined) next(t *testing.T) string {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(time.Minute))
	kind, data, err := c.ReadMessage()
	if err != nil {
		t.Fatal(err)
	}
	return map[int]string{websocket.TextMessage: "text ", websocket.BinaryMessage: "binary "}[kind] + string(data)
}

func (c *joined) hears(t *testing.T, want string) {
	t.Helper()
	if got := c.next(t); got != want {
		t.Errorf("message = %q, want %q", got, want)
	}
}

func TestPushSendsTheMessageAsItStands(t *testing.T) {
	t.Parallel()
	clients, pushes := serving(t, application(t))
	environ := []string{"WSBRIDGE_PUSH_LISTEN=" + pushes}
	c := join(t, clients, "")
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	large := strings.Repeat("x", 300_000)
	for _, row := range []struct {
		name, stdin string
		args        []string
		want        string
	}{
		{"the argument", "not this", []string{"hello"}, "text hello"},
		{"an argument in two lines", "", []string{"a\n b\n"}, "text a\n b\n"},
		{"an argument that is empty", "not this", []string{""}, "text "},
		{"an argument with a dash", "", []string{"--", "--all"}, "text --all"},
		{"standard input", "from a pipe\n", nil, "text from a pipe\n"},
		{"standard input by name", " no newline", []string{"-"}, "text  no newline"},
		{"standard input that is empty", "", nil, "text "},
		{"standard input, large", large, nil, "text " + large},
		{"standard input, binary", string(every), []string{"-binary"}, "binary " + string(every)},
		{"a binary argument", "", []string{"--binary", "hello"}, "binary hello"},
	} {
		t.Run(row.name, func(t *testing.T) {
			args := append([]string{"push", "--connection", c.id}, row.args...)
			command(t, environ, iotest.HalfReader(strings.NewReader(row.stdin)), args...).want(t, 0, "")
			c.hears(t, row.want)
		})
	}
}

func TestPushReachesWhomTheCommandLineNames(t *testing.T) {
	t.Parallel()
	clients, pushes := serving(t, application(t))
	environ := []string{"WSBRIDGE_PUSH_LISTEN=" + pushes}
	outsider := join(t, clients, "user=other&group=other")
	for i, name := range []string{"room1", "a/b", "//", "...", "ä?", "a?b=c&d#e", "/connections/" + outsider.id, "+;:@=$~!*()[]{}<>|^`\\"} {
		name = strings.ReplaceAll(name, "ä", "a") // names are ASCII
		query := strings.NewReplacer("%", "%25", "&", "%26", "+", "%2B", "#", "%23", ";", "%3B").Replace(name)
		a, b := join(t, clients, "user="+query), join(t, clients, "group=more&group="+query)
		command(t, environ, nil, "push", "--user", name, "to the user").want(t, 0, `{"matched":1,"queued":1,"dropped":0}`+"\n")
		a.hears(t, "text to the user")
		command(t, environ, nil, "push", "-group="+name, "to the group").want(t, 0, `{"matched":1,"queued":1,"dropped":0}`+"\n")
		b.hears(t, "text to the group")
		all := 3 + 2*i
		command(t, environ, nil, "push", "--all", "to all").want(t, 0, fmt.Sprintf(`{"matched":%d,"queued":%[1]d,"dropped":0}`+"\n", all))
		for _, c := range []*joined{a, b, outsider} {
			c.hears(t, "text to all")
		}
	}
	command(t, environ, nil, "push", "--group", "nobody", "hello").want(t, 0, `{"matched":0,"queued":0,"dropped":0}`+"\n")
}

func TestPushPassesItsOptionsOn(t *testing.T) {
	t.Parallel()
	clients, pushes := serving(t, application(t), "WSBRIDGE_WRITE_TIMEOUT=5m", "WSBRIDGE_SEND_BUFFER=8MiB")
	environ := []string{"WSBRIDGE_PUSH_LISTEN=" + pushes}
	a, b, c := join(t, clients, "group=g"), join(t, clients, "group=g"), join(t, clients, "group=g")

	one := `{"matched":1,"queued":1,"dropped":0}` + "\n"
	command(t, environ, nil, "push", "--group", "g", "--except", a.id+","+b.id, "not to a and b").want(t, 0, one)
	c.hears(t, "text not to a and b")

	three := `{"matched":3,"queued":3,"dropped":0}` + "\n"
	for range 2 {
		command(t, environ, nil, "push", "--group", "g", "--idempotency-key", "key 1", "once").want(t, 0, three)
	}
	command(t, environ, nil, "push", "--group", "g", "--idempotency-key", "key 1", "else").want(t, 2, "", "key")
	command(t, environ, nil, "push", "--group", "g", "--ttl", "1m", "--collapse", "k&=", "last").want(t, 0, three)
	for _, client := range []*joined{a, b, c} {
		client.hears(t, "text once")
		client.hears(t, "text last")
	}

	// Of a write that stands still, what waits behind it shows what each option does.
	large := strings.Repeat("x", 1<<20)
	for range 20 { // more than the sockets take
		if r := command(t, environ, strings.NewReader(large), "push", "--collapse", "big", "--connection", a.id); r.code != 0 {
			t.Fatalf("push: %+v", r)
		}
	}
	for _, text := range []string{"first", "second"} {
		command(t, environ, nil, "push", "--connection", a.id, "--collapse", "small", text).want(t, 0, "")
	}
	command(t, environ, nil, "push", "--connection", a.id, "--ttl", "1ns", "late").want(t, 0, "")
	command(t, environ, nil, "push", "--connection", a.id, "end").want(t, 0, "")
	var got []string
	for len(got) == 0 || got[len(got)-1] != "text end" {
		if message := a.next(t); message != "text "+large {
			got = append(got, message)
		}
	}
	if want := []string{"text second", "text end"}; !slices.Equal(got, want) {
		t.Errorf("messages = %q, want %q", got, want)
	}
}

func TestTheExitStatusOfPushIsItsVerdict(t *testing.T) {
	t.Parallel()
	clients, pushes := serving(t, application(t))
	environ := []string{"WSBRIDGE_PUSH_LISTEN=" + pushes}
	answers, silent := join(t, clients, "group=mixed&group=good"), join(t, clients, "group=mixed&group=bad")
	silent.SetPingHandler(func(string) error { return nil })
	for _, c := range []*joined{answers, silent} {
		go func() { // pings are handled while somebody reads
			for {
				if _, _, err := c.NextReader(); err != nil {
					return
				}
			}
		}()
	}
	gone := join(t, clients, "")
	gone.Close()

	command(t, environ, nil, "push", "--connection", answers.id, "--confirm", "1m", "hello").want(t, 0, "")
	command(t, environ, nil, "push", "--group", "good", "--confirm", "1m", "hello").want(t, 0, `{"matched":1,"queued":1,"dropped":0,"confirmed":1}`+"\n")
	command(t, environ, nil, "push", "--group", "nobody", "--confirm", "1m", "hello").want(t, 0, `{"matched":0,"queued":0,"dropped":0,"confirmed":0}`+"\n")
	command(t, environ, nil, "push", "--connection", silent.id, "--confirm", "50ms", "hello").want(t, 4, "", "not confirmed", "may still get it")
	command(t, environ, nil, "push", "--group", "mixed", "--confirm", "2s", "hello").want(t, 4, `{"matched":2,"queued":2,"dropped":0,"confirmed":1}`+"\n", "1 of 2 clients")
	for { // that it has left is noticed a moment later
		if r := command(t, environ, nil, "push", "--connection", gone.id, "hello"); r.code != 0 {
			r.want(t, 3, "", gone.id, "not open")
			break
		}
	}
	command(t, environ, nil, "push", "--connection", "no/such", "hello").want(t, 3, "", `"no/such" is not open`)
	command(t, environ, strings.NewReader(strings.Repeat("x", 20<<20)), "push", "--all").want(t, 1, "", "larger than 1048576 bytes", "WSBRIDGE_PUSH_MAX_BODY")
}

func TestAPushThatCannotBeReadIsNotSent(t *testing.T) {
	t.Parallel()
	clients, pushes := serving(t, application(t))
	environ := []string{"WSBRIDGE_PUSH_LISTEN=" + pushes}
	c := join(t, clients, "")
	stdin := io.MultiReader(strings.NewReader("the first half"), iotest.ErrReader(errors.New("the disk is broken")))
	command(t, environ, stdin, "push", "--all").want(t, 1, "", "the disk is broken", "was not sent")

	command(t, environ, nil, "push", "--all", "whole").want(t, 0, `{"matched":1,"queued":1,"dropped":0}`+"\n")
	c.hears(t, "text whole")
}

// Nothing but a key ends a read from a terminal: Ctrl-C must not wait for one.
func TestPushIsInterruptedWhileSomebodyTypes(t *testing.T) {
	t.Parallel()
	ctx, interrupt := context.WithCancelCause(t.Context())
	service := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		r.Body.Read(make([]byte, 1)) // so that it is under way
		interrupt(errors.New("interrupt"))
		io.Copy(io.Discard, r.Body)
	}))
	defer service.Close()
	terminal, keyboard := io.Pipe()
	defer keyboard.Close()
	go io.WriteString(keyboard, "half a line")
	var stderr strings.Builder
	code := run(ctx, []string{"push", "--all"}, []string{"WSBRIDGE_PUSH_LISTEN=" + service.Listener.Addr().String()}, terminal, io.Discard, &stderr)
	if code != 1 || !strings.Contains(stderr.String(), "(interrupt)") {
		t.Errorf("exit code = %d with %q, want 1 with the interrupt", code, stderr.String())
	}
}

func TestPushSaysWhatIsWrongWithTheCommandLine(t *testing.T) {
	t.Parallel()
	asked := newBackend(t, http.StatusAccepted)
	environ := []string{"WSBRIDGE_PUSH_LISTEN=" + asked.Listener.Addr().String()}
	for _, row := range []struct {
		args  []string
		words []string
	}{
		{nil, []string{"one of --connection, --user, --group and --all"}},
		{[]string{"hello"}, []string{"one of --connection, --user, --group and --all"}},
		{[]string{"--all", "--user", "42", "x"}, []string{"one of --connection"}},
		{[]string{"--user", "42", "--group", "g", "x"}, []string{"one of --connection"}},
		{[]string{"--all=false", "x"}, []string{"one of --connection"}},
		{[]string{"--user", "", "x"}, []string{`--user ""`}},
		{[]string{"--connection", "", "x"}, []string{`--connection ""`}},
		{[]string{"--connection", "..", "x"}, []string{`--connection ".."`}},
		{[]string{"--group", ".", "x"}, []string{`--group "."`}},
		{[]string{"--group", "g", "hello", "world"}, []string{"one message", `"hello" "world"`}},
		{[]string{"hello", "--group", "g"}, []string{"one of --connection"}},
		{[]string{"--group", "g", "hello", "--binary"}, []string{"put options before it"}},
		{[]string{"--group", "g", "--confirm", "soon", "x"}, []string{"soon", "confirm"}},
		{[]string{"--group", "g", "--confirm"}, []string{"confirm"}},
		{[]string{"--connection", "id", "--except", "a", "x"}, []string{"--except a"}},
		{[]string{"--all", "--idempotency-key", "a\nb", "x"}, []string{`--idempotency-key "a\nb"`}},
		{[]string{"--room", "g", "x"}, []string{"room"}},
	} {
		command(t, environ, nil, append([]string{"push"}, row.args...)...).want(t, 2, "", append(row.words, "push", "--help")...)
	}
	if n := asked.events.Load(); n > 0 {
		t.Errorf("%d messages were sent", n)
	}

	// What only the service can tell.
	_, pushes := serving(t, application(t))
	environ = []string{"WSBRIDGE_PUSH_LISTEN=" + pushes}
	for _, row := range []struct{ args, words []string }{
		{[]string{"--all", "--confirm", "5m", "x"}, []string{`"5m0s"`, "at most 1m"}},
		{[]string{"--all", "--confirm", "0s", "x"}, []string{`"0s"`}},
		{[]string{"--all", "--ttl", "-1s", "x"}, []string{`ttl "-1s"`}},
		{[]string{"--all", "--collapse", "", "x"}, []string{"collapse"}},
		{[]string{"--user", "a b", "x"}, []string{`user "a b"`, "without space"}},
		{[]string{"--group", "ä", "x"}, []string{`group "ä"`}},
		{[]string{"--all", "--idempotency-key", "", "x"}, []string{"Idempotency-Key", "1 to 255 bytes"}},
		{[]string{"--all", "--idempotency-key", strings.Repeat("k", 256), "x"}, []string{"Idempotency-Key", "1 to 255 bytes"}},
	} {
		command(t, environ, nil, append([]string{"push"}, row.args...)...).want(t, 2, "", row.words...)
	}
}

func TestPushFindsTheServiceByItsVariables(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "push") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	tokenFile := filepath.Join(dir, "token")
	if err := os.WriteFile(tokenFile, []byte("s3cret/=+ x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const none = `{"matched":0,"queued":0,"dropped":0}` + "\n"
	backend := application(t)

	_, pushes := serving(t, backend, "WSBRIDGE_PUSH_TOKEN=s3cret/=+ x")
	_, port, _ := net.SplitHostPort(pushes)
	for _, environ := range [][]string{
		{"WSBRIDGE_PUSH_LISTEN=" + pushes, "WSBRIDGE_PUSH_TOKEN=s3cret/=+ x"},
		{"WSBRIDGE_PUSH_LISTEN=" + pushes, "WSBRIDGE_PUSH_TOKEN_FILE=" + tokenFile},
		{"WSBRIDGE_PUSH_LISTEN=:" + port, "WSBRIDGE_PUSH_TOKEN_FILE=" + tokenFile},
		{"WSBRIDGE_PUSH_LISTEN=0.0.0.0:" + port, "WSBRIDGE_PUSH_TOKEN_FILE=" + tokenFile},
		{"WSBRIDGE_PUSH_LISTEN=localhost:" + port, "WSBRIDGE_PUSH_TOKEN_FILE=" + tokenFile},
		// The rest of the service's environment may be of no use here: others' secrets are not for who pushes to read.
		{"WSBRIDGE_PUSH_LISTEN=" + pushes, "WSBRIDGE_PUSH_TOKEN_FILE=" + tokenFile, "WSBRIDGE_BACKEND_SECRET_FILE=/nowhere", "WSBRIDGE_LISTEN=" + pushes, "http_proxy=http://127.0.0.1:1"},
	} {
		command(t, environ, nil, "push", "--all", "x").want(t, 0, none)
		command(t, environ, nil, "connections", "--json").want(t, 0, "")
	}
	for _, environ := range [][]string{
		{"WSBRIDGE_PUSH_LISTEN=" + pushes},
		{"WSBRIDGE_PUSH_LISTEN=" + pushes, "WSBRIDGE_PUSH_TOKEN=planted-secret"},
	} {
		for _, args := range [][]string{{"push", "--all", "x"}, {"connections"}} {
			r := command(t, environ, nil, args...)
			r.want(t, 1, "", "another token", "WSBRIDGE_PUSH_TOKEN", pushes)
			if strings.Contains(r.stderr, "planted-secret") {
				t.Errorf("stderr shows the token: %s", r.stderr)
			}
		}
	}

	socket := "WSBRIDGE_PUSH_LISTEN=unix:" + filepath.Join(dir, "push.sock")
	command(t, []string{socket}, nil, "push", "--all", "x").want(t, 1, "", "no wsbridge answers at "+socket, "no such file")
	ctx, stop := context.WithCancel(t.Context())
	log, stderr := io.Pipe()
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, nil, []string{backend, socket, "WSBRIDGE_LISTEN=127.0.0.1:0", "WSBRIDGE_LOG_FORMAT=json"}, nil, io.Discard, stderr)
		stderr.Close()
	}()
	defer func() {
		stop()
		if code := <-ended; code != 0 {
			t.Errorf("the service ended with %d", code)
		}
	}()
	var serving struct{ Msg, Listen string }
	if err := json.NewDecoder(log).Decode(&serving); err != nil || serving.Msg != "serving" {
		t.Fatalf("first line: %+v, %v", serving, err)
	}
	go io.Copy(io.Discard, log)
	c := join(t, serving.Listen, "")
	command(t, []string{socket}, nil, "push", "--connection", c.id, "over a unix socket").want(t, 0, "")
	c.hears(t, "text over a unix socket")
	if r := command(t, []string{socket}, nil, "connections"); r.code != 0 || !strings.Contains(r.stdout, c.id) {
		t.Errorf("connections: %+v", r)
	}
}

func TestPushSaysWhatIsWrongWhereItAsks(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := l.Addr().String()
	l.Close()
	stranger := newBackend(t, http.StatusNotFound).Listener.Addr().String()
	friendly := newBackend(t, http.StatusAccepted).Listener.Addr().String()
	listing := newBackend(t, http.StatusOK).Listener.Addr().String()
	for _, row := range []struct {
		address string
		args    []string
		words   []string
	}{
		{nobody, []string{"push", "--all", "x"}, []string{"no wsbridge answers", nobody, "refused", "start it"}},
		{nobody, []string{"connections"}, []string{"no wsbridge answers", nobody}},
		{stranger, []string{"push", "--all", "x"}, []string{"is no wsbridge", stranger, "404"}},
		{stranger, []string{"connections"}, []string{"is no wsbridge", "404"}},
		{stranger, []string{"connections", "id"}, []string{"is no wsbridge", "404"}},
		{friendly, []string{"push", "--all", "x"}, []string{"is no wsbridge"}},
		{listing, []string{"connections"}, []string{"is no wsbridge"}},
		{listing, []string{"connections", "id"}, []string{"is no wsbridge"}},
	} {
		command(t, []string{"WSBRIDGE_PUSH_LISTEN=" + row.address}, nil, row.args...).want(t, 1, "", row.words...)
	}

	released := make(chan struct{})
	silent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			w.Header().Set("Content-Length", "10")
			w.(http.Flusher).Flush()
		}
		<-released
	}))
	defer silent.Close()
	defer close(released)
	for _, row := range []struct {
		method   string
		patience time.Duration
		word     string
	}{
		{http.MethodPost, time.Millisecond, "timeout"},
		{http.MethodGet, time.Second, "the answer breaks off"}, // it begins, and that may take a moment
	} {
		p, err := newPusher([]string{"WSBRIDGE_PUSH_LISTEN=" + silent.Listener.Addr().String()}, row.patience)
		if err != nil {
			t.Fatal(err)
		}
		_, err = p.ask(t.Context(), row.method, "/connections", nil, nil, http.StatusOK)
		if err == nil || !strings.Contains(err.Error(), "no answer from") || !strings.Contains(err.Error(), row.word) {
			t.Errorf("%s that is not answered: %v, want that there is no answer: %s", row.method, err, row.word)
		}
	}
}

func TestPushTellsFaultySettingsAsTheServiceDoes(t *testing.T) {
	t.Parallel()
	const good = "WSBRIDGE_BACKEND_URL=http://127.0.0.1:9"
	for _, environ := range [][]string{
		{"WSBRIDGE_PUSH_LISTEN=8081"},
		{"WSBRIDGE_PUSH_LISTEN=unix:push.sock", "WSBRIDGE_PUSH_TOKEN_FILE=/nowhere/token"},
		{"WSBRIDGE_PUSH_LISTEN=0.0.0.0:8081"},
		{"WSBRIDGE_PUSH_TOKEN=planted-secret", "WSBRIDGE_PUSH_TOKEN_FILE=/nowhere/token"},
		{"WSBRIDGE_PUSH_TOKEN=planted-secret "},
		{"WSBRIDGE_PUSH_TOKN=planted-secret", "WSBRIDGE_PUSH_LISTEN=127.0.0.256:80"},
	} {
		service := command(t, append(environ, good), nil)
		if service.code != 2 || service.stderr == "" || strings.Contains(service.stderr, "planted-secret") {
			t.Errorf("%q: the service says %+v", environ, service)
		}
		for _, args := range [][]string{{"push", "--all", "x"}, {"connections"}} {
			if r := command(t, environ, nil, args...); r != service {
				t.Errorf("%q: %s says\n%+v, the service\n%+v", environ, args[0], r, service)
			}
		}
	}
}

func TestTheHelpOfACommandIsOneOfItsResults(t *testing.T) {
	t.Parallel()
	environ := []string{"WSBRIDGE_PUSH_LISTEN=8081"} // a fault
	for name, words := range map[string][]string{
		"push": {"--connection ID", "--user NAME", "--group NAME", "--all ", "--binary ", "--confirm 5s", "--ttl 5s", "--collapse KEY", "--except IDS", "--idempotency-key KEY",
			"\n  0  queued", "\n  1  ", "\n  2  ", "\n  3  ", "\n  4  ", "WSBRIDGE_PUSH_LISTEN", "WSBRIDGE_PUSH_TOKEN_FILE"},
		"connections": {"--user NAME", "--group NAME", "--json ", "\n  3  ", "WSBRIDGE_PUSH_LISTEN"},
	} {
		for _, flag := range []string{"-h", "-help", "--help"} {
			r := command(t, environ, nil, name, flag)
			if r.code != 0 || r.stderr != "" {
				t.Errorf("%s %s: exit code %d, stderr %q, want 0 and nothing", name, flag, r.code, r.stderr)
			}
			for _, word := range words {
				if !strings.Contains(r.stdout, word) {
					t.Errorf("%s %s lacks %q:\n%s", name, flag, word, r.stdout)
				}
			}
		}
		if r := command(t, nil, nil, "help"); !strings.Contains(r.stdout, "\n  "+name+" ") {
			t.Errorf("help does not name %s:\n%s", name, r.stdout)
		}
	}
}

func TestConnectionsAreListedInATable(t *testing.T) {
	t.Parallel()
	clients, pushes := serving(t, application(t))
	environ := []string{"WSBRIDGE_PUSH_LISTEN=" + pushes}
	command(t, environ, nil, "connections").want(t, 0, "ID  USER  GROUPS  ADDRESS  PATH  SINCE  QUEUE  IN/OUT\n")
	a, b := join(t, clients, "user=ada&group=room1&group=a/b"), join(t, clients, "group=room1")
	// A client chooses its path: this one would steer the terminal of whoever lists it.
	conn, err := net.Dial("tcp", clients)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /ws/\u009b31m\u202e?user=ada HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", clients)
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || answer.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("handshake: %v, %v", answer, err)
	}
	command(t, environ, nil, "push", "--user", "ada", "x").want(t, 0, `{"matched":2,"queued":2,"dropped":0}`+"\n")
	if err := a.WriteMessage(websocket.TextMessage, []byte("x")); err != nil {
		t.Fatal(err)
	}
	a.hears(t, "text x")
	for { // what is on its way arrives
		r := command(t, environ, nil, "connections", "--json")
		if strings.Contains(r.stdout, `"messages_in":1`) && strings.Count(r.stdout, `"messages_out":2`) == 2 && !strings.Contains(r.stdout, `"opening"`) {
			break
		}
	}

	r := command(t, environ, nil, "connections")
	rows := strings.Split(strings.TrimSuffix(r.stdout, "\n"), "\n")
	if r.code != 0 || len(rows) != 4 {
		t.Fatalf("connections: %+v, want a header and 3 rows", r)
	}
	// Those that have come within one millisecond are in no order.
	slices.SortFunc(rows[1:], func(a, b string) int { return strings.Compare(strings.Fields(a)[4], strings.Fields(b)[4]) })
	if strings.Fields(rows[1])[0] != a.id {
		rows[1], rows[2] = rows[2], rows[1]
	}
	for i, want := range [][]string{
		{"ID", "USER", "GROUPS", "ADDRESS", "PATH", "SINCE", "QUEUE", "IN/OUT"},
		{a.id, "ada", "a/b,room1", "127.0.0.1", "/ws", "", "0", "1/2"},
		{b.id, "-", "room1", "127.0.0.1", "/ws", "", "0", "0/1"},
		{"", "ada", "-", "127.0.0.1", "/ws/\ufffd31m\ufffd", "", "0", "0/2"},
	} {
		got := strings.Fields(rows[i])
		if len(got) != len(want) {
			t.Errorf("row %d = %q, want %d columns", i, rows[i], len(want))
			continue
		}
		for j := range want {
			if want[j] != "" && got[j] != want[j] {
				t.Errorf("row %d = %q, want %q in column %d", i, rows[i], want[j], j+1)
			}
		}
		if !slices.Equal(columns(rows[i]), columns(rows[0])) {
			t.Errorf("row %d is not aligned:\n%s", i, r.stdout)
		}
		if i > 0 {
			if _, err := time.Parse(time.RFC3339, got[5]); err != nil {
				t.Error(err)
			}
		}
	}
	if strings.ContainsAny(r.stdout, "\u009b\u202e") {
		t.Errorf("a client's path reaches the terminal as it is: %q", r.stdout)
	}

	ids := func(args ...string) []string {
		t.Helper()
		r := command(t, environ, nil, append([]string{"connections", "--json"}, args...)...)
		if r.code != 0 || r.stderr != "" {
			t.Fatalf("%q: %+v", args, r)
		}
		list := []string{}
		for line := range strings.Lines(r.stdout) {
			var one struct{ ID string }
			if err := json.Unmarshal([]byte(line), &one); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			list = append(list, one.ID)
		}
		slices.Sort(list)
		return list
	}
	for _, row := range []struct {
		args []string
		want []string
	}{
		{[]string{"--group", "room1"}, []string{a.id, b.id}},
		{[]string{"--group", "a/b"}, []string{a.id}},
		{[]string{"--user", "ada", "--group", "room1"}, []string{a.id}},
		{[]string{"--user", "nobody"}, []string{}},
	} {
		slices.Sort(row.want)
		if got := ids(row.args...); !slices.Equal(got, row.want) {
			t.Errorf("%q = %q, want %q", row.args, got, row.want)
		}
	}

	r = command(t, environ, nil, "connections", a.id)
	var one struct {
		ID, User string
		Groups   []string
	}
	if err := json.Unmarshal([]byte(r.stdout), &one); err != nil || r.code != 0 || one.ID != a.id || one.User != "ada" || !slices.Equal(one.Groups, []string{"a/b", "room1"}) {
		t.Errorf("connections ID: %+v (%v)", r, err)
	}
	command(t, environ, nil, "connections", "no/such").want(t, 3, "", `"no/such" is not open`)
	for _, row := range []struct{ args, words []string }{
		{[]string{"--user", ""}, []string{`--user ""`}},
		{[]string{"--user", "a b"}, []string{`user "a b"`}},
		{[]string{"--group", "a,b"}, []string{`group "a,b"`}},
		{[]string{""}, []string{`""`}},
		{[]string{".."}, []string{`".."`}},
		{[]string{"a", "b"}, []string{`"a" "b"`}},
		{[]string{"--user", "ada", a.id}, []string{"--user"}},
		{[]string{"--room", "1"}, []string{"room"}},
	} {
		command(t, environ, nil, append([]string{"connections"}, row.args...)...).want(t, 2, "", row.words...)
	}
}

func TestAConnectionThatIsStillOpeningIsListedAsSuch(t *testing.T) {
	t.Parallel()
	asked, accept := make(chan string, 1), make(chan struct{})
	application := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("ce-type") == "wsbridge.connect" {
			asked <- r.Header.Get("ce-connectionid")
			<-accept
		}
	}))
	t.Cleanup(application.Close) // behind the service's drain, which brings it the disconnect event
	clients, pushes := serving(t, "WSBRIDGE_BACKEND_URL="+application.URL)
	environ := []string{"WSBRIDGE_PUSH_LISTEN=" + pushes}
	opened := make(chan *websocket.Conn)
	go func() {
		conn, _, err := websocket.DefaultDialer.Dial("ws://"+clients+"/ws", nil)
		if err != nil {
			t.Error(err)
		}
		opened <- conn
	}()
	id := <-asked
	if r := command(t, environ, nil, "connections"); r.code != 0 || !strings.Contains(r.stdout, "\n"+id+"  (opening)  -       127.0.0.1  /ws  ") {
		t.Errorf("connections: %+v, want one that is opening", r)
	}
	command(t, environ, nil, "push", "--connection", id, "--confirm", "5s", "x").want(t, 1, "", id, "still opening", "was sent nothing")
	close(accept)
	if conn := <-opened; conn != nil {
		conn.Close()
	}
}

// columns returns where the words of a row begin.
func columns(row string) []int {
	var starts []int
	before := ' '
	for i, r := range []rune(row) {
		if before == ' ' && r != ' ' {
			starts = append(starts, i)
		}
		before = r
	}
	return starts
}

func TestConnectionsAreListedToTheLastPage(t *testing.T) {
	t.Parallel()
	clients, pushes := serving(t, application(t), "WSBRIDGE_BACKEND_EVENTS=message", "WSBRIDGE_MAX_CONNECTIONS=3000")
	const n = 2001 // two pages, and one more
	for range n {
		conn, _, err := websocket.DefaultDialer.Dial("ws://"+clients+"/ws", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	environ := []string{"WSBRIDGE_PUSH_LISTEN=" + pushes}
	for _, args := range [][]string{{"connections"}, {"connections", "--json"}} {
		r := command(t, environ, nil, args...)
		seen := map[string]bool{}
		for line := range strings.Lines(r.stdout) {
			seen[line] = true
		}
		want := n
		if len(args) == 1 {
			want++ // the header
		}
		if r.code != 0 || len(seen) != want || strings.Count(r.stdout, "\n") != want {
			t.Errorf("%q: exit code %d, %d lines, %d of them different, want %d; %s", args, r.code, strings.Count(r.stdout, "\n"), len(seen), want, r.stderr)
		}
	}
}
