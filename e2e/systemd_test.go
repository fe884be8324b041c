package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// machine is a systemd that was booted for a test: a container whose /usr is this machine's, read-only, and whose everything else is
// empty and in memory.
type machine struct {
	init    string // the process id of its systemd
	nsenter string
}

var booted atomic.Int32 // machines of this process

// boot boots a machine.
func boot(t *testing.T) machine {
	t.Helper()
	nspawn, nsenter := tool(t, "systemd-nspawn", "systemd-container"), tool(t, "nsenter", "util-linux")
	tool(t, "/lib/systemd/systemd", "systemd")
	if os.Geteuid() != 0 {
		t.Fatal("this test boots a systemd in a container, which takes root: run it as root")
	}
	name := fmt.Sprintf("wsbridge-e2e-%d-%d", os.Getpid(), booted.Add(1))
	dir := tempDir(t)
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: filepath.Join(dir, "notify")})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	// Told to kill it, systemd-nspawn cannot remove this directory where /run is on a disk.
	t.Cleanup(func() { os.Remove("/run/systemd/nspawn/propagate/" + name) })
	// Control groups of its own: systemd-nspawn leaves those that it makes where it found itself.
	groups := controlGroups(t, name)
	args := []string{"-c", `n=$1; shift; while [ "$n" -gt 0 ]; do echo $$ >"$1/cgroup.procs" || exit; shift; n=$((n-1)); done; exec "$@"`, "sh", strconv.Itoa(len(groups))}
	args = append(args, groups...)
	args = append(args, nspawn, "-D", "/", "--volatile=yes", "--register=no", "--keep-unit", "--private-network", "-M", name,
		"--tmpfs=/usr/local/bin", // where the program goes
		"--kill-signal=SIGKILL",  // nobody misses it
		"--notify-ready=yes",     // tells when it has booted
		"--console=pipe", "-b",   // the rest is for its systemd
		"systemd.firstboot=off", "systemd.mask=systemd-firstboot.service", "systemd.unit=basic.target", "systemd.show_status=no")
	nspawned := start(t, []string{"NOTIFY_SOCKET=" + notify.LocalAddr().String()}, "/bin/sh", args...)

	notify.SetReadDeadline(time.Now().Add(patience))
	go func() {
		<-nspawned.end
		notify.SetReadDeadline(time.Now()) // nothing more to wait for
	}()
	m := machine{nsenter: nsenter}
	message := make([]byte, 4096)
	for ready := false; !ready; {
		n, err := notify.Read(message)
		if err != nil {
			t.Fatalf("systemd-nspawn does not boot a container here: %v\n%s", err, &nspawned.out)
		}
		for line := range strings.Lines(string(message[:n])) {
			line = strings.TrimSpace(line)
			if pid, ok := strings.CutPrefix(line, "X_NSPAWN_LEADER_PID="); ok {
				m.init = pid
			}
			ready = ready || line == "READY=1"
		}
	}
	if m.init == "" {
		t.Fatal("systemd-nspawn does not say which process the container's systemd is")
	}
	return m
}

// controlGroups makes a group for systemd in each hierarchy that it uses, and returns their directories, which are removed in the end.
func controlGroups(t *testing.T, name string) []string {
	t.Helper()
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	var groups []string
	for line := range strings.Lines(string(own)) {
		// 0::/path is the one of version 2, 9:name=systemd:/path that of version 1.
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		for mount := range strings.Lines(string(mounts)) {
			at := strings.Fields(mount)
			unified := at[2] == "cgroup2" && fields[0] == "0"
			legacy := at[2] == "cgroup" && fields[1] == "name=systemd" && strings.Contains(at[3], "name=systemd")
			if !unified && !legacy {
				continue
			}
			group := filepath.Join(at[1], fields[2], name)
			if err := os.Mkdir(group, 0o755); err != nil {
				t.Fatal(err)
			}
			groups = append(groups, group)
			t.Cleanup(func() { removeGroups(t, group) })
			break
		}
	}
	return groups
}

// removeGroups removes a group and those below it, the deepest first.
func removeGroups(t *testing.T, top string) {
	var groups []string
	filepath.WalkDir(top, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			groups = append(groups, path)
		}
		return nil
	})
	for _, group := range slices.Backward(groups) {
		if err := os.Remove(group); err != nil {
			t.Errorf("left behind: %v", err)
		}
	}
}

