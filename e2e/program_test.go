package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// runOnce runs the program to its end and returns what it wrote to stdout and to stderr, and its exit code.
func runOnce(t *testing.T, env []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	path := program(t) // building it takes longer than running it
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append([]string{raceDetector}, env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		if _, ok := errors.AsType[*exec.ExitError](err); !ok || ctx.Err() != nil {
			t.Fatalf("%v; it wrote:\n%s", err, &errs)
		}
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func TestFaultySettingsAreToldAllAtOnceAndNothingIsStarted(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(tempDir(t), "ws.sock")
	_, stderr, code := runOnce(t, []string{
		"WSBRIDGE_LISTEN=unix:" + socket, "WSBRIDGE_PING_INTERVAL=often", "WSBRIDGE_MAX_MESSAGE=0", "WSBRIDGE_PUSH_TOKN=planted-secret",
	})
	if code != 2 {
		t.Errorf("exit code = %d, want 2", code)
	}
	for _, want := range []string{"WSBRIDGE_BACKEND_URL: must be set", `WSBRIDGE_PING_INTERVAL="often"`, `WSBRIDGE_MAX_MESSAGE="0"`,
		"WSBRIDGE_PUSH_TOKN: no such setting; the nearest name is WSBRIDGE_PUSH_TOKEN"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("stderr lacks %q:\n%s", want, stderr)
		}
	}
	if strings.Contains(stderr, "planted-secret") {
		t.Errorf("stderr shows the value of an unknown variable:\n%s", stderr)
	}
	if _, err := os.Lstat(socket); !errors.Is(err, fs.ErrNotExist) || strings.Contains(stderr, "serving") {
		t.Errorf("something was started: %v\n%s", err, stderr)
	}
}

func TestAnAddressInUseIsAClearFailure(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, variable := range []string{"WSBRIDGE_LISTEN", "WSBRIDGE_PUSH_LISTEN"} {
		env := []string{"WSBRIDGE_BACKEND_URL=http://127.0.0.1:9", "WSBRIDGE_LISTEN=127.0.0.1:0", "WSBRIDGE_PUSH_LISTEN=127.0.0.1:0", variable + "=" + taken.Addr().String()}
		_, stderr, code := runOnce(t, env)
		if code != 1 {
			t.Errorf("%s: exit code = %d, want 1", variable, code)
		}
		if !strings.Contains(stderr, variable) || !strings.Contains(stderr, taken.Addr().String()) || !strings.Contains(stderr, "address already in use") {
			t.Errorf("stderr says nothing of %s=%s being in use:\n%s", variable, taken.Addr(), stderr)
		}
	}
}

func TestSIGTERMDeliversAnswersClosesAndGoodbyes(t *testing.T) {
	t.Parallel()
	held := make(chan struct{})
	release := sync.OnceFunc(func() { close(held) })
	b := newBackend(t, func(w http.ResponseWriter, e event) {
		if e.kind == "message" {
			<-held
			fmt.Fprint(w, "the answer to "+e.body)
		}
	})
	s := serve(t, "WSBRIDGE_BACKEND_URL="+b.URL)
	t.Cleanup(release) // before the sidecar's own: a test that fails ends as well
	busy := connect(t, websocket.Dialer{}, "ws://"+s.clients+"/ws", nil)
	b.expect(t, "connect")
	busy.says(t, websocket.TextMessage, "a question")
	b.expect(t, "message")
	quiet := connect(t, websocket.Dialer{}, "ws://"+s.clients+"/ws", nil)
	b.expect(t, "connect")

	s.signal(t, syscall.SIGTERM)
	quiet.ends(t, 1001) // the drain is under way
	if status, body := request(t, "GET", "http://"+s.pushes+"/readyz", nil, ""); status != http.StatusServiceUnavailable {
		t.Errorf("/readyz during the drain: %d %s, want 503", status, body)
	}
	if conn, err := net.Dial("tcp", s.clients); err == nil {
		conn.Close()
		t.Error("new clients are still accepted")
	}
	release()
	busy.hears(t, websocket.TextMessage, "the answer to a question")
	busy.ends(t, 1001)
	s.exits(t, 0)
	left := map[string]bool{}
	for range 2 {
		e := b.expect(t, "disconnect")
		left[e.connection] = true
		if !strings.Contains(e.body, `"code":1001`) || !strings.Contains(e.body, `"by":"bridge"`) {
			t.Errorf("disconnect event: %s, want code 1001 by the bridge", e.body)
		}
	}
	if len(left) != 2 {
		t.Errorf("disconnect events of %d connections, want 2", len(left))
	}
}

func TestASecondSignalEndsAtOnce(t *testing.T) {
	t.Parallel()
	held := make(chan struct{})
	b := newBackend(t, func(_ http.ResponseWriter, e event) {
		if e.kind == "message" {
			<-held
		}
	})
	s := serve(t, "WSBRIDGE_BACKEND_URL="+b.URL, "WSBRIDGE_DRAIN_TIMEOUT=1h")
	t.Cleanup(func() { close(held) })
	c := connect(t, websocket.Dialer{}, "ws://"+s.clients+"/ws", nil)
	c.says(t, websocket.TextMessage, "a question")
	b.expect(t, "connect")
	b.expect(t, "message")
	s.signal(t, syscall.SIGTERM)
	s.awaitLine(t, `"msg":"draining"`)
	s.signal(t, syscall.SIGTERM)
	s.exits(t, 1)
	if !strings.Contains(s.out.String(), "a second signal") {
		t.Errorf("the end is not explained:\n%s", &s.out)
	}
}

func TestBothListenersWorkOnUnixSockets(t *testing.T) {
	t.Parallel()
	curl := tool(t, "curl", "curl")
	b := newBackend(t, echo)
	dir := tempDir(t)
	clients, pushes := filepath.Join(dir, "ws.sock"), filepath.Join(dir, "push.sock")
	s := serve(t, "WSBRIDGE_BACKEND_URL="+b.URL, "WSBRIDGE_LISTEN=unix:"+clients, "WSBRIDGE_PUSH_LISTEN=unix:"+pushes, "WSBRIDGE_SOCKET_MODE=0640")
	for _, socket := range []string{clients, pushes} {
		if info, err := os.Lstat(socket); err != nil {
			t.Error(err)
		} else if info.Mode() != fs.ModeSocket|0o640 {
			t.Errorf("%s has mode %s, want a socket with 0640", socket, info.Mode())
		}
	}
	ask := func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), curl, append([]string{"-sS", "-w", " %{http_code}"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("curl: %v %s", err, out)
		}
		return string(out)
	}
	if got := ask("--unix-socket", pushes, "http://localhost/readyz"); got != "ready\n 200" {
		t.Errorf("/readyz = %q, want 200", got)
	}
	if got := ask("--unix-socket", clients, "http://localhost/ws"); !strings.HasSuffix(got, " 426") {
		t.Errorf("a request without an upgrade: %q, want 426", got)
	}

	dialer := websocket.Dialer{NetDialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", clients)
	}}
	c := connect(t, dialer, "ws://example.org/ws", http.Header{"X-Forwarded-For": {"192.0.2.7"}})
	e := b.expect(t, "connect")
	if got := e.header.Get("X-Real-IP"); got != "192.0.2.7" { // who can open the socket is a trusted proxy
		t.Errorf("X-Real-IP = %q, want 192.0.2.7", got)
	}
	if got := ask("--unix-socket", pushes, "-d", "pushed", "http://localhost/connections/"+e.connection); got != " 202" {
		t.Errorf("push = %q, want 202", got)
	}
	c.hears(t, websocket.TextMessage, "pushed")
	s.signal(t, syscall.SIGTERM)
	c.ends(t, 1001)
	s.exits(t, 0)
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestClientsCanSpeakTLS(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"example.org"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for file, content := range map[string][]byte{certFile: certPEM, keyFile: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}

	b := newBackend(t, echo)
	s := serve(t, "WSBRIDGE_BACKEND_URL="+b.URL, "WSBRIDGE_TLS_CERT="+certFile, "WSBRIDGE_TLS_KEY="+keyFile)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(certPEM)
	dialer := websocket.Dialer{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "example.org"}}
	c := connect(t, dialer, "wss://"+s.clients+"/ws", nil)
	if got := b.expect(t, "connect").header.Get("X-Forwarded-Proto"); got != "https" {
		t.Errorf("X-Forwarded-Proto = %q, want https", got)
	}
	c.says(t, websocket.TextMessage, "hello")
	c.hears(t, websocket.TextMessage, "hello")
	s.signal(t, syscall.SIGTERM)
	c.ends(t, 1001)
	s.exits(t, 0)
}

