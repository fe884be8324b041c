package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"
)

// backendServer is a real server that runs one of the examples.
type backendServer struct {
	name  string
	turns int // WSBRIDGE_BACKEND_MAX_CONCURRENT: fewer than the workers where there are any
	start func(t *testing.T, d deployment) (url string)
}

// backendServers are those that Debian has. Where idle connections are kept there may be many of them, each of which is another chance to
// meet its close.
var backendServers = []backendServer{
	{"php -S", 3, startPHPServer},
	{"PHP-FPM behind nginx", 15, startPHPFPM},
	{"gunicorn with Django", 3, startDjango},
	{"gunicorn with Flask in threads", 15, startFlask},
	{"Node", 64, startNode},
	{"Puma", 15, startPuma},
	{"Starman", 15, startStarman},
	{"Tomcat", 64, startTomcat},
}

// deployment is how an example is to be run.
type deployment struct {
	secret, pushes string // what it is told as SECRET and PUSH_URL
	record         string // the file that has a line for each event that reached it; empty: it runs as it stands
	keepAlive      int    // how long the server keeps an idle connection, in seconds, if it keeps any; 0: its own default
}

func (d deployment) environ(more ...string) []string {
	return append(more, "SECRET="+d.secret, "PUSH_URL=http://"+d.pushes, "RECORD="+d.record)
}

// library makes sure that a file is there, which a Debian package has.
func library(t *testing.T, pattern, debianPackage string) {
	t.Helper()
	if found, _ := filepath.Glob(pattern); len(found) == 0 {
		t.Fatalf("this test needs %s: run apt-get install %s", pattern, debianPackage)
	}
}

// absolute returns a path of this folder for a program that runs in another.
func absolute(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// publicDir returns a directory for files that a server reads which is not root.
func publicDir(t *testing.T) string {
	t.Helper()
	dir := tempDir(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
		t.Fatal(err)
	}
}

var loopback = regexp.MustCompile(`127\.0\.0\.1:[0-9]+`)

// listensAt returns the address in the line with which a server says that it listens.
func (p *process) listensAt(t *testing.T, words ...string) string {
	t.Helper()
	return loopback.FindString(p.awaitLine(t, words...))
}

func startPHPServer(t *testing.T, d deployment) string {
	args := []string{"-S", "127.0.0.1:0", "-t", "../examples/php"}
	if d.record != "" {
		args = append(args, "-d", "auto_prepend_file="+absolute(t, "testdata/record/record.php"))
	}
	php := start(t, d.environ("PHP_CLI_SERVER_WORKERS=4"), tool(t, "php", "php-cli"), args...)
	return "http://" + php.listensAt(t, "Development Server") + "/chat.php"
}

func startPHPFPM(t *testing.T, d deployment) string {
	dir := publicDir(t)
	config := "[global]\nerror_log=/dev/stderr\ndaemonize=no\n[www]\nlisten=" + dir + "/fpm.sock\nlisten.mode=0666\nuser=www-data\nclear_env=no\n" +
		"pm=static\npm.max_children=16\n"
	if d.record != "" {
		config += "php_value[auto_prepend_file]=" + dir + "/record.php\n"
	}
	write(t, filepath.Join(dir, "fpm.conf"), config)
	for name, script := range map[string]string{"realtime.php": "../examples/php/chat.php", "record.php": "testdata/record/record.php"} {
		content, err := os.ReadFile(script)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, name), string(content))
	}
	start(t, d.environ(), phpFPM(t), "-F", "-y", filepath.Join(dir, "fpm.conf")).awaitLine(t, "ready to handle connections")

	changes := []string{"/var/www/html", dir, "unix:/run/php/php-fpm.sock", "unix:" + dir + "/fpm.sock"}
	if d.keepAlive != 0 {
		changes = append(changes, "    access_log off;", fmt.Sprintf("    access_log off;\n    keepalive_timeout %ds;", d.keepAlive))
	}
	return "http://" + startNginxWith(t, "wsbridge-php.conf", changes...).private + "/realtime.php"
}

func startDjango(t *testing.T, d deployment) string {
	library(t, "/usr/lib/python3/dist-packages/django", "python3-django")
	return startGunicorn(t, d, "../examples/django", "chat:application", "--workers", "4")
}

func startFlask(t *testing.T, d deployment) string {
	library(t, "/usr/lib/python3/dist-packages/flask", "python3-flask")
	return startGunicorn(t, d, "../examples/flask", "app:app", "--worker-class", "gthread", "--workers", "2", "--threads", "8")
}

