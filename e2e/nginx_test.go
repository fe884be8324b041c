package e2e

import (
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/gorilla/websocket"
)

// site is the shipped nginx/wsbridge.conf, running with addresses of the test's own.
type site struct {
	public, private string // what the outside sees, and what wsbridge sees
}

// startNginx runs the shipped configuration between a sidecar and an application. Each change is two strings: a part of it, which must be
// there, and what takes its place.
func startNginx(t *testing.T, sidecar, application string, changes ...string) site {
	t.Helper()
	nginx := tool(t, "nginx", "nginx-light")
	s := site{public: "127.0.0.1:" + freePort(t), private: "127.0.0.1:" + freePort(t)}
	shipped, err := os.ReadFile("../nginx/wsbridge.conf")
	if err != nil {
		t.Fatal(err)
	}
	config := string(shipped)
	for i := 0; i < len(changes); i += 2 {
		if !strings.Contains(config, changes[i]) {
			t.Fatalf("nginx/wsbridge.conf has no %q", changes[i])
		}
		config = strings.ReplaceAll(config, changes[i], changes[i+1])
	}
	for from, to := range map[string]string{
		"listen 80;":                       "listen " + s.public + ";",
		"listen 127.0.0.1:8082;":           "listen " + s.private + ";",
		"server 127.0.0.1:8080;":           "server " + sidecar + ";",
		"proxy_pass http://127.0.0.1:9000": "proxy_pass http://" + application,
	} {
		if !strings.Contains(config, from) {
			t.Fatalf("nginx/wsbridge.conf has no %q", from)
		}
		config = strings.ReplaceAll(config, from, to)
	}

	dir := tempDir(t)
	main := strings.ReplaceAll(`
pid DIR/nginx.pid;
error_log stderr notice;
events {}
http {
    access_log off;
    client_body_temp_path DIR/body;
    proxy_temp_path DIR/proxy;
    fastcgi_temp_path DIR/fastcgi;
    uwsgi_temp_path DIR/uwsgi;
    scgi_temp_path DIR/scgi;
    include DIR/wsbridge.conf;
}
`, "DIR", dir)
	parameters, err := os.ReadFile("/etc/nginx/fastcgi_params")
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"nginx.conf": main, "wsbridge.conf": config, "fastcgi_params": string(parameters)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil { // its workers are not root
		t.Fatal(err)
	}
	process := start(t, nil, nginx, "-c", filepath.Join(dir, "nginx.conf"), "-g", "daemon off;")
	process.awaitLine(t, "start worker process ") // it listens before that
	return s
}

// behindNginx is a sidecar and an application behind nginx, and nginx between the two.
func behindNginx(t *testing.T, answer func(http.ResponseWriter, event), env ...string) (site, *sidecar, *backend) {
	t.Helper()
	b := newBackend(t, answer)
	port := freePort(t) // nginx is told of it before the sidecar runs
	nginx := startNginx(t, "127.0.0.1:"+port, b.Listener.Addr().String())
	env = append(env, "WSBRIDGE_LISTEN=127.0.0.1:"+port, "WSBRIDGE_BACKEND_URL=http://"+nginx.private+"/realtime.php")
	return nginx, serve(t, env...), b
}

func TestMessagesPassNginxAsTheyAre(t *testing.T) {
	t.Parallel()
	nginx, s, b := behindNginx(t, func(w http.ResponseWriter, e event) {
		if e.kind == "connect" {
			w.Header().Set("Sec-WebSocket-Protocol", "chat.v2")
			w.Header().Set("Set-Cookie", "session=1; Path=/")
		}
		echo(w, e)
	}, "WSBRIDGE_COMPRESSION=on", "WSBRIDGE_MAX_MESSAGE=1MiB")
	dialer := websocket.Dialer{EnableCompression: true, Subprotocols: []string{"chat.v1", "chat.v2"}}
	c := connect(t, dialer, "ws://"+nginx.public+"/ws/7?x=1", http.Header{"Cookie": {"lang=en"}})
	if got := c.Subprotocol(); got != "chat.v2" {
		t.Errorf("subprotocol = %q, want chat.v2", got)
	}
	if got := c.handshake.Header.Get("Sec-WebSocket-Extensions"); !strings.Contains(got, "permessage-deflate") {
		t.Errorf("Sec-WebSocket-Extensions = %q, want permessage-deflate", got)
	}
	if got := c.handshake.Header.Get("Set-Cookie"); got != "session=1; Path=/" {
		t.Errorf("Set-Cookie of the 101 = %q, want the application's", got)
	}
	e := b.expect(t, "connect")
	if e.path != "/realtime.php?x=1" || e.host != nginx.public || e.header.Get("Cookie") != "lang=en" {
		t.Errorf("connect event: %s, Host %s, Cookie %q; want the application's path with the client's query, host and cookie", e.path, e.host, e.header.Get("Cookie"))
	}

	c.says(t, websocket.TextMessage, "grüß dich")
	c.hears(t, websocket.TextMessage, "grüß dich")
	e = b.expect(t, "message")
	if got := e.header.Get("Cookie"); got != "lang=en; session=1" {
		t.Errorf("Cookie of a message = %q, want lang=en; session=1", got)
	}
	c.says(t, websocket.BinaryMessage, "\x00\xff")
	c.hears(t, websocket.BinaryMessage, "\x00\xff")
	for _, compress := range []bool{true, false} {
		big := strings.Repeat("a big message. ", 60_000)
		c.EnableWriteCompression(compress)
		c.says(t, websocket.TextMessage, big)
		c.hears(t, websocket.TextMessage, big)
	}
	s.push(t, e.connection, "pushed")
	c.hears(t, websocket.TextMessage, "pushed")

	s.signal(t, syscall.SIGTERM)
	c.ends(t, 1001)
	s.exits(t, 0)
}