func TestTheProgramTellsOfItself(t *testing.T) {
	t.Parallel()
	b := newBackend(t, nil)
	stdout, stderr, code := runOnce(t, nil, "version")
	if code != 0 || !strings.HasPrefix(stdout, "wsbridge ") || !strings.Contains(stdout, " go1.") || strings.Count(stdout, "\n") != 1 {
		t.Errorf("version: %d %q %q, want one line", code, stdout, stderr)
	}

	url := "WSBRIDGE_BACKEND_URL=" + b.URL
	stdout, stderr, code = runOnce(t, []string{url, "WSBRIDGE_PUSH_TOKEN=planted-secret"}, "env")
	if code != 0 || !strings.Contains(stdout, "\n"+url+"\n") || !strings.Contains(stdout, "\n#WSBRIDGE_PING_INTERVAL=25s\n") || strings.Contains(stdout+stderr, "planted-secret") {
		t.Errorf("env: %d %s%s\nwant the settings, and no secret", code, stdout, stderr)
	}

	free := []string{"WSBRIDGE_LISTEN=127.0.0.1:0", "WSBRIDGE_PUSH_LISTEN=127.0.0.1:0"}
	stdout, stderr, code = runOnce(t, append(free, url), "check")
	if code != 0 || !strings.Contains(stdout, "ok   "+url+" answers\n") {
		t.Errorf("check: %d %s%s\nwant 0 and the backend's answer", code, stdout, stderr)
	}
	if len(b.events) > 0 {
		t.Errorf("check has sent an event: %+v", <-b.events)
	}
	b.Close()
	stdout, stderr, code = runOnce(t, append(free, url), "check")
	if code != 1 || !strings.Contains(stdout, "FAIL "+url+": ") {
		t.Errorf("check without a backend: %d %s%s\nwant 1", code, stdout, stderr)
	}
	stdout, stderr, code = runOnce(t, []string{url, "WSBRIDGE_LOG_FORMAT=xml"}, "check")
	if code != 2 || !strings.Contains(stdout, "FAIL WSBRIDGE_LOG_FORMAT") {
		t.Errorf("check of a faulty setting: %d %s%s, want 2", code, stdout, stderr)
	}
	_, stderr, code = runOnce(t, []string{url}, "serv")
	if code != 2 || !strings.Contains(stderr, `no command "serv"`) {
		t.Errorf("an unknown command: %d %s, want 2", code, stderr)
	}
}

