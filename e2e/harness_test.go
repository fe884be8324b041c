// Package e2e runs the real program between real neighbours: nginx, PHP, Python, curl, systemd. A neighbour that is missing fails the test
// with the command that installs it.
package e2e

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// patience is when a test gives up on something that should have happened. Nothing that is tested depends on its length.
const patience = 90 * time.Second

// raceDetector makes a data race fail the program at once. At its end the detector would otherwise linger for a second.
const raceDetector = "GORACE=halt_on_error=1 atexit_sleep_ms=0"

var scratch string // a directory that is removed behind all tests

func TestMain(m *testing.M) { os.Exit(runAll(m)) }

func runAll(m *testing.M) int {
	var err error
	if os.Getenv(applicationAddress) != "" {
		if err = runApplication(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	if scratch, err = os.MkdirTemp("", "wsbridge-e2e-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(scratch)
	return m.Run()
}

// program returns the path of the program, with the race detector in it.
func program(t *testing.T) string {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var build = sync.OnceValues(func() (string, error) {
	// The go command repeats the result of a test without running it while what the test has opened is unchanged. What the compiler opens is
	// not known to it, the directories of the sources are.
	err := filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() && strings.HasPrefix(entry.Name(), ".") && path != ".." {
			return fs.SkipDir
		}
		return err
	})
	if err != nil {
		return "", err
	}
	path := filepath.Join(scratch, "wsbridge")
	if out, err := exec.Command("go", "build", "-race", "-o", path, "wsbridge/cmd/wsbridge").CombinedOutput(); err != nil {
		return "", fmt.Errorf("the program does not build: %w\n%s", err, out)
	}
	return path, nil
})

// tool returns the path of a program that a Debian package has.
func tool(t *testing.T, name, debianPackage string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("this test needs %s: run apt-get install %s", name, debianPackage)
	}
	return path
}

// tempDir returns a directory whose name is short enough for unix sockets, which t.TempDir's is not.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// freePort returns a port for those who can't choose one by themselves. It is below those that the kernel hands out, so that nobody is
// given it meanwhile, and none is given to two tests.
func freePort(t *testing.T) string {
	t.Helper()
	for range 100 {
		port := strconv.Itoa(15000 + rand.IntN(15000))
		if _, taken := ports.LoadOrStore(port, true); taken {
			continue
		}
		if l, err := net.Listen("tcp", "127.0.0.1:"+port); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("there is no free port")
	return ""
}

// ports are those that freePort has given.
var ports sync.Map

// output is what a process has written, in lines.
type output struct {
	mu      sync.Mutex // guards the following
	text    bytes.Buffer
	changed chan struct{} // closed, and made anew, when there is more
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text.Write(p)
	if o.changed != nil {
		close(o.changed)
		o.changed = nil
	}
	return len(p), nil
}

// soFar returns what has been written, and a channel that is closed when there is more.
func (o *output) soFar() (string, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.changed == nil {
		o.changed = make(chan struct{})
	}
	return o.text.String(), o.changed
}

func (o *output) String() string {
	text, _ := o.soFar()
	return text
}

// process is a program that was started and is not left behind.
type process struct {
	cmd *exec.Cmd
	out output // stdout and stderr
	end chan struct{}
}

// start starts a program with an environment of its own. When the test ends it is ended, if it is still there.
func start(t *testing.T, env []string, name string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(name, args...), end: make(chan struct{})}
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), raceDetector}, env...)
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	p.cmd.SysProcAttr = apart()
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.cmd.Wait()
		close(p.end)
	}()
	t.Cleanup(func() {
		select {
		case <-p.end:
		default:
			syscall.Kill(-p.cmd.Process.Pid, syscall.SIGTERM)
			select {
			case <-p.end:
			case <-time.After(patience):
				syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
				t.Errorf("%s does not end on SIGTERM", name)
				<-p.end
			}
		}
		if t.Failed() {
			t.Logf("%s wrote:\n%s", filepath.Base(name), &p.out)
		}
	})
	return p
}

// awaitLine returns the first line of the output that has all the words.
func (p *process) awaitLine(t *testing.T, words ...string) string {
	t.Helper()
	return p.awaitLines(t, 1, words...)[0]
}

// awaitLines returns the first n lines of the output that have all the words.
func (p *process) awaitLines(t *testing.T, n int, words ...string) []string {
	t.Helper()
	giveUp := time.After(patience)
	for last := false; ; {
		text, changed := p.out.soFar()
		var found []string
	lines:
		for line := range strings.Lines(text) {
			if !strings.HasSuffix(line, "\n") {
				break
			}
			for _, word := range words {
				if !strings.Contains(line, word) {
					continue lines
				}
			}
			if found = append(found, strings.TrimSuffix(line, "\n")); len(found) == n {
				return found
			}
		}
		if last {
			t.Fatalf("%d lines with %q, want %d, of:\n%s", len(found), words, n, text)
		}
		select {
		case <-changed:
		case <-p.end: // all it wrote is there
			last = true
		case <-giveUp:
			last = true
		}
	}
}

