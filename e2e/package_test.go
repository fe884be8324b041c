package e2e

import (
	"context"
	"debug/elf"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/gorilla/websocket"
)

var packaging sync.Mutex // held while a package is made: all go through the same directory

// makePackage makes the Debian package under a version, and returns it.
func makePackage(t *testing.T, architecture, version string) []byte {
	t.Helper()
	packaging.Lock()
	defer packaging.Unlock()
	cmd := exec.Command(tool(t, "make", "make"), "-C", "..", "deb", "DEB_VERSION="+version, "DEB_ARCH="+architecture)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make deb: %v\n%s", err, out)
	}
	file := "../dist/wsbridge_" + version + "_" + architecture + ".deb"
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(file)
	return data
}

// Each package has one static program, for its architecture.
func TestPackagesForBothArchitectures(t *testing.T) {
	t.Parallel()
	for architecture, want := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		path := filepath.Join(tempDir(t), "wsbridge.deb")
		if err := os.WriteFile(path, makePackage(t, architecture, "2.0"), 0o644); err != nil {
			t.Fatal(err)
		}
		dir := tempDir(t)
		for _, args := range [][]string{{"-f", path, "Architecture"}, {"-x", path, dir}} {
			out, err := exec.Command(tool(t, "dpkg-deb", "dpkg"), args...).CombinedOutput()
			if err != nil || args[0] == "-f" && strings.TrimSpace(string(out)) != architecture {
				t.Fatalf("dpkg-deb %s: %v %s", args, err, out)
			}
		}
		program, err := elf.Open(filepath.Join(dir, "usr/bin/wsbridge"))
		if err != nil {
			t.Fatal(err)
		}
		defer program.Close()
		if program.Machine != want {
			t.Errorf("%s: the program is one for %s", architecture, program.Machine)
		}
		if program.Section(".interp") != nil {
			t.Errorf("%s: the program is not static", architecture)
		}
	}
}

// The shell completes the commands that there are.
func TestTheShellCompletesEachCommand(t *testing.T) {
	t.Parallel()
	usage, stderr, code := runOnce(t, nil, "help")
	if code != 0 {
		t.Fatal(stderr)
	}
	var commands []string
	for line := range strings.Lines(usage) {
		if name, _, found := strings.Cut(strings.TrimPrefix(line, "  "), " "); found && strings.HasPrefix(line, "  ") && name != "(none)" && name != "" {
			commands = append(commands, name)
		}
	}
	script := `. ../packaging/wsbridge.bash; compgen -W "$(complete -p wsbridge | sed "s/.*-W '\(.*\)' .*/\1/")"`
	out, err := exec.Command(tool(t, "bash", "bash"), "-c", script).CombinedOutput()
	if err != nil || len(commands) < 5 || !slices.Equal(strings.Fields(string(out)), commands) {
		t.Errorf("completed are %q (%v), commands are %q", out, err, commands)
	}
}

// writableUsr lets dpkg write to the machine's /usr, which is this one's: what it writes is thrown away with the machine.
func (m machine) writableUsr(t *testing.T) {
	t.Helper()
	m.must(t, "mkdir -p /run/upper /run/work && mount -t overlay overlay -o lowerdir=/usr,upperdir=/run/upper,workdir=/run/work /usr")
}

// A real dpkg installs, upgrades, removes and purges the package on a machine with a real systemd.
func TestTheDebianPackage(t *testing.T) {
	t.Parallel()
	first, again, second := makePackage(t, runtime.GOARCH, "1.0"), makePackage(t, runtime.GOARCH, "1.0"), makePackage(t, runtime.GOARCH, "1.1")
	if string(first) != string(again) {
		t.Error("the same package, made twice, is not the same")
	}
	m := boot(t)
	m.writableUsr(t)
	m.must(t, "mkdir -p /var/lib/dpkg/info /var/lib/dpkg/updates /var/lib/dpkg/triggers && touch /var/lib/dpkg/status")
	m.install(t, "/run/first.deb", "0644", strings.NewReader(string(first)))
	m.install(t, "/run/second.deb", "0644", strings.NewReader(string(second)))
	b := &backend{events: make(chan event, 100)}
	listener, err := net.Listen("unix", m.path("/run/app.sock"))
	if err != nil {
		t.Fatal(err)
	}
	application := &http.Server{Handler: b.handler(echo)}
	go application.Serve(listener)
	t.Cleanup(func() { application.Close() })
	m.must(t, "chmod 0666 /run/app.sock")
	dialer := websocket.Dialer{NetDialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", m.path("/run/wsbridge/ws.sock"))
	}}

	m.must(t, "dpkg -i /run/first.deb")
	if got := m.must(t, "systemctl is-active wsbridge || true; systemd-analyze verify --man=no wsbridge.service wsbridge.socket; stat -c %a /etc/wsbridge.env; wsbridge version | cut -d' ' -f1; man -w wsbridge >/dev/null 2>&1; zcat /usr/share/man/man1/wsbridge.1.gz | head -c 3"); got != "inactive\n600\nwsbridge\n.TH" {
		t.Errorf("installed: %q", got)
	}
	m.must(t, "printf 'WSBRIDGE_BACKEND_URL=http://unix:/run/app.sock:/events\\nWSBRIDGE_LISTEN=unix:/run/wsbridge/ws.sock\\nWSBRIDGE_DRAIN_TIMEOUT=5s\\n' >>/etc/wsbridge.env && systemctl enable --now wsbridge && curl -fsS http://127.0.0.1:8081/readyz")
	c := connect(t, dialer, "ws://example.org/ws", nil)
	b.expect(t, "connect")

	// An upgrade: the client stays, and so do the settings.
	journal := m.follow(t)
	out := m.must(t, "dpkg -i /run/second.deb && dpkg-query -W -f '${Version}' wsbridge && grep -c ^WSBRIDGE_LISTEN= /etc/wsbridge.env")
	if !strings.HasSuffix(out, "1.11\n") {
		t.Errorf("upgraded: %s", out)
	}
	journal.awaitLine(t, "msg=serving cause=reload")
	c.isEchoed(t, b, "behind")

	// One that can't start with the settings there are leaves the version before serving.
	m.must(t, "cp /etc/wsbridge.env /run/good.env && echo WSBRIDGE_PING_INTERVAL=often >>/etc/wsbridge.env")
	if out := m.must(t, "dpkg -i /run/first.deb 2>&1"); !strings.Contains(out, "goes on as the version before") {
		t.Errorf("installed with a fault in the settings: %s", out)
	}
	c.isEchoed(t, b, "still here")
	m.must(t, "cp /run/good.env /etc/wsbridge.env")

	m.must(t, "systemctl stop --no-block wsbridge")
	c.ends(t, 1001)
	b.expect(t, "disconnect")
	m.must(t, "systemctl start wsbridge && dpkg -r wsbridge")
	if got := m.must(t, "systemctl is-active wsbridge || true; ls /etc/wsbridge.env /usr/bin/wsbridge 2>/dev/null || true; test -d /var/lib/private/wsbridge && echo kept"); got != "inactive\n/etc/wsbridge.env\nkept\n" {
		t.Errorf("removed: %q", got)
	}
	m.must(t, "dpkg -P wsbridge")
	if got := m.must(t, "find /etc /usr/bin /usr/lib/systemd /usr/share/doc /usr/share/man /var/lib -name '*wsbridge*' -not -path '/var/lib/dpkg/*'"); got != "" {
		t.Errorf("left behind by a purge: %q", got)
	}
}