// The log at its most talkative, with a client and a backend that behave and with ones that don't.
func TestTheLogHasALineForEachConnectionAndNoSecret(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"json", "text"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			b := newBackend(t, func(w http.ResponseWriter, e event) {
				w.Header().Set("Set-Cookie", "session=planted-secret-1")
				switch e.body {
				case "":
					w.Header().Set("Ws-State", "planted-secret-2")
				case "planted-secret-3 break":
					w.Header().Set("Ws-Messages", "two") // makes no sense
					fmt.Fprint(w, "planted-secret-4")
				case "planted-secret-3 fail":
					w.WriteHeader(http.StatusInternalServerError)
					fmt.Fprint(w, "planted-secret-4")
				default:
					fmt.Fprint(w, "planted-secret-4")
				}
			})
			// The first line, which says where it listens, is read as JSON: the other format is tried on fixed ports.
			env := []string{"WSBRIDGE_BACKEND_URL=" + b.URL, "WSBRIDGE_LOG_LEVEL=debug", "WSBRIDGE_PUSH_TOKEN=planted-secret-5", "WSBRIDGE_LOG_FORMAT=" + format,
				"WSBRIDGE_ALLOWED_ORIGINS=https://example.org", "WSBRIDGE_HANDSHAKE_TIMEOUT=2s", "WSBRIDGE_DRAIN_TIMEOUT=1s"} // for those that meet no backend
			var s *sidecar
			if format == "json" {
				s = serve(t, env...)
			} else {
				s = &sidecar{clients: "127.0.0.1:" + freePort(t), pushes: "127.0.0.1:" + freePort(t)}
				s.process = start(t, append(env, "WSBRIDGE_LISTEN="+s.clients, "WSBRIDGE_PUSH_LISTEN="+s.pushes), program(t))
				s.awaitLine(t, "level=INFO msg=serving")
			}
			url := "ws://" + s.clients + "/ws?token=planted-secret-6"
			header := http.Header{"Cookie": {"a=planted-secret-7"}, "Authorization": {"Bearer planted-secret-8"}}
			good := connect(t, websocket.Dialer{}, url, header)
			good.says(t, websocket.TextMessage, "planted-secret-3")
			good.hears(t, websocket.TextMessage, "planted-secret-4")
			id := b.expect(t, "connect").connection
			push := http.Header{"Authorization": {"Bearer planted-secret-5"}}
			if status, body := request(t, "POST", "http://"+s.pushes+"/connections/"+id, push, "planted-secret-9"); status != http.StatusAccepted {
				t.Fatalf("push: %d %s", status, body)
			}
			if status, _ := request(t, "POST", "http://"+s.pushes+"/connections/"+id, http.Header{"Authorization": {"Bearer planted-secret-0"}}, "x"); status != http.StatusUnauthorized {
				t.Fatalf("push with a wrong token: %d, want 401", status)
			}
			good.hears(t, websocket.TextMessage, "planted-secret-9")
			for _, fault := range []string{"break", "fail"} {
				bad := connect(t, websocket.Dialer{}, url, header)
				bad.says(t, websocket.TextMessage, "planted-secret-3 "+fault)
				bad.ends(t, 1011)
			}
			refused(t, websocket.Dialer{}, url, http.Header{"Origin": {"https://other.example"}, "Cookie": header["Cookie"]})
			vanishing := connect(t, websocket.Dialer{}, url, header)
			vanishing.NetConn().Write([]byte("\x81\xfeplanted-secret-3")) // the start of a frame
			vanishing.NetConn().Close()
			s.awaitLines(t, 3, "connection ended") // the two bad ones and this one
			good.leaves(t, 1000)
			s.awaitLines(t, 4, "connection ended")
			b.CloseClientConnections()
			b.Close()
			refused(t, websocket.Dialer{}, url, header)
			s.signal(t, syscall.SIGTERM)
			s.exits(t, 0)

			lines := 0
			for line := range strings.Lines(s.out.String()) {
				if strings.Contains(line, "planted-secret") {
					t.Errorf("a secret in the log: %s", line)
				}
				if !strings.Contains(line, "connection ended") {
					continue
				}
				lines++
				for _, attribute := range []string{"id", "address", "path", "user", "code", "reason", "by", "seconds", "messages_in", "messages_out", "bytes_in", "bytes_out"} {
					if !strings.Contains(line, " "+attribute+"=") && !strings.Contains(line, `"`+attribute+`":`) {
						t.Errorf("the line of a connection has no %s: %s", attribute, line)
					}
				}
				if format == "json" && !json.Valid([]byte(line)) {
					t.Errorf("not JSON: %s", line)
				}
			}
			if lines != 4 {
				t.Errorf("%d lines of ended connections, want 4 (those that were refused have none):\n%s", lines, &s.out)
			}
		})
	}
}