func (p *process) signal(t *testing.T, signal syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
}

// exits waits for the end of the process, which must have this code.
func (p *process) exits(t *testing.T, code int) {
	t.Helper()
	select {
	case <-p.end:
	case <-time.After(patience):
		t.Fatalf("the process has not ended; it wrote:\n%s", &p.out)
	}
	if got := p.cmd.ProcessState.ExitCode(); got != code {
		t.Fatalf("exit code = %d, want %d; it wrote:\n%s", got, code, &p.out)
	}
}

// sidecar is the program, serving.
type sidecar struct {
	*process
	clients, pushes string // the addresses that it says it has
}

// serve starts the program and waits until it is ready. It chooses its own ports and logs JSON; env adds to that or overrides it. Unless
// the test has ended it, it must drain on SIGTERM and exit with 0 in the end.
func serve(t *testing.T, env ...string) *sidecar {
	t.Helper()
	return serveFrom(t, program(t), env...)
}

// serveFrom does so with a program at another place.
func serveFrom(t *testing.T, path string, env ...string) *sidecar {
	t.Helper()
	defaults := []string{"WSBRIDGE_HOLDER=" + cmp.Or(os.Getenv("WSBRIDGE_TEST_HOLDER"), "on"), "WSBRIDGE_LISTEN=127.0.0.1:0", "WSBRIDGE_PUSH_LISTEN=127.0.0.1:0", "WSBRIDGE_LOG_FORMAT=json", "WSBRIDGE_NODE=here"}
	s := &sidecar{process: start(t, append(defaults, env...), path)}
	t.Cleanup(func() {
		select {
		case <-s.end:
		default:
			s.signal(t, syscall.SIGTERM)
			s.exits(t, 0)
		}
	})
	var serving struct {
		Listen string `json:"listen"`
		Push   string `json:"push_listen"`
	}
	line := s.awaitLine(t, `"msg":"serving"`)
	if err := json.Unmarshal([]byte(line), &serving); err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	s.clients, s.pushes = serving.Listen, serving.Push
	if strings.HasPrefix(s.pushes, "/") {
		return s // the test knows how to ask there
	}
	if status, body := request(t, "GET", "http://"+s.pushes+"/readyz", nil, ""); status != http.StatusOK {
		t.Fatalf("/readyz of a program that is serving: %d %s", status, body)
	}
	return s
}

// push sends a message to a connection, which must be queued.
func (s *sidecar) push(t *testing.T, id, text string) {
	t.Helper()
	if status, body := request(t, "POST", "http://"+s.pushes+"/connections/"+id, nil, text); status != http.StatusAccepted {
		t.Fatalf("push to %s: %d %s", id, status, body)
	}
}

// awaitMetric waits until the metric is there and not 0.
func (s *sidecar) awaitMetric(t *testing.T, name string) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) { // a metric announces nothing
		_, body := request(t, "GET", "http://"+s.pushes+"/metrics", nil, "")
		for line := range strings.Lines(body) {
			if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+" "); ok && value != "0" {
				return
			}
		}
		if time.Now().After(end) {
			t.Fatalf("%s does not come; the metrics are:\n%s", name, body)
		}
	}
}

// request sends a plain HTTP request and returns the status and body of the answer.
func request(t *testing.T, method, url string, header http.Header, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range header {
		req.Header[name] = values
	}
	req.Close = true // a kept connection would hold up the end of its server
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(content)
}

// event is what the backend was sent.
type event struct {
	kind       string // connect, message, disconnect
	connection string
	path       string // with the query
	host       string
	header     http.Header
	body       string
}

// backend is an application of the test's own, for what a script in another language can't show: it keeps every event.
type backend struct {
	*httptest.Server
	events chan event
}

// newBackend returns a backend that answers as the function does; without one it accepts everything and says nothing. Requests that are
// no events are answered with "the site".
func newBackend(t *testing.T, answer func(w http.ResponseWriter, e event)) *backend {
	t.Helper()
	b := &backend{events: make(chan event, 1000)} // more than any test makes: the program is never held up by a test that doesn't look
	b.Server = httptest.NewServer(b.handler(answer))
	t.Cleanup(b.Close)
	return b
}

