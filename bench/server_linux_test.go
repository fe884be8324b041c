package bench

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// role is the variable that makes this binary one of the parts. They are processes of their own, so that their processor time is.
const role = "WSBRIDGE_BENCH_ROLE"

func TestMain(m *testing.M) {
	parts := map[string]http.Handler{"backend": http.HandlerFunc(echo), "gorilla": http.HandlerFunc(bare)}
	if handler, ok := parts[os.Getenv(role)]; ok {
		fmt.Fprintln(os.Stderr, http.ListenAndServe(os.Args[1], handler))
		os.Exit(1)
	}
	file := os.Getenv(docs)
	os.Unsetenv(docs) // the program takes it for a setting that it does not know
	code := m.Run()
	if file != "" && code == 0 {
		if err := writeTables(file); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// echo is the backend: it answers what it is asked, puts whom the URL names a group into it, tells whom it asks for it their id, and takes its time for who is to wait.
func echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	w.Header()["Content-Type"] = []string{"text/plain"}
	w.Header()["Content-Length"] = []string{strconv.Itoa(len(body))}
	w.Header()["Date"] = nil
	if r.URL.Query().Has("id") && r.Header.Get("ce-type") == "wsbridge.connect" {
		body = []byte(r.Header.Get("ce-connectionid"))
		w.Header()["Content-Length"] = []string{strconv.Itoa(len(body))}
	}
	if r.URL.Query().Has("slow") && len(body) > 0 {
		time.Sleep(time.Second)
	}
	if group := r.URL.Query().Get("group"); group != "" {
		w.Header()["Ws-Join"] = []string{group}
	}
	w.Write(body)
}

// bare is the server of gorilla's introduction, which has no backend.
func bare(w http.ResponseWriter, r *http.Request) {
	upgrader := websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}
	c, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer c.Close()
	for {
		kind, message, err := c.ReadMessage()
		if err != nil || c.WriteMessage(kind, message) != nil {
			return
		}
	}
}

// nginxConf is nchan as its manual sets it up: a channel for each client, whose messages go to the backend and whose answers come back.
const nginxConf = `load_module /usr/lib/nginx/modules/ngx_nchan_module.so;
user root; worker_processes %[1]d; worker_rlimit_nofile 20000; daemon off; pid %[2]s/pid; error_log %[2]s/error.log crit;
events { worker_connections 19900; use epoll; }
http {
  access_log off; keepalive_requests 100000000; keepalive_timeout 600s; tcp_nodelay on;
  client_body_temp_path %[2]s/b; proxy_temp_path %[2]s/p; fastcgi_temp_path %[2]s/f; uwsgi_temp_path %[2]s/u; scgi_temp_path %[2]s/s;
  nchan_shared_memory_size 1024M;
  upstream be { server %[3]s; keepalive 600; keepalive_requests 100000000; }
  server {
    listen %[4]s backlog=4096;
    location ~ ^/ws/(.+)$ { nchan_pubsub websocket; nchan_channel_id $1; nchan_subscriber_first_message newest; nchan_message_buffer_length 0; nchan_publisher_upstream_request /up; }
    location ~ ^/group/(.+)$ { nchan_subscriber websocket; nchan_channel_id $1; nchan_subscriber_first_message newest; nchan_message_buffer_length 0; }
    location ~ ^/one/(.+)$ { nchan_subscriber websocket; nchan_channel_id one$1; nchan_subscriber_first_message newest; nchan_message_buffer_length 0; }
    location ~ ^/groups/(.+)$ { nchan_publisher http; nchan_channel_id $1; nchan_message_buffer_length 0; }
    location = /up { internal; proxy_pass http://be/echo; proxy_http_version 1.1; proxy_set_header Connection ""; }
  }
}
`

// bed is what the servers are started with.
type bed struct {
	program string // wsbridge
	backend string
}

// server is one that runs.
type server struct {
	kind    string
	push    string // where pushes go
	address string
	process *os.Process
}

// newBed builds the program and starts the backend, until the benchmark ends.
func newBed(b *testing.B) *bed {
	b.Helper()
	if _, err := os.Stat("/usr/lib/nginx/modules/ngx_nchan_module.so"); err != nil {
		b.Fatal("nchan is missing: apt-get install nginx-light libnginx-mod-nchan")
	}
	bed := &bed{program: filepath.Join(b.TempDir(), "wsbridge")}
	if out, err := exec.Command("go", "build", "-o", bed.program, "wsbridge/cmd/wsbridge").CombinedOutput(); err != nil {
		b.Fatalf("go build: %v\n%s", err, out)
	}
	backend := part(b, "backend")
	b.Cleanup(backend.stop)
	bed.backend = backend.address
	return bed
}