func TestMetricsShowWhatExists(t *testing.T) {
	t.Parallel()
	b := newBackend(t, func(w http.ResponseWriter, e event) {
		if e.kind == "connect" {
			io.WriteString(w, "welcome")
			return
		}
		echo(w, e)
	})
	s := serve(t, "WSBRIDGE_BACKEND_URL="+b.URL)
	c := connect(t, websocket.Dialer{}, "ws://"+s.clients+"/ws", nil)
	c.hears(t, websocket.TextMessage, "welcome")
	c.says(t, websocket.TextMessage, "hello")
	c.hears(t, websocket.TextMessage, "hello")
	s.push(t, b.expect(t, "connect").connection, "pushed")
	c.hears(t, websocket.TextMessage, "pushed")
	gone := connect(t, websocket.Dialer{}, "ws://"+s.clients+"/ws", nil)
	gone.hears(t, websocket.TextMessage, "welcome")
	gone.leaves(t, 1000)
	s.awaitLine(t, "connection ended")
	refused(t, websocket.Dialer{}, "ws://"+s.clients+"/ws", http.Header{"Origin": {"https://other.example"}})

	_, body := request(t, "GET", "http://"+s.pushes+"/metrics", nil, "")
	for _, want := range []string{
		"wsbridge_connections 1",
		"wsbridge_connections_accepted_total 2",
		`wsbridge_handshakes_refused_total{gate="origin"} 1`,
		`wsbridge_closes_total{code="client"} 1`,
		`wsbridge_events_total{result="accepted",type="connect"} 2`,
		`wsbridge_events_total{result="accepted",type="message"} 1`,
		`wsbridge_event_duration_seconds_count{type="message"} 1`,
		"wsbridge_events_in_flight ",
		`wsbridge_messages_total{direction="in"} 1`,
		`wsbridge_messages_total{direction="out"} 4`,
		`wsbridge_message_bytes_total{direction="in"} 5`,
		`wsbridge_message_bytes_total{direction="out"} 25`,
		`wsbridge_pushes_total{verdict="queued"} 1`,
		"wsbridge_queue_bytes 0",
		"wsbridge_goodbyes_waiting ",
		"go_goroutines ",
		"process_open_fds ",
	} {
		if !strings.Contains("\n"+body, "\n"+want) {
			t.Errorf("/metrics lacks %q", want)
		}
	}
	if t.Failed() {
		t.Log(body)
	}
}