// run runs a shell script on the machine and returns what it wrote, and its exit code.
func (m machine) run(t *testing.T, stdin io.Reader, script string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := m.command(ctx, script)
	cmd.Stdin = stdin
	out, err := cmd.CombinedOutput()
	if _, failed := errors.AsType[*exec.ExitError](err); err != nil && !failed || ctx.Err() != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

func (m machine) command(ctx context.Context, script string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, m.nsenter, "-t", m.init, "-a", "--", "/bin/sh", "-c", script)
	cmd.Env = []string{"PATH=/usr/local/bin:/usr/bin:/usr/sbin", "SYSTEMD_COLORS=0", "SYSTEMD_PAGER="}
	return cmd
}

// must runs a shell script that must succeed.
func (m machine) must(t *testing.T, script string) string {
	t.Helper()
	out, code := m.run(t, nil, script)
	if code != 0 {
		log, _ := m.run(t, nil, "journalctl --no-pager -o cat -u wsbridge")
		t.Fatalf("%s: exit code %d\n%s\nthe journal:\n%s", script, code, out, log)
	}
	return out
}

// install writes a file of the machine.
func (m machine) install(t *testing.T, path, mode string, content io.Reader) {
	t.Helper()
	if out, code := m.run(t, content, "cat >"+path+" && chmod "+mode+" "+path); code != 0 {
		t.Fatalf("%s: %s", path, out)
	}
}

// path returns where a file of the machine is seen from here. A unix socket works through it as well.
func (m machine) path(name string) string {
	return "/proc/" + m.init + "/root" + name
}

// settings writes the environment file.
func (m machine) settings(t *testing.T, lines ...string) {
	t.Helper()
	m.install(t, "/etc/wsbridge.env", "0600", strings.NewReader(strings.Join(lines, "\n")+"\n"))
}