func startGunicorn(t *testing.T, d deployment, folder, app string, args ...string) string {
	t.Helper()
	paths := absolute(t, folder)
	env := []string{"PYTHONDONTWRITEBYTECODE=1"}
	if d.record != "" {
		paths += "," + absolute(t, "testdata/record")
		env, app = append(env, "APP="+app), "record:application"
	}
	if d.keepAlive != 0 {
		args = append(args, "--keep-alive", fmt.Sprint(d.keepAlive))
	}
	// Workers that load the application by themselves don't hear a SIGTERM meanwhile.
	args = append(args, "--preload", "--bind", "127.0.0.1:0", "--pythonpath", paths, app)
	gunicorn := start(t, d.environ(env...), tool(t, "/usr/bin/gunicorn", "gunicorn"), args...) // Debian's own, whatever else is in the PATH
	t.Cleanup(func() {
		select {
		case <-gunicorn.end:
		default: // the master alone, since workers that are told by it as well as by the harness make it stumble over its own log
			gunicorn.signal(t, syscall.SIGTERM)
			gunicorn.exits(t, 0)
		}
	})
	return "http://" + gunicorn.listensAt(t, "Listening at") + "/realtime"
}

func startNode(t *testing.T, d deployment) string {
	env, args := d.environ("PORT=0"), []string{"../examples/node/server.js"}
	if d.record != "" {
		args = append([]string{"--require", "./testdata/record/record.js"}, args...)
	}
	if d.keepAlive != 0 {
		env = append(env, fmt.Sprintf("KEEP_ALIVE=%d000", d.keepAlive))
	}
	return "http://" + start(t, env, tool(t, "node", "nodejs"), args...).listensAt(t, "listening on") + "/realtime"
}

func startPuma(t *testing.T, d deployment) string {
	library(t, "/usr/share/rubygems-integration/*/specifications/rack-[0-9]*.gemspec", "ruby-rack")
	app, env := absolute(t, "../examples/ruby/config.ru"), []string{"RACK_ENV=production"}
	if d.record != "" {
		env, app = append(env, "APP="+app), absolute(t, "testdata/record/record.ru")
	}
	config := "bind 'tcp://127.0.0.1:0'\nthreads 16, 16\n"
	if d.keepAlive != 0 {
		config += fmt.Sprintf("persistent_timeout %d\n", d.keepAlive)
	}
	file := filepath.Join(tempDir(t), "puma.rb")
	write(t, file, config)
	return "http://" + start(t, d.environ(env...), tool(t, "puma", "puma"), "--config", file, app).listensAt(t, "Listening on") + "/realtime"
}

func startStarman(t *testing.T, d deployment) string {
	app, env := absolute(t, "../examples/perl/app.psgi"), []string{}
	args := []string{"--preload-app", "--workers", "16", "--listen", "127.0.0.1:" + freePort(t)}
	args = append(args, "--env", "development", "--no-default-middleware") // it says nothing of being ready otherwise
	if d.record != "" {
		env, app = append(env, "APP="+app), absolute(t, "testdata/record/record.psgi")
	}
	if d.keepAlive != 0 {
		args = append(args, "--keepalive-timeout", fmt.Sprint(d.keepAlive))
	}
	starman := start(t, d.environ(env...), tool(t, "starman", "starman"), append(args, app)...)
	return "http://" + starman.listensAt(t, "Accepting connections") + "/realtime"
}

func startTomcat(t *testing.T, d deployment) string {
	const home = "/usr/share/tomcat10"
	library(t, home+"/bin/catalina.sh", "tomcat10-common")
	base, port, limit := tempDir(t), freePort(t), ""
	if d.keepAlive != 0 {
		limit = fmt.Sprintf(`keepAliveTimeout="%d000"`, d.keepAlive)
	}
	write(t, filepath.Join(base, "conf/server.xml"), `<Server port="-1"><Service name="Catalina">
		<Connector address="127.0.0.1" port="`+port+`" connectionTimeout="20000" `+limit+`/>
		<Engine name="Catalina" defaultHost="localhost"><Host name="localhost" appBase="webapps"/></Engine>
	</Service></Server>`)
	classes := filepath.Join(base, "webapps/ROOT/WEB-INF/classes")
	args := []string{"-cp", home + "/lib/servlet-api.jar", "-d", classes, "../examples/java/Chat.java"}
	if d.record != "" {
		args = append(args, "testdata/record/Record.java")
	}
	if out, err := exec.Command(tool(t, "javac", "default-jdk-headless"), args...).CombinedOutput(); err != nil {
		t.Fatalf("javac: %v\n%s", err, out)
	}
	env := d.environ("CATALINA_HOME="+home, "CATALINA_BASE="+base, "CATALINA_TMPDIR="+base,
		"CATALINA_OPTS=-Xmx128m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Dtomcat.util.scan.StandardJarScanFilter.jarsToSkip=*") // it starts in half the time
	start(t, env, home+"/bin/catalina.sh", "run").awaitLine(t, "Server startup in")
	return "http://127.0.0.1:" + port + "/realtime"
}

// idleLimit measures how long a server really keeps an idle connection: some look at their clocks once a second only. 0 is a server that
// keeps none.
func idleLimit(t *testing.T, target string) time.Duration {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", u.Path)
	reader := bufio.NewReader(conn)
	answer, err := http.ReadResponse(reader, &http.Request{Method: "POST"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		t.Fatal(err)
	}
	if answer.Close {
		return 0
	}
	idle := time.Now()
	if rest, err := io.ReadAll(reader); err != nil || len(rest) > 0 {
		t.Fatalf("an idle connection ends with %v %q, want its close", err, rest)
	}
	return time.Since(idle)
}