// SIGUSR1 makes the log say everything for a while, whichever process logs; a second one ends that.
func TestASignalMakesTheLogSayEverything(t *testing.T) {
	t.Parallel()
	for _, held := range []string{"on", "off"} {
		b := newBackend(t, echo)
		s := serve(t, "WSBRIDGE_BACKEND_URL="+b.URL+"/events", "WSBRIDGE_HOLDER="+held)
		c := connect(t, websocket.Dialer{}, "ws://"+s.clients+"/ws", nil)
		say := func(text string) {
			c.says(t, websocket.TextMessage, text)
			c.hears(t, websocket.TextMessage, text)
		}
		say("before")
		s.signal(t, syscall.SIGUSR1)
		s.awaitLine(t, "everything is logged for a while")
		say("planted-secret")
		s.awaitLine(t, `"msg":"event"`, `"type":"message"`, `"sequence":3`, `"outcome":"accepted"`, `"status":200`)
		s.signal(t, syscall.SIGUSR1)
		s.awaitLine(t, "the usual one again")
		say("behind")
		c.leaves(t, 1000)
		s.signal(t, syscall.SIGTERM)
		s.exits(t, 0)
		if log := s.out.String(); strings.Count(log, `"msg":"event"`) != 1 || strings.Contains(log, "planted-secret") {
			t.Errorf("with the holder %s the log is\n%s", held, log)
		}
	}
}
