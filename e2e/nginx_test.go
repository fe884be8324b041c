package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
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

// site is the shipped nginx/wsbridge.conf, running with addresses of the test's own.
type site struct {
	*process
	public, private string // what the outside sees, and what wsbridge sees
}

// startNginx runs the shipped configuration between a sidecar and an application. Each change is two strings: a part of it, which must be
// there, and what takes its place.
func startNginx(t *testing.T, sidecar, application string, changes ...string) site {
	t.Helper()
	return startNginxWith(t, "wsbridge.conf", append(changes, "server 127.0.0.1:8080;", "server "+sidecar+";", "proxy_pass http://127.0.0.1:9000", "proxy_pass http://"+application)...)
}

// startNginxWith runs one of the files of nginx/.
func startNginxWith(t *testing.T, file string, changes ...string) site {
	t.Helper()
	nginx := tool(t, "nginx", "nginx-light")
	s := site{public: "127.0.0.1:" + freePort(t), private: "127.0.0.1:" + freePort(t)}
	config := nginxFile(t, file)
	changes = append(changes, "listen 80;", "listen "+s.public+";", "listen 127.0.0.1:8082;", "listen "+s.private+";")
	for i := 0; i < len(changes); i += 2 {
		if !strings.Contains(config, changes[i]) {
			t.Fatalf("nginx/%s has no %q", file, changes[i])
		}
		config = strings.ReplaceAll(config, changes[i], changes[i+1])
	}

	dir := tempDir(t)
	main := strings.ReplaceAll(`
pid DIR/nginx.pid;
error_log stderr notice;
events {}
http {
    access_log /dev/stderr;
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
	s.process = start(t, nil, nginx, "-c", filepath.Join(dir, "nginx.conf"), "-g", "daemon off;")
	s.awaitLine(t, "start worker process ") // it listens before that
	return s
}

// reload lets nginx read its configuration again, and awaits the worker that has done so. Those before it go on as long as they have connections.
func (s site) reload(t *testing.T) {
	t.Helper()
	workers := strings.Count(s.out.String(), "start worker process ")
	s.signal(t, syscall.SIGHUP)
	s.awaitLines(t, workers+1, "start worker process ")
}

// nginxFile returns one of the files of nginx/.
func nginxFile(t *testing.T, name string) string {
	t.Helper()
	content, err := os.ReadFile("../nginx/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// dialFrom returns a dialer of a client with that address.
func dialFrom(address string) websocket.Dialer {
	local := &net.TCPAddr{IP: net.ParseIP(address)}
	return websocket.Dialer{NetDialContext: (&net.Dialer{LocalAddr: local}).DialContext}
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
	connect(t, dialFrom("127.0.0.7"), "ws://"+nginx.public+"/ws", http.Header{
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

// nginx/wsbridge-php.conf, with the real PHP-FPM.
func TestNginxBeforePHPFPM(t *testing.T) {
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
	nginx := startNginxWith(t, "wsbridge-php.conf", "server 127.0.0.1:8080;", "server 127.0.0.1:"+port+";", "/var/www/html", dir, "unix:/run/php/php-fpm.sock", "unix:"+dir+"/fpm.sock")
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

// TLS ends in nginx, with the lines for it switched on, and the application is told so.
func TestTLSEndsInNginx(t *testing.T) {
	t.Parallel()
	b, port, secure, dir := newBackend(t, echo), freePort(t), freePort(t), tempDir(t)
	openssl := exec.Command(tool(t, "openssl", "openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
		"-subj", "/CN=example.org", "-addext", "subjectAltName=DNS:example.org", "-keyout", dir+"/key.pem", "-out", dir+"/cert.pem")
	if out, err := openssl.CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	startNginx(t, "127.0.0.1:"+port, b.Listener.Addr().String(), "#listen 443 ssl", "listen 127.0.0.1:"+secure+" ssl", "#ssl_", "ssl_",
		"/etc/ssl/example.org.pem", dir+"/cert.pem", "/etc/ssl/example.org.key", dir+"/key.pem")
	serve(t, "WSBRIDGE_LISTEN=127.0.0.1:"+port, "WSBRIDGE_BACKEND_URL="+b.URL)
	certificate, err := os.ReadFile(dir + "/cert.pem")
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(certificate)
	dialer := websocket.Dialer{TLSClientConfig: &tls.Config{RootCAs: roots}, NetDialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, "127.0.0.1:"+secure)
	}}
	c := connect(t, dialer, "wss://example.org:"+secure+"/ws", http.Header{"Origin": {"https://example.org:" + secure}})
	if got := b.expect(t, "connect").header.Get("X-Forwarded-Proto"); got != "https" {
		t.Errorf("X-Forwarded-Proto = %q, want https", got)
	}
	c.says(t, websocket.TextMessage, "hello")
	c.hears(t, websocket.TextMessage, "hello")
}

// Clients talk while nginx reads its configuration again and again: its old workers go on with those that they have.
func TestClientsStayWhenNginxReloads(t *testing.T) {
	t.Parallel()
	nginx, s, b := behindNginx(t, echo, "WSBRIDGE_BACKEND_EVENTS=message,disconnect")
	var clients []*client
	for i := range 4 {
		for range 4 {
			clients = append(clients, connect(t, websocket.Dialer{}, "ws://"+nginx.public+"/ws", nil))
		}
		reloaded := make(chan struct{})
		var talking sync.WaitGroup
		for _, c := range clients {
			talking.Go(func() {
				for n := 0; ; n++ {
					text := strconv.Itoa(n)
					if err := c.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
						t.Errorf("reload %d: %v", i, err)
						return
					}
					if _, got, err := c.ReadMessage(); err != nil || string(got) != text {
						t.Errorf("reload %d: %q was answered %q, %v", i, text, got, err)
						return
					}
					b.expect(t, "message") // one for each
					select {
					case <-reloaded:
						return
					default:
					}
				}
			})
		}
		nginx.reload(t)
		close(reloaded)
		talking.Wait()
	}
	s.signal(t, syscall.SIGTERM)
	for _, c := range clients {
		c.ends(t, 1001)
		b.expect(t, "disconnect")
	}
	s.exits(t, 0)
}

// Nothing is said for several times as long as nginx waits, and the connection is there: wsbridge's pings keep it. Without them it is not.
func TestPingsKeepAConnectionOpenInNginx(t *testing.T) {
	t.Parallel()
	for interval, kept := range map[string]bool{"400ms": true, "1h": false} {
		t.Run(interval, func(t *testing.T) {
			t.Parallel()
			b, port := newBackend(t, echo), freePort(t)
			nginx := startNginx(t, "127.0.0.1:"+port, b.Listener.Addr().String(), "proxy_read_timeout 75s;", "proxy_read_timeout 1s;")
			serve(t, "WSBRIDGE_LISTEN=127.0.0.1:"+port, "WSBRIDGE_BACKEND_URL="+b.URL, "WSBRIDGE_PING_INTERVAL="+interval)
			c := connect(t, websocket.Dialer{}, "ws://"+nginx.public+"/ws", nil)
			b.expect(t, "connect")
			if !kept {
				c.ends(t, websocket.CloseAbnormalClosure)
				b.expect(t, "disconnect")
				return
			}
			pings := 0
			c.SetPingHandler(func(data string) error {
				if pings++; pings == 8 {
					c.says(t, websocket.TextMessage, "still here")
				}
				return c.WriteControl(websocket.PongMessage, []byte(data), time.Now().Add(patience))
			})
			c.hears(t, websocket.TextMessage, "still here")
		})
	}
}

func TestNginxLimitsWhatOneAddressOpensAndLogsIt(t *testing.T) {
	t.Parallel()
	b, port := newBackend(t, nil), freePort(t)
	nginx := startNginx(t, "127.0.0.1:"+port, b.Listener.Addr().String(), "limit_conn wsbridge_open 200;", "limit_conn wsbridge_open 2;")
	serve(t, "WSBRIDGE_LISTEN=127.0.0.1:"+port, "WSBRIDGE_BACKEND_URL="+b.URL)
	url := "ws://" + nginx.public + "/ws"
	first, second := connect(t, dialFrom("127.0.0.7"), url, nil), connect(t, dialFrom("127.0.0.7"), url, nil)
	if resp, _ := refused(t, dialFrom("127.0.0.7"), url, nil); resp.StatusCode != http.StatusTooManyRequests {
		t.Errorf("a third connection: %s, want 429", resp.Status)
	}
	nginx.awaitLine(t, "limiting connections by zone", "wsbridge_open", "client: 127.0.0.7")
	connect(t, dialFrom("127.0.0.8"), url, nil)

	// One line for each connection, when it is over: nginx has room for the next by then.
	first.leaves(t, 1000)
	b.expect(t, "connect")
	b.expect(t, "connect")
	b.expect(t, "connect")
	b.expect(t, "disconnect")
	nginx.awaitLine(t, "127.0.0.7 - - ", `"GET /ws HTTP/1.1" 101 `)
	connect(t, dialFrom("127.0.0.7"), url, nil)

	nginx = startNginx(t, "127.0.0.1:"+port, b.Listener.Addr().String(), "rate=20r/s", "rate=1r/m", "burst=200", "burst=2")
	url = "ws://" + nginx.public + "/ws"
	for range 3 {
		connect(t, dialFrom("127.0.0.7"), url, nil)
	}
	if resp, _ := refused(t, dialFrom("127.0.0.7"), url, nil); resp.StatusCode != http.StatusTooManyRequests {
		t.Errorf("a fourth connection within a minute: %s, want 429", resp.Status)
	}
	nginx.awaitLine(t, "limiting requests", "wsbridge_opening", "client: 127.0.0.7")
	second.says(t, websocket.TextMessage, "messages are not counted")
	for range 4 {
		b.expect(t, "connect")
	}
	b.expect(t, "message")
}

// The lines for several sidecars, switched on.
func TestSeveralSidecarsBehindNginx(t *testing.T) {
	t.Parallel()
	b := newBackend(t, echo)
	ports := []string{freePort(t), freePort(t)}
	nginx := startNginx(t, "127.0.0.1:"+ports[0], b.Listener.Addr().String(), "#server 127.0.0.1:8180", "server 127.0.0.1:"+ports[1], "#least_conn", "least_conn")
	var sidecars []*sidecar
	for i, port := range ports {
		sidecars = append(sidecars, serve(t, "WSBRIDGE_LISTEN=127.0.0.1:"+port, "WSBRIDGE_BACKEND_URL=http://"+nginx.private+"/realtime.php", "WSBRIDGE_NODE=node"+strconv.Itoa(i)))
	}
	clients := map[string][]*client{}
	open := func() string {
		c := connect(t, websocket.Dialer{}, "ws://"+nginx.public+"/ws", nil)
		node := b.expect(t, "connect").header.Get("ce-source")
		clients[node] = append(clients[node], c)
		return node
	}
	for range 6 {
		open()
	}
	if a, b := len(clients["/wsbridge/node0"]), len(clients["/wsbridge/node1"]); a != 3 || b != 3 {
		t.Fatalf("of 6 clients %d and %d are with the two sidecars, want 3 each", a, b)
	}
	sidecars[0].signal(t, syscall.SIGTERM)
	for _, c := range clients["/wsbridge/node0"] {
		c.ends(t, 1001)
		b.expect(t, "disconnect")
	}
	sidecars[0].exits(t, 0)
	for range 3 {
		if node := open(); node != "/wsbridge/node1" {
			t.Errorf("a new client is with %s, which has stopped", node)
		}
	}
	for _, c := range clients["/wsbridge/node1"] {
		c.says(t, websocket.TextMessage, "hello")
		c.hears(t, websocket.TextMessage, "hello")
	}
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