func TestTheClientsOwnAddressPassesNginxAndAForgedOneDoesNot(t *testing.T) {
	t.Parallel()
	nginx, _, b := behindNginx(t, nil)
	from := func(address string) websocket.Dialer {
		local := &net.TCPAddr{IP: net.ParseIP(address)}
		return websocket.Dialer{NetDialContext: (&net.Dialer{LocalAddr: local}).DialContext}
	}
	connect(t, from("127.0.0.7"), "ws://"+nginx.public+"/ws", http.Header{
		"X-Forwarded-For": {"192.0.2.1"}, "X-Real-IP": {"192.0.2.2"}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-Host": {"forged.example"},
	})
	e := b.expect(t, "connect")
	for name, want := range map[string]string{
		"X-Real-IP": "127.0.0.7", "X-Forwarded-For": "127.0.0.7, 127.0.0.1", "X-Forwarded-Proto": "http", "X-Forwarded-Host": nginx.public,
	} {
		if got := e.header.Get(name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
}

// The port of the test's nginx is none that a browser would leave out.
func TestTheOriginIsComparedWithHostAndPortThroughNginx(t *testing.T) {
	t.Parallel()
	nginx, _, b := behindNginx(t, nil)
	_, port, _ := net.SplitHostPort(nginx.public)
	dialer := websocket.Dialer{NetDialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, nginx.public)
	}}
	connect(t, dialer, "ws://example.org:"+port+"/ws", http.Header{"Origin": {"http://example.org:" + port}})
	b.expect(t, "connect")
	for _, origin := range []string{"http://example.org", "http://other.example:" + port, "http://example.org:1"} {
		resp, body := refused(t, dialer, "ws://example.org:"+port+"/ws", http.Header{"Origin": {origin}})
		if resp.StatusCode != http.StatusForbidden || !strings.Contains(body, "origin") {
			t.Errorf("origin %s: %s %q, want wsbridge's 403", origin, resp.Status, body)
		}
	}
}

func TestNobodyOutsideCanSendAnEvent(t *testing.T) {
	t.Parallel()
	nginx, s, b := behindNginx(t, nil)
	connect(t, websocket.Dialer{}, "ws://"+nginx.public+"/ws", nil)
	id := b.expect(t, "connect").connection

	forged := http.Header{"Ce-Type": {"wsbridge.message"}, "Ce-Userid": {"admin"}}
	for _, path := range []string{"/", "/realtime.php", "/index.php/realtime", "/ws"} {
		if status, body := request(t, "POST", "http://"+nginx.public+path, forged, "forged"); status != http.StatusForbidden {
			t.Errorf("POST %s with ce-type: %d %s, want 403", path, status, body)
		}
	}
	for _, path := range []string{"/realtime.php", "/realtime.php/x", "//realtime.php", "/x/../realtime.php", "/realtime%2ephp"} {
		if status, body := request(t, "POST", "http://"+nginx.public+path, nil, "forged"); status != http.StatusNotFound {
			t.Errorf("POST %s: %d %s, want 404", path, status, body)
		}
	}
	// nginx looks at the first line of a header only, and takes the value 0 for no.
	for _, first := range []string{"", "0"} {
		hidden := http.Header{"Ce-Type": {first, "wsbridge.message"}}
		if status, body := request(t, "POST", "http://"+nginx.public+"/", hidden, "forged"); body != "the site" {
			t.Errorf("POST with ce-type behind %q: %d %s, want no ce-type at the application", first, status, body)
		}
	}
	// The push side has another address, which nginx knows nothing of.
	for _, path := range []string{"/connections/" + id, "/connections", "/metrics", "/debug/pprof/"} {
		if status, body := request(t, "POST", "http://"+nginx.public+path, nil, "pushed"); body != "the site" {
			t.Errorf("POST %s: %d %s, want the application's answer", path, status, body)
		}
	}
	if status, body := request(t, "POST", "http://"+nginx.private+"/", nil, ""); status != http.StatusNotFound {
		t.Errorf("POST / of the private server: %d %s, want 404", status, body)
	}
	if status, body := request(t, "GET", "http://"+nginx.public+"/ws", nil, ""); status != http.StatusUpgradeRequired {
		t.Errorf("GET /ws without an upgrade: %d %s, want wsbridge's 426", status, body)
	}
	if status, body := request(t, "GET", "http://"+nginx.public+"/wsomething", nil, ""); body != "the site" {
		t.Errorf("GET /wsomething: %d %s, want the application's answer", status, body)
	}
	if len(b.events) > 0 {
		t.Errorf("the application has taken a forged event: %+v", <-b.events)
	}
	s.push(t, id, "the connection is still there")
}