func (b *backend) handler(answer func(w http.ResponseWriter, e event)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Joined, as WSGI and CGI do it: an event hidden behind another line of the name is one.
		_, kind, isEvent := strings.Cut(strings.Join(r.Header.Values("ce-type"), ","), "wsbridge.")
		if !isEvent {
			fmt.Fprint(w, "the site")
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		e := event{kind: kind, connection: r.Header.Get("ce-connectionid"), path: r.RequestURI, host: r.Host, header: r.Header, body: string(body)}
		b.events <- e
		if answer != nil {
			answer(w, e)
		} else {
			w.WriteHeader(http.StatusNoContent)
		}
	})
}

// expect returns the next event, which must be of this kind.
func (b *backend) expect(t *testing.T, kind string) event {
	t.Helper()
	select {
	case e := <-b.events:
		if e.kind != kind {
			t.Fatalf("the next event is %s %q, want %s", e.kind, e.body, kind)
		}
		return e
	case <-time.After(patience):
		t.Fatalf("no event; want %s", kind)
		return event{}
	}
}

// echo answers every message with itself.
func echo(w http.ResponseWriter, e event) {
	w.Header().Set("Content-Type", e.header.Get("Content-Type"))
	if e.kind == "message" {
		io.WriteString(w, e.body)
	}
}

// client is a WebSocket client that is connected.
type client struct {
	*websocket.Conn
	handshake *http.Response
}

// connect opens a WebSocket, which must be accepted.
func connect(t *testing.T, dialer websocket.Dialer, url string, header http.Header) *client {
	t.Helper()
	dialer.HandshakeTimeout = patience
	conn, resp, err := dialer.DialContext(t.Context(), url, header)
	if err != nil {
		t.Fatalf("%v: %s", err, describe(resp))
	}
	t.Cleanup(func() { conn.Close() })
	return &client{conn, resp}
}

// refused tries to open a WebSocket, which must be refused, and returns the answer with its body.
func refused(t *testing.T, dialer websocket.Dialer, url string, header http.Header) (*http.Response, string) {
	t.Helper()
	dialer.HandshakeTimeout = patience
	conn, resp, err := dialer.DialContext(t.Context(), url, header)
	if err == nil {
		conn.Close()
		t.Fatal("the handshake was accepted")
	}
	if !errors.Is(err, websocket.ErrBadHandshake) {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	return resp, string(body)
}

func describe(resp *http.Response) string {
	if resp == nil {
		return "no answer"
	}
	body, _ := io.ReadAll(resp.Body)
	return resp.Status + " " + string(body)
}

func (c *client) says(t *testing.T, kind int, text string) {
	t.Helper()
	if err := c.WriteMessage(kind, []byte(text)); err != nil {
		t.Fatal(err)
	}
}

// hears reads the next message, which must be this one.
func (c *client) hears(t *testing.T, kind int, text string) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	gotKind, got, err := c.ReadMessage()
	if err != nil {
		t.Fatalf("%v; want %s", err, shorten(text))
	}
	if gotKind != kind || string(got) != text {
		t.Fatalf("message = kind %d %s, want kind %d %s", gotKind, shorten(string(got)), kind, shorten(text))
	}
}

// ends reads the next frame, which must be a close frame with this code, and closes.
func (c *client) ends(t *testing.T, code int) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	ping := c.PingHandler()
	c.SetPingHandler(func(payload string) error {
		ping(payload) // whose answer may find nobody any more: the close frame is behind it
		return nil
	})
	kind, got, err := c.ReadMessage()
	if err == nil {
		t.Fatalf("message = kind %d %s, want close %d", kind, shorten(string(got)), code)
	}
	if !websocket.IsCloseError(err, code) {
		t.Fatalf("end = %v, want close %d", err, code)
	}
	c.Close()
}

// leaves closes the connection as a client does, and waits for the answer.
func (c *client) leaves(t *testing.T, code int) {
	t.Helper()
	if err := c.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, ""), time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	c.ends(t, code)
}

// isEchoed says something, which the backend hears and echoes.
func (c *client) isEchoed(t *testing.T, b *backend, text string) {
	t.Helper()
	c.says(t, websocket.TextMessage, text)
	c.hears(t, websocket.TextMessage, text)
	b.expect(t, "message")
}

// children returns the process ids of a process's children, whichever of its threads has started them. A kernel that does not tell them is an error.
func children(pid int) (pids []int, err error) {
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid)); err != nil {
		return nil, err
	}
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, thread := range threads {
		text, _ := os.ReadFile(thread)
		for _, field := range strings.Fields(string(text)) {
			if child, err := strconv.Atoi(field); err == nil {
				pids = append(pids, child)
			}
		}
	}
	return pids, err
}

func shorten(text string) string {
	if len(text) > 200 {
		return fmt.Sprintf("%q… (%d bytes)", text[:200], len(text))
	}
	return fmt.Sprintf("%q", text)
}