// A real systemd runs the shipped unit with the shipped environment file behind the test's settings. The application is the test's, on a
// unix socket of the machine; the client comes over one of wsbridge's.
func TestTheUnitUnderARealSystemd(t *testing.T) {
	t.Parallel()
	m := boot(t)
	binary, err := os.Open(program(t))
	if err != nil {
		t.Fatal(err)
	}
	defer binary.Close()
	m.install(t, "/usr/local/bin/wsbridge", "0755", binary)
	unit, err := os.ReadFile("../systemd/wsbridge.service")
	if err != nil {
		t.Fatal(err)
	}
	m.install(t, "/etc/systemd/system/wsbridge.service", "0644", bytes.NewReader(unit))
	shipped, err := os.ReadFile("../systemd/wsbridge.env")
	if err != nil {
		t.Fatal(err)
	}

	b := &backend{events: make(chan event, 100)}
	startApplication := func(t *testing.T) *http.Server {
		listener, err := net.Listen("unix", m.path("/run/app.sock"))
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: b.handler(echo)}
		go server.Serve(listener)
		m.must(t, "chmod 0666 /run/app.sock")
		return server
	}
	application := startApplication(t)
	t.Cleanup(func() { application.Close() })
	good := []string{string(shipped), raceDetector, "WSBRIDGE_LOG_LEVEL=debug", "WSBRIDGE_DRAIN_TIMEOUT=5s",
		"WSBRIDGE_BACKEND_URL=http://unix:/run/app.sock:/events", "WSBRIDGE_LISTEN=unix:/run/wsbridge/ws.sock"}
	dialer := websocket.Dialer{NetDialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", m.path("/run/wsbridge/ws.sock"))
	}}

	t.Run("systemd finds nothing to complain of", func(t *testing.T) {
		out, code := m.run(t, nil, "systemd-analyze verify --man=no /etc/systemd/system/wsbridge.service")
		if code != 0 || out != "" {
			t.Errorf("verify: exit code %d\n%s", code, out)
		}
		out = m.must(t, "systemd-analyze security --offline=true --threshold=15 --no-pager /etc/systemd/system/wsbridge.service")
		lines := strings.Split(strings.TrimSpace(out), "\n")
		t.Log(lines[len(lines)-1])
	})

	t.Run("a fault in the settings fails the start for good and is told by systemctl status", func(t *testing.T) {
		m.settings(t, string(shipped), "WSBRIDGE_PING_INTERVAL=often", "WSBRIDGE_PONG_TIMEOT=20s")
		if out, code := m.run(t, nil, "systemctl start wsbridge"); code == 0 {
			t.Errorf("the start has succeeded: %s", out)
		}
		status, _ := m.run(t, nil, "systemctl status --no-pager --full wsbridge")
		for _, want := range []string{"WSBRIDGE_BACKEND_URL: must be set", `WSBRIDGE_PING_INTERVAL="often"`, "WSBRIDGE_PONG_TIMEOT: no such setting", "status=2", "Active: failed"} {
			if !strings.Contains(status, want) {
				t.Errorf("systemctl status lacks %q:\n%s", want, status)
			}
		}
		if got := m.must(t, "systemctl show -P NRestarts wsbridge"); got != "0\n" {
			t.Errorf("restarts = %s, want none", got)
		}
	})

	t.Run("started is when it is ready", func(t *testing.T) {
		m.settings(t, good...)
		m.must(t, "systemctl start wsbridge && curl -fsS http://127.0.0.1:8081/readyz")
	})

	t.Run("it has what it needs and no more", func(t *testing.T) {
		c := connect(t, dialer, "ws://example.org/ws", http.Header{"X-Forwarded-For": {"192.0.2.7"}})
		if e := b.expect(t, "connect"); e.path != "/events" || e.header.Get("X-Real-IP") != "192.0.2.7" {
			t.Errorf("connect event: %s from %s, want /events from 192.0.2.7", e.path, e.header.Get("X-Real-IP"))
		}
		c.isEchoed(t, b, "hello")
		c.leaves(t, 1000)
		b.expect(t, "disconnect")
		status := m.must(t, "cat /proc/$(systemctl show -P MainPID wsbridge)/status")
		for _, want := range []string{"CapEff:\t0000000000000000\n", "CapBnd:\t0000000000000000\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n"} {
			if !strings.Contains(status, want) {
				t.Errorf("the process lacks %q", want)
			}
		}
		if strings.Contains(status, "Uid:\t0\t") {
			t.Error("it runs as root")
		}
		want := strings.TrimSpace(m.must(t, "ulimit -n 65536 2>/dev/null; ulimit -Hn")) // less where this machine does not allow that
		limits := strings.Fields(m.must(t, "grep 'open files' /proc/$(systemctl show -P MainPID wsbridge)/limits"))
		if soft, hard := limits[3], limits[4]; hard != want || soft != hard {
			t.Errorf("descriptors = %s, at most %s; want %s for both", soft, hard, want)
		}
		if got := strings.Fields(m.must(t, "ss -Hltn 'sport = 8081'")); len(got) < 3 || got[2] != strconv.Itoa(number(t, "/proc/sys/net/core/somaxconn")) {
			t.Errorf("clients that may wait to be accepted: %q, want what the kernel allows", got)
		}
	})

	t.Run("its worker is killed, and its connections go on", func(t *testing.T) {
		c := connect(t, dialer, "ws://example.org/ws", nil)
		b.expect(t, "connect")
		c.isEchoed(t, b, "before")
		before := m.must(t, "systemctl show -P MainPID wsbridge")
		journal := m.follow(t)
		m.must(t, "kill -9 "+m.worker(t))
		c.isEchoed(t, b, "behind")
		journal.awaitLine(t, "msg=serving cause=crash")
		if after := m.must(t, "systemctl show -P MainPID wsbridge"); after != before {
			t.Errorf("the main process is another: %s, and was %s", after, before)
		}
		c.leaves(t, 1000)
		b.expect(t, "disconnect")
	})

	t.Run("reloaded, its connections go on", func(t *testing.T) {
		c := connect(t, dialer, "ws://example.org/ws", nil)
		b.expect(t, "connect")
		journal := m.follow(t)
		m.must(t, "systemctl reload wsbridge")
		journal.awaitLine(t, "msg=serving cause=reload")
		c.isEchoed(t, b, "behind")
		c.leaves(t, 1000)
		b.expect(t, "disconnect")
	})

	t.Run("its main process is killed again and again, and its connections go on", func(t *testing.T) {
		c := connect(t, dialer, "ws://example.org/ws", nil)
		b.expect(t, "connect")
		for i := range 3 {
			before := m.must(t, "systemctl show -P MainPID wsbridge")
			journal := m.follow(t)
			m.must(t, "kill -9 "+before)
			text := "behind " + strconv.Itoa(i)
			c.isEchoed(t, b, text)
			journal.awaitLine(t, "its worker goes on")
			if after := m.must(t, "systemctl show -P MainPID wsbridge"); after == before {
				t.Errorf("the main process is the same one: %s", after)
			}
			// systemd has removed the directory with the socket, and a worker opens it anew.
			journal.awaitLine(t, "msg=serving cause=reload")
			connect(t, dialer, "ws://example.org/ws", nil).leaves(t, 1000)
			b.expect(t, "connect")
			b.expect(t, "disconnect")
		}
		// What the last one holds is good for all the rest.
		journal := m.follow(t)
		m.must(t, "kill -9 "+m.worker(t))
		c.isEchoed(t, b, "by another worker")
		journal.awaitLine(t, "msg=serving cause=crash")
		m.must(t, "systemctl reload wsbridge")
		c.isEchoed(t, b, "reloaded")
		c.leaves(t, 1000)
		b.expect(t, "disconnect")
	})

	t.Run("main process and worker are killed, and the goodbyes are said", func(t *testing.T) {
		c := connect(t, dialer, "ws://example.org/ws", nil)
		b.expect(t, "connect")
		journal := m.follow(t)
		m.must(t, "systemctl kill -s KILL --kill-who=all wsbridge")
		if e := b.expect(t, "disconnect"); !strings.Contains(e.body, `"code":1006`) {
			t.Errorf("disconnect event: %s, want code 1006", e.body)
		}
		c.SetReadDeadline(time.Now().Add(patience))
		if _, _, err := c.ReadMessage(); err == nil || websocket.IsUnexpectedCloseError(err) && !websocket.IsCloseError(err, 1006) {
			t.Errorf("the client: %v, want a connection that broke off", err)
		}
		journal.awaitLine(t, "msg=serving cause=crash")
		connect(t, dialer, "ws://example.org/ws", nil).leaves(t, 1000)
		b.expect(t, "connect")
		b.expect(t, "disconnect")
	})

	t.Run("another version is installed, and the main process becomes one", func(t *testing.T) {
		c := connect(t, dialer, "ws://example.org/ws", nil)
		b.expect(t, "connect")
		before := m.must(t, "systemctl show -P MainPID wsbridge")
		journal := m.follow(t)
		m.must(t, "cp /usr/local/bin/wsbridge /usr/local/bin/.new && mv /usr/local/bin/.new /usr/local/bin/wsbridge && systemctl reload wsbridge")
		journal.awaitLine(t, "has gone over to the program on disk")
		if after := m.must(t, "systemctl show -P MainPID wsbridge"); after != before {
			t.Errorf("the main process is another: %s, and was %s", after, before)
		}
		if got := m.must(t, "readlink /proc/$(systemctl show -P MainPID wsbridge)/exe"); got != "/usr/local/bin/wsbridge\n" {
			t.Errorf("the main process runs %q", got)
		}
		first := m.worker(t)
		m.must(t, "kill -9 "+first)
		c.isEchoed(t, b, "behind a worker")
		// What a new main process needs is with systemd, which takes notes in order, when systemd has the status behind it. Until then the
		// main process can't be spared.
		for until := time.Now().Add(patience); m.worker(t) == first; {
			if time.Now().After(until) {
				t.Fatalf("systemd still calls %s the worker that serves", first)
			}
		}
		m.must(t, "kill -9 "+before)
		c.isEchoed(t, b, "behind a main process")
		journal.awaitLine(t, "its worker goes on")
		c.leaves(t, 1000)
		b.expect(t, "disconnect")
	})

	t.Run("its main process hangs, and its connections go on", func(t *testing.T) {
		m.must(t, "mkdir -p /run/systemd/system/wsbridge.service.d && printf '[Service]\nWatchdogSec=2s\n' >/run/systemd/system/wsbridge.service.d/test.conf && systemctl daemon-reload && systemctl restart wsbridge")
		c := connect(t, dialer, "ws://example.org/ws", nil)
		b.expect(t, "connect")
		journal := m.follow(t)
		m.must(t, "kill -STOP $(systemctl show -P MainPID wsbridge)")
		journal.awaitLine(t, "Watchdog timeout")
		journal.awaitLine(t, "its worker goes on")
		c.isEchoed(t, b, "behind")
		c.leaves(t, 1000)
		b.expect(t, "disconnect")
		m.must(t, "rm -r /run/systemd/system/wsbridge.service.d && systemctl daemon-reload && systemctl restart wsbridge")
	})

	t.Run("a stop drains", func(t *testing.T) {
		c := connect(t, dialer, "ws://example.org/ws", nil)
		b.expect(t, "connect")
		m.must(t, "systemctl stop --no-block wsbridge")
		c.ends(t, 1001)
		m.must(t, "systemctl stop wsbridge") // waits for the one before
		if e := b.expect(t, "disconnect"); !strings.Contains(e.body, `"code":1001`) {
			t.Errorf("disconnect event: %s, want code 1001", e.body)
		}
		if got := m.must(t, "systemctl show -P Result -P ExecMainStatus -P ActiveState wsbridge"); got != "success\n0\ninactive\n" {
			t.Errorf("end = %q, want success, 0, inactive", got)
		}
	})
	t.Run("a stop while the application is away keeps its goodbyes for the next start", func(t *testing.T) {
		m.must(t, "systemctl start wsbridge")
		c := connect(t, dialer, "ws://example.org/ws", nil)
		b.expect(t, "connect")
		application.Close()
		m.must(t, "systemctl stop wsbridge")
		c.ends(t, 1001)
		if got := m.must(t, "stat -c %a /var/lib/private/wsbridge /var/lib/private/wsbridge/goodbyes-*.ndjson"); got != "700\n600\n" {
			t.Errorf("modes of the directory and its file = %q, want 700 and 600", got)
		}
		application = startApplication(t)
		m.must(t, "systemctl start wsbridge")
		if e := b.expect(t, "disconnect"); !strings.Contains(e.body, `"code":1001`) {
			t.Errorf("disconnect event: %s, want code 1001", e.body)
		}
		m.must(t, "systemctl stop wsbridge")
	})

	t.Run("systemd's sockets wait for it, and restarts refuse nobody", func(t *testing.T) {
		for _, name := range []string{"wsbridge.socket", "wsbridge@.service"} {
			text, err := os.ReadFile("../systemd/" + name)
			if err != nil {
				t.Fatal(err)
			}
			// A port that takes a privilege.
			m.install(t, "/etc/systemd/system/"+name, "0644", strings.NewReader(strings.ReplaceAll(string(text), "127.0.0.1:8080", "127.0.0.1:80")))
		}
		m.settings(t, string(shipped), raceDetector, "WSBRIDGE_BACKEND_URL=http://unix:/run/app.sock:/events", "WSBRIDGE_DRAIN_TIMEOUT=5s", "WSBRIDGE_LISTEN=127.0.0.1:80", "WSBRIDGE_PUSH_LISTEN=unix:/run/wsbridge-push.sock")
		if out := m.must(t, "systemctl daemon-reload && systemd-analyze verify --man=no /etc/systemd/system/wsbridge.socket /etc/systemd/system/wsbridge@x.service"); out != "" {
			t.Errorf("verify: %s", out)
		}
		m.must(t, "systemctl start wsbridge.socket wsbridge.service")
		if got := m.must(t, "stat -c '%a %G' /run/wsbridge-push.sock"); got != "660 www-data\n" {
			t.Errorf("the push socket is %q", got)
		}
		// Clients come all the while, one behind the other.
		visit := "curl -sS -o /dev/null -w '%{http_code}\n' http://127.0.0.1/ws"
		out := m.must(t, "(for i in $(seq 60); do "+visit+"; done) >/run/visits 2>&1 & for i in 1 2 3; do systemctl restart wsbridge; kill -9 $(systemctl show -P MainPID wsbridge); systemctl reload wsbridge 2>/dev/null || sleep 0.5; done; wait; sort /run/visits | uniq -c")
		if fields := strings.Fields(out); len(fields) != 2 || fields[1] != "426" {
			t.Errorf("60 visitors: %s", out)
		}
		ask := "setpriv --reuid=www-data --regid=www-data --clear-groups curl -sS -o /dev/null -w '%{http_code}' --unix-socket /run/wsbridge-push.sock http://localhost/"
		if got := m.must(t, ask+"connections"); got != "200" {
			t.Errorf("the application at the push socket: %s", got)
		}
		m.must(t, "systemctl stop wsbridge.socket wsbridge.service && rm /etc/systemd/system/wsbridge.socket /run/visits")

		// Another instance, whose settings and directories are its own.
		m.must(t, "mkdir -m 0700 -p /etc/wsbridge")
		m.install(t, "/etc/wsbridge/x.env", "0600", strings.NewReader("WSBRIDGE_BACKEND_URL=http://unix:/run/app.sock:/events\nWSBRIDGE_LISTEN=unix:/run/wsbridge-x/ws.sock\nWSBRIDGE_PUSH_LISTEN=127.0.0.1:8091\n"))
		m.must(t, "systemctl daemon-reload && systemctl start wsbridge@x && curl -fsS http://127.0.0.1:8091/readyz && test -d /var/lib/private/wsbridge-x && systemctl reload wsbridge@x && systemctl stop wsbridge@x && rm -r /etc/wsbridge")
		m.settings(t, good...)
	})

	t.Run("the journal knows how grave a line is, whichever process has written it", func(t *testing.T) {
		m.must(t, "systemctl start wsbridge && systemctl reload wsbridge")
		journal := m.follow(t)
		m.must(t, "kill -9 "+m.worker(t))
		journal.awaitLine(t, "msg=serving cause=crash")
		for priority, want := range map[string][]string{
			"err":  {"level=ERROR", "the worker has died: another takes over"},
			"info": {"level=INFO", "msg=serving cause=reload"},
		} {
			out := m.must(t, "journalctl --no-pager -o cat -u wsbridge -p "+priority+".."+priority+" _COMM=wsbridge")
			if !strings.Contains(out, want[1]) {
				t.Errorf("of priority %s the journal has no %q:\n%s", priority, want[1], out)
			}
			for line := range strings.Lines(out) {
				if !strings.Contains(line, want[0]) && strings.Contains(line, "level=") {
					t.Errorf("of priority %s the journal has %s", priority, line)
				}
			}
		}
		if out := m.must(t, "journalctl --no-pager -o cat -u wsbridge | grep '^<' || true"); out != "" {
			t.Errorf("lines whose priority was not taken:\n%s", out)
		}
		m.must(t, "systemctl stop wsbridge")
	})

	t.Run("its lines for nginx's group and for secret files work", func(t *testing.T) {
		on := strings.NewReplacer("\n#Group=", "\nGroup=", "\n#LoadCredential=", "\nLoadCredential=", "\n#Environment=", "\nEnvironment=").Replace(string(unit))
		m.install(t, "/etc/systemd/system/wsbridge.service", "0644", strings.NewReader(on))
		m.must(t, "mkdir -m 0700 /etc/wsbridge")
		m.install(t, "/etc/wsbridge/push-token", "0600", strings.NewReader("of-the-test\n"))
		m.must(t, "systemctl daemon-reload && systemctl start wsbridge")
		ask := "setpriv --reuid=www-data --regid=www-data --clear-groups curl -sS -o /dev/null -w '%{http_code}' "
		if got := m.must(t, ask+"--unix-socket /run/wsbridge/ws.sock http://localhost/ws"); got != "426" {
			t.Errorf("nginx's user at the socket for clients: %s, want 426", got)
		}
		for token, want := range map[string]string{"of-the-test": "200", "another": "401"} {
			if got := m.must(t, ask+"-H 'Authorization: Bearer "+token+"' http://127.0.0.1:8081/connections"); got != want {
				t.Errorf("a push request with the token %q: %s, want %s", token, got, want)
			}
		}
		m.must(t, "systemctl stop wsbridge")
	})
	// All of those that did so have gone by themselves.
	if out, _ := m.run(t, nil, "journalctl --no-pager -o cat -u wsbridge | grep 'died while it handed over'"); out != "" {
		t.Errorf("the journal says %s", out)
	}
	if t.Failed() {
		log, _ := m.run(t, nil, "journalctl --no-pager -o cat -u wsbridge")
		t.Logf("the journal:\n%s", log)
	}
}

// worker returns the process id of the worker that serves.
func (m machine) worker(t *testing.T) string {
	t.Helper()
	status := strings.Fields(m.must(t, "systemctl show -P StatusText wsbridge"))
	if len(status) != 3 || status[0] != "worker" || status[2] != "serves" {
		t.Fatalf("the unit's status is %q, want that of a worker which serves", status)
	}
	return status[1]
}

// follow returns what the unit's journal says from now on, however long it takes until it is read.
func (m machine) follow(t *testing.T) *process {
	t.Helper()
	last := m.must(t, "journalctl --no-pager -q -o cat -n 1 --show-cursor")
	_, cursor, found := strings.Cut(last, "-- cursor: ")
	if !found {
		t.Fatalf("the journal has no cursor: %s", last)
	}
	cmd := m.command(t.Context(), "exec journalctl --no-pager -o cat --no-tail -fu wsbridge --after-cursor='"+strings.TrimSpace(cursor)+"'")
	return start(t, cmd.Env, cmd.Path, cmd.Args[1:]...)
}

// number reads a number that the kernel tells.
func number(t *testing.T, path string) int {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}