// The lines that nginx/wsbridge.conf has for PHP-FPM, switched on, with the real one.
func TestTheLinesForPHPFPMWork(t *testing.T) {
	t.Parallel()
	fpm := phpFPM(t)
	dir := tempDir(t)
	script, err := os.ReadFile("testdata/shout.php")
	if err != nil {
		t.Fatal(err)
	}
	config := "[global]\nerror_log=/dev/stderr\ndaemonize=no\n[www]\nlisten=" + dir + "/fpm.sock\nlisten.mode=0666\nuser=www-data\npm=static\npm.max_children=2\n"
	index := "<?php echo 'the site ', isset($_SERVER['HTTP_CE_TYPE']) ? 'takes this for an event' : 'sees no event';"
	for name, content := range map[string]string{"fpm.conf": config, "realtime.php": string(script), "index.php": index} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	startFPM := func() *process {
		p := start(t, nil, fpm, "-F", "-y", filepath.Join(dir, "fpm.conf"))
		p.awaitLine(t, "ready to handle connections")
		return p
	}
	application := startFPM()

	port := freePort(t)
	nginx := startNginx(t, "127.0.0.1:"+port, "127.0.0.1:9",
		"    #root", "    root", "    #index", "    index", "    #location", "    location", "    #    ", "        ", "    #}", "    }",
		"    location / {\n        proxy_pass", "    location /unused {\n        proxy_pass",
		"    location = /realtime.php {\n        proxy_pass", "    location = /unused {\n        proxy_pass",
		"/var/www/html", dir, "unix:/run/php/php-fpm.sock", "unix:"+dir+"/fpm.sock")
	s := serve(t, "WSBRIDGE_LISTEN=127.0.0.1:"+port, "WSBRIDGE_BACKEND_URL=http://"+nginx.private+"/realtime.php", "WSBRIDGE_BACKEND_EVENTS=message")
	c := connect(t, websocket.Dialer{}, "ws://"+nginx.public+"/ws", nil)
	c.says(t, websocket.TextMessage, "hello")
	c.hears(t, websocket.TextMessage, "HELLO")

	// While PHP-FPM is away the message waits, since nginx says 503 and not 502.
	application.signal(t, syscall.SIGTERM)
	application.exits(t, 0)
	c.says(t, websocket.TextMessage, "are you there?")
	s.awaitMetric(t, `wsbridge_events_total{result="later",type="message"}`)
	startFPM()
	c.hears(t, websocket.TextMessage, "ARE YOU THERE?")

	forged := http.Header{"Ce-Type": {"wsbridge.message"}}
	hidden := http.Header{"Ce-Type": {"0", "wsbridge.message"}}
	for _, try := range []struct {
		path   string
		header http.Header
		status int
		body   string
	}{
		{"/realtime.php", nil, http.StatusNotFound, ""},
		{"/realtime.php/x", hidden, http.StatusNotFound, ""},
		{"/index.php", forged, http.StatusForbidden, ""},
		{"/index.php", hidden, http.StatusOK, "the site sees no event"},
		{"/", nil, http.StatusOK, "the site sees no event"},
	} {
		if status, body := request(t, "POST", "http://"+nginx.public+try.path, try.header, "forged"); status != try.status || try.body != "" && body != try.body {
			t.Errorf("POST %s with %v: %d %s, want %d %s", try.path, try.header, status, body, try.status, try.body)
		}
	}
	s.signal(t, syscall.SIGTERM)
	c.ends(t, 1001)
	s.exits(t, 0)
}

// phpFPM returns the path of PHP-FPM, whose name has PHP's version in it.
func phpFPM(t *testing.T) string {
	t.Helper()
	for _, dir := range []string{"/usr/sbin", "/usr/local/sbin"} {
		found, _ := filepath.Glob(filepath.Join(dir, "php-fpm*"))
		for _, path := range found {
			if _, err := exec.LookPath(path); err == nil {
				return path
			}
		}
	}
	t.Fatal("this test needs PHP-FPM: run apt-get install php-fpm")
	return ""
}