// start starts a server of that kind: wsbridge, nchan or gorilla.
func (bed *bed) start(b *testing.B, kind string) *server {
	b.Helper()
	switch kind {
	case "nchan":
		dir, address := b.TempDir(), freeAddress(b)
		conf := filepath.Join(dir, "nginx.conf")
		if err := os.WriteFile(conf, fmt.Appendf(nil, nginxConf, runtime.NumCPU(), dir, bed.backend, address), 0o600); err != nil {
			b.Fatal(err)
		}
		nginx, err := exec.LookPath("nginx")
		if err != nil {
			nginx = "/usr/sbin/nginx"
		}
		return launch(b, kind, address, address, nil, nginx, "-c", conf)
	case "gorilla":
		return part(b, kind)
	}
	address, push := freeAddress(b), freeAddress(b)
	return launch(b, kind, address, push, []string{"WSBRIDGE_LISTEN=" + address, "WSBRIDGE_PUSH_LISTEN=" + push, "WSBRIDGE_BACKEND_URL=http://" + bed.backend + "/",
		"WSBRIDGE_MAX_CONNECTIONS=19900", "WSBRIDGE_LOG_LEVEL=error"}, bed.program)
}

// part starts one that is this binary.
func part(b *testing.B, name string) *server {
	b.Helper()
	address := freeAddress(b)
	return launch(b, name, address, "", []string{role + "=" + name}, os.Args[0], address)
}

// launch starts a program, and returns when it listens.
func launch(b *testing.B, kind, address, push string, env []string, name string, args ...string) *server {
	b.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	s := &server{kind, push, address, cmd.Process}
	for until := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
			return s
		}
		if time.Now().After(until) {
			s.stop()
			b.Fatalf("%s does not listen on %s: %v", name, address, err)
		}
	}
}

// stop kills it, with all its processes.
func (s *server) stop() {
	syscall.Kill(-s.process.Pid, syscall.SIGKILL)
	s.process.Wait()
}

// url is where the client with that number connects, to talk.
func (s *server) url(i int) string { return "ws://" + s.address + "/ws/" + strconv.Itoa(i) }

// group is where a client connects to hear what is pushed to the group "all".
func (s *server) group(int) string {
	if s.kind == "nchan" {
		return "ws://" + s.address + "/group/all"
	}
	return "ws://" + s.address + "/ws?group=all"
}

// one is where a client connects to hear what is pushed to it alone.
func (s *server) one(i int) string {
	if s.kind == "nchan" {
		return "ws://" + s.address + "/one/" + strconv.Itoa(i)
	}
	return "ws://" + s.address + "/ws?id"
}

// processes calls with the directory in /proc and the fields of stat behind the name (state, parent, process group, …) of each of the server's processes.
func (s *server) processes(each func(dir string, fields []string)) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		text, err := os.ReadFile(dir + "/stat")
		if err != nil {
			continue // it has ended
		}
		// The name in parentheses may have anything in it.
		if fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:])); fields[2] == strconv.Itoa(s.process.Pid) {
			each(dir, fields)
		}
	}
}

// cpu returns the user and system time of the server's processes until now. The kernel counts it in hundredths of a second.
func (s *server) cpu(b *testing.B) time.Duration {
	b.Helper()
	ticks := 0
	s.processes(func(_ string, fields []string) {
		for _, field := range fields[11:13] {
			n, err := strconv.Atoi(field)
			if err != nil {
				b.Fatal(err)
			}
			ticks += n
		}
	})
	return time.Duration(ticks) * 10 * time.Millisecond
}

// memory returns how much of the machine's memory is the server's, in bytes. What its processes share counts once.
func (s *server) memory(b *testing.B) (sum int64) {
	b.Helper()
	s.processes(func(dir string, _ []string) {
		text, err := os.ReadFile(dir + "/smaps_rollup")
		if err != nil {
			b.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(text), "\nPss:")
		var kib int64
		if _, err := fmt.Sscan(rest, &kib); err != nil {
			b.Fatalf("%s/smaps_rollup: %v", dir, err)
		}
		sum += kib << 10
	})
	return sum
}

// freeAddress returns a loopback address where nobody listens.
func freeAddress(b *testing.B) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
